"""How a gateway fares, read by whoever stands beside it: from the agent's own report, or from the disk without it."""

import fcntl
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from targets.runtime.errors import HighwallError
from twin_client.config import Settings
from twin_client.health import status_path
from twin_client.outbox import Rows

OLD_S: Final = 60.0  # seconds after which the agent's report is too old to be believed
_SYSTEMD: Final = Path("/run/highwall/status.json")


def status(settings: Settings) -> dict[str, Any]:
    """The status as plain data: `running`, `outbox` as it lies on the disk, and `agent`, its own report, or None."""
    folder = Path(settings.folder)
    return {
        "gateway": settings.gateway,
        "folder": str(folder),
        "running": is_running(folder),
        "outbox": _outbox(folder),
        "agent": _report(settings, folder),
    }


def is_running(folder: Path) -> bool:
    """Whether an agent has the outbox in `folder`."""
    try:
        with (folder / "outbox.lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def lines(found: dict[str, Any]) -> list[str]:
    """The same for a person."""
    agent, outbox = found["agent"], found["outbox"]
    said = [f"gateway {found['gateway']}, its data in {found['folder']}"]
    if not found["running"]:
        said.append("the agent does not run; systemctl start highwall, or highwall gateway run")
    elif agent is None:
        said.append("the agent runs, and has not reported for a minute")
    if outbox is None:
        said.append("there is no outbox yet")
    else:
        said.append(f"outbox: {outbox['rows']} records, {outbox['bytes'] / 1e6:.1f} MB in use")
    if agent is None:
        return said
    said.append(f"link: {agent['link']}")
    if (age := agent["queue"].get("queue_age")) and agent["queue"].get("queue_rows"):
        said.append(f"the oldest record waits for {_ago(age)}")
    if agent["held"]:
        said.append(f"THE DISK TAKES NOTHING: {agent['held']} records are held in memory")
    words = agent["words"]
    said += [f"{name}: {words[name]}" for name in ("clock", "model", "version") if name in words]
    configuration = agent["configuration"]
    trial = ", on trial" if configuration["trial"] else ""
    said.append(f"configuration: {configuration['number'] or 'the gateway’s own'}{trial}")
    if configuration["refused"]:
        said.append(f"  refused {configuration['refused']['number']}: {configuration['refused']['why']}")
    said += [
        f"port {port['name']}: {'open' if port['open'] else 'not open: ' + port['problem']}" for port in agent["ports"]
    ]
    said += [
        f"tag {name}{' (' + tag['type'] + ')' if tag['type'] else ''}: {_seen(tag['seen'], agent['at'])}"
        for name, tag in agent["tags"].items()
    ]
    said += [
        f"not paired: {offer['tag']} at {offer['port']}, {offer['frames']} frames; highwall gateway pair {offer['tag']}"
        for offer in agent["offers"]
    ]
    for name, camera in agent["cameras"].items():
        last = "no image yet" if camera["seen"] is None else f"image {camera['capture']}"
        seen = "" if camera["seen"] is None else f", {camera['probability']:.3f}, {_seen(camera['seen'], agent['at'])}"
        said.append(f"camera {name}: {camera['problem'] or last + seen}")
    if losses := {cause: count for cause, count in agent["losses"].items() if count}:
        said.append("lost since the start: " + ", ".join(f"{count} {cause}" for cause, count in losses.items()))
    said += [f"TROUBLE with {name}: {problem}" for name, problem in agent["troubles"].items()]
    return said


def _report(settings: Settings, folder: Path) -> dict[str, Any] | None:
    """The newest report there is, unless it is old."""
    newest: dict[str, Any] | None = None
    for path in {status_path(settings.status, folder), folder / "status.json", _SYSTEMD}:
        try:
            if time.time() - path.stat().st_mtime > OLD_S:
                continue
            said = msgspec.json.decode(path.read_bytes())
        except (OSError, msgspec.MsgspecError):
            continue
        if isinstance(said, dict) and (newest is None or said["at"] > newest["at"]):
            newest = said
    return newest


def _outbox(folder: Path) -> dict[str, Any] | None:
    try:
        rows = Rows.look(folder)
    except HighwallError:
        return None
    try:
        return {"rows": rows.count(), "bytes": rows.used(), "epochs": rows.epochs()}
    finally:
        rows.close()


def _seen(wall: int | None, now: int) -> str:
    return "not heard yet" if wall is None else f"heard {_ago((now - wall) / 1e6)} ago"


def _ago(seconds: float) -> str:
    for most, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < most:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86_400:.0f} days"
