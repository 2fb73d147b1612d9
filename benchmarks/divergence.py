"""Where a board's answers part from this machine's: the first operators of an ONNX artifact that compute otherwise.

    python -m benchmarks.divergence FILE.highwall --board rpi4b [--most 8]      (needs `highwall emulator setup`)

Every intermediate result of the last golden input is compared, in the graph as ONNX Runtime rewrites it.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnxruntime

from benchmarks.script import script
from targets.board import Board, load_board
from targets.emulator.guest import crash, open_guest
from targets.runtime import golden
from targets.runtime.artifact import Artifact, read
from targets.runtime.errors import HighwallError

# Both sides run this: IN holds graph.onnx and image.npy; every output of the graph goes to OUT.npz by its number.
SCRIPT: Final = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # it is rewritten already
options.intra_op_num_threads, options.log_severity_level = 1, 4
session = onnxruntime.InferenceSession(sys.argv[1] + "/graph.onnx", options, providers=["CPUExecutionProvider"])
found = session.run(None, {"image": numpy.load(sys.argv[1] + "/image.npy")[None]})
numpy.savez(sys.argv[2], *found)
"""


@dataclass(frozen=True)
class Parting:
    """An operator's output that differs: in which share of its values, and by how much at most."""

    operator: str
    dtype: str
    share: float
    largest: float


def partings(artifact: Artifact, board: Board) -> Iterator[Parting | None]:
    """One for every operator output in the order of the graph, None where the two machines agree in every bit."""
    if artifact.manifest.runtime != "onnx" or artifact.manifest.input.sensors:
        raise HighwallError("this compares ONNX artifacts with one input; build one with --runtime onnx")
    guest = open_guest(board)
    with tempfile.TemporaryDirectory() as folder:
        operators = _expose(artifact.model, Path(folder) / "graph.onnx")
        *_, image = golden.inputs(artifact.golden, artifact.manifest.input)
        np.save(Path(folder) / "image.npy", image)
        here, there = Path(folder) / "here.npz", Path(folder) / "there.npz"
        subprocess.run([sys.executable, "-c", SCRIPT, folder, str(here)], check=True)
        done = guest.run(["-c", SCRIPT, folder, str(there)], timeout=3600.0)
        if done.returncode:
            raise HighwallError(crash(done, board) or done.stderr.strip().splitlines()[-1])
        with np.load(here) as ours, np.load(there) as theirs:
            for number, operator in enumerate(operators):
                one, other = ours[f"arr_{number}"], theirs[f"arr_{number}"]
                off = np.abs(one.astype(np.float64) - other)
                same = np.array_equal(one, other)
                yield None if same else Parting(operator, str(one.dtype), float((off > 0).mean()), float(off.max()))


def _expose(model: bytes, path: Path) -> list[str]:
    """Write the graph that ONNX Runtime makes of `model`, with every result as an output; their operators in order."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED  # no x86 layouts
    if b"QuantizeLinear" in model:  # as targets.runtime.onnx opens it
        options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    graph = onnx.load(path)
    made = [(name, node.op_type) for node in graph.graph.node for name in node.output if name]
    del graph.graph.output[:]
    graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name, _ in made)
    onnx.save(graph, path)
    return [operator for _, operator in made]


def main() -> None:
    """Print the first operators that differ, and how many of all do."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.divergence")
    parser.add_argument("file", type=Path)
    parser.add_argument("--board", default="rpi4b")
    parser.add_argument("--most", type=int, default=8)
    args = parser.parse_args()
    found = list(partings(read(args.file), load_board(args.board)))
    parted = [(place, each) for place, each in enumerate(found) if each is not None]
    for place, each in parted[: args.most]:
        print(
            f"{place:>5}  {each.operator:<18} {each.dtype:<8} {each.share:.1e} of them, by at most {each.largest:.1e}"
        )
    before = parted[0][0] if parted else len(found)
    print(f"{len(parted)} of {len(found)} results differ; the first {before} agree in every bit")


if __name__ == "__main__":
    script(main)
