"""Tiny real ONNX models and artifacts of them, for the tests of this room."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from targets.runtime import artifact, golden
from targets.runtime.artifact import InputSpec, Manifest
from targets.runtime.engine import open_session

DTYPES = {"uint8": TensorProto.UINT8, "uint16": TensorProto.UINT16}


def onnx_model(spec: InputSpec, task: str, gain: float = 1.0, output: str = "probability") -> bytes:
    """ONNX bytes: probability = mean over the bands (to classify: and pixels) / largest * gain."""
    largest = 255.0 if spec.dtype == "uint8" else 10000.0
    axes = [3] if task == "segment" else [1, 2, 3]
    shape = [1, spec.height, spec.width] if task == "segment" else [1, 1]
    nodes = [
        helper.make_node("Cast", ["image"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["real", "axes"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "gain"], ["scaled"]),
        helper.make_node("Reshape", ["scaled", "shape"], ["pooled"]),
    ]
    feeds = [helper.make_tensor_value_info("image", DTYPES[spec.dtype], [1, *spec.shape])]
    last = "pooled"
    if spec.sensors:
        feeds.append(helper.make_tensor_value_info("sensors", TensorProto.FLOAT, [1, spec.sensors]))
        nodes.append(helper.make_node("ReduceMean", ["sensors", "sensor_axes"], ["felt"], keepdims=1))
        nodes.append(helper.make_node("Mul", ["pooled", "felt"], ["joined"]))
        last = "joined"
    nodes.append(helper.make_node("Identity", [last], [output]))
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [len(axes)], axes),
        helper.make_tensor("sensor_axes", TensorProto.INT64, [1], [1]),
        helper.make_tensor("gain", TensorProto.FLOAT, [1], [gain / largest]),
        helper.make_tensor("shape", TensorProto.INT64, [len(shape)], shape),
    ]
    result = helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "tiny", feeds, [result], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def manifest_of(spec: InputSpec, task: str) -> Manifest:
    return Manifest(
        name="tiny",
        task=task,
        model_version=3,
        input=spec,
        output_shape=(spec.height, spec.width) if task == "segment" else (1,),
        threshold=0.5,
        labels=("sound", "crack"),
        board="rpi4b",
        runtime="onnx",
        recipe={"precision": "fp32"},
        provenance={"seed": 7},
    )


class Parts:
    """The arguments of `artifact.write` for a tiny model of this task and input."""

    def __init__(self, task: str, spec: InputSpec):
        self.spec = spec
        self.manifest = manifest_of(spec, task)
        self.model = onnx_model(spec, task)
        self.session = open_session("onnx", self.model)
        real = np.full((1, *spec.shape), 9, spec.dtype)
        self.golden = golden.make(self.session, spec, [1, 2], real, block=2, tolerance=1e-6)
        self.receipt = {"size": len(self.model), "parity": 0.0}

    @property
    def all(self):
        return self.manifest, self.model, self.golden, self.receipt

    def artifact(self, **changes):
        whole = artifact.decode(artifact.encode(*self.all), "tiny")
        return replace(whole, **changes)

    def write(self, path: Path) -> Path:
        artifact.write(path, *self.all)
        return path


@pytest.fixture(scope="session")
def make_model():
    return onnx_model


@pytest.fixture(scope="session")
def make_parts():
    return Parts


@pytest.fixture(scope="session")
def classifier():
    return Parts("classify", InputSpec(7, 5, 3, "uint8"))


@pytest.fixture(scope="session")
def segmenter():
    return Parts("segment", InputSpec(13, 9, 2, "uint16", scale=(1e-4, 1e-4), offset=(0.0, 0.0)))
