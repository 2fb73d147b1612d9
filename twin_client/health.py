"""How the gateway fares: a record a minute for the twin, a file for whoever stands beside it, a line for systemd."""

import asyncio
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from twin_client.protocol.errors import ProtocolError
from twin_client.protocol.ranges import size
from twin_client.protocol.records import Gap, Health, Prediction, Reading, Record, Stamp, record_of

if TYPE_CHECKING:
    from twin_client.agent import Agent

STATUS_S: Final = 5.0  # seconds between two writings of the status file
_ZONE: Final = Path("/sys/class/thermal/thermal_zone0/temp")
_CLOCKS: Final = ("lost: nothing has set it since the boot", "held", "NTP", "GNSS")


class Reporter:
    """Collects from all parts of an agent. `link` is what there is to say while there is no uplink."""

    def __init__(self, agent: "Agent"):
        self._agent = agent
        self.link = "not connected yet"
        self.counters: Counter[str] = Counter()
        self.seen: dict[str, Stamp] = {}  # each tag's last reading
        self.captured: dict[str, Prediction] = {}
        self.queue: dict[str, float] = {}

    def committed(self, records: Sequence[Record]) -> None:
        """What has just come into the outbox."""
        for record in records:
            self.counters[type(record).__name__.lower()] += 1
            if isinstance(record, Reading):
                self.seen[record.tag] = record.at
            elif isinstance(record, Prediction):
                self.captured[record.camera] = record
            elif isinstance(record, Gap):
                # Where a tag is new, or its marks are lost, what it counted before is lost only if the twin lacks it.
                lost = sum(each.last - each.first + 1 for each in record.lost if each.first is not None)
                if lost := max(lost, size(record.seqs)):
                    self.counters[f"lost_{record.reason}"] += lost

    async def run(self) -> None:
        """A record every so often, and the status file, until cancelled."""
        agent, loop = self._agent, asyncio.get_running_loop()
        due = loop.time()
        while True:
            if loop.time() >= due:
                due = max(due + agent.settings.health, loop.time())
                agent.pipeline.offer([await self.health()])
            await self._look()
            self._write()
            await asyncio.sleep(min(STATUS_S, agent.settings.health))

    async def health(self) -> Health:
        """The record of now."""
        await self._look()
        agent = self._agent
        gauges = {**self.queue, **machine(agent.folder), "held": float(agent.pipeline.held)}
        counters: Counter[str] = Counter(self.counters)
        counters.update(agent.pipeline.counters)
        if agent.pipeline.outbox is not None:
            counters.update(agent.pipeline.outbox.counters)
        if agent.serial is not None:
            counters.update(agent.serial.counters())
        if agent.uplink is not None:
            counters.update({f"uplink_{name}": count for name, count in agent.uplink.counters.items()})
            if agent.uplink.round_trip is not None:
                gauges["round_trip"] = round(agent.uplink.round_trip, 4)
        if agent.cameras.watch is not None:
            counters.update({f"watch_{name}": count for name, count in agent.cameras.watch.counters.items()})
        return Health(agent.clock.stamp(), gauges, dict(counters), self._words())

    def line(self) -> str:
        """How it fares, in a few words."""
        agent = self._agent
        link = agent.uplink.state if agent.uplink is not None else self.link
        troubles = [part.name for part in agent.parts if part.problem]
        trouble = f"; trouble with {', '.join(troubles)}" if troubles else ""
        return f"{link}; {self.queue.get('queue_rows', 0):.0f} records wait{trouble}"

    def status(self) -> dict[str, Any]:
        """All of it, for `highwall gateway status`."""
        agent, uplink = self._agent, self._agent.uplink
        reported = agent.configuration.reported()
        serial = agent.serial
        return {
            "at": agent.clock.stamp().wall,
            "pid": os.getpid(),
            "words": self._words(),
            "link": uplink.state if uplink is not None else self.link,
            "up": uplink is not None and uplink.up,
            "queue": self.queue,
            "held": agent.pipeline.held,
            "losses": {k.removeprefix("lost_"): n for k, n in self.counters.items() if k.startswith("lost_")},
            "counters": dict(self.counters),
            "machine": machine(agent.folder),
            "ports": [] if serial is None else [msgspec.to_builtins(port) for port in serial.ports()],
            "offers": [] if serial is None else [msgspec.to_builtins(offer) for offer in serial.offers()],
            "tags": {
                name: {"type": tag.type, "note": tag.note, "seen": self.seen[name].wall if name in self.seen else None}
                for name, tag in sorted(agent.pairing.tags.items())
            },
            "cameras": {
                name: {
                    "problem": source.problem,
                    "capture": None if (last := self.captured.get(name)) is None else last.capture,
                    "probability": None if last is None else last.probability,
                    "seen": None if last is None else last.at.wall,
                }
                for name, (source, _) in agent.cameras.sources.items()
            },
            "model_problem": agent.cameras.problem,
            "configuration": {
                "number": reported.number,
                "trial": reported.trial,
                "refused": None if reported.refused is None else msgspec.to_builtins(reported.refused),
            },
            "troubles": {part.name: part.problem for part in agent.parts if part.problem},
        }

    def _words(self) -> dict[str, str]:
        agent = self._agent
        watch = agent.cameras.watch
        words = {
            "version": _version(),
            "clock": _CLOCKS[agent.clock.stamp().clock],
            "configuration": str(agent.configuration.number),
            "link": agent.uplink.state if agent.uplink is not None else self.link,
        }
        if watch is not None:
            words["model"] = f"{watch.manifest.name} version {watch.manifest.model_version} {watch.digest[:16]}"
        elif agent.cameras.problem:
            words["model"] = agent.cameras.problem
        if troubles := [f"{part.name}: {part.problem}" for part in agent.parts if part.problem]:
            words["troubles"] = "; ".join(troubles)[:500]
        return words

    async def _look(self) -> None:
        outbox = self._agent.pipeline.outbox
        if outbox is None:
            return

        def look() -> dict[str, float]:
            found = {"queue_rows": float(outbox.count()), "queue_bytes": float(outbox.used())}
            for epoch in outbox.epochs():
                if rows := outbox.read(epoch, 0, 1, 1):
                    with suppress(ProtocolError):
                        found["queue_age"] = _age(record_of(rows[0].body).at, self._agent.clock.stamp())
                    break
            return found

        self.queue = await self._agent.on_disk(look)

    def _write(self) -> None:
        """Replace the status file; it need not survive a power cut, so no card is bothered."""
        path = status_path(self._agent.settings.status, self._agent.folder)
        partial = path.with_name(f".{path.name}.partial")
        with suppress(OSError):
            partial.write_bytes(msgspec.json.encode(self.status()))
            partial.replace(path)


