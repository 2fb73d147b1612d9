"""ONNX Runtime by itself: its own session defaults and its own quantizer."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

TITLE = "onnxruntime"
PACKAGES: tuple[str, ...] = ()
SETTINGS = (
    "all graph optimisations, memory arena and pattern on; int8 by quantize_static after quant_pre_process, QDQ, uint8 "
    "activations and int8 weights a channel, as its quantization page advises for x86 with VNNI"
)
PRECISIONS = ("fp32", "int8")
GAPS: dict[str, str] = {}


class _Reader:
    """What its quantizer reads images from."""

    def __init__(self, images: Any) -> None:
        self._feeds: Iterator[dict[str, Any]] = iter([{"image": image[None]} for image in images])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def convert(source: Path, precision: str, out: Path) -> None:
    """See `benchmarks.peers.peer.Peer`."""
    if precision == "fp32":
        shutil.copy(source / "model.onnx", out)
        return
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = out.with_suffix(".prepared.onnx")
    quant_pre_process(str(source / "model.onnx"), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(out),
        _Reader(np.load(source / "images.npy")),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )


def preload() -> None:
    """Its import."""
    import onnxruntime  # noqa: F401


def session(model: Path, threads: int) -> Any:
    """See `benchmarks.peers.peer.Peer`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    opened = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return lambda image: opened.run(None, {"image": image[None]})[0][0]
