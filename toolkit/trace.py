"""What a torch network does with a few inputs: its operators in order, their modules, the ranges of their values."""

import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from toolkit.checkpoint import Model

SEED = 0


@dataclass(frozen=True)
class Step:
    """One operator as it ran: its name in aten, the path of its module, and who made its operands.

    `operands` are indices of earlier steps; an input or a parameter is a step too, `input` or `constant`.
    `low` and `high` are the least and largest value of its output over all inputs of the trace.
    """

    op: str
    module: str
    operands: tuple[int, ...]
    shape: tuple[int, ...]
    low: float
    high: float

    @property
    def width(self) -> float:
        return self.high - self.low

    @property
    def size(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Trace:
    """Every step in order; `channels` is the largest absolute value of each channel of the output.

    `steady`: whether all inputs took the same steps; if not, `steps` are the first input's.
    """

    steps: tuple[Step, ...]
    channels: tuple[float, ...]
    steady: bool

    def readers(self, index: int) -> list[int]:
        """Steps that take what step `index` made."""
        return [i for i, step in enumerate(self.steps) if index in step.operands]


def noise(model: Model) -> list[tuple[Tensor, ...]]:
    """Four seeded inputs like normalised images: two of fine grain, two of coarse, within what pixels can be."""
    config = model.network
    rng = np.random.default_rng(SEED)
    shape = (1, config.bands, config.slice_size, config.slice_size)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (model.mean, model.std))
    inputs = []
    for grain in (1, 1, 4, 16):
        side = -(-config.slice_size // grain)
        coarse = torch.from_numpy(rng.standard_normal((1, config.bands, side, side), np.float32))
        values = F.interpolate(coarse, size=shape[2:], mode="nearest")
        pixels = (mean + std * values).clamp(0, float(np.iinfo(model.dtype).max))
        sensors = torch.from_numpy(rng.standard_normal((1, config.sensors), np.float32))
        inputs.append(((pixels - mean) / std, *([sensors] if config.sensors else [])))
    return inputs


def trace(network: nn.Module, inputs: Sequence[tuple[Tensor, ...]]) -> Trace:
    """Run `network` on each of `inputs` and note what it does."""
    runs = []
    channels: Tensor | None = None
    with torch.no_grad():
        for each in inputs:
            recorder = _Recorder(each)
            with _named(network, recorder), recorder:
                output = network(*each)
            runs.append(recorder.steps)
            output = next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
            largest = output.detach().float().abs().movedim(1, 0).flatten(1).amax(1)
            channels = largest if channels is None else torch.maximum(channels, largest)
    steady = all([_shape_of(step) for step in run] == [_shape_of(step) for step in runs[0]] for run in runs)
    steps = [_union(same) for same in zip(*runs, strict=True)] if steady else runs[0]
    return Trace(tuple(steps), () if channels is None else tuple(channels.tolist()), steady)


def culprit(network: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> str:
    """The path of the deepest module that torch.export refuses by itself, `forward` for the network's own code."""
    given: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    hooks = []
    for name, child in network.named_children():

        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name) -> None:
            given.setdefault(name, (args, kwargs))

        hooks.append(child.register_forward_pre_hook(note, with_kwargs=True))
    try:
        with torch.no_grad():
            network(*args, **(kwargs or {}))
    finally:
        for hook in hooks:
            hook.remove()
    for name, (inner_args, inner_kwargs) in given.items():
        child = network.get_submodule(name)
        try:
            torch.export.export(child, inner_args, inner_kwargs)
        except Exception:  # whatever the module's own code, or torch's tracer, raises: this is where to look deeper
            inner = culprit(child, inner_args, inner_kwargs)
            return name if inner == "forward" else f"{name}.{inner}"
    return "forward"


def _shape_of(step: Step) -> tuple[object, ...]:
    return step.op, step.module, step.operands, step.shape


def _union(same: Sequence[Step]) -> Step:
    low, high = min(step.low for step in same), max(step.high for step in same)
    return Step(same[0].op, same[0].module, same[0].operands, same[0].shape, low, high)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes one Step an operator; holds no tensor alive, so a trace needs no more memory than a run."""

    def __init__(self, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[Step] = []
        self.modules = [""]
        self._maker: Any = WeakIdKeyDictionary()
        for tensor in inputs:
            self._add("input", (), [tensor])

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        taken = [leaf for leaf in tree_leaves((args, dict(kwargs or {}))) if isinstance(leaf, Tensor)]
        operands = tuple(self._index(tensor) for tensor in taken)
        result = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if made:
            self._add(func.overloadpacket.__name__.rstrip("_"), operands, made)
        return result

    def _index(self, tensor: Tensor) -> int:
        if tensor not in self._maker:
            self._add("constant", (), [tensor])
        index: int = self._maker[tensor]
        return index

    def _add(self, op: str, operands: tuple[int, ...], made: list[Tensor]) -> None:
        for tensor in made:
            self._maker[tensor] = len(self.steps)
        values = [tensor for tensor in made if tensor.is_floating_point() and tensor.numel()]
        low, high = 0.0, 0.0
        if values:
            low = min(float(tensor.min()) for tensor in values)
            high = max(float(tensor.max()) for tensor in values)
        self.steps.append(Step(op, self.modules[-1], operands, tuple(made[0].shape), low, high))


@contextmanager
def _named(network: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """While it lasts, the recorder knows which module runs."""
    names = {module: name for name, module in network.named_modules()}

    def enter(module: nn.Module, _: Any) -> None:
        recorder.modules.append(names[module])

    def leave(*_: Any) -> None:
        recorder.modules.pop()

    hooks = []
    for module in names:
        hooks.append(module.register_forward_pre_hook(enter))
        hooks.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def quiet() -> Iterator[None]:
    """While it lasts, torch keeps its advice on tracing and exporting to itself; errors are raised as ever."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
