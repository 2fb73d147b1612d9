"""The field's networks on an emulated board: exact ARM instructions of one inference, one thread; no time.

    python -m benchmarks.instructions [--board rpi4b] [--runtime tflite]       (needs `highwall emulator setup`)

Writes BOARD.json under --results, or BOARD-tflite.json, network by network; what is there for the same field is not
counted again, nor what is the same in a new one. Models of the field are ONNX; for LiteRT the slices that ship are
exported anew, as a build would.
"""

import argparse
import inspect
import json
import zlib
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from benchmarks.field import feeds, network_of
from benchmarks.script import script
from benchmarks.suite.field import Member, checksum, filled, fingerprint, members
from targets.board import load_board
from targets.emulator.counts import count
from targets.emulator.layout import pins
from targets.runtime import onnx, tflite
from targets.runtime.errors import HighwallError
from targets.runtime.files import write_text
from targets.runtime.manifest import InputSpec
from toolkit.export.tflite import export
from toolkit.quantize.recipes import plain
from toolkit.quantize.tflite import observe, quantize

RESULTS: Final = Path(__file__).parent / "results" / "instructions"
RUNTIMES: Final = {"onnx": onnx, "tflite": tflite}
ENGINES: Final = {"onnx": "ONNX Runtime", "tflite": "LiteRT"}
MOST_MACS: Final = 1_000_000_000  # of what an emulator ends in minutes


def wanted(runtime: str) -> list[Member]:
    """Classifiers at the slice size that ships, and networks of pixels in ONNX Runtime, as far as an emulator gets."""
    return [
        one
        for one in members()[0]
        if one.macs <= MOST_MACS and ((one.task == "segment" and runtime == "onnx") or one.size == 48)
    ]


def model_of(one: Member, runtime: str) -> bytes:
    """The member as a file of the runtime. Raises HighwallError where no exporter of ours can write it."""
    if runtime == "onnx":
        return filled(one)
    whole = _exported(one.network, one.task, one.size)
    if one.precision == "fp32":
        return whole
    return quantize(whole, plain("tflite", "int8"), observe(whole, feeds(one.size)))


@lru_cache(maxsize=1)
def _exported(network: str, task: str, size: int) -> bytes:
    return export(*network_of(network, task, size))


def main() -> None:
    """Count what is missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__.splitlines()[0])
    parser.add_argument("--board", default="rpi4b")
    parser.add_argument("--runtime", choices=RUNTIMES, default="onnx")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    suffix = "" if args.runtime == "onnx" else f"-{args.runtime}"
    board, results = load_board(args.board), args.results / f"{args.board}{suffix}.json"
    # The settings of a session decide what is counted, too.
    settings = Path(inspect.getfile(RUNTIMES[args.runtime]))
    identity: dict[str, Any] = {"packages": pins(), "runtime": zlib.crc32(settings.read_bytes())}
    result: dict[str, Any] = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {}
    if any(result.get(key) != value for key, value in identity.items()):
        result = {
            "command": f"python -m benchmarks.instructions --board {board.name}"
            + (f" --runtime {args.runtime}" if suffix else ""),
            "board": board.name,
            "cpu": board.cpu,
            "engine": ENGINES[args.runtime],
            **identity,
            "cells": {},
        }
    result["field"] = fingerprint()
    sums = {one.name: checksum(one) for one in wanted(args.runtime)}
    result["cells"] = {name: cell for name, cell in result["cells"].items() if cell.get("checksum") == sums.get(name)}
    write_text(results, json.dumps(result, indent=1) + "\n")
    for one in wanted(args.runtime):
        if one.name in result["cells"]:
            continue
        spec = InputSpec(one.size, one.size, one.bands, "uint8")
        try:
            found = asdict(count(board, args.runtime, model_of(one, args.runtime), spec, lambda line: None))
        except HighwallError as error:
            found = {"reason": str(error)}
        result["cells"][one.name] = asdict(one) | {"checksum": sums[one.name]} | found
        write_text(results, json.dumps(result, indent=1) + "\n")
        print(f"- {one.name}: {found.get('reason') or format(found['instructions'], ',')}", flush=True)


if __name__ == "__main__":
    script(main)
