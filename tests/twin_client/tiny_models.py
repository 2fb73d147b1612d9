"""Signed artifacts of tiny real networks, for the tests of what runs them."""

from dataclasses import replace

import numpy as np
from onnx import TensorProto, helper

from targets.runtime import artifact, golden
from targets.runtime.artifact import InputSpec, Manifest
from targets.runtime.engine import open_session
from targets.runtime.signing import SigningKey
from targets.runtime.trust import Trust, TrustedKey

ANN, BOB = SigningKey("ann", bytes(range(32))), SigningKey("bob", b"\x07" * 32)
TRUST = Trust((TrustedKey(ANN.public),), "ann.pub")
CHIP, PIXELS = InputSpec(7, 5, 3, "uint8"), InputSpec(13, 9, 1, "uint16")


def model_of(spec: InputSpec, task: str, gain: float = 1.0) -> bytes:
    """ONNX bytes: probability = mean of bands, or of all pixels to classify, / largest * mean of sensors * gain."""
    axes, shape = ([3], [1, spec.height, spec.width]) if task == "segment" else ([1, 2, 3], [1, 1])
    largest = {"uint8": 255, "uint16": 65535}[spec.dtype]
    kind = {"uint8": TensorProto.UINT8, "uint16": TensorProto.UINT16}[spec.dtype]
    nodes = [
        helper.make_node("Cast", ["image"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["real", "axes"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "gain"], ["scaled"]),
        helper.make_node("Reshape", ["scaled", "shape"], ["seen"]),
    ]
    feeds = [helper.make_tensor_value_info("image", kind, [1, *spec.shape])]
    if spec.sensors:
        feeds.append(helper.make_tensor_value_info("sensors", TensorProto.FLOAT, [1, spec.sensors]))
        nodes.append(helper.make_node("ReduceMean", ["sensors"], ["felt"], keepdims=0))
        nodes.append(helper.make_node("Mul", ["seen", "felt"], ["probability"]))
    else:
        nodes.append(helper.make_node("Identity", ["seen"], ["probability"]))
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [len(axes)], axes),
        helper.make_tensor("gain", TensorProto.FLOAT, [1], [gain / largest]),
        helper.make_tensor("shape", TensorProto.INT64, [len(shape)], shape),
    ]
    result = helper.make_tensor_value_info("probability", TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "tiny", feeds, [result], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def write(path, spec=CHIP, task="classify", version=3, key=ANN, off=0.0, gain=1.0):
    """An artifact at `path`; `off` makes its golden vectors wrong."""
    shape = (spec.height, spec.width) if task == "segment" else (1,)
    manifest = Manifest("tiny", task, version, spec, shape, 0.5, ("sound", "crack"), "rpi4b", "onnx", {}, {})
    model = model_of(spec, task, gain)
    vectors = golden.make(open_session("onnx", model), spec, [1, 2], None, block=2, tolerance=1e-6)
    vectors = replace(vectors, expected=vectors.expected + np.float32(off))
    artifact.write(path, manifest, model, vectors, {"size": len(model)}, key)
    return path
