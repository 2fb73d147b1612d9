"""`python -m benchmarks.peers`: our artifacts beside other engines on the same networks.

    python -m benchmarks.peers --data DIR      DIR holds mine_chips and cracks; without it images are generated
    python -m benchmarks.peers --table

An engine that this environment lacks gets one of its own, in the cache, with a package index within reach. What is
measured is not measured again, unless it was noisy or failed.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from benchmarks.peers.peer import load, names
from benchmarks.peers.run import NETWORKS, run
from benchmarks.peers.table import RESULTS, table
from benchmarks.script import script


def main() -> None:
    """Measure, or print what is there. Raises HighwallError."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", action="append", choices=NETWORKS, help="only this one")
    parser.add_argument("--peer", action="append", metavar="NAME", help="only this one; --list names them")
    parser.add_argument("--threads", type=int, action="append", metavar="N", help="default: 1, and all cores")
    parser.add_argument("--seconds", type=float, default=4.0, metavar="S", help="of turns, a pair (default 4)")
    parser.add_argument("--data", type=Path, metavar="DIR")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--again", action="store_true", help="measure anew what was measured before")
    parser.add_argument("--list", action="store_true", help="name the peers, and what they get")
    parser.add_argument("--table", action="store_true", help="print what is there")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.list:
        for name in names():
            print(f"{name:12} {load(name).SETTINGS}")
    elif args.table:
        print(table(args.results))
    else:
        chosen = args.peer or names()
        for name in chosen:
            load(name)
        threads = args.threads or sorted({1, os.cpu_count() or 1})
        data = " --data DIR" if args.data else ""
        command = f"python -m benchmarks.peers --seconds {args.seconds:g}{data}"
        found = run(
            args.network or list(NETWORKS),
            chosen,
            threads,
            args.seconds,
            args.data,
            args.results,
            command,
            lambda line: print(f"- {line}", file=sys.stderr, flush=True),
            args.again,
        )
        print(json.dumps(found) if args.json else table(args.results))


if __name__ == "__main__":
    script(main)
