"""Measuring one artifact on the machine at hand: cold, warm, and as hot as it gets.

    python -m targets.runtime.bench FILE [--sustained S] [--runs N] [--threads N] [--json]

It runs on a gateway too, with numpy, the engine and nothing else. Progress goes to stderr, the result to stdout.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from targets.runtime import golden
from targets.runtime.artifact import read
from targets.runtime.engine import engine_names, open_session, preload
from targets.runtime.errors import HighwallError, plain
from targets.runtime.footprint import peak_kib
from targets.runtime.machine import (
    STANDS_IN,
    Busy,
    Machine,
    State,
    look,
    other_machine,
    this_machine,
    throttled,
)
from targets.runtime.measurement import Bench, lines
from targets.runtime.timing import (
    Cold,
    Say,
    Timed,
    WarmUp,
    milliseconds,
    repeat,
    seconds_of,
    summary,
    sustained,
    warm_up,
)

RUNS: Final = 200
FEWEST_RUNS: Final = 20  # of fewer, the slowest twentieth is nobody
OTHERS: Final = 0.10  # share of all cores that others may use in a quiet run
CLOCK_FALL: Final = 0.9  # turbo clocks wander by less
FAULT: Final = "error: "  # begins the line on which a runner says why it stopped


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
        subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, encoding="utf-8", errors="replace") as process,
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
    except (ValueError, RecursionError) as error:
        raise HighwallError(f"{where}: the runner's result is not JSON: {error}") from error


def run(path: Path, runs: int, sustained_s: float, threads: int, tree: str, part: str, say: Say) -> Bench:
    """`measure`, in this very process."""
    artifact = read(path)
    manifest = artifact.manifest
    here = this_machine()
    if (reason := other_machine(here.device_tree, here.cpu_part, tree, part)) is not None:
        raise HighwallError(f"{path} was made for {manifest.board}; {reason}; measure it all the same with --any-board")
    before = look()
    image, sensors = golden.seeded_image(1, manifest.input), golden.sensor_features(0, manifest.input)
    say(f"loading {manifest.name} in {manifest.runtime}")
    engine_names()  # our own modules are no part of what the engine takes to load
    engine_s = seconds_of(lambda: preload(manifest.runtime))
    least = peak_kib()  # the engine's own code is there whatever the model
    started = time.perf_counter()
    session = open_session(manifest.runtime, artifact.model, threads)
    load_s = time.perf_counter() - started

    def once() -> float:
        return seconds_of(lambda: session.run(image, sensors))

    cold = Cold(milliseconds(engine_s), milliseconds(load_s), milliseconds(once()))
    report = golden.check(artifact, session)
    if not report.passed:
        raise HighwallError(
            f"{path}: its answers differ from its golden vectors by {report.max_difference:.3g}, tolerance "
            f"{report.tolerance:g}; a model that answers wrongly is not timed, build it for this machine"
        )
    say(f"{report.n} golden vectors agree; warming up")
    busy = Busy()
    warm = warm_up(once)
    say(f"warm after {warm.runs} runs; timing {runs}")
    series = repeat(once, runs, 0.0, say)
    others, most = busy.others(), peak_kib()  # before the statistics, which take time and memory of their own
    timed = summary(series, others)
    if sustained_s:
        say(f"running on for {sustained_s:g} s")
    hot = sustained(once, sustained_s, say) if sustained_s else None
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
        reasons=_reasons(before, series.samples, timed, here.cores),
        notes=_notes(before, warm, here),
    )


def _reasons(before: State, samples: Sequence[State], timed: Timed, cores: int) -> tuple[str, ...]:
    """Why the timed runs are no headline."""
    found = [f"the board was throttled meanwhile: {word}" for word in throttled(before, samples)]
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
