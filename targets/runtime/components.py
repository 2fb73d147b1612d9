"""Connected components of a mask (8-connected), found by joining runs of set pixels row by row."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Box:
    """The upright box around one component, in pixels; `area` counts those set, `peak` is their maximum."""

    row: int
    col: int
    height: int
    width: int
    area: int
    peak: float


def components(mask: NDArray[np.bool_], probability: NDArray[Any] | None = None) -> tuple[Box, ...]:
    """One box per component of `mask` (H, W), in the order in which a reader meets their first pixels.

    `probability` (H, W) gives each its peak, which is 1.0 without it.
    """
    rows, starts, stops = _runs(mask)
    if len(rows) == 0:
        return ()
    label = _join(rows, starts, stops)
    count = int(label.max()) + 1
    top, bottom = np.full(count, mask.shape[0]), np.zeros(count, np.int64)
    left, right = np.full(count, mask.shape[1]), np.zeros(count, np.int64)
    np.minimum.at(top, label, rows)
    np.maximum.at(bottom, label, rows + 1)
    np.minimum.at(left, label, starts)
    np.maximum.at(right, label, stops)
    area = np.zeros(count, np.int64)
    np.add.at(area, label, stops - starts)
    peak = np.ones(count)
    if probability is not None:
        lengths = stops - starts
        firsts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
        peak = np.full(count, -np.inf)
        np.maximum.at(peak, label, np.maximum.reduceat(probability[mask], firsts))
    table = zip(top, left, bottom - top, right - left, area, peak, strict=True)
    return tuple(Box(int(r), int(c), int(h), int(w), int(a), float(p)) for r, c, h, w, a, p in table)


def _runs(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Row, first column and column after the last of every unbroken run, in reading order."""
    height, width = mask.shape
    edged = np.zeros((height, width + 2), np.int8)
    edged[:, 1:-1] = mask
    change = np.diff(edged, axis=1)
    rows, starts = np.nonzero(change == 1)
    stops = np.nonzero(change == -1)[1]
    return rows, starts, stops


def _join(rows: NDArray[np.int64], starts: NDArray[np.int64], stops: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each run the number of its component, numbered from 0 in reading order."""
    row, start, stop = rows.tolist(), starts.tolist(), stops.tolist()
    parent = list(range(len(row)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]  # halve the path, so that long chains stay cheap
            run = parent[run]
        return run

    above = 0
    for run in range(len(row)):
        # Runs of older rows, and those of the row above that end before this one's corner, are done with.
        while above < run and (row[above] < row[run] - 1 or (row[above] < row[run] and stop[above] < start[run])):
            above += 1
        other = above
        while other < run and row[other] == row[run] - 1 and start[other] <= stop[run]:
            first, second = sorted((root(other), root(run)))
            parent[second] = first
            other += 1
    roots = np.array([root(run) for run in range(len(row))])
    return np.unique(roots, return_inverse=True)[1]
