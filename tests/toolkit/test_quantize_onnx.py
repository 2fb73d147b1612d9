"""What ONNX Runtime makes of our int8 models: integers, from the first convolution to the last."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

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
