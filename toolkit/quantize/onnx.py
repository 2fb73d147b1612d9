"""ONNX at int8: where values are observed, which layers are quantized, and how the result is written."""

import functools
import logging
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.shape_inference import quant_pre_process

from toolkit.export.onnx import export, shorten, strip
from toolkit.quantize.ranges import Histogram, limits
from toolkit.quantize.recipes import Recipe

__all__ = ["Feed", "Observed", "export", "layers", "observe", "quantize"]

Feed = Mapping[str, NDArray[Any]]  # by the model's input name, each with a batch axis of 1
Observed = dict[str, Histogram]  # by tensor name

# The rest stays float. ONNX Runtime has no integer kernel for ReduceSum, ReduceMax and Div, so quantizing
# what stands between them buys nothing but conversions.
QUANTIZED: Final = ("Conv", "Gemm", "Concat", "MaxPool", "AveragePool", "Add", "Mul", "Resize", "Relu")
LAYERS: Final = ("Conv", "Gemm", "MatMul")
POOLS: Final = ("ReduceMean", "ReduceMax", "ReduceSum", "GlobalAveragePool", "GlobalMaxPool", "Div")
# A way back from a gate's sigmoid that meets one of these before a pool has left the gate.
TRUNK: Final = ("MaxPool", "Resize", "DepthToSpace")


def layers(model: bytes) -> tuple[str, ...]:
    """Names of the layers with weights, in the order they run; the modules' own where torch named them."""
    graph = _prepared(model).graph
    outside = gates(graph)
    return tuple(node.name for node in graph.node if node.op_type in LAYERS and node.name not in outside)


def observe(model: bytes, feeds: Iterable[Feed], say: Callable[[str], None] = lambda _: None) -> Observed:
    """One histogram of every float tensor between operators, over all `feeds`."""
    proto = onnx.ModelProto()
    proto.CopyFrom(_prepared(model))
    graph = proto.graph
    declared = {value.name for value in graph.output}
    kinds = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    wanted = [
        name
        for node in graph.node
        for name in node.output
        if name in declared or kinds.get(name, TensorProto.FLOAT) == TensorProto.FLOAT
    ]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in declared)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1  # sums in one order, so that every machine sees the same ranges
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    observed = {name: Histogram() for name in wanted}
    for count, feed in enumerate(feeds, 1):
        # One image at a time, so that memory does not grow with their number.
        for name, values in zip(wanted, session.run(wanted, dict(feed)), strict=True):
            observed[name].add(values)
        if count % 50 == 0:
            say(f"{count} images observed")
    return observed


def quantize(model: bytes, recipe: Recipe, observed: Observed | None, keep_float: Collection[str] = ()) -> bytes:
    """`model` (float, from `export`) by `recipe`; the layers named in `keep_float` are left as they are.

    Unsigned activations, signed weights. ONNX Runtime has no signed activations on x86: where several layers read one
    tensor it cannot turn them, and leaves those layers in float. Boards take both, and their counts
    differ by less than eight instructions in a hundred, either way.
    """
    if recipe.precision == "fp32":
        return model
    proto = onnx.ModelProto()
    if recipe.precision == "int8w":
        proto.CopyFrom(_prepared(model))
        _weights_only(proto.graph, frozenset(keep_float))
    else:
        assert observed is not None, "static int8 needs observed ranges"
        proto = _static(model, {name: limits(seen, recipe.ranges) for name, seen in observed.items()}, keep_float)
    strip(proto)
    shorten(proto)
    return bytes(proto.SerializeToString(deterministic=True))


def _static(model: bytes, ranges: Mapping[str, tuple[float, float]], keep_float: Collection[str]) -> onnx.ModelProto:
    """QDQ, per channel, activations asymmetric within `ranges` (low, high)."""
    proto = onnx.ModelProto()
    proto.CopyFrom(_prepared(model))
    bounds = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
    with _quiet():
        quantizer = QDQQuantizer(
            proto,
            True,  # per channel
            False,  # reduce range
            QuantType.QInt8,  # weights
            QuantType.QUInt8,  # activations
            TensorsData(CalibrationMethod.MinMax, bounds),
            [],  # all nodes but those excluded
            sorted(gates(proto.graph) | set(keep_float)),
            list(QUANTIZED),
            {"ActivationSymmetric": False, "WeightSymmetric": True},
        )
        quantizer.quantize_model()
    result: onnx.ModelProto = quantizer.model.model
    return result


def _weights_only(graph: onnx.GraphProto, keep_float: frozenset[str]) -> None:
    """Weights become int8 with a scale a channel; the engine turns them back once, when it loads the model."""
    weights = {initializer.name: initializer for initializer in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type in LAYERS and node.name not in keep_float and node.input[1] in weights:
            name = node.input[1]
            node.input[1] = f"{name}.real"
            if any(made.output[0] == node.input[1] for made in nodes):
                nodes.append(node)
                continue
            values = numpy_helper.to_array(weights[name])
            axis = 1 if _columns_are_channels(node) else 0
            largest = np.abs(values).max(tuple(i for i in range(values.ndim) if i != axis), keepdims=True)
            scale = np.maximum(largest / 127, np.finfo(np.float32).tiny).astype(np.float32)
            whole = np.rint(values / scale).clip(-127, 127).astype(np.int8)
            graph.initializer.remove(weights[name])
            graph.initializer.append(numpy_helper.from_array(whole, name))
            graph.initializer.append(numpy_helper.from_array(scale.ravel(), f"{name}.scale"))
            inputs = [name, f"{name}.scale"]
            nodes.append(helper.make_node("DequantizeLinear", inputs, [node.input[1]], axis=axis))
        nodes.append(node)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def _columns_are_channels(node: onnx.NodeProto) -> bool:
    if node.op_type == "MatMul":
        return True
    return node.op_type == "Gemm" and not any(entry.name == "transB" and entry.i for entry in node.attribute)


@functools.lru_cache(maxsize=4)
def _prepared(model: bytes) -> onnx.ModelProto:
    """`model` with shapes inferred and its operators fused, as the quantizer wants it. Not to be changed."""
    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, prepared = (Path(folder) / name for name in ("float.onnx", "prepared.onnx"))
        source.write_bytes(model)
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        return onnx.load(str(prepared))


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
