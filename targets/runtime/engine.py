"""Finding the engine that runs an artifact: a module of this package, by the artifact's own word for it."""

import importlib
import pkgutil
from types import ModuleType
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

import targets.runtime
from targets.runtime.errors import HighwallError


class Engine(Protocol):
    """A loaded model, ready to run. An engine module's `Session(model, threads)` is one."""

    def run(self, image: NDArray[Any], sensors: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Image (H, W, C) of the model's dtype, sensors (m,) -> probabilities (K,) or (H, W)."""
        ...


def open_session(runtime: str, model: bytes, threads: int = 1) -> Engine:
    """Load `model` in the engine `targets/runtime/<runtime>.py`.

    Raises HighwallError for an unknown engine, one whose package is missing here, or a model it refuses.
    """
    return cast(Engine, _module(runtime).Session(model, threads))


def preload(runtime: str) -> None:
    """Import the engine's own package, so that what follows costs only what the model does."""
    _module(runtime).load()


def engine_names() -> list[str]:
    """The engines this Highwall knows, installed or not."""
    return sorted(_engines())


def _module(runtime: str) -> ModuleType:
    if runtime in _names():  # the others stay unread: a gateway has no memory for what it does not use
        module = importlib.import_module(f"targets.runtime.{runtime}")
        if hasattr(module, "Session"):
            return module
    raise HighwallError(f"unknown runtime {runtime!r}; this Highwall has: {', '.join(engine_names())}")


def _engines() -> dict[str, ModuleType]:
    """Every module beside this one that defines a Session; they import their package only when opened."""
    modules = {name: importlib.import_module(f"targets.runtime.{name}") for name in _names()}
    return {name: module for name, module in modules.items() if hasattr(module, "Session")}


def _names() -> list[str]:
    return [found.name for found in pkgutil.iter_modules(targets.runtime.__path__)]
