"""Every rule of lint names the layer at fault in a network that has the fault, and is silent about one that has not."""

import json
import logging
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry
from torch import Tensor, nn

import highwall
from targets.board import load_board
from toolkit.checkpoint import Model
from toolkit.islands import INTEGER, MOVERS
from toolkit.lint import Finding, lint, text
from toolkit.network import CrackNet, NetworkConfig

SIDE = 11


def findings(network: nn.Module, board: str | None = "rpi5") -> dict[str, Finding]:
    """By rule; each rule speaks once."""
    model = Model("m", NetworkConfig("classify", 3, 0, 0, slice_size=SIDE), (120.0,) * 3, (60.0,) * 3)
    found = lint(model, network, None if board is None else load_board(board))
    assert len({finding.rule for finding in found}) == len(found)
    return {finding.rule: finding for finding in found}


class Small(nn.Module):
    """Convolution, whatever `middle` is, convolution, maximum, logits: alone it has nothing to find."""

    def __init__(self, middle: nn.Module | None = None, channels: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.middle = nn.Identity() if middle is None else middle
        self.last = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.MaxPool2d(SIDE - 2), nn.Flatten())
        self.logits = nn.Linear(4, 2)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.logits(self.last(self.middle(self.first(x))))
        return logits


class Beside(nn.Module):
    """Two branches joined, the second `gain` times as large."""

    def __init__(self, gain: float, normed: bool = False) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
        self.norm = nn.BatchNorm2d(4) if normed else nn.Identity()
        with torch.no_grad():
            self.two.weight.copy_(self.one.weight * gain)
            self.two.bias.copy_(self.one.bias * gain)  # type: ignore[union-attr, operator]
        if normed:
            self.norm.running_var.fill_(gain**2)  # type: ignore[union-attr, operator]

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((F.relu(self.one(x)), F.relu(self.norm(self.two(x)))), 1)


class Gate(nn.Module):
    """Squeeze-and-excitation that ends in `squash`."""

    def __init__(self, squash: nn.Module) -> None:
        super().__init__()
        self.mix, self.squash = nn.Conv2d(8, 8, 1), squash

    def forward(self, x: Tensor) -> Tensor:
        return x * self.squash(self.mix(x.mean((2, 3), keepdim=True)))


class Depthwise(nn.Module):
    """Depthwise, batch norm, ReLU; one channel's weights are `gain` times as large, its norm takes `back` off."""

    def __init__(self, gain: float, back: float = 1) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)
        with torch.no_grad():
            self.conv.weight.uniform_(0.9, 1)
            self.conv.weight[5] *= gain
            self.norm.weight[5] /= back

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class Branching(nn.Module):
    """Takes one of two ways, by what the pixels say."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.mean() > 0.5 else x


class Picking(nn.Module):
    """A sum over as many pixels as are positive."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x[x > 0].sum()


class Sized(nn.Module):
    """Reads its size in Python, which a fixed artifact may."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[..., : x.shape[-1] - 1], (0, 1))


class Wrapped(nn.Module):
    """Hands its input on by keyword."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(x=x)
        return found


class Pooled(nn.Module):
    """Logits from two pools side by side, the second `gain` times as large."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
        self.logits = nn.Linear(12, 2)
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        logits: Tensor = self.logits(torch.cat((x.amax((2, 3)), self.gain * x.amax((2, 3))), 1))
        return logits


class Boxes(nn.Module):
    """Coordinates and scores in one output."""

    def __init__(self, side: float) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, SIDE), nn.Flatten())
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.body(x))
        return torch.cat((self.side * x[:, :4], x[:, 4:]), 1)


class Squeeze(nn.Module):
    """Adds what a pool says of the whole map."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool, self.mix = pool, nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(self.pool(x))


def test_a_network_without_faults_has_no_finding() -> None:
    harmless = (
        Beside(1.5),
        Beside(40, normed=True),  # evened out before the join
        nn.SiLU(),  # a product with a sigmoid that no pool feeds
        Depthwise(100, back=100),  # evened out once the norm is folded
        Depthwise(0),  # a dead channel
        Squeeze(nn.AvgPool2d(SIDE)),  # an average that has an integer kernel
        Sized(),
    )
    assert findings(Small(nn.Sequential(*harmless))) == {}
    assert "nothing" in text([])


def test_a_join_of_branches_of_different_range_is_named() -> None:
    found = findings(Small(Beside(40)))
    assert found.keys() == {"concat-ranges"}
    assert found["concat-ranges"].layers == ("middle",)
    assert found["concat-ranges"].severity == "hurts"
    assert "6 of 256 steps" in found["concat-ranges"].what
    assert "estimated" in found["concat-ranges"].what


