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
    parser.add_argument("action", choices=("run",), help="run: measure one artifact")
    parser.add_argument("file", type=Path, metavar="FILE", help="an artifact, NAME.highwall")
    parser.add_argument("--board", metavar="BOARD", help="what is measured (default: what the artifact was made for)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--emulate", action="store_true", help="count ARM instructions in the emulator; no time")
    where.add_argument("--ssh", metavar="[USER@]HOST", help="on a board, with your own ssh config and keys")
    parser.add_argument("--json", action="store_true")


def bench(args: argparse.Namespace) -> int:
    """Measure an artifact."""
    from targets.board import load_board
    from targets.runtime.artifact import read

    artifact = read(args.file)
    board = load_board(args.board or artifact.manifest.board)
    if args.emulate:
        return _emulated(args, artifact, board)
    raise HighwallError("only --emulate")


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


WORDS = {
    "loads": "loads",
    "stores": "stores",
    "fma": "fused multiply-adds",
    "dot": "dot products",
    "widening": "widening multiplies",
}


def _step(line: str) -> None:
    print(f"- {line}", file=sys.stderr, flush=True)
