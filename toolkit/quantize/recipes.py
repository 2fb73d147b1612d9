"""Recipes: every way to turn a network into a model file, each a named value that an artifact records.

A recipe is `RUNTIME-PRECISION` or, where activations are quantized, `RUNTIME-PRECISION-RANGES`:
`onnx-fp32`, `tflite-int8w`, `onnx-int8-entropy`, `onnx-mixed-mse`.
"""

import difflib
from dataclasses import asdict, dataclass
from typing import Any, Final

from targets.runtime.errors import HighwallError

RUNTIMES: Final = ("onnx", "tflite")
PRECISIONS: Final = {
    "fp32": "float weights and activations",
    "int8w": "int8 weights, float arithmetic",
    "int8": "int8 weights and activations",
    "mixed": "int8, but the most sensitive layers stay float",
}
RANGES: Final = {
    "minmax": "the smallest and largest value seen",
    "percentile": "all but the outermost 0.01 % of the values seen",
    "entropy": "the clip whose histogram diverges least from the original (Kullback-Leibler)",
    "mse": "the clip with the least squared error of clipping and rounding together",
}


@dataclass(frozen=True)
class Recipe:
    """One way to compile. `ranges` says how activations' ranges are found, empty where none are needed."""

    runtime: str
    precision: str
    ranges: str = ""

    @property
    def name(self) -> str:
        return "-".join(part for part in (self.runtime, self.precision, self.ranges) if part)

    @property
    def calibrated(self) -> bool:
        """Whether it needs images to find ranges on."""
        return bool(self.ranges)

    def as_dict(self) -> dict[str, Any]:
        """What the artifact keeps; `recipe(as_dict()["name"])` gives the same recipe again."""
        return {"name": self.name, **asdict(self)}


def _all() -> dict[str, Recipe]:
    found = {}
    for runtime in RUNTIMES:
        for precision in PRECISIONS:
            ranges = tuple(RANGES) if precision in ("int8", "mixed") else ("",)
            for each in ranges:
                one = Recipe(runtime, precision, each)
                found[one.name] = one
    return found


RECIPES: Final = _all()


def recipe(name: str) -> Recipe:
    """The recipe called `name`; an unknown name is refused with the nearest known one."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(RECIPES)}"
        raise HighwallError(f"no recipe is called {name!r}; {hint}")
    return RECIPES[name]


def choose(runtime: str | None, precision: str | None) -> list[Recipe]:
    """Every recipe of this engine and precision; None stands for all of them."""
    return [one for one in RECIPES.values() if runtime in (None, one.runtime) and precision in (None, one.precision)]


DEFAULT_RANGES: Final = "minmax"  # needs no judgement; a contract finds out whether another is better


def plain(runtime: str, precision: str) -> Recipe:
    """The recipe of this engine and precision that is taken where nobody chose further."""
    return next(one for one in choose(runtime, precision) if one.ranges in ("", DEFAULT_RANGES))
