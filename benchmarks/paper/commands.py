"""The verb of this room: paper."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from targets.runtime.errors import HighwallError

if TYPE_CHECKING:
    from benchmarks.paper.cells import Cell, Store
    from benchmarks.paper.run import Bench

RESULTS = Path(__file__).parent.parent / "results" / "paper"
DOCUMENT = Path("docs/results.md")
SCRATCH = Path("runs/paper")  # git looks away: weights that another cell will need, and all of `smoke`


def paper_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `highwall paper`."""
    parser.add_argument("experiment", choices=("all", "table3", "table4", "table5", "figure4", "figure5"))
    parser.add_argument("--budget", choices=("smoke", "cpu", "full"), default="cpu", help="default: cpu")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="holds mine_chips/ and cracks/; smoke generates its own"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help=f"results; default: the committed ones, and {SCRATCH} for smoke"
    )
    parser.add_argument("--weights", type=Path, metavar="DIR", default=SCRATCH, help=f"scratch; default: {SCRATCH}")
    parser.add_argument("--threads", type=int, metavar="N", default=1, help="of torch (default 1)")
    parser.add_argument("--batch", type=int, metavar="N", help="where memory is short; for every network of --out")
    parser.add_argument("--retime", action="store_true", help="time the networks of finished cells anew, beside ours")
    parser.add_argument("--no-run", action="store_true", help="run nothing, report what is there")
    parser.add_argument("--render", action="store_true", help="rewrite the document's tables and figures")
    parser.add_argument(
        "--document", type=Path, metavar="FILE", help=f"default: {DOCUMENT}; of smoke, results.md in --out"
    )
    parser.add_argument("--json", action="store_true")


def paper(args: argparse.Namespace) -> int:
    """Run the cells that are not done yet, then print (or render) what was asked for."""
    import torch

    from benchmarks.paper import data
    from benchmarks.paper.budgets import budget
    from benchmarks.paper.cells import Store, work
    from benchmarks.paper.experiments import EXPERIMENTS, cells
    from benchmarks.paper.render import Report
    from benchmarks.paper.run import Bench

    if args.retime and args.no_run:
        raise HighwallError("--retime runs networks and --no-run runs none; leave one out")
    if args.threads < 1:
        raise HighwallError(f"--threads must be at least 1, not {args.threads}")
    torch.set_num_threads(args.threads)
    limits = budget(args.budget, args.batch)
    smoke = limits.name == "smoke"
    out = args.out or (SCRATCH if smoke else RESULTS)
    names = list(EXPERIMENTS) if args.experiment == "all" else [args.experiment]
    sources = None if args.no_run and args.data is None and not smoke else data.load(limits, args.data)
    store = Store(out, limits, None if sources is None else sources.digests)
    report = Report(store, sources)
    results: list[dict[str, Any]] = []
    if args.no_run:
        every = (cell for name in names for cell in EXPERIMENTS[name]())
        results = [result for cell in dict.fromkeys(every) for result in report.results(cell)]
    else:
        assert sources is not None
        folds = {task: data.folds_of(sources.of(task), limits) for task in ("chips", "photographs")}
        command = f"highwall paper {args.experiment} --budget {limits.name}"
        command += ("" if smoke else " --data DIR") + f" --threads {args.threads}"
        command += "" if args.batch is None else f" --batch {args.batch}"
        command += " --retime" if args.retime else ""
        bench = Bench(sources, limits, store, args.weights, command)
        try:
            asked = cells(names, limits, folds)
            if args.retime:
                _retime(asked, store, bench)
            results = work(asked, store, bench.run, _step)
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt("stopped; finished cells are kept, the same command goes on") from stop
    if args.json:
        print(json.dumps(results, indent=1))
    if args.render:
        for path in report.write(args.document or (out / "results.md" if smoke else DOCUMENT)):
            _step(f"wrote {path}")
    elif not args.json:
        print("\n\n".join(report.section(name) for name in names))
    return 0


def _retime(asked: "Sequence[Cell]", store: "Store", bench: "Bench") -> None:
    """Every finished cell with its time measured anew."""
    for cell in asked:
        found = store.read(cell)
        if found is not None and "latency" in found:
            found = bench.timed(cell, {key: value for key, value in found.items() if key != "identity"})
            store.write(cell, found)
            _step(f"{cell.name}: {found['latency']['ratio']:.2f} of our time")


def _step(line: str) -> None:
    print(f"- {line}", file=sys.stderr, flush=True)
