"""Where ONNX Runtime would leave integers: operators without an integer kernel between others that have one."""

from ast import literal_eval
from dataclasses import dataclass
from typing import Final

import onnx
import torch

# Both its quantizer and its CPU kernels know these; a test asks the installed version. Relu and Clip vanish
# into the layer before them. A linear Resize has no integer kernel, a nearest one has.
INTEGER: Final = frozenset(
    (
        "Add AveragePool Clip Concat Conv Gemm GlobalAveragePool LeakyRelu MatMul MaxPool Mul Relu Resize Sigmoid "
        "Softmax"
    ).split()
)
WEIGHTED: Final = frozenset({"Conv", "Gemm", "MatMul"})
# They move numbers and never look at them: integer after an integer layer, float after a float one.
MOVERS: Final = frozenset("Flatten Gather Identity Reshape Slice Split Squeeze Transpose Unsqueeze".split())


@dataclass(frozen=True)
class Island:
    """Connected float operators: their kinds, the module they share, and the conversions on the way in and out."""

    kinds: tuple[str, ...]
    module: str
    enters: int
    leaves: int


def to_onnx(program: torch.export.ExportedProgram, opset: int) -> onnx.GraphProto:
    """The traced `program` as ONNX whose nodes still say which module they come from."""
    with torch.no_grad():
        exported = torch.onnx.export(program, opset_version=opset, dynamo=True, verbose=False)
    assert exported is not None
    return exported.model_proto.graph


def islands(graph: onnx.GraphProto) -> list[Island]:
    """Float regions that integers enter, and that layers with weights follow, if all that can be integer is.

    The first and last operators of a model are none: there one conversion is due anyway.
    """
    integer, region = _regions(graph)
    makers = _makers(graph)
    enters: dict[int, set[str]] = {}
    leaves: dict[int, set[str]] = {}
    for index, node in enumerate(graph.node):
        for name in node.input:
            if name not in makers or integer[makers[name]] == integer[index]:
                continue
            if integer[index]:
                leaves.setdefault(region[makers[name]], set()).add(name)
            else:
                enters.setdefault(region[index], set()).add(name)
    found = []
    for here in sorted(enters.keys() & leaves.keys() & {region[i] for i in _before_layers(graph)}):
        nodes = [node for i, node in enumerate(graph.node) if not integer[i] and region[i] == here]
        kinds = tuple(dict.fromkeys(node.op_type for node in nodes if node.op_type not in MOVERS))
        found.append(Island(kinds, _shared_module(nodes), len(enters[here]), len(leaves[here])))
    return found


def _makers(graph: onnx.GraphProto) -> dict[str, int]:
    return {name: index for index, node in enumerate(graph.node) for name in node.output}


def _regions(graph: onnx.GraphProto) -> tuple[list[bool], list[int]]:
    """Of each node, whether it runs in integers, and the number of its region: connected float nodes share one."""
    makers = _makers(graph)
    integer: list[bool] = []
    parent = list(range(len(graph.node)))

    def root(index: int) -> int:
        while parent[index] != index:
            index = parent[index]
        return index

    for index, node in enumerate(graph.node):
        before = [makers[name] for name in node.input if name in makers]
        moves = node.op_type in MOVERS
        integer.append(bool(before) and integer[before[0]] if moves else _has_kernel(node))
        for other in before:
            if not integer[index] and not integer[other]:
                parent[root(index)] = root(other)
    return integer, [root(index) for index in range(len(parent))]


def _before_layers(graph: onnx.GraphProto) -> set[int]:
    """The nodes that some layer with weights, sooner or later, reads from."""
    needed: set[str] = set()
    found = set()
    for index, node in reversed(list(enumerate(graph.node))):
        if needed.intersection(node.output):
            found.add(index)
        if index in found or node.op_type in WEIGHTED:
            needed.update(node.input)
    return found


def _has_kernel(node: onnx.NodeProto) -> bool:
    if node.op_type == "Resize":
        return not any(entry.name == "mode" and entry.s == b"linear" for entry in node.attribute)
    return node.op_type in INTEGER


def _shared_module(nodes: list[onnx.NodeProto]) -> str:
    """The deepest torch module that all `nodes` come from."""
    paths = [scope.split(".") for node in nodes if (scope := _scope(node)) is not None]
    shared = []
    for level in zip(*paths, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return ".".join(shared[1:]) or "forward"  # the first is the wrapper's own name for the network


def _scope(node: onnx.NodeProto) -> str | None:
    """The path of the torch module that asked for `node`, where the exporter noted it."""
    noted = {entry.key: entry.value for entry in node.metadata_props}
    scopes = literal_eval(noted.get("pkg.torch.onnx.name_scopes", "[]"))  # outermost first, the operator last
    return str(scopes[-2]) if len(scopes) > 1 else None
