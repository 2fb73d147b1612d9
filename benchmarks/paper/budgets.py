"""What a run of the paper's experiments may spend: one budget for every network, or it would be no fair fight."""

import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from targets.runtime.errors import HighwallError

SLICE = 48  # pixels a side of the slice that `samples` counts, and of the largest there is
SIZES = (3, 6, 9, 18, 36, SLICE)  # table 3; the paper stops at 36
CHOSEN = 18  # the slice with which the paper goes on from table 3 to table 4
OPTIMIZERS = ("sgd", "adam", "rmsprop")
THRESHOLDS = (0.5, 0.7, 0.8, 0.9)  # the last three are the paper's, for its map
OVERLAPS = (0.25, 0.5, 0.75, 1.0)  # figure 4

# A factor of five apart, and wide enough for the deep networks without norms (low) and those with norms (high).
RATES = (("sgd", (2e-3, 1e-2, 5e-2)), ("adam", (1e-4, 5e-4, 2.5e-3)), ("rmsprop", (4e-5, 2e-4, 1e-3)))


@dataclass(frozen=True)
class Budget:
    """All that decides how much is learned and judged; written into every cell, and never mixed with another.

    samples: slices seen in training. A network that reads whole photographs sees as many pixels instead: samples
    times 48 x 48, in its own crops. search: the same for each learning rate that is tried. batch: slices a step.
    folds: those held out, one after the other; empty: the one nearest to a fifth of the data. learned, judged: slices
    cut from each photograph to learn from and to be judged by. watched: photographs at most that a search is judged
    by, validation: slices at most. photographs: at most, judged in figure 4; 0 means all. multiplier: of every
    network's channels. timed: inferences behind a latency.
    """

    name: str
    samples: int
    search: int
    batch: int = 64
    rates: tuple[tuple[str, tuple[float, ...]], ...] = RATES
    seeds: tuple[int, ...] = (0,)
    folds: tuple[int, ...] = ()
    learned: int = 64
    judged: int = 40
    validation: int = 512
    watched: int = 6
    photographs: int = 24
    multiplier: float = 1.0
    timed: int = 15

    def rates_of(self, optimizer: str) -> tuple[float, ...]:
        """The learning rates tried with an optimizer."""
        return dict(self.rates)[optimizer]

    @property
    def large_batch(self) -> int:
        """Crops of photographs a step."""
        return max(2, self.batch // 8)

    def in_crops(self, slices: int, side: int) -> int:
        """As many pixels as so many slices hold, in crops of `side`, rounded to whole batches; at least one batch."""
        return max(1, round(slices * SLICE**2 / side**2 / self.large_batch)) * self.large_batch

    @cached_property
    def plain(self) -> dict[str, Any]:
        """As JSON gives it back, to compare with."""
        loaded: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return loaded


BUDGETS = {
    budget.name: budget
    for budget in (
        # Proves in a minute that every experiment runs; its scores mean nothing.
        Budget(
            "smoke",
            samples=16,
            search=8,
            batch=8,
            rates=tuple((optimizer, rates[:2]) for optimizer, rates in RATES),
            learned=4,
            judged=6,
            validation=16,
            watched=1,
            photographs=3,
            multiplier=1 / 16,
            timed=2,
        ),
        Budget("cpu", samples=10_240, search=1_024),
        Budget(
            "full",
            samples=204_800,
            search=10_240,
            seeds=(0, 1, 2),
            folds=(0, 1, 2, 3, 4),
            learned=512,
            judged=100,
            validation=2_048,
            watched=16,
            photographs=0,
            timed=50,
        ),
    )
}


def budget(name: str, batch: int | None = None) -> Budget:
    """The budget called `name`, with another batch for everyone where one is given."""
    found = BUDGETS[name]
    if batch is None:
        return found
    if not 2 <= batch <= found.search:
        raise HighwallError(f"--batch {batch} is not between 2 and the {found.search} samples of a search")
    return replace(found, batch=batch)