def status_path(wanted: str, folder: Path) -> Path:
    """Where the status file lies: where the settings say, or in systemd's folder, or in the gateway's."""
    if wanted:
        return Path(wanted)
    runtime = os.environ.get("RUNTIME_DIRECTORY", "")
    return Path(runtime.partition(":")[0] or folder) / "status.json"


def _version() -> str:
    try:
        return version("highwall")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"


def _age(then: Stamp, now: Stamp) -> float:
    """Seconds between two stamps: by the clock that is never set, where it is the same one."""
    micros = now.mono - then.mono if now.boot == then.boot else now.wall - then.wall
    return round(max(0, micros) / 1e6, 1)


def memory() -> int | None:
    """Bytes of this process that are in memory."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return None


def _temperature() -> float | None:
    """Of the processor, degrees Celsius; None: nothing says it."""
    with suppress(OSError, ValueError):
        return int(_ZONE.read_text(encoding="ascii")) / 1000
    return None


def machine(folder: Path) -> dict[str, float]:
    """Those of the health record: bytes, degrees Celsius, seconds; what cannot be read is absent."""
    found: dict[str, float | None] = {"rss": memory(), "temperature": _temperature()}
    with suppress(OSError):
        disk = os.statvfs(folder)
        found["disk_free"] = disk.f_bavail * disk.f_frsize
    with suppress(OSError):
        found["load"] = round(os.getloadavg()[0], 2)
    return {name: float(value) for name, value in found.items() if value is not None}
