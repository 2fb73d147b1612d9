"""Writes Samples in the layouts that `folder.read` reads, the whole folder or nothing."""

import csv
import io
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from targets.runtime.errors import HighwallError
from targets.runtime.files import atomic_write, write_text
from toolkit.data.samples import Samples


def write(samples: Samples, folder: Path, columns: Mapping[str, Sequence[object]] | None = None) -> None:
    """Writes `samples` into a new or empty `folder`, such that `folder.read` gives them back.

    To classify: chips.npz (with any sensors), index.csv and folds.csv; chips are named by their position. To segment:
    images/ and masks/ as PNG (npy where PNG cannot hold the bands), groups.csv and folds.csv. `columns` are
    more columns for index.csv or groups.csv.

    Raises HighwallError when the folder is not empty or cannot be written.
    """
    with whole_folder(folder) as partial:
        if samples.task == "classify":
            _write_chips(samples, partial, columns or {})
        else:
            _write_pairs(samples, partial, columns or {})


def require_empty(folder: Path) -> None:
    """Raises HighwallError unless `folder` is missing or an empty folder; ask before long work, not after."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise HighwallError(f"{folder} is a file; choose a new folder to write to")
    if folder.is_dir() and any(folder.iterdir()):
        raise HighwallError(f"{folder} is not empty; choose a new folder, nothing was overwritten")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yields a folder beside `folder` to fill; on success it takes its place, otherwise nothing is left.

    Raises HighwallError when `folder` is not empty or the disk refuses.
    """
    folder = Path(os.path.abspath(folder))  # noqa: PTH100 (keeps links, gives "." a name)
    require_empty(folder)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        if folder.is_dir():
            folder.rmdir()
        partial.replace(folder)
    except OSError as error:
        reason = error.strerror or str(error)
        raise HighwallError(f"cannot write {folder}: {reason}; choose another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_chips(samples: Samples, folder: Path, columns: Mapping[str, Sequence[object]]) -> None:
    chips = range(len(samples))
    with atomic_write(folder / "chips.npz") as partial, partial.open("wb") as file:
        np.savez_compressed(file, x=samples.images, y=samples.labels, **_sensors(samples))
    index: dict[str, Sequence[object]] = {"chip": chips, "label": samples.labels.tolist()}
    if samples.groups is not None:
        index["source"] = samples.groups.tolist()
    _write_table(folder / "index.csv", index | dict(columns))
    if samples.folds is not None:
        _write_table(folder / "folds.csv", {"chip": chips, "fold": samples.folds.tolist()})


def _sensors(samples: Samples) -> dict[str, Any]:
    """The arrays of chips.npz that hold sensor features, where there are any."""
    if samples.sensors is None:
        return {}
    names: dict[str, Any] = {"sensor_names": np.array(samples.sensor_names)} if samples.sensor_names else {}
    return {"sensors": samples.sensors} | names


def _write_pairs(samples: Samples, folder: Path, columns: Mapping[str, Sequence[object]]) -> None:
    from PIL import Image

    as_png = samples.images.dtype == np.uint8 and samples.bands in (1, 3)
    for i, name in enumerate(
        tqdm(samples.names, desc="writing images", unit="image", leave=False, delay=2, disable=None)
    ):
        pixels = samples.images[i]
        with atomic_write(folder / "images" / f"{name}.{'png' if as_png else 'npy'}") as partial:
            if as_png:
                Image.fromarray(pixels[:, :, 0] if samples.bands == 1 else pixels).save(partial, format="PNG")
            else:
                with partial.open("wb") as file:
                    np.save(file, pixels)
        with atomic_write(folder / "masks" / f"{name}.png") as partial:
            Image.fromarray(samples.labels[i] * np.uint8(255)).save(partial, format="PNG")
    groups: dict[str, Sequence[object]] = {"image": samples.names}
    if samples.groups is not None:
        groups["group"] = samples.groups.tolist()
    if samples.groups is not None or columns:
        _write_table(folder / "groups.csv", groups | dict(columns))
    if samples.folds is not None:
        _write_table(folder / "folds.csv", {"image": samples.names, "fold": samples.folds.tolist()})


def _write_table(path: Path, columns: Mapping[str, Sequence[object]]) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    table.writerows(zip(*columns.values(), strict=True))
    write_text(path, text.getvalue())
