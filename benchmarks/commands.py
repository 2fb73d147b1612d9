"""The verb of this room: bench."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from targets.runtime.errors import HighwallError

if TYPE_CHECKING:
    from targets.board import Board
    from targets.runtime.artifact import Artifact


def bench_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `highwall bench`."""
    verbs = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, what: str) -> argparse.ArgumentParser:
        return verbs.add_parser(name, help=what, description=what, allow_abbrev=False)

    one = action("run", "measure one artifact, here, on a board over ssh, or in the emulator")
    one.add_argument("file", type=Path, metavar="FILE", help="an artifact, NAME.highwall")
    one.add_argument("--board", metavar="BOARD", help="what it is to run on (default: what it was made for)")
    one.add_argument("--any-board", action="store_true", help="measure on this machine or host whatever it is")
    where = one.add_mutually_exclusive_group()
    where.add_argument("--emulate", action="store_true", help="count ARM instructions in the emulator; no time")
    where.add_argument("--ssh", metavar="[USER@]HOST", help="on a board, with your own ssh config and keys")
    timed = one.add_argument_group("measured runs")
    timed.add_argument("--runs", type=int, metavar="N", help="timed inferences (default 200)")
    timed.add_argument("--sustained", type=float, metavar="SECONDS", help="then run on until the board is hot")
    timed.add_argument("--threads", type=int, metavar="N", help="default 1")
    timed.add_argument("--wheels", type=Path, metavar="DIR", help="with --ssh: aarch64 wheels for a board without them")
    timed.add_argument("--python", metavar="PATH", help="with --ssh: the board's interpreter (default python3)")

    suite = action("suite", "time every network of the field beside ours on this machine; no torch needed")
    suite.add_argument("--name", metavar="NAME", help="of the results (default: the board's, or host)")
    suite.add_argument("--network", action="append", metavar="NAME", help="only this one beside ours; may be repeated")
    suite.add_argument("--size", type=int, action="append", metavar="PIXELS", help="only this one; may be repeated")
    suite.add_argument("--threads", type=int, action="append", metavar="N", help="default: 1, and all cores")
    suite.add_argument("--seconds", type=float, metavar="S", help="of turns, a pair (default 3)")
    suite.add_argument("--smoke", action="store_true", help="a few small ones, to see that it runs")
    suite.add_argument("--again", action="store_true", help="measure anew what was measured before")
    suite.add_argument("--results", type=Path, metavar="DIR", help="default: benchmarks/results/suite, if it is there")

    lost = action("loss", "what a client loses while its link, its twin or itself fails")
    lost.add_argument("--client", metavar="NAME", help="a file of benchmarks/loss/clients")
    lost.add_argument("--scenario", metavar="NAME", help="what happens to it; `list` names them")
    lost.add_argument("--results", type=Path, metavar="DIR", help="also write CLIENT-SCENARIO.json there")
    lost.add_argument("--keep", type=Path, metavar="DIR", help="keep the client's folder with its logs")
    lost.add_argument("--table", action="store_true", help="print the table of all results, of --results or committed")

    page = action("report", "render all results as one HTML page and docs/benchmarks.md")
    page.add_argument("--out", type=Path, default=Path("benchmarks.html"), metavar="FILE", help="the page")
    page.add_argument("--markdown", type=Path, metavar="FILE", help="also write tables there (docs/benchmarks.md)")
    page.add_argument("--results", type=Path, metavar="DIR", help="default: the committed ones")
    page.add_argument("--against", type=Path, metavar="PATH", help="an earlier results folder, or a page made earlier")
    for each in (one, suite, lost, page):
        each.add_argument("--json", action="store_true", help="print JSON")


def bench(args: argparse.Namespace) -> int:
    """What was asked for; 1 where it was measured, but the machine was too busy, hot or throttled to quote it."""
    actions = {"run": _run, "suite": _suite, "loss": _loss, "report": _report}
    return actions[args.action](args)


def _run(args: argparse.Namespace) -> int:
    _check_together(args)
    from targets.board import load_board
    from targets.runtime.artifact import read

    artifact = read(args.file)
    board = load_board(args.board or artifact.manifest.board)
    return _emulated(args, artifact, board) if args.emulate else _measured(args, board)


def _check_together(args: argparse.Namespace) -> None:
    """Refuse options that say nothing where they stand."""
    given = [name for name in ("runs", "sustained", "threads", "wheels", "python") if getattr(args, name) is not None]
    given += ["any-board"] if args.any_board else []
    if args.emulate and given:
        raise HighwallError(f"--{given[0]} is of measured runs; --emulate counts one inference on one thread")
    for name in ("wheels", "python"):
        if name in given and args.ssh is None:
            raise HighwallError(f"--{name} says nothing without --ssh HOST")


