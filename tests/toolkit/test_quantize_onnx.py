"""What ONNX Runtime makes of our int8 models: integers, from the first convolution to the last."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from targets.runtime.engine import open_session
from toolkit.checkpoint import Model
from toolkit.export.onnx import export
from toolkit.network import CrackNet, NetworkConfig
from toolkit.quantize.onnx import observe, quantize
from toolkit.quantize.recipes import plain


def executed(model: bytes, folder: Path) -> Counter[str]:
    """How many of each operator the engine runs, once it has fused what it can."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3  # that a file made for this processor suits no other
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def test_convolutions_sums_products_and_joins_of_an_int8_network_run_in_integers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = CrackNet(3, "segment", 8, 4).eval()
    model = Model("m", NetworkConfig("segment", 3, 8, 4, slice_size=37), (127.0,) * 3, (60.0,) * 3)
    whole = export(model, network)
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 37, 37, 3), np.uint8)
    found = executed(quantize(whole, plain("onnx", "int8"), observe(whole, ({"image": x} for x in images))), tmp_path)
    gates = sum(name.endswith(("reduce", "expand", "attention.1.conv")) for name, _ in network.named_modules())
    assert found["QLinearConv"] > 60
    assert found["Conv"] + found["FusedConv"] <= gates  # which are float by choice
    assert min(found[f"QLinear{kind}"] for kind in ("Add", "Mul", "Concat")) > 10


class Twice(nn.Module):
    """A layer that is used twice, between others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.last = nn.Conv2d(32, 1, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.again(torch.relu(self.first(x))))
        logits: torch.Tensor = self.last(torch.relu(self.again(x)))
        return logits


def wide() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 1, 3, padding=1))


@pytest.mark.parametrize("factory", [wide, Twice])
def test_the_engine_s_integers_do_not_saturate_on_any_processor(factory: Callable[[], nn.Module]) -> None:
    """Node by node, as without any rewriting, the same graph is computed in float, where nothing overflows."""
    torch.manual_seed(0)
    network = factory()
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):  # of one sign: as 8 bits all are 127, so every pair of products is too large
            nn.init.constant_(layer.weight, 1 / layer.weight[0].numel())
    model = Model("m", NetworkConfig("segment", 3, 8, 4, slice_size=37), (0.0,) * 3, (255.0,) * 3)
    whole = export(model, network.eval())
    white = np.full((1, 37, 37, 3), 255, np.uint8)
    images = [white, np.random.default_rng(0).integers(0, 256, white.shape, np.uint8)]
    made = quantize(whole, plain("onnx", "int8"), observe(whole, ({"image": x} for x in images)))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    exact = onnxruntime.InferenceSession(made, options, providers=["CPUExecutionProvider"])
    session = open_session("onnx", made)
    for image in images:
        (wanted,) = exact.run(["probability"], {"image": image})
        assert 0.2 < wanted.mean() < 0.95
        assert np.abs(session.run(image[0]) - wanted[0]).max() < 0.02
