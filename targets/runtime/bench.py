"""Measuring one artifact on the machine at hand: cold, warm, and as hot as it gets.

    python -m targets.runtime.bench FILE [--sustained S] [--runs N] [--threads N] [--json]

It runs on a gateway too, with numpy, the engine and nothing else. Progress goes to stderr, the result to stdout.
HIGHWALL_SYSROOT names a folder that stands in for / where /proc and /sys are read; a result says that it was set.
"""

import argparse
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import types
import typing
from array import array
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from targets.runtime import golden
from targets.runtime.artifact import read
from targets.runtime.engine import open_session, preload
from targets.runtime.errors import HighwallError
from targets.runtime.footprint import peak_kib

RUNS: Final = 200
FEWEST_RUNS: Final = 20  # of fewer, the slowest twentieth is nobody
BLOCK: Final = 10  # warm-up is looked at in medians of so many runs
PATIENCE: Final = 3  # and ends when so many medians in a row
GAIN: Final = 0.02  # fell by no more than this share
LEAST_S, MOST_S = 0.5, 60.0  # of warm-up: a governor needs the one to notice, a user waits no longer than the other
SAMPLE_S: Final = 5.0  # between two looks at temperature and clock
OTHERS: Final = 0.10  # share of all cores that others may use in a quiet run
CLOCK_FALL: Final = 0.9  # turbo clocks wander by less
RESAMPLES: Final = 1000
STANDS_IN: Final = "HIGHWALL_SYSROOT"
# get_throttled: the bit says now, 16 bits higher it says that it happened since boot (Raspberry Pi documentation).
THROTTLING: Final = ("under-voltage", "clock capped", "throttled", "soft temperature limit")
FAULT: Final = "error: "  # begins the line on which a runner says why it stopped
Say = Callable[[str], None]


@dataclass(frozen=True)
class Machine:
    """What was measured on; empty or None where the system does not say. Its name in the network is not asked."""

    model: str  # of the device tree, or of the processor
    device_tree: str
    cpu_implementer: str
    cpu_part: str
    architecture: str
    kernel: str
    python: str
    cores: int
    packages: dict[str, str]


@dataclass(frozen=True)
class State:
    """What changes: `second` counts from the begin of its phase; the words of THROTTLING, None where nobody knows."""

    second: float
    governor: str | None
    clock_mhz: int | None
    temperature_c: float | None
    load: float | None  # runnable tasks, the mean of the last minute
    throttled_now: tuple[str, ...] | None
    throttled_since_boot: tuple[str, ...] | None


@dataclass(frozen=True)
class Cold:
    """Milliseconds in a process that had done nothing: import of the engine, load of the model, first inference."""

    engine_ms: float
    load_ms: float
    first_ms: float


@dataclass(frozen=True)
class WarmUp:
    """Runs until medians of BLOCK runs fell no more; `settled` is False where the bound came first."""

    runs: int
    seconds: float
    settled: bool


@dataclass(frozen=True)
class Timed:
    """Milliseconds of one inference, each percentile with the ends of its 95 % confidence interval."""

    runs: int
    p50_ms: float
    p50_interval_ms: tuple[float, float]
    p95_ms: float
    p95_interval_ms: tuple[float, float]
    min_ms: float
    per_second: float
    cpu_use: float  # cores kept busy by this process
    others_use: float | None  # and by all others, warm-up included


@dataclass(frozen=True)
class Sustained:
    """The first and the last tenth of an unbroken load; `slowdown` is the ratio of their medians."""

    seconds: float
    runs: int
    first_p50_ms: float
    first_p95_ms: float
    last_p50_ms: float
    last_p95_ms: float
    slowdown: float
    throttled: tuple[str, ...]
    samples: tuple[State, ...]


