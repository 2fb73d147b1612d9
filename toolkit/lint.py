"""What will hurt or slow a network at int8, before anything is calibrated, and the mend of each."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from targets.board import Board
from toolkit.checkpoint import Model
from toolkit.export.onnx import OPSET, TORCH_DTYPES, Deployed
from toolkit.instructions import PER_MAC, nearest_core
from toolkit.islands import Island, islands, to_onnx
from toolkit.trace import Step, Trace, culprit, noise, quiet, trace

Severity = Literal["hurts", "slow", "note"]

# Ranges or weights this many times apart cost the smaller side two of its eight bits, or three.
FAR_BRANCHES: Final = 4.0
FAR_CHANNELS: Final = 8.0
FAR_OUTPUTS: Final = 64.0  # logits differ a good deal by themselves; beyond this, the smaller keep 4 steps or fewer
STEPS: Final = 256  # of an int8 scale
ESTIMATED: Final = "(estimated on seeded noise; calibration images may differ)"

LAYERS: Final = ("convolution", "addmm", "mm", "bmm", "baddbmm", "linear")
JOINS: Final = ("cat", "stack")
POOLS: Final = ("mean", "amax", "sum", "max", "var", "_adaptive_avg_pool2d", "adaptive_max_pool2d")


@dataclass(frozen=True)
class Finding:
    """One thing to know. `layers` are torch module paths, the worst first; empty: the whole network.

    `hurts`: accuracy at int8, or no artifact at all. `slow`: time without a gain. `note`: good to know.
    """

    rule: str
    layers: tuple[str, ...]
    severity: Severity
    what: str
    mend: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def lint(model: Model, network: nn.Module, board: Board | None = None) -> list[Finding]:
    """All findings, the gravest first; `network` is any module `model` can feed, in evaluation mode.

    Ranges are estimates on seeded noise. What the graph alone says (gates, operators, shapes) is exact.
    """
    network.eval()
    inputs = noise(model)
    with quiet():
        seen = trace(network, inputs)
        found = [
            *_joins(seen),
            *_gates(seen),
            *_depthwise(network, seen),
            *_output(seen),
            *_shapes(model, network, inputs[0], seen),
            *_board(seen, board),
        ]
    order = ("hurts", "slow", "note")
    return sorted(found, key=lambda finding: order.index(finding.severity))


def text(findings: Iterable[Finding]) -> str:
    """Findings for people: two lines each under their severity, rule and first layers."""
    blocks = []
    for finding in findings:
        where = ", ".join(finding.layers[:4]) + (f" and {len(finding.layers) - 4} more" if finding.layers[4:] else "")
        head = f"{finding.severity:<6}{finding.rule}" + (f": {where}" if where else "")
        blocks.append(f"{head}\n      {finding.what}\n      mend: {finding.mend}")
    return "\n".join(blocks) or "nothing found that would hurt or slow it at int8"


def _joins(seen: Trace) -> Iterator[Finding]:
    """Concatenations whose branches differ in range: they get one scale, made for the widest."""
    gated = {index for _, members in _gates_of(seen) for index in members}
    bad: dict[str, list[tuple[float, str, str]]] = {"concat-ranges": [], "mixed-head": []}
    for index, step in enumerate(seen.steps):
        if step.op not in JOINS or index in gated:
            continue
        widths = sorted(width for i in set(step.operands) if (width := seen.steps[i].width) > 0)
        if len(widths) < 2 or widths[-1] < FAR_BRANCHES * widths[0]:
            continue
        told = f"{widths[0]:.3g} of {step.width:.3g}: {STEPS * widths[0] / step.width:.0f} of {STEPS} steps"
        rule = "mixed-head" if _is_head(seen, index) else "concat-ranges"
        bad[rule].append((widths[-1] / widths[0], _path(step), told))
    advice = {
        "concat-ranges": "end branches alike, each in batch norm and ReLU or all in one pool; or train on with --qat",
        "mixed-head": "give each kind its own layer or output, or normalise the parts before they join",
    }
    for rule, cases in bad.items():
        if cases:
            layers, (_, _, told) = _ranked(cases)
            what = f"joined branches differ in range; at worst one spans {told} {ESTIMATED}"
            yield Finding(rule, layers, "hurts", what, advice[rule])


def _is_head(seen: Trace, join: int) -> bool:
    """Whether a join is of pooled features, or nothing with weights comes after it."""
    if len(seen.steps[join].shape) <= 2:
        return True
    after, waiting = {join}, [join]
    while waiting:
        fresh = [reader for reader in seen.readers(waiting.pop()) if reader not in after]
        after.update(fresh)
        waiting += fresh
    return not any(seen.steps[i].op in LAYERS for i in after)


def _gates(seen: Trace) -> Iterator[Finding]:
    """Maps multiplied by what pools of them say: a gate's error reaches every pixel it scales."""
    kinds: dict[bool, list[str]] = {True: [], False: []}
    for product, members in _gates_of(seen):
        kinds[any(seen.steps[i].op == "sigmoid" for i in members)].append(_path(seen.steps[product]))
    if kinds[False]:
        what = "a gate without Sigmoid multiplies whole maps; no recipe keeps such a gate in float"
        mend = "use torch.sigmoid: ONNX Runtime has an integer kernel for it, and recipes then keep the gate in float"
        yield Finding("gate", _once(kinds[False]), "hurts", what, mend)
    if kinds[True]:
        what = "gates multiply whole maps by what pools say, so their error reaches every pixel"
        mend = "none needed: recipes keep these in float"
        yield Finding("gate", _once(kinds[True]), "note", what, mend)


