"""The gateway's own file, gateway.toml: what is true of this machine, and what no twin can change.

Devices, folders, keys and programs are named here and nowhere else. What a twin may set (`protocol.site`) refers to
them by name, and is laid over the values here while it is in force.
"""

import tomllib
from pathlib import Path
from typing import Annotated

import msgspec

from targets.runtime.errors import HighwallError
from twin_client.outbox import Limits
from twin_client.pairing import Tag
from twin_client.protocol.motion import Settings as Motion
from twin_client.protocol.orders import Name
from twin_client.protocol.place import Settings as Place
from twin_client.protocol.site import Destination, Dialect, Host, Site, faults
from twin_client.protocol.site import Port as SitePort
from twin_client.services.configuration import Local, Trial
from twin_client.services.download import Link
from twin_client.services.journal import Memory
from twin_client.services.models import Probation
from twin_client.services.registration import Pace
from twin_client.services.update import Shadow
from twin_client.sources.camera import CommandSettings
from twin_client.sources.folder import FolderSettings
from twin_client.sources.port import PortSettings
from twin_client.sources.serial import SerialSettings
from twin_client.uplink import Settings as Uplink
from twin_client.watch import Judging, WatchSettings

_MOST_BYTES = 1_048_576  # of gateway.toml; a long one has a few thousand

Camera = CommandSettings | FolderSettings
File = Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]


class Services(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits of the three services and the model update; units stand with each."""

    asking: Pace = Pace()
    trial: Trial = Trial()
    memory: Memory = Memory()
    link: Link = Link()
    shadow: Shadow = Shadow()
    probation: Probation = Probation()


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of gateway.toml; a section for every room that has something to set."""

    gateway: Name
    folder: File = "/var/lib/highwall"  # where the agent keeps what it must not lose
    status: str = ""  # the file that `highwall gateway status` reads; empty: in the folder, or in systemd's own
    destination: Destination | None = None  # None: the host that enrolled this gateway
    hosts: tuple[Host, ...] = ()  # where a twin may have data sent; none: to any host that the CA certified
    dialects: tuple[Dialect, ...] = ("highwall", "thingsboard")
    tags: dict[Name, Tag] = {}  # paired from the start, by barcode
    serial: SerialSettings = SerialSettings()
    cameras: tuple[CommandSettings, ...] = ()  # that a command takes images with
    folders: tuple[FolderSettings, ...] = ()  # that others put images in
    model: str = ""  # the artifact that runs until a twin sends another; empty: none
    trust: File = "trust.toml"  # whose models may run: a .pub or trust file
    watch: WatchSettings = WatchSettings()
    judging: Judging = Judging()
    joined: dict[Name, Name] = {}  # of a camera whose model takes sensor features: the tag that has them
    outbox: Limits = Limits()
    uplink: Uplink = Uplink()
    health: Annotated[float, msgspec.Meta(ge=1, le=86_400)] = 60.0  # seconds between two health records
    services: Services = Services()
    motion: Motion = Motion()
    place: Place = Place()

    def __post_init__(self) -> None:
        names = [camera.name for camera in _cameras(self)]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"cameras and folders: two are called {min(twice)}; each needs its own name")
        if strangers := self.joined.keys() - set(names):
            raise ValueError(f"joined: there is no camera called {min(strangers)}")


def load(path: Path) -> Settings:
    """The settings in a file, its folders made absolute from where the file lies.

    Raises HighwallError that names every fault in it at once.
    """
    try:
        with Path(path).open("rb") as handle:
            data = handle.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise HighwallError(f"{path} is longer than {_MOST_BYTES} bytes; is it a gateway.toml?")
        raw = tomllib.loads(data.decode("utf-8"))
    except FileNotFoundError as error:
        raise HighwallError(f"{path} does not exist; name the gateway's file, or write one") from error
    except OSError as error:
        raise HighwallError(f"cannot read {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HighwallError(f"{path} is not TOML: {error}") from error
    if found := faults(Settings, raw):
        raise HighwallError(f"{path}: {'; '.join(found)}")
    settings, base = msgspec.convert(raw, Settings), Path(path).resolve().parent
    places = {name: getattr(settings, name) for name in ("folder", "trust", "model", "status")}
    absolute = {name: str(base / where) if where else "" for name, where in places.items()}
    folders = tuple(msgspec.structs.replace(each, folder=str(base / each.folder)) for each in settings.folders)
    return msgspec.structs.replace(settings, folders=folders, **absolute)


def local(settings: Settings) -> Local:
    """What a desired state is held against."""
    ports = frozenset(port.name for port in settings.serial.ports)
    names = frozenset(camera.name for camera in _cameras(settings))
    return Local(ports, names, frozenset(settings.hosts), frozenset(settings.dialects))


def serial(settings: Settings, site: Site) -> SerialSettings:
    """The ports as they are in force: the gateway's own, with what the twin has set laid over them."""
    return msgspec.structs.replace(
        settings.serial, ports=tuple(_port(port, site.ports.get(port.name)) for port in settings.serial.ports)
    )


def cameras(settings: Settings, site: Site) -> dict[str, tuple[Camera, Judging]]:
    """The cameras that are in use, and how their images are judged, with what the twin has set laid over both."""
    found = {}
    for own in _cameras(settings):
        camera, judging = _camera(own, settings.judging, site)
        if camera.enabled:
            found[own.name] = (camera, judging)
    return found


def _cameras(settings: Settings) -> tuple[Camera, ...]:
    return (*settings.cameras, *settings.folders)


def _port(own: PortSettings, wanted: SitePort | None) -> PortSettings:
    if wanted is None:
        return own
    baud, form = wanted.baud or own.baud, wanted.format or own.format
    return msgspec.structs.replace(own, enabled=own.enabled and wanted.enabled, baud=baud, format=form)


def _camera(own: Camera, judging: Judging, site: Site) -> tuple[Camera, Judging]:
    hours = own.hours
    if site.windows:
        hours = msgspec.structs.replace(hours, windows=site.windows, utc_offset=site.utc_offset)
    wanted = site.cameras.get(own.name)
    if wanted is None:
        return msgspec.structs.replace(own, hours=hours), judging
    enabled, period = own.enabled and wanted.enabled, wanted.period or own.period
    how = {"threshold": wanted.threshold, "thumbnail": wanted.thumbnail}
    judging = msgspec.structs.replace(judging, **{name: value for name, value in how.items() if value is not None})
    return msgspec.structs.replace(own, hours=hours, enabled=enabled, period=period), judging


def sensitivity(settings: Settings, site: Site) -> tuple[Motion, Place]:
    """Both limits of the paper as they are in force: the gateway's own, with what the twin has set laid over them."""
    motion, place, wanted = settings.motion, settings.place, site.sensitivity
    if wanted.fainting is not None:
        after_fall = min(motion.fall_faint_limit, wanted.fainting)  # nobody lies longer after a fall than without one
        motion = msgspec.structs.replace(motion, faint_limit=wanted.fainting, fall_faint_limit=after_fall)
    if wanted.noise is not None:
        place = msgspec.structs.replace(place, noise=wanted.noise)
    return motion, place
