"""Reads a folder of labelled images, in any of the three layouts users have, into Samples."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from targets.runtime.errors import HighwallError
from toolkit.data import pixels, tables
from toolkit.data.samples import Pixels, Samples, Unlabelled
from toolkit.data.windows import features

LAYOUTS = (
    "expected chips.npz (x, y), or two folders of images (one per class), or images/ beside masks/ (pairs by name)"
)
_POSITIVE_WORDS = (
    *("mine", "mines", "mining", "pit", "pits", "crack", "cracks", "cracked", "landslide", "failure"),
    *("positive", "positives", "pos", "yes", "true", "1"),
)
_NEGATIONS = ("no", "not", "non", "un", "without", "free", "negative", "negatives", "neg")
# "notcrack" and "uncracked" are one word to the pattern that splits names into words.
_NEGATED_WORD = re.compile(f"(no|not|non|un)({'|'.join(_POSITIVE_WORDS)})")

Layout = Literal["chips", "pairs", "classes", "images"]


def read(folder: Path) -> Samples:
    """The labelled samples of `folder`, whichever of the three layouts it has.

    `chips.npz` with x (N,H,W,C) and y (N,), and index.csv and folds.csv if present; two folders of images,
    one per class; `images/` with `masks/` (white is positive), and groups.csv and folds.csv if present.
    To classify, readings may lie beside the images: `sensors` (N,m) in chips.npz, perhaps with `sensor_names`, or
    sensors.csv with `name` (the image's path in the folder, or the chip's number) and one column a feature.

    Raises HighwallError, naming the file and the mend, for anything that would make a wrong training set.
    """
    folder = Path(folder)
    layout = find_layout(folder)
    if layout == "chips":
        samples = _read_chips(folder)
    elif layout == "pairs":
        samples = _read_pairs(folder)
    elif layout == "classes":
        samples = _read_classes(folder)
    else:
        raise HighwallError(f"{folder} has images but no labels; {LAYOUTS}")
    _require_both_classes(samples, folder)
    return samples


def read_images(folder: Path) -> tuple[Pixels, tuple[str, ...]]:
    """The images of a folder, (N,H,W,C), and their names; labels, where there are any, are left aside.

    Raises HighwallError for a folder without images, or images that are unreadable or of several sizes.
    """
    folder = Path(folder)
    layout = find_layout(folder)
    if layout == "chips":
        images = pixels.npz_images(pixels.load_npz(folder / "chips.npz"), folder / "chips.npz")
        return images, tuple(str(i) for i in range(len(images)))
    if layout == "classes":
        files = [file for part in _subfolders(folder) for file in pixels.image_files(part)]
    else:
        files = pixels.image_files(folder / "images" if (folder / "images").is_dir() else folder)
    return pixels.stack(files), tuple(file.relative_to(folder).as_posix() for file in files)


def read_any(folder: Path) -> Samples | Unlabelled:
    """Labelled samples where `folder` has labels, otherwise its images alone; for calibration.

    Raises HighwallError as `read` does: damaged labels are never taken for no labels.
    """
    folder = Path(folder)
    layout = find_layout(folder)
    if layout == "images" or (layout == "chips" and "y" not in pixels.load_npz(folder / "chips.npz")):
        images, names = read_images(folder)
        arrays = pixels.load_npz(folder / "chips.npz") if layout == "chips" else {}
        return Unlabelled(images, names, *_read_sensors(folder, names, arrays)[:2])
    return read(folder)


def find_layout(folder: Path) -> Layout:
    """Which layout a folder has, by the names in it alone.

    Raises HighwallError when the folder is missing, empty or has none.
    """
    if not folder.exists():
        raise HighwallError(f"no folder {folder}; check the path")
    if not folder.is_dir():
        raise HighwallError(f"{folder} is a file, not a folder; {LAYOUTS}")
    if (folder / "chips.npz").is_file():
        return "chips"
    if (folder / "images").is_dir():
        return "pairs" if (folder / "masks").is_dir() else "images"
    if pixels.image_files(folder):
        return "images"
    subfolders = _subfolders(folder)
    if len(subfolders) == 2:
        return "classes"
    if not any(folder.iterdir()):
        raise HighwallError(f"{folder} is empty; {LAYOUTS}")
    if len(subfolders) == 1:
        raise HighwallError(
            f"{folder} has images of one class only ({subfolders[0].name}); add a folder of the other class"
        )
    names = ", ".join(sorted(path.name for path in folder.iterdir())[:5])
    raise HighwallError(f"{folder} has no layout known here (it holds {names}); {LAYOUTS}")


def positive_class(names: tuple[str, str]) -> tuple[int, bool]:
    """Which of two class names is the positive one, and whether a known word said so.

    A name counts as positive when it holds a word such as mine, crack or yes and no negation; where that
    does not decide, the alphabetically second name is taken.
    """
    known = [_says_positive(name) for name in names]
    if known[0] != known[1]:
        return known.index(True), True
    return int(names[1] > names[0]), False


def _says_positive(name: str) -> bool:
    words = re.findall(r"[a-z]+|[0-9]+", name.lower())
    if any(word in _NEGATIONS or _NEGATED_WORD.fullmatch(word) for word in words):
        return False
    return any(word in _POSITIVE_WORDS for word in words)


def _read_chips(folder: Path) -> Samples:
    path = folder / "chips.npz"
    arrays = pixels.load_npz(path)
    images = pixels.npz_images(arrays, path)
    labels = pixels.npz_labels(arrays, len(images), path)
    names = tuple(str(i) for i in range(len(images)))
    index = tables.read_rows(folder / "index.csv", "chip", names)
    if index and "label" in index[0]:
        listed = tables.integers(index, "label", folder / "index.csv")
        if listed is not None and (differ := int((listed != labels).sum())):
            raise HighwallError(f"{folder / 'index.csv'} and y of {path} disagree on {differ} labels; mend either")
    sources = tables.strings(index, "source", folder / "index.csv") if index and "source" in index[0] else None
    folds = tables.read_rows(folder / "folds.csv", "chip", names)
    sensors = _read_sensors(folder, names, arrays)
    return Samples(
        task="classify",
        images=images,
        labels=labels,
        names=names,
        folds=tables.integers(folds, "fold", folder / "folds.csv"),
        groups=sources,
        class_names=("no mine", "mine"),
        found=f"{folder}: chips.npz"
        + _also(index is not None, "index.csv")
        + _also(folds is not None, "folds.csv")
        + _also(sensors.beside, "sensors.csv"),
        sensors=sensors.features,
        sensor_names=sensors.names,
    )


def _read_classes(folder: Path) -> Samples:
    first, second = _subfolders(folder)
    which, known = positive_class((first.name, second.name))
    negative, positive = (first, second) if which else (second, first)
    files: list[Path] = []
    labels: list[int] = []
    for label, part in enumerate((negative, positive)):
        found = pixels.image_files(part)
        if not found:
            raise HighwallError(f"{folder} has images of one class only: {part} has none; add some there")
        files += found
        labels += [label] * len(found)
    why = "its name says so" if known else "alphabetically second; rename the folders if that is wrong"
    names = tuple(file.relative_to(folder).as_posix() for file in files)
    sensors = _read_sensors(folder, names)
    return Samples(
        task="classify",
        images=pixels.stack(files),
        labels=np.array(labels, dtype=np.uint8),
        names=names,
        folds=None,
        groups=None,
        class_names=(negative.name, positive.name),
        found=f"{folder}: one folder per class; '{positive.name}' is positive ({why})"
        + _also(sensors.beside, "sensors.csv"),
        sensors=sensors.features,
        sensor_names=sensors.names,
    )


class _Sensors(NamedTuple):
    """What was read beside each image: (N,m) or None, the features' names, and whether sensors.csv had them."""

    features: NDArray[np.float32] | None
    names: tuple[str, ...] = ()
    beside: bool = False