def _gates_of(seen: Trace) -> list[tuple[int, set[int]]]:
    """Every product of a map and something smaller made from pools alone, with the steps from pools to product."""
    pooled: list[bool] = []
    found = []
    for index, step in enumerate(seen.steps):
        made_from = [i for i in step.operands if seen.steps[i].op != "constant"]
        is_pool = step.op in POOLS and any(seen.steps[i].size > step.size for i in made_from)
        pooled.append(is_pool or (bool(made_from) and all(pooled[i] for i in made_from)))
        if step.op != "mul" or len(made_from) != 2:
            continue
        large, small = sorted(made_from, key=lambda i: -seen.steps[i].size)
        size = seen.steps[large].size
        members: set[int] = set()
        waiting = [small]
        while waiting:
            here = waiting.pop()
            if pooled[here] and seen.steps[here].size < size and here not in members:
                members.add(here)
                waiting += seen.steps[here].operands
        if members:
            found.append((index, members))
    return found


def _depthwise(network: nn.Module, seen: Trace) -> Iterator[Finding]:
    """Depthwise layers whose channels differ in gain: their output has one scale for all channels."""
    modules = dict(network.named_modules())
    cases = []
    for index, step in enumerate(seen.steps):
        layer = modules.get(step.module)
        if step.op != "convolution" or not isinstance(layer, nn.Conv2d) or not 1 < layer.groups == layer.in_channels:
            continue
        largest = (layer.weight.detach().flatten(1) * _norm_gain(modules, seen, index)).abs().amax(1)
        alive = largest[largest > 0]
        if len(alive) and (ratio := float(alive.max() / alive.median())) > FAR_CHANNELS:
            cases.append((ratio, _path(step), f"{ratio:.3g} times"))
    if cases:
        layers, (_, _, told) = _ranked(cases)
        what = f"the strongest channel's weights are at worst {told} the median channel's, and share one output scale"
        mend = (
            "even the channels out against the next layer's weights (cross-layer equalisation), or train on with --qat"
        )
        yield Finding("depthwise-spread", layers, "hurts", what, mend)


def _norm_gain(modules: dict[str, nn.Module], seen: Trace, index: int) -> Tensor:
    """Per channel, what a batch norm right behind a convolution multiplies its weights by once folded."""
    for reader in seen.readers(index):
        norm = modules.get(seen.steps[reader].module)
        if "batch_norm" in seen.steps[reader].op and isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None:
            gain = 1.0 if norm.weight is None else norm.weight.detach()
            return torch.as_tensor(gain / (norm.running_var + norm.eps).sqrt()).unsqueeze(1)
    return torch.ones(1, 1)


def _output(seen: Trace) -> Iterator[Finding]:
    """One last layer whose channels differ in range, such as boxes beside scores."""
    last = max((i for i, step in enumerate(seen.steps) if step.op in LAYERS), default=None)
    spans = sorted(value for value in seen.channels if value > 0)
    if last is None or len(spans) < 2 or spans[-1] < FAR_OUTPUTS * spans[0]:
        return
    if any(_is_head(seen, i) for i, step in enumerate(seen.steps) if step.op in JOINS and i > last):
        return  # told already, as the join it is
    what = f"its outputs reach from {spans[0]:.3g} to {spans[-1]:.3g} and share one scale {ESTIMATED}"
    mend = "give each kind of output a last layer of its own"
    yield Finding("mixed-head", (_path(seen.steps[last]),), "hurts", what, mend)


