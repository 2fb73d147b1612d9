"""A torch network as a TFLite model that takes raw pixels and gives probabilities.

Converting twice gives the same bytes: what the converter names after its own internals is named here.
"""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from targets.runtime.errors import HighwallError
from toolkit.checkpoint import Model
from toolkit.export.flatbuffer import kind, pack, unpack, values
from toolkit.export.onnx import Deployed
from toolkit.temperature import fold

WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED")


def export(model: Model, network: nn.Module) -> bytes:
    """The network as a .tflite file: inputs `image` (and `sensors`), output `probability`, fixed shapes.

    An int32 `image` stands for uint16 pixels, which neither the converter nor tflite-runtime takes as they
    are; `targets.runtime.tflite` widens them. Each layer's output bears the layer's path in torch.
    Raises HighwallError when the converter does not know an operator of the network.
    """
    model, network = fold(model, network)
    config = model.network
    side = config.slice_size
    dtype = torch.uint8 if model.dtype == "uint8" else torch.int32
    inputs: tuple[Tensor, ...] = (torch.zeros(1, side, side, config.bands, dtype=dtype),)
    if config.sensors:
        inputs += (torch.zeros(1, config.sensors),)
    deployed = Deployed(model, network).eval()
    try:
        with quiet(), torch.no_grad(), FinitePools():
            import litert_torch

            converted = litert_torch.convert(deployed, inputs).model_content()
    except ModuleNotFoundError:
        raise  # a missing extra, which the front door names
    except Exception as error:  # the converter's exceptions share no base class but this
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise HighwallError(f"the LiteRT converter cannot convert {model.name}: {reason}") from error
    return _finish(bytes(converted), network)


class FinitePools(TorchFunctionMode):
    """Pads a maximum pool by repeating its edges: the same maxima, because an edge lies in every window it pads.

    The converter pads with minus infinity, which no int8 range can hold.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Every torch function on its way; all but padded maximum pools pass."""
        given = kwargs or {}
        if func is not F.max_pool2d or given["return_indices"] or _pair(given["dilation"]) != (1, 1):
            return func(*args, **given)
        height, width = _pair(given["padding"])
        if height or width:
            args = (F.pad(args[0], (width, width, height, height), mode="replicate"), *args[1:])
        stride = given["stride"] or args[1]
        return func(*args, **(given | {"stride": stride, "padding": 0}))


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (tuple(value) * 2)[:2]


def _finish(converted: bytes, network: nn.Module) -> bytes:
    """`converted` under our names and without the converter's notes."""
    proto = unpack(converted)
    graph = proto.subgraphs[0]
    for operator in graph.operators:
        if kind(proto, operator) == "RESIZE_NEAREST_NEIGHBOR":
            # The converter takes it for nearest-exact, which differs from nearest where a size is odd. The
            # operator comes from nearest alone; nearest-exact becomes gathers.
            operator.builtinOptions.halfPixelCenters = False
    ends = dict(zip(graph.inputs, ("image", "sensors"), strict=False)) | {graph.outputs[0]: "probability"}
    for index, tensor in enumerate(graph.tensors):
        tensor.name = f"t{index}"
    for name, operator in zip(_layer_names(proto, network), graph.operators, strict=True):
        graph.tensors[operator.outputs[0]].name = name
    for index, name in ends.items():
        graph.tensors[index].name = name
    (signature,) = proto.signatureDefs
    for entry in (*signature.inputs, *signature.outputs):
        entry.name = ends[entry.tensorIndex]
    return pack(proto)


def _layer_names(proto: Any, network: nn.Module) -> list[str]:
    """A name for each operator: its layer's path in torch where it has weights, else its kind and place.

    The converter names a layer by its class and the last part of its path, which several may share. So
    layers are told by their weights: the same, up to the scale that a folded batch norm gave each channel.
    """
    waiting = {
        path: _directions(_channels_first(module))
        for path, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }
    names = []
    for index, operator in enumerate(proto.subgraphs[0].operators):
        what = kind(proto, operator)
        found = None
        if what in WEIGHTED and (filters := values(proto, operator.inputs[1])) is not None:
            # (1, H, W, channels) of a depthwise convolution, (channels, H, W, inputs) of any other
            directions = _directions(np.moveaxis(filters, -1, 0) if what == "DEPTHWISE_CONV_2D" else filters)
            found = next((path for path, given in waiting.items() if _same(directions, given)), None)
        if found is not None:
            del waiting[found]
        names.append(found or f"{what.lower()}_{index}")
    return names


def _channels_first(layer: nn.Conv2d | nn.Linear) -> NDArray[np.float32]:
    """The layer's weights as (channels, H, W, inputs) or (channels, inputs)."""
    weights: NDArray[np.float32] = layer.weight.detach().numpy()
    return weights if weights.ndim == 2 else np.moveaxis(weights, 1, -1)


def _directions(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """One row of length 1 for each channel, 0 for a channel of zeros."""
    rows = weights.reshape(len(weights), -1)
    directions: NDArray[np.float32] = rows / np.maximum(
        np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny
    )
    return directions


def _same(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    if one.shape != other.shape:
        return False
    alike = np.abs((one * other).sum(1))
    silent = ~one.any(1) | ~other.any(1)  # a channel that a batch norm switched off has no direction
    return bool(((alike > 1 - 1e-4) | silent).all())


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing is printed: the converter and its libraries report progress and advice on both streams.

    They write from C++ too, so the descriptors themselves are turned away, for this process as a whole.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    level, saved = logging.root.manager.disable, [(fd, os.dup(fd)) for fd in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for fd, _ in saved:
            os.dup2(nowhere, fd)
        logging.disable(logging.ERROR)
        with warnings.catch_warnings(), os.fdopen(os.dup(nowhere), "w") as sink:
            warnings.simplefilter("ignore")
            with redirect_stdout(sink), redirect_stderr(sink):
                yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        logging.disable(level)
        for fd, copy in saved:
            os.dup2(copy, fd)
            os.close(copy)
        os.close(nowhere)
