"""Both engines at float and int8 on emulated boards: parity with this machine, and exact instructions.

    python -m benchmarks.arm --model mine --data DIR [--board rpi4b]      (needs `highwall emulator setup`)
    python -m benchmarks.arm --set-up --artifact FILE      seconds of a set-up from nothing, and of verify after it
    python -m benchmarks.arm --table

Writes one JSON a preset and board under --results; what is there for the same model is not run again.
"""

import argparse
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.script import script
from targets.board import Board, boards, load_board
from targets.emulator import counts
from targets.emulator.layout import pins
from targets.emulator.setup import set_up
from targets.emulator.verify import verify
from targets.runtime import artifact, golden
from targets.runtime.engine import open_session
from targets.runtime.files import write_text
from targets.runtime.manifest import Manifest
from toolkit.cache import Cache
from toolkit.calibration import Calibration
from toolkit.compiler import Candidate, Compiler
from toolkit.data.folder import read
from toolkit.models import find
from toolkit.quantize.recipes import RECIPES

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "arm"
WANTED = ("onnx-fp32", "onnx-int8-mse", "tflite-fp32", "tflite-int8-mse", "onnx-int8w", "tflite-int8w")


def run(compiler: Compiler, board: Board, path: Path) -> None:
    """Fill the cells of `path` that are missing or of another model, each written as it is done."""
    cells: dict[str, Any] = json.loads(path.read_text()).get("cells", {}) if path.exists() else {}
    for name in WANTED:
        candidate = compiler.candidate(RECIPES[name])
        digest = hashlib.sha256(candidate.model).hexdigest()
        if cells.get(name, {}).get("model_sha256") == digest:
            continue
        started = time.perf_counter()
        parity = _parity(compiler, candidate, board)
        seconds = time.perf_counter() - started
        once, twice = (counts.recount(board, candidate.recipe.runtime, candidate.model, compiler.spec) for _ in "ab")
        cells[name] = {
            "model_sha256": digest,
            "tolerance": candidate.tolerance,
            "kernel_spread": candidate.spread,
            **parity,
            "counts": asdict(once),
            "counts_repeat": once == twice,
            "verify_seconds": round(seconds, 1),
        }
        result = {
            "command": f"python -m benchmarks.arm --model {compiler.model.name} --data DIR --board {board.name}",
            "board": board.name,
            "cpu": board.cpu,
            "packages": pins(),
            "cells": cells,
        }
        write_text(path, json.dumps(result, indent=1) + "\n")
        print(f"{compiler.model.name} {board.name} {name}: {parity} {once.instructions:,} {once == twice}", flush=True)


def _parity(compiler: Compiler, candidate: Candidate, board: Board) -> dict[str, Any]:
    """The largest difference between this machine's golden outputs, every pixel of them, and the board's."""
    session = open_session(candidate.recipe.runtime, candidate.model)
    vectors = golden.make(
        session, compiler.spec, compiler.golden_seeds, compiler.golden_images, block=1, tolerance=candidate.tolerance
    )
    classify = compiler.model.network.task == "classify"
    side = compiler.model.network.slice_size
    manifest = Manifest(
        name=compiler.model.name,
        task=compiler.model.network.task,
        model_version=1,
        input=compiler.spec,
        output_shape=vectors.expected.shape[1:] if classify else (side, side),
        threshold=compiler.model.threshold,
        labels=compiler.model.labels,
        board=board.name,
        runtime=candidate.recipe.runtime,
        recipe=candidate.recipe.as_dict(),
        provenance={},
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "it.highwall"
        artifact.write(path, manifest, candidate.model, vectors, {})
        found = json.loads(verify(board, path, ["--json"]).stdout)["golden"]
    return {"vectors": found["n"], "max_difference": found["max_difference"]}


def time_set_up(file: Path) -> dict[str, Any]:
    """Seconds to set the emulator up in an empty cache, and to verify `file` there twice; nothing of it is kept."""
    board = load_board("rpi4b")
    before = os.environ.get("XDG_CACHE_HOME")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        try:
            seconds = [_seconds(lambda: set_up([board], _step))]
            seconds += [_seconds(lambda: verify(board, file)) for _ in range(2)]
        finally:
            os.environ.pop("XDG_CACHE_HOME")
            if before is not None:
                os.environ["XDG_CACHE_HOME"] = before
    return {
        "command": "python -m benchmarks.arm --set-up --artifact mine.highwall",
        "processors": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        **dict(zip(("set_up_s", "first_verify_s", "verify_s"), seconds, strict=True)),
    }


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return round(time.perf_counter() - started, 1)


def tables(results: Path) -> str:
    """Markdown: parity, then instructions, then what int8 saves, of every preset and board there is."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*-*.json"))}
    named = {stem: (stem.rpartition("-")[0], result) for stem, result in found.items()}
    lines = ["| preset | board | core | " + " | ".join(WANTED) + " |", "| --- " * (3 + len(WANTED)) + "|"]
    for preset, result in named.values():
        cells = [_difference(result["cells"].get(name)) for name in WANTED]
        lines.append(f"| {preset} | {result['board']} | {result['cpu']} | " + " | ".join(cells) + " |")
    lines += ["", "| preset | board | recipe | M instructions | loads | stores | fma | dot | widening | against fp32 |"]
    lines.append("| --- " * 10 + "|")
    for preset, result in named.values():
        for name in WANTED:
            if (cell := result["cells"].get(name)) is None:
                continue
            counted = cell["counts"]
            whole = result["cells"][f"{name.split('-')[0]}-fp32"]["counts"]["instructions"]
            numbers = " | ".join(f"{counted[key] / 1e6:,.2f}" for key in counted)
            share = counted["instructions"] / whole
            lines.append(f"| {preset} | {result['board']} | {name} | {numbers} | {share:.2f} |")
    return "\n".join(lines)


def _difference(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return "not run"
    return "bit-exact" if cell["max_difference"] == 0 else f"{cell['max_difference']:.1e}"


def main() -> None:
    """Run what is missing, or print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.arm", description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("mine", "crack"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--board", action="append", help="default: rpi3bplus, rpi4b, rpi5, one of each core")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--set-up", action="store_true", help="time a set-up from nothing")
    parser.add_argument("--artifact", type=Path, help="with --set-up: what to verify after it")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    args = parser.parse_args()
    if args.table:
        print(tables(args.results))
        return
    if args.set_up:
        if args.artifact is None:
            parser.error("--set-up needs --artifact FILE")
        write_text(args.results / "setup.json", json.dumps(time_set_up(args.artifact), indent=1) + "\n")
        return
    if args.model is None or args.data is None:
        parser.error("give --model and --data, or --table")
    wanted = [load_board(name) for name in args.board or ()] or _one_a_core()
    model, network = find(args.model)

    data = replace(Calibration.of(read(args.data), model), judged=None)  # accuracy is benchmarks.recipes' matter
    compiler = Compiler(model, network, data, Cache.default(), _step)
    for board in wanted:
        run(compiler, board, args.results / f"{args.model}-{board.name}.json")


def _step(line: str) -> None:
    print(f"- {line}", flush=True)


def _one_a_core() -> list[Board]:
    cores: dict[str, Board] = {}
    for board in boards():
        if board.name != "host":
            cores.setdefault(board.qemu_cpu, board)
    return list(cores.values())


if __name__ == "__main__":
    script(main)
