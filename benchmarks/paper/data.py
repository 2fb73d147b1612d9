"""What each experiment learns from and is judged on: whole folds held out, chips and crack pixels cut to any size."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.paper.budgets import SLICE, Budget
from benchmarks.paper.cells import Cell
from targets.runtime.errors import HighwallError
from toolkit.data.batches import centre_crop
from toolkit.data.folder import read
from toolkit.data.samples import Samples
from toolkit.data.split import hold_out, inner_validation
from toolkit.data.synthetic import crack_images, mine_chips

VALIDATION = 0.1  # of the training part, by whole groups, to choose learning rates by
FOLDS_ARE_FIFTHS = 0.2


@dataclass(frozen=True, eq=False)
class Sources:
    """Satellite chips labelled mine or not, and photographs with their cracks' masks."""

    chips: Samples
    photographs: Samples

    def of(self, task: str) -> Samples:
        """What a task's cells are cut from."""
        return self.chips if task == "chips" else self.photographs

    @property
    def digests(self) -> dict[str, str]:
        """What each source hashes to."""
        return {"chips": self.chips.digest, "photographs": self.photographs.digest}


@dataclass(frozen=True, eq=False)
class Parts:
    """What a cell learns from, chooses its learning rate by, and is judged on; no group is in two of them."""

    fit: Samples
    validation: Samples
    test: Samples
    note: str


def load(budget: Budget, folder: Path | None) -> Sources:
    """The real data under `folder` (mine_chips/ and cracks/); for `smoke` generated chips and photographs.

    Raises HighwallError where the folder, a label or the folds are missing.
    """
    if budget.name == "smoke":
        return Sources(mine_chips(40, seed=7), crack_images(20, size=128, seed=7))
    if folder is None:
        folder = Path(os.environ.get("HIGHWALL_DATA", "../shared/data"))
        if not folder.is_dir():
            raise HighwallError(f"budget {budget.name} learns from real data; name its folder with --data DIR")
    chips, photographs = read(folder / "mine_chips"), read(folder / "cracks")
    for samples, task, name in ((chips, "classify", "mine_chips"), (photographs, "segment", "cracks")):
        if samples.task != task:
            raise HighwallError(f"{folder / name} is labelled to {samples.task}; the paper's experiments {task} it")
        if samples.folds is None:
            raise HighwallError(f"{folder / name} has no folds.csv, so its parts could leak; add one")
    return Sources(chips, photographs)


def folds_of(samples: Samples, budget: Budget) -> tuple[int, ...]:
    """The folds to hold out: the budget's, or the one whose share of each class is nearest to a fifth (80/20)."""
    assert samples.folds is not None
    there = np.unique(samples.folds)
    if budget.folds:
        if missing := sorted(set(budget.folds) - set(there.tolist())):
            raise HighwallError(f"the data has no fold {missing[0]}, which budget {budget.name} holds out")
        return budget.folds
    # Photographs nearly all hold cracks, so their classes are those of their pixels.
    positive = samples.labels.reshape(len(samples), -1).mean(1)
    off = []
    for fold in there:
        held = samples.folds == fold
        shares = [part[held].sum() / max(part.sum(), 1e-9) for part in (positive, 1 - positive)]
        off.append(sum(abs(float(share) - FOLDS_ARE_FIFTHS) for share in shares))
    return (int(there[int(np.argmin(off))]),)


def parts(sources: Sources, cell: Cell, budget: Budget) -> Parts:
    """The three parts of a cell's data, cut to its size."""
    whole = sources.of(cell.task)
    train, test = hold_out(whole, "fold", cell.fold, cell.seed)
    fit, validation, note = inner_validation(whole, train, VALIDATION, cell.seed)
    three = [whole.take(indices) for indices in (fit, validation, test)]
    if cell.task == "chips":
        three = [centre_crop(part, cell.size) for part in three]
    elif cell.task == "slices":
        each = (budget.learned, budget.judged, budget.judged)
        three = [cut(part, cell.size, count, seed) for seed, (part, count) in enumerate(zip(three, each, strict=True))]
    whole_images = cell.task in ("photographs", "patches")
    three[1] = thin(three[1], budget.watched if whole_images else budget.validation)
    if whole_images:
        three[2] = thin(three[2], budget.photographs or len(three[2]))
    return Parts(three[0], three[1], three[2], note)


def thin(samples: Samples, most: int) -> Samples:
    """At most so many samples, drawn once and for all (evenly spaced ones could all be of one class)."""
    if len(samples) <= most:
        return samples
    return samples.take(np.sort(np.random.default_rng(0).permutation(len(samples))[:most]))


def cut(photographs: Samples, size: int, each: int, seed: int) -> Samples:
    """Slices labelled by their centre pixel (first row and column + size // 2), half of them cracks.

    `each` // 2 crack pixels are drawn from every photograph that has any, and as many others in all, dealt evenly over
    all photographs. The same seed draws the same pixels whatever the size, which is at most 48.
    """
    centres, labels, owners = draw(photographs, each // 2, np.random.default_rng(seed))
    half = size // 2
    images = np.empty((len(labels), size, size, photographs.bands), photographs.images.dtype)
    for index, (owner, (row, column)) in enumerate(zip(owners, centres, strict=True)):
        top, left = row - half, column - half
        images[index] = photographs.images[owner, top : top + size, left : left + size]
    named = zip(owners, centres, strict=True)
    return replace(
        photographs.take(owners),
        task="classify",
        images=images,
        labels=labels,
        names=tuple(f"{photographs.names[owner]}@{row},{column}" for owner, (row, column) in named),
        found=f"{size}x{size} around pixels of photographs",
    )


def draw(
    photographs: Samples, each: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]:
    """Pixels to cut slices around: (row, column) (N, 2), labels (N,), and the photographs they are of (N,)."""
    margin = SLICE // 2
    height, width = photographs.size
    if min(height, width) <= SLICE:
        raise HighwallError(f"photographs of {height}x{width} have no room for slices of {SLICE}; take larger ones")
    inner = photographs.labels[:, margin : height - margin, margin : width - margin]
    drawn: list[tuple[int, int, int]] = []  # photograph, label, flat pixel
    for owner, mask in enumerate(inner):
        pixels = np.flatnonzero(mask)
        if len(pixels):
            drawn += [(owner, 1, int(p)) for p in rng.choice(pixels, each, replace=len(pixels) < each)]
    wanted = np.full(len(inner), len(drawn) // len(inner))
    wanted[: len(drawn) % len(inner)] += 1
    for owner, mask in enumerate(inner):
        pixels = np.flatnonzero(mask == 0)
        drawn += [(owner, 0, int(p)) for p in rng.choice(pixels, wanted[owner], replace=False)]
    table = np.array(drawn, np.int64).reshape(-1, 3)
    rows, columns = np.divmod(table[:, 2], inner.shape[2])
    centres = np.stack((rows, columns), 1) + margin
    return centres, table[:, 1].astype(np.uint8), table[:, 0]


def centres_of(slices: Samples) -> list[tuple[str, int, int]]:
    """For each slice its photograph's name, and the row and column of its centre there."""
    found = []
    for name in slices.names:
        photograph, _, place = name.rpartition("@")
        row, column = place.split(",")
        found.append((photograph, int(row), int(column)))
    return found