@dataclass(frozen=True)
class Bench:
    """One measurement. `reasons` say why it has no headline, `notes` what else a reader should know."""

    name: str
    model_version: int
    model_sha256: str
    board: str
    runtime: str
    threads: int
    machine: Machine
    before: State
    after: State
    cold: Cold
    warm_up: WarmUp
    timed: Timed
    peak_mib: float | None
    sustained: Sustained | None
    reasons: tuple[str, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON; `headline` repeats p50 and p95 where they may be quoted, and is None where they may not."""
        timed = self.timed
        headline = None if self.reasons else {"p50_ms": timed.p50_ms, "p95_ms": timed.p95_ms}
        return {"headline": headline, **asdict(self)}

    @staticmethod
    def from_dict(raw: object) -> "Bench":
        """The inverse of as_dict; raises HighwallError naming what is not as it should be."""
        if isinstance(raw, dict):
            raw = {key: value for key, value in raw.items() if key != "headline"}
        made: Bench = _typed(Bench, raw, "bench")
        return made


def measure(
    path: Path,
    *,
    runs: int = RUNS,
    sustained_s: float = 0.0,
    threads: int = 1,
    device_tree: str = "",
    cpu_part: str = "",
    say: Say = lambda line: None,
) -> Bench:
    """Measure the artifact at `path` in a fresh process, because cold figures and peak memory need one.

    runs: timed inferences, from FEWEST_RUNS; sustained_s: seconds of unbroken load after them. A machine whose
    device tree model does not begin with `device_tree`, or whose CPU part is not `cpu_part`, is refused; empty
    takes any. Raises HighwallError for that, for a damaged artifact and for one that answers otherwise here.
    """
    command = [sys.executable, "-P", "-m", "targets.runtime.bench", *options(runs, sustained_s, threads)]
    command += [f"--device-tree={device_tree}", f"--cpu-part={cpu_part}", "--", str(path)]
    last = ""
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as out,
        subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, text=True) as process,
    ):
        try:
            for line in typing.cast(typing.IO[str], process.stderr):
                last = line.rstrip()
                if not last.startswith(FAULT):
                    say(last)
            process.wait()
        except BaseException:
            process.kill()
            raise
        out.seek(0)
        return result(process.returncode, out.read(), last, str(path))


def options(runs: int, sustained_s: float, threads: int) -> list[str]:
    """The runner's own words for these; raises HighwallError for what it would not take."""
    if runs < FEWEST_RUNS:
        raise HighwallError(f"{runs} runs are too few for a p95; take {FEWEST_RUNS} or more")
    if threads < 1:
        raise HighwallError(f"{threads} threads cannot run a model; take 1 or more")
    if not 0 <= sustained_s < math.inf:
        raise HighwallError(f"--sustained takes seconds, not {sustained_s:g}")
    return [f"--runs={runs}", f"--sustained={sustained_s:g}", f"--threads={threads}", "--json"]


def result(code: int, out: str, last: str, where: str) -> Bench:
    """What a runner that ended with `code` measured; `last` is its last line on stderr."""
    if code == 1 and last.startswith(FAULT):
        raise HighwallError(plain(last.removeprefix(FAULT)))
    if code:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        hint = {-4: ", an illegal instruction", -9: ", perhaps for want of memory"}.get(code, "")
        raise HighwallError(f"{where}: the runner {how}{hint}: {plain(last) or 'it said nothing'}")
    try:
        return Bench.from_dict(json.loads(out))
    except ValueError as error:
        raise HighwallError(f"{where}: the runner's result is not JSON: {error}") from error


def other_machine(device_tree: str, cpu_part: str, wanted_tree: str, wanted_part: str) -> str | None:
    """Why a machine of this device tree model and CPU part is not the one wanted, None where it is."""
    if wanted_tree and not device_tree.startswith(wanted_tree):
        return f"this is a {plain(device_tree) or 'machine without a device tree'}, not a {wanted_tree}"
    if wanted_part and cpu_part != wanted_part:
        return (
            f"its CPU part is {plain(cpu_part) or 'unknown'}, a {wanted_tree or 'board of that kind'} has {wanted_part}"
        )
    return None


def run(path: Path, runs: int, sustained_s: float, threads: int, tree: str, part: str, say: Say) -> Bench:
    """`measure`, in this very process."""
    artifact = read(path)
    manifest = artifact.manifest
    here = machine()
    if (reason := other_machine(here.device_tree, here.cpu_part, tree, part)) is not None:
        raise HighwallError(f"{path} was made for {manifest.board}; {reason}; measure it all the same with --any-board")
    before = look()
    image, sensors = golden.seeded_image(1, manifest.input), golden.sensor_features(0, manifest.input)
    say(f"loading {manifest.name} in {manifest.runtime}")
    engine_s = _seconds(lambda: preload(manifest.runtime))
    least = peak_kib()  # the engine's own code is there whatever the model
    started = time.perf_counter()
    session = open_session(manifest.runtime, artifact.model, threads)
    load_s = time.perf_counter() - started

    def once() -> float:
        began = time.perf_counter()
        session.run(image, sensors)
        return time.perf_counter() - began

    cold = Cold(_ms(engine_s), _ms(load_s), _ms(once()))
    report = golden.check(artifact, session)
    if not report.passed:
        raise HighwallError(
            f"{path}: its answers differ from its golden vectors by {report.max_difference:.3g}, tolerance "
            f"{report.tolerance:g}; a model that answers wrongly is not timed, build it for this machine"
        )
    say(f"{report.n} golden vectors agree; warming up")
    busy = _Busy()
    warm = _warm_up(once)
    say(f"warm after {warm.runs} runs; timing {runs}")
    seconds, cpu_use, samples = _timed(once, runs)
    timed = _summary(seconds, cpu_use, busy.others())
    most = peak_kib()
    hot = _sustained(once, sustained_s, say) if sustained_s else None
    after = look()
    return Bench(
        name=manifest.name,
        model_version=manifest.model_version,
        model_sha256=artifact.digests[f"model.{manifest.runtime}"],
        board=manifest.board,
        runtime=manifest.runtime,
        threads=threads,
        machine=here,
        before=before,
        after=after,
        cold=cold,
        warm_up=warm,
        timed=timed,
        peak_mib=None if least is None or most is None else round((most - least) / 1024, 2),
        sustained=hot,
        reasons=_reasons(before, samples, timed, here.cores),
        notes=_notes(before, warm, here),
    )


def machine() -> Machine:
    """The facts of this machine that do not change while it runs."""
    tree, cpu = _text("/proc/device-tree/model"), _text("/proc/cpuinfo")
    packages = {}
    for name in ("numpy", "onnxruntime", "ai-edge-litert", "tflite-runtime"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return Machine(
        model=tree or _entry(cpu, "model name") or platform.machine(),
        device_tree=tree,
        cpu_implementer=_entry(cpu, "CPU implementer"),
        cpu_part=_entry(cpu, "CPU part"),
        architecture=platform.machine(),
        kernel=platform.release(),
        python=platform.python_version(),
        cores=os.cpu_count() or 1,
        packages=packages,
    )


def look(since: float | None = None) -> State:
    """The machine's state now; `since` is a time.monotonic()."""
    load, heat = _text("/proc/loadavg").split(), _text("/sys/class/thermal/thermal_zone0/temp")
    flags = throttling(_vcgencmd("get_throttled"))
    return State(
        second=0.0 if since is None else round(time.monotonic() - since, 1),
        governor=_text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or None,
        clock_mhz=_clock(),
        temperature_c=int(heat) / 1000 if heat.lstrip("-").isdigit() else None,
        load=float(load[0]) if load else None,
        throttled_now=flags and flags[0],
        throttled_since_boot=flags and flags[1],
    )


def throttling(said: str) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """`throttled=0x50005` in words: what is so now, and what happened since boot; None where it is not that."""
    name, _, value = said.strip().partition("=")
    try:
        bits = int(value, 16)
    except ValueError:
        return None
    now, since = (tuple(word for at, word in enumerate(THROTTLING) if bits >> at + shift & 1) for shift in (0, 16))
    return (now, since) if name == "throttled" else None


def _clock() -> int | None:
    """MHz: the firmware's word on a Pi, because the kernel shows what it asked for, else the fastest core's."""
    _, _, hertz = _vcgencmd("measure_clock", "arm").partition("=")
    if hertz.strip().isdigit():
        return round(int(hertz) / 1e6)
    folder = _place("/sys/devices/system/cpu")
    found = [_file(path) for path in folder.glob("cpu[0-9]*/cpufreq/scaling_cur_freq")]
    return max((round(int(text) / 1000) for text in found if text.isdigit()), default=None)


def _vcgencmd(*arguments: str) -> str:
    """What the Pi's firmware answers; empty off a Pi, and for a user who may not ask."""
    program = shutil.which("vcgencmd")
    if program is None:
        return ""
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""
    return done.stdout if done.returncode == 0 else ""


class _Busy:
    """How many cores others use from here on: all busy time of the machine but our own and our children's."""

    def __init__(self) -> None:
        self._began, self._all, self._own = time.monotonic(), _busy_ticks(), _own_seconds()

    def others(self) -> float | None:
        ticks, wall = _busy_ticks(), time.monotonic() - self._began
        if ticks is None or self._all is None:
            return None
        seconds = (ticks - self._all) / os.sysconf("SC_CLK_TCK") - (_own_seconds() - self._own)
        return round(max(0.0, seconds / wall), 3)


def _busy_ticks() -> int | None:
    """user, nice, system, irq, softirq and steal of all cores (proc_stat(5)); idle and iowait are no work."""
    words = _text("/proc/stat").partition("\n")[0].split()
    if len(words) < 9 or words[0] != "cpu":
        return None
    ticks = [int(word) for word in words[1:9]]
    return sum(ticks) - ticks[3] - ticks[4]


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _warm_up(once: Callable[[], float]) -> WarmUp:
    medians: list[float] = []
    runs, began = 0, time.monotonic()
    while True:
        block: list[float] = []
        while len(block) < BLOCK and time.monotonic() - began < MOST_S:
            block.append(once())
        runs += len(block)
        spent = time.monotonic() - began
        if spent >= MOST_S:
            return WarmUp(runs, round(spent, 3), False)
        medians.append(float(np.median(block)))
        if spent >= LEAST_S and settled(medians):
            return WarmUp(runs, round(spent, 3), True)


def settled(medians: Sequence[float]) -> bool:
    """Whether the last PATIENCE medians brought nothing more than a share of GAIN over those before."""
    early, late = medians[:-PATIENCE], medians[-PATIENCE:]
    return bool(early) and min(late) >= (1 - GAIN) * min(early)


def _timed(once: Callable[[], float], runs: int) -> tuple[NDArray[np.float64], float, list[State]]:
    """Seconds of each of `runs`, the cores they kept busy, and the machine before, between and after."""
    began = time.monotonic()
    samples, seconds, cpu = [look(began)], array("d"), 0.0
    looked = time.monotonic()
    while len(seconds) < runs:
        used = time.process_time()
        seconds.append(once())
        cpu += time.process_time() - used
        if time.monotonic() - looked > SAMPLE_S:
            samples.append(look(began))
            looked = time.monotonic()
    samples.append(look(began))
    return np.asarray(seconds), cpu / sum(seconds), samples


def _sustained(once: Callable[[], float], length: float, say: Say) -> Sustained:
    """Run for `length` seconds without a rest but for a look at the machine now and then."""
    began = time.monotonic()
    samples, seconds, every = [look(began)], array("d"), max(SAMPLE_S, length / 100)
    looked = began
    while (now := time.monotonic()) - began < length or not seconds:
        seconds.append(once())
        if now - looked > every:
            samples.append(look(began))
            looked = time.monotonic()
            say(f"sustained load: {samples[-1].second:.0f} of {length:g} s{_conditions(samples[-1])}")
    samples.append(look(began))
    times = np.asarray(seconds)
    tenth = max(1, len(times) // 10)
    first, last = (np.percentile(part, (50, 95)) for part in (times[:tenth], times[-tenth:]))
    return Sustained(
        seconds=round(time.monotonic() - began, 1),
        runs=len(times),
        first_p50_ms=_ms(first[0]),
        first_p95_ms=_ms(first[1]),
        last_p50_ms=_ms(last[0]),
        last_p95_ms=_ms(last[1]),
        slowdown=round(float(last[0] / first[0]), 3),
        throttled=_throttled(samples[0], samples),
        samples=tuple(samples),
    )


def _summary(seconds: NDArray[np.float64], cpu_use: float, others: float | None) -> Timed:
    p50, p95 = np.percentile(seconds, (50, 95))
    around50, around95 = intervals(seconds)
    return Timed(
        runs=len(seconds),
        p50_ms=_ms(p50),
        p50_interval_ms=(_ms(around50[0]), _ms(around50[1])),
        p95_ms=_ms(p95),
        p95_interval_ms=(_ms(around95[0]), _ms(around95[1])),
        min_ms=_ms(seconds.min()),
        per_second=float(f"{len(seconds) / seconds.sum():.4g}"),
        cpu_use=round(cpu_use, 3),
        others_use=others,
    )


def intervals(seconds: NDArray[np.float64], seed: int = 0) -> NDArray[np.float64]:
    """95 % bootstrap intervals of p50 and p95: [[from, to], [from, to]].

    Runs are drawn in stretches of neighbours (circular block bootstrap, Politis and Romano 1992), because a slow
    run seldom comes alone and intervals from single draws would be too narrow.
    """
    count = len(seconds)
    length = max(1, round(count ** (1 / 3)))
    random = np.random.RandomState(seed)
    drawn = np.empty((RESAMPLES, 2))
    for row in drawn:
        starts = random.randint(0, count, (-(-count // length), 1))
        row[:] = np.percentile(seconds[((starts + np.arange(length)).ravel() % count)[:count]], (50, 95))
    return np.percentile(drawn, (2.5, 97.5), axis=0).T


def _throttled(before: State, samples: Sequence[State]) -> tuple[str, ...]:
    """What the firmware did since `before`: seen at one of the samples, or remembered by the last and not before."""
    seen = {word for sample in samples for word in sample.throttled_now or ()}
    seen |= set(samples[-1].throttled_since_boot or ()) - set(before.throttled_since_boot or ())
    return tuple(word for word in THROTTLING if word in seen)


def _reasons(before: State, samples: Sequence[State], timed: Timed, cores: int) -> tuple[str, ...]:
    """Why the timed runs are no headline."""
    found = [f"the board was throttled meanwhile: {word}" for word in _throttled(before, samples)]
    clocks = [sample.clock_mhz for sample in samples if sample.clock_mhz is not None]
    if clocks and min(clocks) < CLOCK_FALL * max(clocks):
        found.append(f"the clock fell from {max(clocks)} to {min(clocks)} MHz meanwhile")
    if timed.others_use is not None and timed.others_use > OTHERS * cores:
        found.append(f"the machine was busy: others used {timed.others_use:.2f} of its {cores} cores")
    return tuple(found)


def _notes(before: State, warm: WarmUp, here: Machine) -> tuple[str, ...]:
    found = []
    if before.governor not in (None, "performance"):
        found.append(f"the governor is {before.governor}; figures are steadier with performance")
    if before.throttled_since_boot is None and here.device_tree.startswith("Raspberry Pi"):
        found.append("vcgencmd does not say whether the board was throttled; may its user ask (group video)?")
    found += [f"{word} was seen since boot, before this run" for word in before.throttled_since_boot or ()]
    if not warm.settled:
        found.append(f"times were still falling after {warm.runs} runs of warm-up")
    if os.environ.get(STANDS_IN):
        found.append(f"{STANDS_IN} is set: facts of the machine are a stand-in's")
    return tuple(found)


def lines(bench: Bench) -> list[str]:
    """The measurement for people; figures without a headline say on every line that they are none."""
    timed, cold, here = bench.timed, bench.cold, bench.machine
    threads = f"{bench.threads} thread{'s' * (bench.threads > 1)}"
    engine = " ".join(f"{name} {number}" for name, number in here.packages.items())
    shown = [
        f"{bench.name} version {bench.model_version}, {bench.runtime}, {threads}, on {here.model}",
        f"  {here.cores} cores, kernel {here.kernel}, Python {here.python}, {engine}",
    ]
    low, high = timed.p50_interval_ms
    figures = f"p50 {timed.p50_ms:.4g} ms ({low:.4g} to {high:.4g})"
    low, high = timed.p95_interval_ms
    figures += f", p95 {timed.p95_ms:.4g} ms ({low:.4g} to {high:.4g})"
    if bench.reasons:
        shown += [f"no headline: {reason}" for reason in bench.reasons]
        shown.append(f"  not to be quoted: {figures} of {timed.runs} runs")
    else:
        shown += [figures, f"  of {timed.runs} runs, with 95 % confidence intervals"]
    shown.append(f"  min {timed.min_ms:.4g} ms, {timed.per_second:g} a second, {timed.cpu_use:.2f} cores in use")
    shown.append(
        f"  cold: engine {cold.engine_ms:.4g} ms, model {cold.load_ms:.4g} ms, first inference {cold.first_ms:.4g} ms; "
        f"warm after {bench.warm_up.runs} runs"
    )
    if bench.peak_mib is not None:
        shown.append(f"  peak memory {bench.peak_mib:g} MiB, beside Python and the engine")
    for title, state in (("before", bench.before), ("after", bench.after)):
        shown.append(f"  {title}: {_conditions(state).lstrip(', ') or 'the machine says nothing of its state'}")
    if (hot := bench.sustained) is not None:
        shown.append(
            f"  {hot.seconds:g} s of load: p50 {hot.first_p50_ms:.4g} ms at first, {hot.last_p50_ms:.4g} ms at last "
            f"({hot.slowdown:.2f} times), p95 {hot.first_p95_ms:.4g} and {hot.last_p95_ms:.4g} ms"
        )
        shown += [f"  under that load the board was throttled: {word}" for word in hot.throttled]
    return [plain(line) for line in [*shown, *(f"  note: {note}" for note in bench.notes)]]


def _conditions(state: State) -> str:
    words = [] if state.governor is None else [state.governor]
    words += [] if state.clock_mhz is None else [f"{state.clock_mhz} MHz"]
    words += [] if state.temperature_c is None else [f"{state.temperature_c:.1f} C"]
    words += [] if state.load is None else [f"load {state.load:g}"]
    words += list(state.throttled_now or ())
    return "".join(f", {word}" for word in words)


def plain(text: str) -> str:
    """One line without control characters: what another machine says may not steer this terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:500])


def _typed(hint: Any, value: Any, where: str) -> Any:
    """`value` as `hint`, of the kinds the dataclasses above are made of."""
    if isinstance(hint, types.UnionType):
        inner = next(part for part in typing.get_args(hint) if part is not types.NoneType)
        return None if value is None else _typed(inner, value, where)
    if is_dataclass(hint) and isinstance(value, dict) and set(value) == {entry.name for entry in fields(hint)}:
        hints = typing.get_type_hints(hint)
        return hint(**{name: _typed(hints[name], item, f"{where}.{name}") for name, item in value.items()})  # type: ignore[operator]
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
        if parts[-1] is ... or len(parts) == len(value):
            return tuple(_typed(parts[0], item, f"{where}[{at}]") for at, item in enumerate(value))
    elif typing.get_origin(hint) is dict and isinstance(value, dict):
        return {str(key): _typed(parts[1], item, f"{where}.{key}") for key, item in value.items()}
    elif hint is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    elif hint in (str, int, bool) and type(value) is hint:
        return value
    raise HighwallError(f"{plain(where)} is {plain(repr(value))[:80]}, not what a runner of this Highwall says")


def _place(path: str) -> Path:
    return Path(os.environ.get(STANDS_IN, "") + path)


def _text(path: str) -> str:
    return _file(_place(path))


def _file(path: Path) -> str:
    """A file of the kernel's, empty where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip().strip("\0")
    except OSError:
        return ""


def _entry(cpuinfo: str, key: str) -> str:
    rows = (line.partition(":") for line in cpuinfo.splitlines())
    return next((value.strip() for name, _, value in rows if name.strip() == key), "")


def _seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def _ms(seconds: float) -> float:
    return round(float(seconds) * 1000, 4)


def main(arguments: Sequence[str] | None = None) -> int:
    """The runner: 0, or 1 with one line on stderr that says why not."""
    parser = argparse.ArgumentParser(prog="python -m targets.runtime.bench", description="measure one artifact here")
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--sustained", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device-tree", default="", help="refuse a machine whose model does not begin so")
    parser.add_argument("--cpu-part", default="", help="refuse a machine of another CPU part")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(arguments)
    try:
        options(args.runs, args.sustained, args.threads)
        bench = run(args.file, args.runs, args.sustained, args.threads, args.device_tree, args.cpu_part, _progress)
    except HighwallError as error:
        _progress(f"{FAULT}{error}")
        return 1
    except KeyboardInterrupt:
        return 130
    print(json.dumps(bench.as_dict()) if args.json else "\n".join(lines(bench)))
    return 0


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
