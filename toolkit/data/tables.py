"""The CSV files beside the images: folds, sources and groups, one row per sample."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from targets.runtime.errors import HighwallError


def read_rows(path: Path, key: str, names: Sequence[str]) -> list[dict[str, str]] | None:
    """The rows of a CSV file in the order of `names`, matched by column `key`; None when there is no file.

    Raises HighwallError unless every name has exactly one row and every row has a name.
    """
    if not path.is_file():
        return None
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            rows = list(csv.DictReader(handle, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise HighwallError(f"cannot read {path}: {' '.join(str(error).split())}; expected CSV in UTF-8") from error
    if rows and key not in rows[0]:
        raise HighwallError(f"{path} has no column '{key}'; its columns are {', '.join(map(str, rows[0]))}")
    by_name = {(row[key] or "").strip(): row for row in rows}
    wanted = set(names)
    missing = len(wanted - by_name.keys())
    unknown = len(by_name.keys() - wanted)
    doubled = len(rows) - len(by_name)
    if missing or unknown or doubled:
        raise HighwallError(
            f"{path} has {len(rows)} rows for {len(names)} samples: {missing} samples without a row, "
            f"{unknown} rows without a sample, {doubled} doubled; give each {key} one row"
        )
    return [by_name[name] for name in names]


def integers(rows: list[dict[str, str]] | None, column: str, path: Path) -> NDArray[np.int64] | None:
    """A column of whole numbers, (N,); None without rows."""
    values = _column(rows, column, path)
    if values is None:
        return None
    try:
        return np.array([int(value) for value in values], dtype=np.int64)
    except (ValueError, OverflowError):
        bad = next(value for value in values if not _is_int64(value))
        raise HighwallError(f"{path}: {column} {bad!r} is not a whole number; mend that row") from None


def strings(rows: list[dict[str, str]] | None, column: str, path: Path) -> NDArray[np.str_] | None:
    """A column of text, (N,); None without rows."""
    values = _column(rows, column, path)
    return None if values is None else np.array(values, dtype=np.str_)


def _column(rows: list[dict[str, str]] | None, column: str, path: Path) -> list[str] | None:
    if not rows:
        return None
    if column not in rows[0]:
        raise HighwallError(f"{path} has no column '{column}'; its columns are {', '.join(map(str, rows[0]))}")
    return [(row[column] or "").strip() for row in rows]


def _is_int64(text: str) -> bool:
    try:
        np.int64(int(text))
    except (ValueError, OverflowError):
        return False
    return True
