"""The field's networks on an emulated board: exact ARM instructions of one inference, one thread; no time.

    python -m benchmarks.instructions [--board rpi4b]       (needs `highwall emulator setup`)

Writes BOARD.json under --results, network by network; what is there for the same field is not counted again.
"""

import argparse
import inspect
import json
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from benchmarks.suite.field import Member, filled, fingerprint, members
from targets.board import load_board
from targets.emulator.counts import count
from targets.emulator.layout import pins
from targets.runtime import onnx
from targets.runtime.errors import HighwallError
from targets.runtime.files import write_text
from targets.runtime.manifest import InputSpec

RESULTS: Final = Path(__file__).parent / "results" / "instructions"
RUNTIME: Final = Path(inspect.getfile(onnx))  # its settings of a session decide what is counted, too
MOST_MACS: Final = 1_000_000_000  # of what an emulator ends in minutes


def wanted() -> list[Member]:
    """Classifiers at the slice size that ships, and networks of pixels, as far as an emulator gets."""
    return [one for one in members()[0] if one.macs <= MOST_MACS and (one.task == "segment" or one.size == 48)]


def main() -> None:
    """Count what is missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__.splitlines()[0])
    parser.add_argument("--board", default="rpi4b")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    board, results = load_board(args.board), args.results / f"{args.board}.json"
    identity: dict[str, Any] = {"packages": pins()}
    identity |= {"field": fingerprint(), "runtime": zlib.crc32(RUNTIME.read_bytes())}
    result: dict[str, Any] = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {}
    if any(result.get(key) != value for key, value in identity.items()):
        result = {
            "command": f"python -m benchmarks.instructions --board {board.name}",
            "board": board.name,
            "cpu": board.cpu,
            **identity,
            "cells": {},
        }
    for one in wanted():
        if one.name in result["cells"]:
            continue
        spec = InputSpec(one.size, one.size, one.bands, "uint8")
        try:
            found = asdict(count(board, "onnx", filled(one), spec, lambda line: None))
        except HighwallError as error:
            found = {"reason": str(error)}
        result["cells"][one.name] = asdict(one) | found
        write_text(results, json.dumps(result, indent=1) + "\n")
        print(f"- {one.name}: {found.get('reason') or format(found['instructions'], ',')}", flush=True)


if __name__ == "__main__":
    main()