def _read_sensors(folder: Path, names: Sequence[str], arrays: Mapping[str, NDArray[Any]] | None = None) -> _Sensors:
    """The sensor features of chips.npz, or of sensors.csv."""
    table = folder / "sensors.csv"
    if arrays and "sensors" in arrays:
        if table.is_file():
            raise HighwallError(f"{folder} has sensors in chips.npz and in {table.name}; keep one of them")
        return _npz_sensors(arrays, len(names), folder / "chips.npz")
    rows = tables.read_rows(table, "name", names)
    if not rows:
        return _Sensors(None)
    columns = [column for column in rows[0] if column != "name"]
    if not columns or None in columns or "" in columns:
        raise HighwallError(f"{table} needs a name at the head of each column, and a feature beside 'name'")
    places = [f"row {name}" for name in names]
    return _Sensors(features(rows, columns, places, table), tuple(columns), beside=True)


def _npz_sensors(arrays: Mapping[str, NDArray[Any]], count: int, path: Path) -> _Sensors:
    found = arrays["sensors"]
    if found.dtype.kind not in "iuf":
        raise HighwallError(f"sensors of {path} are {found.dtype}; expected numbers of shape N,m")
    if found.ndim != 2 or len(found) != count or found.shape[1] == 0:
        raise HighwallError(
            f"sensors of {path} have shape {list(found.shape)} for {count} chips; expected [{count}, m]"
        )
    names = arrays.get("sensor_names", np.empty(0, np.str_))
    if names.ndim != 1 or (len(names) and names.dtype.kind != "U") or len(names) not in (0, found.shape[1]):
        raise HighwallError(
            f"sensor_names of {path} are {names.dtype}{list(names.shape)} for {found.shape[1]} features; "
            "expected one text each"
        )
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, which Samples refuses
        return _Sensors(found.astype(np.float32), tuple(map(str, names)))


