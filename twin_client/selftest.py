"""Every part of a gateway tried on this machine, one line each: what a person runs before driving home."""

import asyncio
import errno
import os
import shutil
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from targets.runtime.errors import HighwallError, plain
from twin_client import status
from twin_client.clock import Clock, kernel_is_synchronised
from twin_client.config import Settings
from twin_client.protocol.records import ClockQuality
from twin_client.protocol.site import Destination
from twin_client.services import tls
from twin_client.services.https import address_of
from twin_client.services.models import Models, day_of
from twin_client.services.registration import Registration
from twin_client.sources.camera import CommandSettings, CommandSource
from twin_client.sources.port import FAULTS, PortSettings

Verdict = Literal["ok", "look", "fail"]


@dataclass(frozen=True)
class Finding:
    """What a trial has found; `look`: it works, but somebody should know."""

    part: str
    verdict: Verdict
    text: str


class _Look(Exception):
    """It works, but somebody should know."""


def selftest(settings: Settings) -> Iterator[Finding]:
    """Try everything, one part after the other; nothing is changed, and no record is written."""
    clock = Clock(Path(settings.folder)) if Path(settings.folder).is_dir() else None
    trials: list[tuple[str, Callable[[], str]]] = [
        ("python", _python),
        ("folder", lambda: _folder(settings)),
        ("clock", lambda: _clock(clock)),
        ("outbox", lambda: _outbox(settings)),
        ("certificate", lambda: _certificate(settings, clock)),
        ("uplink", lambda: _uplink(settings, clock)),
        *((f"port {port.name}", _trial_of_port(settings, port)) for port in settings.serial.ports if port.enabled),
        *((f"camera {camera.name}", _trial_of_camera(camera)) for camera in settings.cameras if camera.enabled),
        *((f"folder {each.name}", _trial_of_folder(each.folder)) for each in settings.folders if each.enabled),
        ("model", lambda: _model(settings, clock)),
    ]
    for part, trial in trials:
        try:
            yield Finding(part, "ok", trial())
        except _Look as found:
            yield Finding(part, "look", str(found))
        except Exception as error:  # a wrong address makes pyserial raise anything
            yield Finding(part, "fail", plain(str(error) or type(error).__name__))


def _python() -> str:
    return f"{sys.version.split()[0]} on {os.uname().machine}, {os.cpu_count()} cores"


def _folder(settings: Settings) -> str:
    """A card that takes a write and a sync, and how long that takes."""
    folder = Path(settings.folder)
    if not folder.is_dir():
        raise HighwallError(f"{folder} does not exist; make it, and give it to the user that the agent runs as")
    begun = time.monotonic()
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(4096))
        file.flush()
        os.fsync(file.fileno())
    took = (time.monotonic() - begun) * 1000
    free = shutil.disk_usage(folder).free
    if free < settings.outbox.cap:
        raise _Look(f"{free / 1e6:.0f} MB free, less than the outbox may take ({settings.outbox.cap / 1e6:.0f} MB)")
    return f"{free / 1e6:.0f} MB free, a synced write takes {took:.1f} ms"


def _clock(clock: Clock | None) -> str:
    if clock is None:
        raise _Look("there is nothing to remember the time in yet")
    at = clock.stamp()
    if at.clock == ClockQuality.LOST and not kernel_is_synchronised():
        raise _Look(f"not set since the boot; taken for {tls.day(at.wall / 1e6)} UTC; is there NTP?")
    return f"{tls.day(at.wall / 1e6)} UTC, set by NTP"


def _outbox(settings: Settings) -> str:
    found = status.status(settings)
    if found["outbox"] is None:
        return "none yet; it is made when the agent starts"
    running = "the agent has it" if found["running"] else "nobody has it"
    return f"{found['outbox']['rows']} records, {running}"


def _certificate(settings: Settings, clock: Clock | None) -> str:
    if not settings.uplink.tls:
        raise _Look("uplink.tls is off: whoever can listen on the way can read and write everything")
    if clock is None:
        raise HighwallError("not enrolled; highwall gateway enroll URL CODE")
    registration = Registration(Path(settings.folder) / "identity", clock.stamp)
    identity = registration.identity()
    if identity is None:
        waiting = registration.pending()
        raise HighwallError("not approved yet" if waiting else "not enrolled; highwall gateway enroll URL CODE")
    if identity.gateway != settings.gateway:
        raise HighwallError(f"it is that of {identity.gateway}, and gateway.toml says {settings.gateway}")
    left = identity.ends - clock.stamp().wall / 1e6
    if left <= 0:
        raise HighwallError(f"it ended on {tls.day(identity.ends)}; highwall gateway enroll --again")
    identity.context()
    return f"{identity.gateway}, good for {left / 86_400:.0f} days"


