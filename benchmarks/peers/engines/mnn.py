"""MNN, converted from ONNX."""

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

TITLE = "MNN"
PACKAGES: tuple[str, ...] = ("MNN==3.6.1",)
SETTINGS = "mnnconvert from ONNX, the module interface, precision high"
PRECISIONS = ("fp32",)
GAPS = {"int8": "its offline quantizer takes image files of its own kind and was not tried"}


def convert(source: Path, precision: str, out: Path) -> None:
    """See `benchmarks.peers.peer.Peer`."""
    command = [sys.executable, "-m", "MNN.tools.mnnconvert", "-f", "ONNX", "--modelFile", str(source / "model.onnx")]
    command += ["--MNNModel", str(out), "--bizCode", "highwall"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not out.exists():
        raise SystemExit(f"mnnconvert: {(done.stdout + done.stderr).strip().splitlines()[-1]}")


def preload() -> None:
    """Its import."""
    importlib.import_module("MNN")


def session(model: Path, threads: int) -> Any:
    """See `benchmarks.peers.peer.Peer`."""
    mnn: Any = importlib.import_module("MNN")
    expr: Any = importlib.import_module("MNN.expr")
    settings = {"backend": 0, "precision": "high", "numThread": threads}
    manager = mnn.nn.create_runtime_manager((settings,))
    net = mnn.nn.load_module_from_file(str(model), ["image"], ["probability"], runtime_manager=manager)

    def answer(image: Any) -> Any:
        given = expr.const(image[None], list(image[None].shape), expr.data_format.NCHW, expr.dtype.uint8)
        return np.array(net.forward([given])[0].read())[0]

    return answer
