"""Which cells each table and figure of the paper is made of."""

from collections.abc import Callable, Mapping, Sequence
from itertools import product

from benchmarks.paper.budgets import CHOSEN, OPTIMIZERS, SIZES, SLICE, Budget
from benchmarks.paper.cells import Cell
from benchmarks.paper.networks import CLASSIFIERS, SSD_SIDE, TABLE5

CROP = 112  # pixels a side of the crops that networks of pixels learn photographs from
TABLE4 = ("cracknet", "rnn", "unet")
SHOWN = ("cracknet", "densenet121", "resnet50")  # figure 5, beside our network of pixels
SSD = Cell("photographs", "ssd300", SSD_SIDE)


def table3() -> list[Cell]:
    """Ours at every slice size, on chips and on crack pixels."""
    return [Cell(task, "cracknet", size) for task in ("chips", "slices") for size in SIZES]


def table4() -> list[Cell]:
    """Three networks by three optimizers, on crack pixels at the size the paper chose."""
    return [Cell("slices", network, CHOSEN, optimizer) for network in TABLE4 for optimizer in OPTIMIZERS]


def table5() -> list[Cell]:
    """Ours and the eight CNNs, on chips and on crack pixels; of the latter SSD is judged by its boxes."""
    chips = [Cell("chips", network, SLICE) for network in TABLE5]
    return chips + [SSD if network == "ssd300" else Cell("slices", network, SLICE) for network in TABLE5]


def figure4() -> list[Cell]:
    """Boxes: classifiers slid over photographs, then networks that read them whole."""
    patches = [Cell("patches", network, SLICE) for network in CLASSIFIERS]
    return [*patches, Cell("photographs", "cracknet", CROP), Cell("photographs", "unet", CROP), SSD]


def figure5() -> list[Cell]:
    """Maps to look at."""
    return [Cell("photographs", "cracknet", CROP), *(Cell("patches", network, SLICE) for network in SHOWN)]


EXPERIMENTS: dict[str, Callable[[], list[Cell]]] = {
    "table3": table3,
    "table4": table4,
    "table5": table5,
    "figure4": figure4,
    "figure5": figure5,
}

# Longest first, so that two processes end at about the same time; patches wait for what they slide anyway.
_HEAVY = ("unet", "vgg19", "vgg16", "ssd300", "resnet50", "densenet121")


def cells(names: Sequence[str], budget: Budget, folds: Mapping[str, Sequence[int]]) -> list[Cell]:
    """Every cell of some experiments and what it needs, once each, for every fold and seed, in the order to run."""
    asked = [cell for name in names for cell in EXPERIMENTS[name]()]
    asked = list(dict.fromkeys(one for cell in asked for one in (cell.needs, cell) if one is not None))
    every = [one for cell in asked for one in repeated(cell, budget, folds)]
    return sorted(every, key=_order)


def repeated(cell: Cell, budget: Budget, folds: Mapping[str, Sequence[int]]) -> list[Cell]:
    """A cell for every fold held out of its data (by task: chips or photographs) and every seed."""
    held = folds["chips" if cell.task == "chips" else "photographs"]
    return [cell.on(fold, seed) for fold, seed in product(held, budget.seeds)]


def _order(cell: Cell) -> tuple[bool, bool, int]:
    heavy = _HEAVY.index(cell.network) if cell.network in _HEAVY else len(_HEAVY)
    return cell.task == "patches", cell.task != "photographs", heavy
