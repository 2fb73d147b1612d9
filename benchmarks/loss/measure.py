"""One client through one scenario: started, fed, disturbed, and its readings counted at the far end."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from pkgutil import iter_modules
from statistics import median
from typing import Any, Protocol, cast

from benchmarks.loss import clients
from benchmarks.loss.broker import Broker
from benchmarks.loss.ledger import Arrival, Ledger
from benchmarks.loss.line import Line
from benchmarks.loss.link import Link
from benchmarks.loss.scenarios import Act, Scenario
from targets.runtime.errors import HighwallError

UNCOUNTED = 90_000_000  # numbers from here on only show that a client is up
READY_S = 90.0


def client_names() -> list[str]:
    """The clients there are: the files of `clients/`."""
    return sorted(module.name for module in iter_modules(clients.__path__))


class Dialect(Protocol):
    """What a file of `clients/` holds."""

    TOPICS: list[str]  # what the ledger subscribes to

    def encode(self, number: int) -> bytes:
        """A numbered reading, as this client's line carries it."""

    def read(self, topic: str, payload: bytes) -> Arrival:
        """What one message holds. Raises ValueError, KeyError or TypeError where it is of another kind."""

    def prepare(
        self, folder: Path, line: str, broker: int, say: Callable[[str], None]
    ) -> tuple[list[str], dict[str, str]]:
        """Write its settings into `folder`; the command that starts it there, and what its environment adds."""


@dataclass
class Footprint:
    """What a process used, sampled while it ran; the highest of each over its restarts."""

    rss_mib: float = 0.0
    threads: int = 0
    cpu_s: float = 0.0
    samples: list[float] = field(default_factory=list)


class Process:
    """The client's process in `folder`, which can be killed and started again, and is watched meanwhile."""

    def __init__(self, folder: Path, command: list[str], environment: dict[str, str]) -> None:
        self._folder, self._command, self._environment = folder, command, environment
        self._process: subprocess.Popen[bytes] | None = None
        self.footprint = Footprint()
        self._cpu_before = 0.0

    def start(self) -> None:
        """Start it, with what it says in client.log."""
        with (self._folder / "client.log").open("ab") as log:
            environment = os.environ | self._environment
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env=environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # so that a kill ends what it started too
            )

    def kill(self) -> None:
        """End it with no chance to save anything."""
        if self._process is not None:
            self._cpu_before = self.footprint.cpu_s
            self._signal(signal.SIGKILL)
            self._process.wait()

    def stop(self) -> None:
        """End it in good order, or after ten seconds without."""
        if self._process is not None and self._process.poll() is None:
            self._signal(signal.SIGTERM)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(cast(subprocess.Popen[bytes], self._process).pid, number)

    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def sample(self) -> None:
        """Note memory, threads and CPU time of it and of what it started, from /proc."""
        if self._process is None:
            return
        rss, threads, cpu = 0.0, 0, 0.0
        for one in _family(self._process.pid):
            try:
                status = Path(f"/proc/{one}/status").read_text()
                times = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
            if "VmRSS" in fields:
                rss += int(fields["VmRSS"].split()[0]) / 1024
                threads += int(fields["Threads"])
                cpu += (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")
        if not rss:
            return
        seen = self.footprint
        seen.samples.append(round(rss, 1))
        seen.rss_mib, seen.threads = max(seen.rss_mib, rss), max(seen.threads, threads)
        seen.cpu_s = max(seen.cpu_s, self._cpu_before + cpu)


def _family(pid: int) -> list[int]:
    """A process and all that it started, as far as they live."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        children = []
    return [pid, *(each for child in children for each in _family(int(child)))]


def _tenths(samples: list[float]) -> list[float]:
    """The median of each tenth of the samples, in order: what grows shows here."""
    cuts = [len(samples) * at // 10 for at in range(11)]
    return [round(median(samples[begin:end]), 1) for begin, end in pairwise(cuts) if end > begin]


def measure(client: str, scenario: Scenario, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Run `scenario` and return what was sent, lost and duplicated, and what the client used meanwhile."""
    if client not in client_names():
        raise HighwallError(f"no client is called {client!r}; choose {', '.join(client_names())}")
    module = import_module(f"benchmarks.loss.clients.{client}")
    return run(cast(Dialect, module), scenario, folder, say) | {"client": client}


def run(dialect: Dialect, scenario: Scenario, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Run `scenario` with whatever `dialect` starts, in `folder`, where its logs stay and nothing older does."""
    shutil.rmtree(folder, ignore_errors=True)  # a broker's database remembers subscriptions, a client's its readings
    folder.mkdir(parents=True)
    with Broker(folder / "broker") as broker, Link(broker.port) as link, Line() as line:
        ledger = Ledger(broker.port, dialect.TOPICS, dialect.read)
        process = Process(folder, *dialect.prepare(folder, line.port, link.port, say))
        process.start()
        try:
            _until_up(process, line, ledger, dialect.encode, folder)
            say(f"the client is up; {scenario.about}: {scenario.count:,} readings in {scenario.seconds:g} s")
            return _run(process, link, broker, line, ledger, scenario, dialect.encode, say) | {
                "scenario": scenario.name,
                "about": scenario.about,
            }
        finally:
            process.stop()
            ledger.close()


def _until_up(process: Process, line: Line, ledger: Ledger, encode: Callable[[int], bytes], folder: Path) -> None:
    until, number = time.monotonic() + READY_S, UNCOUNTED
    while time.monotonic() < until and process.alive():
        line.put(encode(number))
        number += 1
        time.sleep(0.5)
        if any(n >= UNCOUNTED for n in list(ledger.counts)):
            return
    words = (folder / "client.log").read_text(errors="replace").strip().splitlines()
    last = words[-1] if words else "it said nothing"
    raise HighwallError(
        f"the client sent no reading within {READY_S:g} s; its log {folder / 'client.log'} ends: {last}"
    )


def _run(
    process: Process,
    link: Link,
    broker: Broker,
    line: Line,
    ledger: Ledger,
    scenario: Scenario,
    encode: Callable[[int], bytes],
    say: Callable[[str], None],
) -> dict[str, Any]:
    acts: dict[Act, Callable[[], None]] = {
        "stall": link.stall,
        "flow": link.flow,
        "cut": link.cut,
        "kill-broker": broker.kill,
        "start-broker": broker.start,
        "forget-broker": broker.forget,
        "kill-client": process.kill,
        "start-client": process.start,
    }
    process.sample()
    cpu = process.footprint.cpu_s
    began = time.monotonic()
    line.begin(encode, scenario.rate, scenario.count)
    events = list(scenario.events)
    while line.busy() or events:
        if events and time.monotonic() - began >= events[0][0]:
            _, act = events.pop(0)
            say(f"{time.monotonic() - began:.1f} s: {act}")
            acts[act]()
        process.sample()
        time.sleep(0.1)
    sending = time.monotonic() - began
    used = process.footprint.cpu_s - cpu
    settled = time.monotonic()
    while time.monotonic() - settled < scenario.settle and not ledger.complete(line.sent):
        process.sample()
        time.sleep(0.25)
    arrived_after = time.monotonic() - settled
    time.sleep(3)  # what is sent twice comes late
    seen = process.footprint
    return ledger.account(line.sent) | {
        "seconds": round(sending, 1),
        "settled_s": round(arrived_after, 1),
        "rss_mib": round(seen.rss_mib, 1),
        "rss_mib_by_tenth": _tenths(seen.samples),
        "cpu_percent": round(100 * used / sending, 2),
        "threads": seen.threads,
    }