def _uplink(settings: Settings, clock: Clock | None) -> str:
    identity = None
    if settings.uplink.tls and clock is not None:
        identity = Registration(Path(settings.folder) / "identity", clock.stamp).identity()
    where = settings.destination
    if where is None:
        if identity is None:
            raise HighwallError("there is no destination in gateway.toml, and no twin that enrolled this gateway")
        where = Destination(address_of(identity.url).host)
    begun = time.monotonic()
    with socket.create_connection((where.host, where.port), settings.uplink.connect) as line:
        if identity is None:
            return f"{where.host}:{where.port} answers after {(time.monotonic() - begun) * 1000:.0f} ms"
        context: ssl.SSLContext = identity.context()
        with context.wrap_socket(line, server_hostname=where.host) as held:
            assert clock is not None
            tls.check_peer(clock.stamp)(held)
            return f"{where.host}:{where.port} shows a certificate of our CA, {held.version()}"


def _trial_of_port(settings: Settings, port: PortSettings) -> Callable[[], str]:
    def trial() -> str:
        found = status.status(settings)
        if found["running"]:  # what a second reader took of its bytes would be lost to it
            return _port_of_agent(found["agent"], port)
        count = len(_heard_at(port))
        if not count:
            raise _Look(f"{port.url} opens, and is silent")
        return f"{port.url} opens, {count} bytes heard"

    return trial


def _port_of_agent(agent: dict[str, Any] | None, port: PortSettings) -> str:
    """What the agent's own report says of a port that is the agent's to read."""
    if agent is None:
        raise _Look(f"{port.url} is left to the agent, which runs and has not reported for a minute")
    known = next((each for each in agent["ports"] if (each["name"], each["url"]) == (port.name, port.url)), None)
    if known is None:
        mend = "restart it if gateway.toml has changed; or the twin has turned that port off"
        raise _Look(f"{port.url} is left to the agent, which runs without it; {mend}")
    if not known["open"]:
        raise HighwallError(f"{port.url} is not open in the agent: {known['problem'] or 'it is tried again'}")
    if not (count := known["counters"]["bytes"]):
        raise _Look(f"{port.url} is open in the agent, and silent since that started")
    return f"{port.url} is open in the agent, {count} bytes heard since that started"


def _heard_at(port: PortSettings) -> bytes:
    """What comes within half a second, and what waited there. Nothing is taken from another program that reads it."""
    import serial  # type: ignore[import-untyped]

    device = serial.serial_for_url(port.url, port.baud, timeout=0.5, exclusive=True, do_not_open=True)
    for flush in ("_reset_input_buffer", "reset_input_buffer"):  # called by pyserial when it opens a port
        setattr(device, flush, lambda: None)
    try:
        with closing(device):
            device.open()
            heard: bytes = device.read(256)
    except FAULTS as error:
        if getattr(error, "errno", None) == errno.EWOULDBLOCK:
            raise HighwallError(f"{port.url} is read by another program; end that first") from error
        raise HighwallError(str(error) or type(error).__name__) from error
    return heard


def _trial_of_camera(camera: CommandSettings) -> Callable[[], str]:
    async def take() -> str:
        source = CommandSource(camera, lambda: None, lambda line: None)  # type: ignore[arg-type,return-value]
        capture = await source.capture()
        size = capture.path.stat().st_size
        source.tidy(capture)
        return f"an image of {size} bytes"

    return lambda: asyncio.run(take())


def _trial_of_folder(folder: str) -> Callable[[], str]:
    def trial() -> str:
        if not Path(folder).is_dir():
            raise HighwallError(f"{folder} is not there; it is taken up when it is")
        return f"{folder}, {sum(1 for _ in Path(folder).iterdir())} files"

    return trial


def _model(settings: Settings, clock: Clock | None) -> str:
    """Signature, digests, version, memory and golden vectors, on this very machine."""
    clock = clock or Clock(Path(settings.folder))
    own = Path(settings.model) if settings.model else None
    path = Models(Path(settings.folder) / "models", clock.stamp, own=own).current
    if path is None:
        if settings.cameras or settings.folders:
            raise _Look("none, though there are cameras; name one as `model`, or have the twin send it")
        return "none, and no camera that needs one"
    from targets.runtime.admit import admit
    from targets.runtime.trust import load_trust

    admitted = admit(
        path,
        load_trust(Path(settings.trust)),
        None,
        today=day_of(clock.stamp()),
        threads=settings.watch.threads,
        most_mib=settings.watch.memory,
    )
    manifest = admitted.artifact.manifest
    return f"{manifest.name} version {manifest.model_version}: signature, digests and golden vectors are right"
