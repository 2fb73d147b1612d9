"""Static int8: ONNX QDQ, per channel, symmetric, with ranges measured on calibration images."""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType
from onnxruntime.quantization import quantize_static as ort_quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from toolkit.export.onnx import shorten, strip

# The rest stays float. ONNX Runtime has no integer kernel for ReduceSum, ReduceMax and Div, so quantizing
# what stands between them buys nothing but conversions.
QUANTIZED = ("Conv", "Gemm", "Concat", "MaxPool", "Add", "Mul", "Resize", "Relu")


POOLS = ("ReduceMean", "ReduceMax", "ReduceSum", "GlobalAveragePool", "GlobalMaxPool", "Div")
# A way back from a gate's sigmoid that meets one of these before a pool has left the gate.
TRUNK = ("MaxPool", "Resize", "DepthToSpace")


class _Images(CalibrationDataReader):  # type: ignore[misc]
    """Feeds (H, W, C) images one at a time."""

    def __init__(self, images: Sequence[NDArray[np.generic]]) -> None:
        self._images = iter(images)

    def get_next(self) -> dict[str, NDArray[np.generic]] | None:
        image = next(self._images, None)
        return None if image is None else {"image": image[np.newaxis]}


def quantize(model: bytes, images: Sequence[NDArray[np.generic]]) -> bytes:
    """`model` (float ONNX from `toolkit.export.onnx`) at int8, calibrated on `images` by minimum and maximum.

    Signed activations and weights: board kernels are as fast with them, and one convention fits every board.
    """
    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, prepared, result = (Path(folder) / name for name in ("float.onnx", "prepared.onnx", "int8.onnx"))
        source.write_bytes(model)
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        graph = onnx.load(str(prepared)).graph
        ort_quantize_static(
            str(prepared),
            str(result),
            _Images(images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTIZED),
            nodes_to_exclude=sorted(gates(graph)),
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
        )
        proto = onnx.load(str(result))
    strip(proto)
    shorten(proto)
    return bytes(proto.SerializeToString(deterministic=True))


def gates(graph: onnx.GraphProto) -> set[str]:
    """Names of the nodes that compute attention gates: all from a pooled map up to its sigmoid.

    They see one number a channel, or three a pixel, so they cost little in float, while a gate's error
    multiplies every pixel it scales. A sigmoid that no pool feeds is an activation or the output, and no gate.
    """
    makers = {output: node for node in graph.node for output in node.output}
    results = {value.name for value in graph.output}
    found: set[str] = set()
    for node in graph.node:
        if node.op_type == "Sigmoid" and node.output[0] not in results:
            found |= _gate(node, makers)
    return found


def _gate(sigmoid: onnx.NodeProto, makers: dict[str, onnx.NodeProto]) -> set[str]:
    """The gate that ends in `sigmoid`: every way back must meet a pool before it leaves the graph."""
    seen: set[str] = set()
    pooled = False
    waiting = [sigmoid]
    while waiting:
        here = waiting.pop()
        if here.name in seen:
            continue
        seen.add(here.name)
        if here.op_type in POOLS:
            pooled = True
            continue
        if "image" in here.input or here.op_type in TRUNK:
            return set()
        waiting += [makers[name] for name in here.input if name in makers]
    return seen if pooled else set()


class _quiet:  # noqa: N801 (a context manager, used like a function)
    """The quantizer logs advice through the root logger; ours is given by `highwall`."""

    def __enter__(self) -> None:
        self._level = logging.root.level
        logging.root.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        logging.root.setLevel(self._level)