def test_the_same_fault_in_several_layers_is_one_finding_the_worst_first() -> None:
    found = findings(Small(nn.Sequential(Beside(30), Beside(1), Beside(300))))
    assert found["concat-ranges"].layers == ("middle.2", "middle.0")


def test_a_gate_is_named_and_grave_only_where_no_recipe_keeps_it_float() -> None:
    sigmoid, hard = (findings(Small(Gate(squash)))["gate"] for squash in (nn.Sigmoid(), nn.Hardsigmoid()))
    assert (sigmoid.severity, sigmoid.layers) == ("note", ("middle",))
    assert (hard.severity, hard.layers) == ("hurts", ("middle",))
    assert "torch.sigmoid" in hard.mend


def test_one_depthwise_channel_far_above_the_others_is_named() -> None:
    found = findings(Small(nn.Sequential(nn.Identity(), Depthwise(100))))["depthwise-spread"]
    assert found.layers == ("middle.1.conv",)
    assert found.severity == "hurts"


def test_depthwise_weights_are_judged_as_they_are_once_the_norm_is_folded() -> None:
    assert "depthwise-spread" in findings(Small(Depthwise(1, back=1 / 100)))


@pytest.mark.parametrize(("network", "layer"), [(Pooled(40), "forward"), (Boxes(500), "forward")])
def test_a_head_that_mixes_ranges_is_named(network: nn.Module, layer: str) -> None:
    found = findings(network.eval())
    assert found["mixed-head"].layers == (layer,)
    assert found["mixed-head"].severity == "hurts"
    assert "concat-ranges" not in found


def test_one_last_layer_of_unlike_outputs_is_a_mixed_head() -> None:
    network = Small()
    with torch.no_grad():
        network.logits.weight[1] *= 1000
    assert findings(network)["mixed-head"].layers == ("logits",)


@pytest.mark.parametrize("network", [Pooled(1), Boxes(1)])
def test_a_head_of_one_range_is_not_named(network: nn.Module) -> None:
    assert not {"mixed-head", "concat-ranges"} & findings(network.eval()).keys()


@pytest.mark.parametrize("part", [Branching(), Picking()])
def test_what_depends_on_pixel_values_is_named_by_the_module_that_does(part: nn.Module) -> None:
    found = findings(Small(nn.Sequential(nn.ReLU(), Wrapped(part))))["dynamic"]
    assert found.layers == ("middle.1.inner",)
    assert found.severity == "hurts"
    assert "\n" not in found.what


def test_float_operators_are_named_with_the_conversions_they_cost() -> None:
    found = findings(Small(nn.Sequential(nn.ReLU(), nn.GELU(), nn.Hardswish())))["float-operators"]
    assert "Gelu, HardSwish" in found.what
    assert "1 dequantize and 1 quantize" in found.what
    assert found.layers == ("middle",)
    assert found.severity == "slow"


def test_separate_float_operators_cost_conversions_each() -> None:
    between = nn.Conv2d(8, 8, 1)
    found = findings(Small(nn.Sequential(nn.GELU(), between, nn.Tanh())))["float-operators"]
    assert "2 dequantize and 2 quantize nodes, 1 and 1 of them in middle.0" in found.what
    assert found.layers == ("middle.0", "middle.2")


def test_a_conversion_at_the_models_end_is_nobodys_fault() -> None:
    class Ends(Small):
        def forward(self, x: Tensor) -> Tensor:
            return F.gelu(super().forward(x))

    assert findings(Ends()) == {}


def test_a_mean_over_the_whole_map_is_a_float_operator_with_an_integer_twin() -> None:
    found = findings(Small(Squeeze(nn.AdaptiveAvgPool2d(1))))
    assert "avg_pool2d" in found["float-operators"].mend
    assert "gate" not in found


@pytest.mark.parametrize(
    ("board", "told"), [("rpi4b", "on a Cortex-A72 int8 takes 1.01"), ("rpizero2w", "on a Cortex-A53 int8 takes 0.79")]
)
def test_a_board_without_dot_products_is_said_to_gain_little(board: str, told: str) -> None:
    found = findings(Small(), board)
    assert found.keys() == {"no-dot-product"}
    assert told in found["no-dot-product"].what
    assert "3 layers" in found["no-dot-product"].what
    assert found["no-dot-product"].layers == ()


def test_our_own_network_reads_in_a_few_lines() -> None:
    torch.manual_seed(0)
    network = CrackNet(3, "classify", 8, 4, sensors=5)
    model = Model("m", NetworkConfig("classify", 3, 8, 4, sensors=5, slice_size=26), (0.0,) * 3, (255.0,) * 3)
    found = {finding.rule: finding for finding in lint(model, network, load_board("rpi4b"))}
    assert found.keys() >= {"gate", "float-operators", "no-dot-product"}
    assert len(found["gate"].layers) == 9  # 3 squeeze-and-excitations, 3 CBAMs of two
    assert {"Div", "ReduceMax", "ReduceMean", "ReduceSum"} <= set(
        found["float-operators"].what.replace(",", "").split()
    )
    assert not {layer for finding in found.values() for layer in finding.layers} - {
        "forward",
        *(name for name, _ in network.named_modules()),
    }
    printed = text(found.values()).splitlines()
    assert len(printed) <= 18
    assert max(map(len, printed)) < 260
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert logging.root.manager.disable == 0


