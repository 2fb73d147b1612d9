"""Finding a network by what a user types: a checkpoint, a run's folder, a preset, or package.module:factory."""

import importlib
import sys
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor, nn

from targets.runtime.errors import HighwallError
from toolkit import checkpoint
from toolkit.checkpoint import Model
from toolkit.network import PRESETS, NetworkConfig, Task


@dataclass(frozen=True)
class Foreign:
    """What must be said of a network that is not ours, because its file cannot."""

    task: Task = "classify"
    size: int = 224
    bands: int = 3
    dtype: str = "uint8"


def find(spec: str, foreign: Foreign | None = None) -> tuple[Model, nn.Module]:
    """The network `spec` names, in evaluation mode, and how to feed it.

    A preset's name stands for the weights shipped under it. A factory is called without arguments and must
    return an `nn.Module` that takes (N, bands, size, size) floats in [0, 1] and gives logits: (N, 1) or
    (N, classes) to classify, (N, 1, size, size) to segment.
    """
    if ":" in spec and not Path(spec).exists():
        return _factory(spec, foreign or Foreign())
    return checkpoint.load(locate(spec))


def locate(spec: str) -> Path:
    """The file `spec` means: its own path, or the shipped weights of the preset it names."""
    if spec in PRESETS and not Path(spec).exists():
        return weights(spec)
    return Path(spec)


def weights(name: str) -> Path:
    """The checkpoint of a shipped network."""
    path = Path(str(files("toolkit"))) / "weights" / f"{name}.safetensors"
    if name not in PRESETS or not path.is_file():
        raise HighwallError(f"no weights are shipped as {name}; choose {' or '.join(sorted(PRESETS, reverse=True))}")
    return path


def _factory(spec: str, foreign: Foreign) -> tuple[Model, nn.Module]:
    network = _call(spec)
    if not isinstance(network, nn.Module):
        raise HighwallError(f"{spec} gave a {type(network).__name__}, not a torch.nn.Module")
    full = 255.0 if foreign.dtype == "uint8" else 10000.0
    name = spec.rpartition(":")[2]
    config = NetworkConfig(foreign.task, foreign.bands, width=0, growth=0, slice_size=foreign.size)
    model = Model(name, config, (0.0,) * foreign.bands, (full,) * foreign.bands, foreign.dtype)
    network.eval()
    side = foreign.size
    try:
        with torch.inference_mode():
            output = network(*example(model))
    except Exception as error:  # whatever somebody else's forward() raises
        raise HighwallError(
            f"{spec} does not take {foreign.bands} bands of {side}x{side} ({error}); give its --size and --bands"
        ) from error
    shape = tuple(output.shape) if isinstance(output, Tensor) else ()
    wanted = len(shape) == 2 if foreign.task == "classify" else shape == (1, 1, side, side)
    if not wanted:
        what = f"an output of shape {list(shape)}" if shape else f"a {type(output).__name__}"
        raise HighwallError(f"{spec} gives {what}, which cannot {foreign.task}; wrap it to give logits")
    classes = shape[1]
    labels = ("negative", "positive") if classes <= 2 else tuple(f"class {i}" for i in range(classes))
    return replace(model, labels=labels), network


def _call(spec: str) -> object:
    """What `package.module:factory` gives, looked for in the current folder too."""
    module, _, attribute = spec.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        factory = getattr(importlib.import_module(module), attribute)
        return factory if isinstance(factory, nn.Module) or not callable(factory) else factory()
    except Exception as error:  # whatever somebody else's module raises
        raise HighwallError(f"cannot make a network of {spec}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)


def example(model: Model) -> tuple[Tensor, ...]:
    """Zero inputs of the model's own size: (1, bands, size, size), and (1, m) when it has sensors."""
    side, sensors = model.network.slice_size, model.network.sensors
    image = torch.zeros(1, model.network.bands, side, side)
    return (image, torch.zeros(1, sensors)) if sensors else (image,)
