"""Finding a network by what a user types: a checkpoint, a run's folder, a preset, or package.module:factory."""

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from targets.runtime.errors import HighwallError
from toolkit import checkpoint
from toolkit.checkpoint import Model
from toolkit.network import PRESETS, NetworkConfig, build_network, preset


@dataclass(frozen=True)
class Foreign:
    """What must be said of a network that is not ours, because its file cannot."""

    task: str = "classify"
    size: int = 224
    bands: int = 3
    dtype: str = "uint8"


def find(spec: str, foreign: Foreign | None = None) -> tuple[Model, nn.Module]:
    """The network `spec` names, in evaluation mode, and how to feed it.

    A preset's name gives fresh weights, and so is refused by commands that want trained ones. A factory
    is called without arguments and must return an `nn.Module` that takes (N, bands, size, size) floats in
    [0, 1] and gives logits: (N, 1) or (N, classes) to classify, (N, 1, H, W) to segment.
    """
    if ":" in spec and not Path(spec).exists():
        return _factory(spec, foreign or Foreign())
    if spec in PRESETS and not Path(spec).exists():
        config = preset(spec)
        torch.manual_seed(0)
        blank = Model(spec, config, (0.0,) * config.bands, (255.0,) * config.bands)
        return blank, build_network(config).eval()
    return checkpoint.load(Path(spec))


def _factory(spec: str, foreign: Foreign) -> tuple[Model, nn.Module]:
    module_name, _, attribute = spec.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except ModuleNotFoundError as error:
        raise HighwallError(f"no module {error.name!r} for {spec}; run from its folder or install it") from error
    except AttributeError as error:
        raise HighwallError(f"{module_name} has no {attribute!r}; give package.module:factory") from error
    finally:
        sys.path.pop(0)
    network = factory() if callable(factory) and not isinstance(factory, nn.Module) else factory
    if not isinstance(network, nn.Module):
        raise HighwallError(f"{spec} gave a {type(network).__name__}, not a torch.nn.Module")
    if foreign.task not in ("classify", "segment"):
        raise HighwallError(f"task {foreign.task!r} is unknown; choose classify or segment")
    full = 255.0 if foreign.dtype == "uint8" else 10000.0
    config = NetworkConfig(
        foreign.task,  # type: ignore[arg-type]
        foreign.bands,
        width=0,
        growth=0,
        slice_size=foreign.size,
    )
    model = Model(attribute, config, (0.0,) * foreign.bands, (full,) * foreign.bands, foreign.dtype)
    network.eval()
    try:
        with torch.inference_mode():
            shape = tuple(network(*example(model)).shape)
    except RuntimeError as error:
        side = foreign.size
        raise HighwallError(
            f"{spec} does not take {foreign.bands} bands of {side}x{side} ({error}); give its --size and --bands"
        ) from error
    wanted = len(shape) == 2 if foreign.task == "classify" else len(shape) == 4 and shape[1] == 1
    if not wanted:
        raise HighwallError(f"{spec} gives an output of shape {list(shape)}, which cannot {foreign.task}")
    classes = shape[1]
    labels = ("negative", "positive") if classes == 1 else tuple(f"class {i}" for i in range(classes))
    return Model(attribute, config, model.mean, model.std, foreign.dtype, labels=labels), network


def example(model: Model) -> tuple[Tensor, ...]:
    """Zero inputs of the model's own size: (1, bands, size, size), and (1, m) when it has sensors."""
    side, sensors = model.network.slice_size, model.network.sensors
    image = torch.zeros(1, model.network.bands, side, side)
    return (image, torch.zeros(1, sensors)) if sensors else (image,)
