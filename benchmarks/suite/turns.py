"""Several models measured turn by turn in one run, each in a process of its own, so that noise falls on all alike."""

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self, cast

import numpy as np
from numpy.typing import NDArray

from targets.runtime.errors import HighwallError, plain
from targets.runtime.machine import Busy
from targets.runtime.timing import RESAMPLES, intervals, milliseconds

ROOT: Final = Path(__file__).parents[2]
TURN_S: Final = 0.02  # a turn lasts at least so long, because a clock's step and a cold cache are no model's fault
REST_S: Final = 0.003  # between turns: an engine's threads spin on for a while after a run
STARVED: Final = 0.9  # a thread that ran for less of its turns shared its core with somebody
OTHERS: Final = 0.1  # share of all cores that others may use in a quiet run
FEWEST: Final = 5  # rounds


@dataclass(frozen=True)
class Measured:
    """One player. Milliseconds of an inference, percentiles with 95 % intervals; `peak_mib` beside the engine.

    start_ms: from the process's start to its first answer, interpreter and imports included. cpu_share: of its turns,
    how much it was on a core, by thread of its own: what another took from it shows here.
    """

    p50_ms: float
    p50_interval_ms: tuple[float, float]
    p95_ms: float
    p95_interval_ms: tuple[float, float]
    min_ms: float
    per_second: float
    runs: int
    rounds: int
    start_ms: float
    engine_ms: float
    load_ms: float
    first_ms: float
    warm_runs: int
    warm: bool
    cpu_share: float
    peak_mib: float | None


@dataclass(frozen=True)
class Ratio:
    """How many times as long one took as another: the median over rounds, with its 95 % bootstrap interval."""

    ratio: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Turns:
    """All players of one run, by name. `noise`: why it should not be quoted, empty where it may be."""

    players: dict[str, Measured]
    rounds: dict[str, NDArray[np.float64]]  # seconds an inference, the median of each turn
    noise: tuple[str, ...]

    def ratio(self, name: str, of: str) -> Ratio:
        """`name` against `of`, round by round."""
        return ratio(self.rounds[name], self.rounds[of])

    def as_dict(self) -> dict[str, Any]:
        """For JSON, without the rounds."""
        return {"players": {name: asdict(one) for name, one in self.players.items()}, "noise": list(self.noise)}


def ratio(theirs: NDArray[np.float64], ours: NDArray[np.float64]) -> Ratio:
    """The median of the rounds' ratios; each round is a pair, so a machine that slows down slows both."""
    each = theirs / ours
    drawn = np.random.RandomState(0).randint(0, len(each), (RESAMPLES, len(each)))
    low, high = np.percentile(np.median(each[drawn], axis=1), (2.5, 97.5))
    return Ratio(_digits(float(np.median(each))), (_digits(float(low)), _digits(float(high))))


class Player:
    """A process that serves one model (benchmarks/suite/serve.py). Raises HighwallError where it does not.

    It starts when it is entered, so that players entered one by one do not take each other's time to the first answer.
    """

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._command = list(command)
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        self._environment = os.environ | {"PYTHONPATH": paths, "OMP_WAIT_POLICY": "PASSIVE"} | dict(environment or {})
        self._process: subprocess.Popen[str]
        self.ready: dict[str, Any] = {}
        self.start_s = 0.0

    def __enter__(self) -> Self:
        began = time.perf_counter()
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self._environment,
            encoding="utf-8",
            errors="replace",
        )
        try:
            self.ready = self._hear()
        except BaseException:
            self._process.kill()
            raise
        self.start_s = time.perf_counter() - began
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    def ask(self, line: str) -> dict[str, Any]:
        """One command and its answer."""
        with suppress(BrokenPipeError):
            stdin = cast(IO[str], self._process.stdin)
            stdin.write(line + "\n")
            stdin.flush()
        return self._hear()

    def end(self) -> dict[str, Any]:
        """Close its input; its last words."""
        cast(IO[str], self._process.stdin).close()
        self._process.stdin = None
        return self._hear()

    def cpu_seconds(self) -> float:
        """What it used so far; 0 where the system does not say."""
        try:
            words = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def _hear(self) -> dict[str, Any]:
        while line := cast(IO[str], self._process.stdout).readline():
            with suppress(ValueError):  # some engines greet on stdout
                if isinstance(said := json.loads(line), dict):
                    return said
        self._process.kill()
        _, errors = self._process.communicate()
        last = (errors.strip().splitlines() or [f"it ended with code {self._process.returncode}"])[-1]
        hint = ", perhaps for want of memory" if self._process.returncode == -9 and not errors.strip() else ""
        raise HighwallError(f"{self.name} cannot run: {plain(last)[:300]}{hint}")


