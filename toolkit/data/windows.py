"""Readings in time order as windows: the last rows of every sensor, and a label of what came next.

Time leaks as neighbouring images do. Windows overlap, and a label often tells of the row after its own, so parts
follow each other in time (learn, choose, judge) with a gap between them that no window reaches across.
"""

import csv
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from targets.runtime.errors import HighwallError

LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, eq=False)
class Series:
    """Rows in time order: values (R,m) float32, labels (R,) uint8 of 0 and 1, and the m names of the columns."""

    values: NDArray[np.float32]
    labels: NDArray[np.uint8]
    names: tuple[str, ...]
    found: str = ""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Windows:
    """values: (N,steps,m) float32, oldest row first. labels: (N,) uint8. rows: (N,) the row each label stands in."""

    values: NDArray[np.float32]
    labels: NDArray[np.uint8]
    rows: NDArray[np.int64]
    names: tuple[str, ...]
    ahead: int = 1

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def steps(self) -> int:
        """Rows in a window."""
        return int(self.values.shape[1])

    @property
    def reach(self) -> int:
        """How many rows a window and its label span together."""
        return self.steps + self.ahead

    @cached_property
    def digest(self) -> str:
        """Sha256, in hex, over values, labels and rows."""
        sha = hashlib.sha256()
        for array in (self.values, self.labels, self.rows):
            sha.update(f"{array.dtype.str}{array.shape};".encode() + np.ascontiguousarray(array).tobytes())
        return sha.hexdigest()

    def take(self, chosen: NDArray[np.integer[Any]] | NDArray[np.bool_]) -> "Windows":
        """The windows at these indices, or where this mask is true."""
        return replace(self, values=self.values[chosen], labels=self.labels[chosen], rows=self.rows[chosen])


def read_series(
    path: Path,
    label: str,
    *,
    drop: Sequence[str] = (),
    scales: Mapping[str, Sequence[str]] | None = None,
) -> Series:
    """A CSV file whose rows are in time order: column `label` of 0 and 1, all others readings.

    drop: columns that are no readings, such as a date. scales: columns of words with their words from low to
    high, read as 0, 1, 2, ... Raises HighwallError, naming the line, for text, gaps and numbers that are none.
    """
    path = Path(path)
    rows = _rows(path)
    columns = list(rows[0])
    for name in (label, *drop, *(scales or {})):
        if name not in columns:
            raise HighwallError(f"{path} has no column '{name}'; its columns are {', '.join(columns)}")
    kept = [name for name in columns if name != label and name not in drop]
    if not kept:
        raise HighwallError(f"{path} has no readings beside {label}; keep at least one column")
    codes = {name: {word: str(i) for i, word in enumerate(words)} for name, words in (scales or {}).items()}
    for line, row in enumerate(rows, 2):
        for name, words in codes.items():
            if row[name] not in words:
                raise HighwallError(f"{path} line {line}: {name} is {row[name]!r}; expected {', '.join(words)}")
            row[name] = words[row[name]]
        if row[label] not in ("0", "1"):
            raise HighwallError(f"{path} line {line}: {label} is {row[label]!r}; a label is 0 or 1")
    labels = np.array([int(row[label]) for row in rows], np.uint8)
    lines = [f"line {line}" for line in range(2, len(rows) + 2)]
    return Series(
        features(rows, kept, lines, path), labels, tuple(kept), f"{path.name}: {len(rows)} rows in time order"
    )


def features(
    rows: Sequence[Mapping[str, str | None]], columns: Sequence[str], places: Sequence[str], path: Path
) -> NDArray[np.float32]:
    """`columns` of CSV rows as numbers, (N,m). `places` says of each row where it stands, for error messages.

    Raises HighwallError for text, an empty cell, NaN and infinity.
    """
    values = np.empty((len(rows), len(columns)), np.float32)
    for index, row in enumerate(rows):
        for place, name in enumerate(columns):
            text = (row.get(name) or "").strip()
            try:
                number = float(text)
            except ValueError:
                number = float("nan")
            if not abs(number) <= LARGEST:  # NaN is not either
                raise HighwallError(f"{path} {places[index]}: {name} is {text!r}, not a finite number; mend that row")
            values[index, place] = number
    return values


def cut(series: Series, steps: int, ahead: int = 1) -> Windows:
    """Every window of `steps` rows whose label, `ahead` rows after its last, is there.

    ahead 0: for tables whose label column already speaks of what comes next. Raises HighwallError where a
    window would be empty or longer than the series.
    """
    if steps < 1 or ahead < 0:
        raise HighwallError(f"windows of {steps} rows, {ahead} ahead, cannot be cut; give 1 or more, and 0 or more")
    count = len(series) - steps - ahead + 1
    if count < 1:
        raise HighwallError(f"{len(series)} rows are too few for windows of {steps} rows, {ahead} ahead")
    starts = np.arange(count)
    rows = starts + steps - 1 + ahead
    values = series.values[starts[:, None] + np.arange(steps)]
    return Windows(values, series.labels[rows], rows, series.names, ahead)


def split(windows: Windows, bounds: Sequence[int], gap: int | None = None) -> list[Windows]:
    """Parts that follow each other in time, one more than `bounds`: the rows at which the later ones begin.

    Each part but the first leaves out its first `gap` label rows (default: as many as a window and its label
    span), so that it holds no row of the part before, nor what that part's labels tell of. Pass one gap for
    windows of several lengths to judge all on the same rows. Raises HighwallError where a part has one label only.
    """
    needed = windows.reach
    gap = needed if gap is None else gap
    if gap < needed:
        raise HighwallError(f"a gap of {gap} rows is shorter than a window and its label, {needed} rows")
    if list(bounds) != sorted(set(bounds)):
        raise HighwallError(f"parts cannot begin at rows {', '.join(map(str, bounds))}; give rising numbers")
    edges = [-gap, *bounds, int(windows.rows[-1]) + 1]
    parts = []
    for first, last in pairwise(edges):
        part = windows.take((windows.rows >= first + gap) & (windows.rows < last))
        if len(np.unique(part.labels)) < 2:
            raise HighwallError(
                f"rows {max(0, first + gap)} to {last - 1} hold {len(part)} windows and not both labels; "
                "move the bounds or give more rows"
            )
        parts.append(part)
    return parts


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise HighwallError(f"no file {path}; expected a CSV table in time order")
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            table = csv.reader(handle, strict=True)
            head = [name.strip() for name in next(table, [])]
            rows = [(table.line_num, row) for row in table]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise HighwallError(f"cannot read {path}: {' '.join(str(error).split())}; expected CSV in UTF-8") from error
    while rows and not rows[-1][1]:
        rows.pop()  # empty lines at the end
    if not rows:
        raise HighwallError(f"{path} has no rows; expected a line of column names and one line a reading")
    if len(set(head)) != len(head):
        raise HighwallError(f"{path} has two columns of one name; rename one")
    for line, row in rows:
        if len(row) != len(head):
            raise HighwallError(f"{path} line {line} has {len(row)} cells, its first line {len(head)}; mend that line")
    return [dict(zip(head, (cell.strip() for cell in row), strict=True)) for _, row in rows]
