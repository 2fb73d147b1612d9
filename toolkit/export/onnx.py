"""A torch network as an ONNX model that takes raw pixels and gives probabilities."""

import io
import logging
import warnings
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from toolkit.checkpoint import Model
from toolkit.data.batches import standardised
from toolkit.temperature import fold

OPSET = 20
TORCH_DTYPES = {"uint8": torch.uint8, "uint16": torch.uint16}


class Deployed(nn.Module):
    """The network between raw pixels and probabilities, as it runs on a board.

    image: (1, H, W, bands) of the model's dtype. sensors: (1, m) float, raw readings, when the network has any.
    Gives (1, 1) or (1, classes) to classify, (1, H, W) to segment; softmax over two classes or more.
    """

    def __init__(self, model: Model, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.task = model.network.task
        self.tempering = model.tempering
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.tensor(model.mean).view(1, -1, 1, 1))
        self.register_buffer("scale", 1 / torch.tensor(model.std).view(1, -1, 1, 1))
        self.scaled = bool(model.sensor_mean)
        self.sensor_mean: Tensor
        self.sensor_std: Tensor
        self.register_buffer("sensor_mean", torch.tensor(model.sensor_mean))
        self.register_buffer("sensor_std", torch.tensor(model.sensor_std))

    def forward(self, image: Tensor, sensors: Tensor | None = None) -> Tensor:
        pixels = image.to(torch.float32).permute(0, 3, 1, 2)
        pixels = (pixels - self.mean) * self.scale
        if sensors is not None and self.scaled:
            # One int8 scale cannot hold every unit, so this must stay float. Engines quantize multiplications and no
            # divisions, but converters multiply by 1 / std, unless the divisor looks as if it could change.
            std = torch.maximum(self.sensor_std, sensors.clamp(max=0))
            sensors = standardised(sensors, self.sensor_mean, std)
        logits = self.network(pixels) if sensors is None else self.network(pixels, sensors)
        logits = self.tempering.apply(logits)
        if self.task == "segment":
            return torch.sigmoid(logits.squeeze(1))
        return torch.sigmoid(logits) if logits.shape[1] == 1 else torch.softmax(logits, 1)


def run_torch(
    model: Model, network: nn.Module, image: NDArray[np.generic], sensors: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """The reference every exported model is held against: (H, W, bands) to (K,) or (H, W)."""
    # torch has few operators on uint16, and a float holds every such number exactly.
    inputs = [torch.from_numpy(x.astype(np.float32)).unsqueeze(0) for x in (image, sensors) if x is not None]
    with torch.inference_mode():
        output: NDArray[np.float32] = Deployed(model, network).eval()(*inputs).numpy()[0]
    return output


def export(model: Model, network: nn.Module) -> bytes:
    """The network as serialised ONNX: inputs `image` (and `sensors`), output `probability`, fixed shapes."""
    model, network = fold(model, network)
    config = model.network
    side = config.slice_size
    inputs: tuple[Tensor, ...] = (torch.zeros(1, side, side, config.bands, dtype=TORCH_DTYPES[model.dtype]),)
    names = ["image"]
    if config.sensors:
        inputs += (torch.zeros(1, config.sensors),)
        names.append("sensors")
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                Deployed(model, network).eval(),
                inputs,
                input_names=names,
                output_names=["probability"],
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    finally:
        quiet.setLevel(level)
    assert program is not None
    proto = program.model_proto
    strip(proto)
    names = _node_names(proto.graph)
    shorten(proto)
    for node, name in zip(proto.graph.node, names, strict=True):
        node.name = name  # the quantizer tells nodes apart by name
    onnx.checker.check_model(proto, full_check=True)
    return bytes(proto.SerializeToString(deterministic=True))


def _node_names(graph: onnx.GraphProto) -> list[str]:
    """A name for each node: its module's path in torch where it has weights, else its operator and place."""
    weights = {initializer.name for initializer in graph.initializer}
    names: list[str] = []
    for index, node in enumerate(graph.node):
        given = [name for name in node.input if name in weights and name.endswith(".weight")]
        path = given[0].removeprefix("network.").removesuffix(".weight") if given else ""
        names.append(path if path and path not in names else f"{node.op_type}_{index}")
    return names


def strip(proto: onnx.ModelProto) -> None:
    """Remove what the exporter notes for debugging: source paths and versions, which differ by machine."""
    proto.producer_name, proto.producer_version, proto.doc_string = "highwall", "", ""
    del proto.metadata_props[:]
    graph = proto.graph
    graph.doc_string, graph.name = "", "highwall"
    del graph.metadata_props[:]
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]


def shorten(proto: onnx.ModelProto) -> None:
    """Give every inner tensor a short name and drop what engines infer: half of a small int8 file is names."""
    graph = proto.graph
    del graph.value_info[:]
    kept = {value.name for value in (*graph.input, *graph.output)}
    short: dict[str, str] = {"": ""}

    def name(long: str) -> str:
        if long in kept:
            return long
        return short.setdefault(long, f"{len(short):x}")

    for initializer in graph.initializer:
        initializer.name = name(initializer.name)
    for node in graph.node:
        node.name = ""
        node.input[:] = [name(x) for x in node.input]
        node.output[:] = [name(x) for x in node.output]
