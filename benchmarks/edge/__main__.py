"""Cloud against edge twin, the paper's figure 6: `python -m benchmarks.edge`, which needs root, or `--modelled`."""

import argparse
import json
import signal
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.script import script


def main() -> int:
    """0; 1 where both settings did not give the same answers and weights. Raises HighwallError."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.edge", description=__doc__, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="two networks, tiny and once, to see that it runs")
    parser.add_argument("--modelled", action="store_true", help="from the stated model; needs no root and no hosts")
    parser.add_argument(
        "--cores", type=float, metavar="N", help="of a CPU for each host (default: a third of 90 %% of all)"
    )
    parser.add_argument("--table", action="store_true", help="run nothing, print the tables of the results")
    parser.add_argument("--results", type=Path, metavar="DIR", help="default: benchmarks/results/edge")
    parser.add_argument("--json", action="store_true", help="print JSON")
    # A polite end takes the way of Ctrl-C, so that hosts are removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return _run(parser.parse_args())


def _run(args: argparse.Namespace) -> int:
    from benchmarks.edge import run, table

    folder = args.results or run.RESULTS
    if args.table:
        found = table.results(folder)
        print(json.dumps(found, indent=1) if args.json else table.report(found))
        return 0
    plan = run.QUICK if args.quick else run.Plan()
    if args.cores is not None:
        plan = replace(plan, cores=args.cores)
    name = f"figure6{'-modelled' * args.modelled}"
    path = folder / f"{'quick-' * args.quick}{name}.json"  # a quick one is in no table
    command = f"python -m benchmarks.edge{' --quick' * args.quick}{' --modelled' * args.modelled}"
    command += "" if args.cores is None else f" --cores {args.cores:g}"
    result = (run.modelled if args.modelled else run.run)(plan, path, command, _say)
    print(json.dumps(result, indent=1) if args.json else table.report([result]))
    _say(f"results are in {path}")
    return int(any(not cell["equal"]["equal"] for cell in result["cells"].values() if "equal" in cell))


def _say(line: str) -> None:
    print(f"- {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    script(main)