def _suite(args: argparse.Namespace) -> int:
    """1 where a measurement is noisy, so that a script notices."""
    from benchmarks.suite import run as suite
    from benchmarks.suite.table import table

    plan = suite.smoke() if args.smoke else suite.plan(args.network, args.size, args.threads, args.seconds)
    folder = args.results or (suite.RESULTS if suite.RESULTS.parent.is_dir() else Path("results"))
    name = args.name or suite.machine_name()
    path = folder / f"{name}{'-smoke' * args.smoke}.json"
    words = ["highwall bench suite", *(["--smoke"] if args.smoke else [])]
    for option, values in (("--network", args.network), ("--size", args.size), ("--threads", args.threads)):
        words += [f"{option} {value}" for value in values or ()]
    words += [f"--seconds {args.seconds:g}"] if args.seconds else []
    result = suite.run(plan, path, " ".join(words), _step, args.again)
    print(json.dumps(result, indent=1) if args.json else table(result))
    _step(f"results are in {path}")
    return int(any(cell.get("noise") for cell in result["cells"].values()))


def _measured(args: argparse.Namespace, board: "Board") -> int:
    from targets.remote.bench import bench_over_ssh
    from targets.runtime.bench import RUNS, measure
    from targets.runtime.measurement import lines

    runs = RUNS if args.runs is None else args.runs
    sustained, threads = args.sustained or 0.0, 1 if args.threads is None else args.threads
    if args.ssh is None:
        anything = args.any_board or board.name == "host"
        tree, part = ("", "") if anything else (board.device_tree, board.cpu_part)
        found = measure(
            args.file, runs=runs, sustained_s=sustained, threads=threads, device_tree=tree, cpu_part=part, say=_step
        )
    else:
        found = bench_over_ssh(
            args.ssh,
            args.file,
            board=board,
            sustained_s=sustained,
            runs=runs,
            threads=threads,
            any_board=args.any_board,
            wheelhouse=args.wheels,
            python=args.python or "python3",
            say=_step,
        )
    print(json.dumps(found.as_dict(), indent=2) if args.json else "\n".join(lines(found)))
    return int(bool(found.reasons))


def _emulated(args: argparse.Namespace, artifact: "Artifact", board: "Board") -> int:
    from targets.emulator.counts import FORMULA, count, shortest_ms

    manifest = artifact.manifest
    found = count(board, manifest.runtime, artifact.model, manifest.input, _step)
    least = shortest_ms(found, board)
    if args.json:
        result: dict[str, Any] = {"file": str(args.file), "name": manifest.name, "board": board.name, "cpu": board.cpu}
        result |= {"runtime": manifest.runtime, "recipe": manifest.recipe.get("name"), "emulated": True}
        result |= asdict(found)
        if least is not None:
            result["estimate"] = {"at_least_ms": round(least, 3), "formula": FORMULA}
        print(json.dumps(result, indent=2))
        return 0
    print(f"{args.file}: one inference on an emulated {board.cpu}, {manifest.runtime}, one thread")
    width = len(f"{found.instructions:,}")
    print(f"  {found.instructions:>{width},}  ARM instructions, of them")
    for name, what in WORDS.items():
        print(f"  {getattr(found, name):>{width},}  {what}")
    if least is not None:
        print(f"estimate, not a measurement: at least {least:.3g} ms on a {board.title} ({FORMULA})")
    return 0


def _loss(args: argparse.Namespace) -> int:
    """0 where every reading came or was owned up to."""
    import tempfile

    from benchmarks.loss.measure import client_names, measure
    from benchmarks.loss.scenarios import SCENARIOS
    from benchmarks.loss.table import RESULTS, table
    from targets.runtime.files import write_text

    if args.table:
        print(table(args.results or RESULTS))
        return 0
    if args.scenario != "list" and (args.client is None or args.scenario is None):
        raise HighwallError("`bench loss` needs --client NAME and --scenario NAME; --scenario list names them")
    if args.scenario == "list":
        width = max(map(len, SCENARIOS))
        print("\n".join(f"{name:{width}}  {scenario.about}" for name, scenario in SCENARIOS.items()))
        print(f"clients: {', '.join(client_names())}")
        return 0
    if args.scenario not in SCENARIOS:
        raise HighwallError(f"no scenario is called {args.scenario!r}; choose {', '.join(SCENARIOS)}")
    with tempfile.TemporaryDirectory(prefix="highwall-loss-") as temporary:
        folder = (args.keep or Path(temporary)) / f"{args.client}-{args.scenario}"
        found = measure(args.client, SCENARIOS[args.scenario], folder, _step)
    command = f"highwall bench loss --client {args.client} --scenario {args.scenario} --json"
    text = json.dumps({"command": command} | found, indent=2)
    if args.results is not None:
        write_text(args.results / f"{args.client}-{args.scenario}.json", text + "\n")
    if args.json:
        print(text)
    else:
        print(f"{args.client}, {found['about']}: {found['sent']:,} sent, {found['lost']:,} lost, ", end="")
        print(f"{found['declared']:,} declared lost, {found['duplicated']:,} came twice")
        print(f"{found['rss_mib']:g} MiB, {found['threads']} threads, {found['cpu_percent']:g} % of a core")
    return int(found["lost"] > 0)


def _report(args: argparse.Namespace) -> int:
    from benchmarks.report.build import build

    return build(args.results, args.out, args.markdown, args.against, args.json, _step)


WORDS = {
    "loads": "loads",
    "stores": "stores",
    "fma": "fused multiply-adds",
    "dot": "dot products",
    "widening": "widening multiplies",
}


def _step(line: str) -> None:
    print(f"- {line}", file=sys.stderr, flush=True)