def take_turns(players: Sequence[Player], seconds: float, threads: int, most_rounds: int = 60) -> Turns:
    """Warm every player up, then let each run in turn for some `seconds` in all, at least FEWEST rounds.

    threads: that each player may use, to tell a starved one. Players are open; they are ended here.
    """
    warm = {player.name: player.ask(f"warm {max(1.0, seconds / 4):g}") for player in players}
    counts: dict[str, int] = {}
    busy = Busy()
    used = sum(player.cpu_seconds() for player in players)
    for player in players:
        once = min(player.ask("run 2")["seconds"])
        counts[player.name] = max(1, round(TURN_S / once))
    series: dict[str, list[NDArray[np.float64]]] = {player.name: [] for player in players}
    shares: dict[str, list[float]] = {player.name: [] for player in players}
    order = list(players)
    began = time.monotonic()
    rounds = 0
    while rounds < FEWEST or (time.monotonic() - began < seconds and rounds < most_rounds):
        for player in order:
            time.sleep(REST_S)
            count = counts[player.name]
            said = player.ask(f"run {count + 1}" if count > 1 else "run 1")
            taken = np.array(said["seconds"][1:] if count > 1 else said["seconds"])  # the first wakes a cold cache
            series[player.name].append(taken)
            shares[player.name].append(said["cpu_s"] / max(said["wall_s"], 1e-9) / threads)
        order.reverse()  # nobody always follows the same one
        rounds += 1
    spent = sum(player.cpu_seconds() for player in players) - used
    others = busy.others(spent)
    found = {}
    for player in players:
        taken = np.concatenate(series[player.name])
        found[player.name] = _measured(
            player, taken, rounds, warm[player.name], float(np.median(shares[player.name])), player.end()
        )
    medians = {name: np.array([np.median(turn) for turn in turns]) for name, turns in series.items()}
    return Turns(found, medians, _noise(found, others, threads))


def _measured(
    player: Player, taken: NDArray[np.float64], rounds: int, warm: dict[str, Any], share: float, last: dict[str, Any]
) -> Measured:
    p50, p95 = np.percentile(taken, (50, 95))
    (low50, high50), (low95, high95) = intervals(taken)
    return Measured(
        p50_ms=milliseconds(p50),
        p50_interval_ms=(milliseconds(low50), milliseconds(high50)),
        p95_ms=milliseconds(p95),
        p95_interval_ms=(milliseconds(low95), milliseconds(high95)),
        min_ms=milliseconds(taken.min()),
        per_second=_digits(1 / float(p50)),
        runs=len(taken),
        rounds=rounds,
        start_ms=milliseconds(player.start_s),
        engine_ms=player.ready["engine_ms"],
        load_ms=player.ready["load_ms"],
        first_ms=player.ready["first_ms"],
        warm_runs=warm["runs"],
        warm=warm["settled"],
        cpu_share=round(share, 3),
        peak_mib=last["peak_mib"],
    )


def _noise(found: Mapping[str, Measured], others: float | None, threads: int) -> tuple[str, ...]:
    said = []
    cores = os.cpu_count() or 1
    if others is not None and others > OTHERS * cores:
        said.append(f"others used {others:.2f} of {cores} cores")
    if threads == 1:
        starved = {name: one.cpu_share for name, one in found.items() if one.cpu_share < STARVED}
        said += [f"{name} had its core for {share:.0%} of its turns" for name, share in starved.items()]
    return tuple(said)


def _digits(value: float) -> float:
    return float(f"{value:.4g}")