def spread() -> nn.Module:
    return Small(Depthwise(100))


def test_the_verb_prints_findings_and_fails_only_when_asked_to(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["lint", f"{__name__}:spread", "--size", str(SIDE), "--board", "rpi4b"]
    assert highwall.main(words) == 0
    printed = capsys.readouterr()
    assert "depthwise-spread: middle.conv" in printed.out
    assert "mend: " in printed.out
    assert printed.err == ""
    assert highwall.main([*words, "--json", "--strict"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [finding["rule"] for finding in found] == ["depthwise-spread", "no-dot-product"]
    assert found[0].keys() == {"rule", "layers", "severity", "what", "mend"}
    assert highwall.main(["lint", "mine", "--board", "rpi4c"]) == 1
    assert "rpi4b" in capsys.readouterr().err


# --- what the installed ONNX Runtime does ---------------------------------------------------------------


def runs_as(kind: str) -> set[str]:
    """The operators ONNX Runtime makes of `kind` between a dequantize and a quantize node."""
    extras = {
        "Conv": [np.ones((8, 8, 3, 3), np.int8)],
        "Gemm": [np.ones((6, 4), np.int8)],
        "MatMul": [np.ones((6, 4), np.int8)],
        "Resize": [np.array([], np.float32), np.array([1, 1, 2, 2], np.float32)],
        "Reshape": [np.array([1, -1])],
        "Slice": [np.array([0]), np.array([3]), np.array([2])],
        "Squeeze": [np.array([0])],
        "Unsqueeze": [np.array([0])],
        "Gather": [np.array(0)],
        "ReduceMean": [np.array([2, 3])],
        "ReduceSum": [np.array([2, 3])],
    }
    settings = {"Concat": {"axis": 1}, "Split": {"axis": 1, "num_outputs": 1}}
    settings |= {pool: {"kernel_shape": [2, 2]} for pool in ("AveragePool", "MaxPool")}
    initializers = [numpy_helper.from_array(np.float32(0.05), "s"), numpy_helper.from_array(np.array(np.uint8(9)), "z")]
    initializers.append(numpy_helper.from_array(np.array(np.int8(0)), "zero"))
    names = ("a", "b") if kind in ("Add", "Mul", "Concat", "Div") else ("a",)
    nodes = [helper.make_node("DequantizeLinear", [name, "s", "z"], [f"{name}f"]) for name in names]
    taken = [f"{name}f" for name in names]
    for index, extra in enumerate(extras.get(kind, [])):
        initializers.append(numpy_helper.from_array(extra, f"e{index}"))
        if extra.dtype == np.int8:
            nodes.append(helper.make_node("DequantizeLinear", [f"e{index}", "s", "zero"], [f"e{index}f"]))
        taken.append(f"e{index}f" if extra.dtype == np.int8 else f"e{index}")
    nodes.append(helper.make_node(kind, taken, ["y"], **settings.get(kind, {})))
    nodes.append(helper.make_node("QuantizeLinear", ["y", "s", "z"], ["o"]))
    shape = (5, 6) if kind == "Gemm" else (1, 8, 6, 6)
    inputs = [helper.make_tensor_value_info(name, TensorProto.UINT8, shape) for name in names]
    output = helper.make_tensor_value_info("o", TensorProto.UINT8, None)
    graph = helper.make_graph(nodes, "g", inputs, [output], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return {node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node}


@pytest.mark.parametrize("kind", sorted((INTEGER | MOVERS) - {"Relu", "Identity"}))
def test_the_engine_runs_in_integers_what_we_say_it_does(kind: str) -> None:
    assert not {"DequantizeLinear", "QuantizeLinear"} & runs_as(kind)
    assert kind in QDQRegistry.keys() | QLinearOpsRegistry.keys()


@pytest.mark.parametrize("kind", ["Div", "HardSigmoid", "HardSwish", "Gelu", "Tanh", "ReduceMean", "ReduceSum"])
def test_the_engine_leaves_in_float_what_we_say_it_does(kind: str) -> None:
    assert kind not in INTEGER | MOVERS
    assert {"DequantizeLinear", "QuantizeLinear"} <= runs_as(kind)


def test_the_engines_quantizer_knows_no_maximum_over_a_map() -> None:
    assert "ReduceMax" not in INTEGER | MOVERS | QDQRegistry.keys() | QLinearOpsRegistry.keys()
