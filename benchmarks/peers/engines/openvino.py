"""OpenVINO, quantized by NNCF."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np

TITLE = "openvino"
PACKAGES: tuple[str, ...] = ("openvino==2026.4.1", "nncf==3.4.0")
SETTINGS = "the latency hint and a number of threads; int8 by nncf.quantize with its mixed preset; fp32 is kept at fp32"
PRECISIONS = ("fp32", "int8")
GAPS: dict[str, str] = {}


def convert(source: Path, precision: str, out: Path) -> None:
    """See `benchmarks.peers.peer.Peer`; an .xml and a .bin."""
    openvino: Any = importlib.import_module("openvino")
    made = openvino.convert_model(str(source / "model.onnx"))
    if precision == "int8":
        nncf: Any = importlib.import_module("nncf")
        images = np.load(source / "images.npy")
        data = nncf.Dataset(list(images), lambda image: image[None])
        made = nncf.quantize(made, data, preset=nncf.QuantizationPreset.MIXED, subset_size=len(images))
    openvino.save_model(made, str(out.with_suffix(".xml")), compress_to_fp16=False)
    out.write_bytes(b"")


def preload() -> None:
    """Its import."""
    importlib.import_module("openvino")


def session(model: Path, threads: int) -> Any:
    """See `benchmarks.peers.peer.Peer`."""
    openvino: Any = importlib.import_module("openvino")
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    opened = openvino.Core().compile_model(str(model.with_suffix(".xml")), "CPU", hints)
    request = opened.create_infer_request()

    def answer(image: Any) -> Any:
        return request.infer({0: image[None]})[opened.output(0)][0]

    return answer