def _read_pairs(folder: Path) -> Samples:
    files = _by_stem(pixels.image_files(folder / "images"))
    masks = _by_stem(pixels.image_files(folder / "masks"))
    if not files:
        raise HighwallError(f"{folder / 'images'} has no images; add some with their masks in {folder / 'masks'}")
    if missing := sorted(files.keys() - masks.keys()):
        raise HighwallError(
            f"{len(missing)} images have no mask, such as {files[missing[0]]}; add {folder / 'masks'}/{missing[0]}.png"
        )
    if spare := sorted(masks.keys() - files.keys()):
        raise HighwallError(f"{len(spare)} masks have no image, such as {masks[spare[0]]}; add it or remove them")
    names = tuple(files)
    if (folder / "sensors.csv").is_file():
        raise HighwallError(
            f"{folder / 'sensors.csv'} goes with images to classify, this folder has masks; take it away"
        )
    images = pixels.stack(list(files.values()))
    labels = np.empty(images.shape[:3], dtype=np.uint8)
    for row, name in enumerate(names):
        labels[row] = pixels.read_mask(masks[name], files[name], images.shape[1:3])
    groups = tables.read_rows(folder / "groups.csv", "image", names)
    folds = tables.read_rows(folder / "folds.csv", "image", names)
    return Samples(
        task="segment",
        images=images,
        labels=labels,
        names=names,
        folds=tables.integers(folds, "fold", folder / "folds.csv"),
        groups=tables.strings(groups, "group", folder / "groups.csv"),
        class_names=("no crack", "crack"),
        found=f"{folder}: images/ and masks/"
        + _also(groups is not None, "groups.csv")
        + _also(folds is not None, "folds.csv"),
    )


def _require_both_classes(samples: Samples, folder: Path) -> None:
    positives = int(samples.positive.sum())
    if positives == 0:
        raise HighwallError(f"{folder} has one class only: no positive among {len(samples)} images; add some")
    if samples.labels.all():
        raise HighwallError(f"{folder} has one class only: all {len(samples)} images are positive; add others")


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))


def _by_stem(files: list[Path]) -> dict[str, Path]:
    by_stem: dict[str, Path] = {}
    for file in files:
        if (other := by_stem.setdefault(file.stem, file)) != file:
            raise HighwallError(f"{other} and {file} have one name but for the ending; rename or remove one")
    return by_stem


def _also(present: bool, name: str) -> str:
    return f", {name}" if present else ""