def _shapes(model: Model, network: nn.Module, inputs: tuple[Tensor, ...], seen: Trace) -> Iterator[Finding]:
    """A graph that depends on its input cannot be an artifact; a fixed one shows what its engine leaves in float."""
    mend = "keep shapes and branches independent of pixel values: torch.where for a choice, top-k for a list"
    config = model.network
    raw = torch.zeros(1, config.slice_size, config.slice_size, config.bands, dtype=TORCH_DTYPES[model.dtype])
    try:
        program = torch.export.export(Deployed(model, network).eval(), (raw, *inputs[1:]))
    except Exception as error:  # whatever the network's own code, or torch's tracer, raises
        layers = (culprit(network, inputs),)
        yield Finding("dynamic", layers, "hurts", f"cannot be traced: {_first_line(error)}", mend)
        return
    loose = _once(_module_of(node) for node in program.graph.nodes if not _is_static(node.meta.get("val")))
    if loose or not seen.steady:
        what = "the shape of what it computes, or its path, depends on the values of the input"
        yield Finding("dynamic", loose, "hurts", what, mend)
    try:
        graph = to_onnx(program, OPSET)
    except Exception as error:  # whatever the exporter raises
        mend = "replace the operator it names; `highwall export` shows the whole reason"
        yield Finding("export", (), "hurts", f"cannot become ONNX: {_first_line(error)}", mend)
        return
    yield from _islands(islands(graph))


def _module_of(node: torch.fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {"": ("", None)}
    path: str = list(stack.values())[-1][0]
    return path.removeprefix("network").strip(".") or "forward"


def _is_static(value: Any) -> bool:
    sizes = value.shape if isinstance(value, Tensor) else ()
    return not isinstance(value, torch.SymInt) and all(type(size) is int for size in sizes)


def _islands(found: list[Island]) -> Iterator[Finding]:
    """Operators without an integer kernel between others that have one: each way in and out is a conversion."""
    if not found:
        return
    cost: dict[str, tuple[int, int]] = {}
    for island in found:
        enters, leaves = cost.get(island.module, (0, 0))
        cost[island.module] = enters + island.enters, leaves + island.leaves
    layers = tuple(sorted(cost, key=lambda module: -sum(cost[module])))
    kinds = sorted({kind for island in found for kind in island.kinds})
    what = (
        f"ONNX Runtime leaves {', '.join(kinds)} in float; were all else int8, that would cost "
        f"{sum(enters for enters, _ in cost.values())} dequantize and {sum(leaves for _, leaves in cost.values())} "
        f"quantize nodes, {cost[layers[0]][0]} and {cost[layers[0]][1]} of them in {layers[0]}"
    )
    yield Finding("float-operators", layers, "slow", what, _instead(kinds))


def _instead(kinds: list[str]) -> str:
    better = {
        "ReduceMean": "F.avg_pool2d over the whole map for a mean",
        "ReduceMax": "F.max_pool2d for a maximum",
        "Resize": "a nearest Resize for a linear one",
        "HardSigmoid": "Sigmoid for HardSigmoid",
        "HardSwish": "SiLU or ReLU for HardSwish",
        "Gelu": "ReLU for Gelu",
        "Tanh": "Sigmoid for Tanh",
    }
    swaps = [better[kind] for kind in kinds if kind in better]
    return "; ".join([*swaps, "or keep the layers around them in float too, as recipes do with gates"])


def _board(seen: Trace, board: Board | None) -> Iterator[Finding]:
    """What int8 is known to gain on this board's core."""
    layers = sum(step.op in LAYERS for step in seen.steps)
    if board is None or board.features.dot_product or not layers:
        return
    core = nearest_core(board)
    what = (
        f"{board.name} ({board.cpu}) has no int8 dot product for these {layers} layers: on a {core} int8 takes "
        f"{_against_float(core)} of float's instructions, on a Cortex-A76, which has, {_against_float('Cortex-A76')}"
    )
    mend = "build fp32 beside int8 and compare; int8 still makes the file and its memory traffic smaller"
    yield Finding("no-dot-product", (), "slow", what, mend)


def _against_float(core: str) -> str:
    """Such as `1.03 (LiteRT) or 1.07 (ONNX Runtime)`."""
    lite, ort = (small / real for real, small in (PER_MAC[core]["tflite"], PER_MAC[core]["onnx"]))
    return f"{lite:.2f} (LiteRT) or {ort:.2f} (ONNX Runtime)"


def _ranked(cases: list[tuple[float, str, str]]) -> tuple[tuple[str, ...], tuple[float, str, str]]:
    cases = sorted(cases, key=lambda case: -case[0])
    return _once(path for _, path, _ in cases), cases[0]


def _once(paths: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(paths))


def _path(step: Step) -> str:
    return step.module or "forward"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
