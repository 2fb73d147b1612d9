"""The gateway's own file, gateway.toml: what is true of this machine, and what no twin can change.

Devices, folders, keys and programs are named here and nowhere else. What a twin may set (`protocol.site`) refers to
them by name, and is laid over the values here while it is in force.
"""

import tomllib
from pathlib import Path
from typing import Annotated

import msgspec

from targets.runtime.errors import HighwallError
from twin_client.protocol.motion import Settings as Motion
from twin_client.protocol.orders import Name
from twin_client.protocol.place import Settings as Place
from twin_client.protocol.site import Dialect, Host, Site, faults
from twin_client.services.configuration import Local, Trial
from twin_client.services.download import Link
from twin_client.services.journal import Memory
from twin_client.services.models import Probation
from twin_client.services.registration import Pace
from twin_client.services.update import Shadow

_MOST_BYTES = 1_048_576  # of gateway.toml; a long one has a few thousand

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
    trust: File = "trust.toml"  # whose models may run: a .pub or trust file
    hosts: tuple[Host, ...] = ()  # where a twin may have data sent; none: to any host that the CA certified
    dialects: tuple[Dialect, ...] = ("highwall", "thingsboard")
    services: Services = Services()
    motion: Motion = Motion()
    place: Place = Place()


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
    folder, trust = (str(base / name) for name in (settings.folder, settings.trust))
    return msgspec.structs.replace(settings, folder=folder, trust=trust)


def local(settings: Settings, ports: frozenset[str] = frozenset(), cameras: frozenset[str] = frozenset()) -> Local:
    """What a desired state is held against."""
    return Local(ports, cameras, frozenset(settings.hosts), frozenset(settings.dialects))


def sensitivity(settings: Settings, site: Site) -> tuple[Motion, Place]:
    """Both limits of the paper as they are in force: the gateway's own, with what the twin has set laid over them."""
    motion, place, wanted = settings.motion, settings.place, site.sensitivity
    if wanted.fainting is not None:
        after_fall = min(motion.fall_faint_limit, wanted.fainting)  # nobody lies longer after a fall than without one
        motion = msgspec.structs.replace(motion, faint_limit=wanted.fainting, fall_faint_limit=after_fall)
    if wanted.noise is not None:
        place = msgspec.structs.replace(place, noise=wanted.noise)
    return motion, place
