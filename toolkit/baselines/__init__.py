"""The networks that CrackNet is judged against: each is a module of this package, found by its file's name.

A network's module has `TASKS` and `build(task, bands, size, classes, width)`. A network to classify takes float
images (N, bands, size, size) and gives logits (N, classes); one to segment gives (N, classes, H, W). That is
CrackNet's interface without sensors, so that training, judging and exporting treat them alike. Two tasks are
others': `windows` (rnn: sensor windows (N, steps, bands)) and `detect` (ssd300: boxes and scores).
"""

import difflib
import importlib
import pkgutil
from functools import cache
from types import ModuleType

from torch import nn

from targets.runtime.errors import HighwallError


def names() -> list[str]:
    """Every network that `make` can make."""
    return sorted(_modules())


def make(name: str, task: str, bands: int, size: int, classes: int = 1, width: float = 1.0) -> nn.Module:
    """The network `name` with fresh weights from torch's generator.

    size: pixels a side of the images it will see (of `windows`: steps). Where it is small, the network's stem
    reduces less; the module's docstring says how. width: factor on every layer's channels; 1.0 is as published.
    Raises HighwallError for an unknown name (naming the nearest), a task it has not, or a size it cannot take.
    """
    if name not in names():
        near = difflib.get_close_matches(name.lower(), names(), n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(names())}"
        raise HighwallError(f"no baseline is called {name!r}; {hint}")
    module = _modules()[name]
    if task not in module.TASKS:
        raise HighwallError(f"{name} cannot {task}; choose {' or '.join(module.TASKS)}")
    for what, value in (("bands", bands), ("size", size), ("classes", classes)):
        if value < 1:
            raise HighwallError(f"{what} of {name} must be at least 1, not {value}")
    if not 0 < width <= 4:
        raise HighwallError(f"width of {name} must be above 0 and at most 4, not {width}")
    network: nn.Module = module.build(task, bands, size, classes, width)
    return network


@cache
def _modules() -> dict[str, ModuleType]:
    """Every module of this package that builds a network; the others are what several of them share."""
    found = [module.name for module in pkgutil.iter_modules(__path__)]
    modules = {name: importlib.import_module(f"toolkit.baselines.{name}") for name in found}
    return {name: module for name, module in modules.items() if hasattr(module, "build")}
