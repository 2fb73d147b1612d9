"""The one form labelled images take inside Highwall, whatever layout they were read from."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from targets.runtime.errors import HighwallError

Task = Literal["classify", "segment"]
Pixels = NDArray[Any]  # uint8 or uint16, as Samples makes sure; numpy's types cannot say either-or plainly

PIXEL_DTYPES = (np.dtype(np.uint8), np.dtype(np.uint16))


@dataclass(frozen=True, eq=False)
class Samples:
    """Images of one size with their labels, and what must be known to split them without leaks.

    images: (N,H,W,C), uint8 or uint16. labels: uint8 of 0 and 1, (N,) to classify or (N,H,W) to segment.
    folds: (N,) int64 or None. groups: (N,) str or None; samples of one group must stay on one side of a
    split. class_names: (negative, positive). found: one line on where the samples came from.
    sensors: (N,m) float32 or None, to classify only: beside each image the features of the latest valid reading
    window, raw, each in a unit of its own. sensor_names: one for each feature, or none.

    Raises HighwallError when the arrays do not fit each other.
    """

    task: Task
    images: Pixels
    labels: NDArray[np.uint8]
    names: tuple[str, ...]
    folds: NDArray[np.int64] | None
    groups: NDArray[np.str_] | None
    class_names: tuple[str, str]
    found: str = ""
    sensors: NDArray[np.float32] | None = None
    sensor_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.task not in ("classify", "segment"):
            raise HighwallError(f"task {self.task!r} is not known; choose classify or segment")
        if self.images.ndim != 4 or self.images.dtype not in PIXEL_DTYPES:
            raise HighwallError(
                f"images are {self.images.dtype}{list(self.images.shape)}; expected uint8 or uint16 of shape N,H,W,C"
            )
        count = len(self.images)
        expected = (count,) if self.task == "classify" else self.images.shape[:3]
        if self.labels.dtype != np.uint8 or self.labels.shape != expected:
            raise HighwallError(
                f"labels are {self.labels.dtype}{list(self.labels.shape)}; "
                f"expected uint8{list(expected)} to {self.task}"
            )
        if self.labels.size and self.labels.max() > 1:
            raise HighwallError(f"labels must be 0 or 1; found {self.labels.max()}")
        for what, values in (("names", self.names), ("folds", self.folds), ("groups", self.groups)):
            if values is not None and len(values) != count:
                raise HighwallError(f"{len(values)} {what} for {count} images; expected one for each")
        if self.sensors is not None and self.task == "segment":
            raise HighwallError("sensor features go with images to classify; leave them out to segment")
        check_sensors(self.sensors, self.sensor_names, count)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def bands(self) -> int:
        """Channels of each image."""
        return int(self.images.shape[3])

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of each image, pixels."""
        return int(self.images.shape[1]), int(self.images.shape[2])

    @cached_property
    def positive(self) -> NDArray[np.bool_]:
        """Which samples are positive, (N,): by label, or by holding at least one positive pixel."""
        return np.asarray(np.any(self.labels, axis=tuple(range(1, self.labels.ndim))), dtype=np.bool_)

    @cached_property
    def digest(self) -> str:
        """Sha256, in hex, over images, labels, names, folds and any sensors: the provenance's data hash."""
        return digest(self.images, self.labels, self.names, self.folds, self.sensors, self.sensor_names)

    def take(self, indices: NDArray[np.integer[Any]] | Sequence[int]) -> "Samples":
        """The samples at `indices`, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            images=self.images[chosen],
            labels=self.labels[chosen],
            names=tuple(self.names[i] for i in chosen),
            folds=None if self.folds is None else self.folds[chosen],
            groups=None if self.groups is None else self.groups[chosen],
            sensors=None if self.sensors is None else self.sensors[chosen],
        )

    def feeding(self, who: str, count: int, names: Sequence[str] = ()) -> "Samples":
        """These samples as the network `who`, with `count` sensor features called `names`, takes them.

        A network without sensors sees the images alone. Raises HighwallError where features are missing, too
        many or others, because a network cannot tell millimetres from degrees.
        """
        if not count:
            return self if self.sensors is None else replace(self, sensors=None, sensor_names=())
        wanted = f"{who} takes {count} sensor features" + (f" ({', '.join(names)})" if names else "")
        if self.sensors is None:
            raise HighwallError(f"{wanted}, this data has none; add sensors.csv, or `sensors` to chips.npz")
        if self.sensors.shape[1] != count:
            raise HighwallError(f"{wanted}, this data has {self.sensors.shape[1]}; give those it was trained on")
        if names and self.sensor_names and tuple(names) != self.sensor_names:
            raise HighwallError(f"{wanted}, this data has {', '.join(self.sensor_names)}; give those, in that order")
        return self

    def describe(self) -> str:
        """What was found, over a few lines, for a person to check before training on it."""
        height, width = self.size
        negative, positive = self.class_names
        lines = [self.found] if self.found else []
        lines.append(f"{len(self)} images to {self.task}, {height}x{width} px, {self.bands} bands, {self.images.dtype}")
        lines.append(f"positive is '{positive}', negative is '{negative}': {self._balance()}")
        if self.folds is None:
            lines.append("folds: none")
        else:
            folds, sizes = np.unique(self.folds, return_counts=True)
            lines.append("folds: " + ", ".join(f"{f} ({n})" for f, n in zip(folds, sizes, strict=True)))
        if self.groups is None:
            lines.append("groups: none, neighbouring images may leak across a random split")
        else:
            lines.append(f"groups: {len(np.unique(self.groups))}, kept whole when splitting")
        if self.sensors is not None:
            named = f": {', '.join(self.sensor_names)}" if self.sensor_names else ""
            lines.append(f"sensors: {self.sensors.shape[1]} features beside each image{named}")
        return "\n".join(lines)

    def _balance(self) -> str:
        count = int(self.positive.sum())
        images = f"{count} of {len(self)} images positive ({count / max(1, len(self)):.1%})"
        if self.task == "classify":
            return images
        return f"{images}, {float(self.labels.mean()) if self.labels.size else 0.0:.2%} of all pixels"


@dataclass(frozen=True, eq=False)
class Unlabelled:
    """Images without labels, for calibration: images (N,H,W,C) uint8 or uint16, their names, any sensors (N,m)."""

    images: Pixels
    names: tuple[str, ...]
    sensors: NDArray[np.float32] | None = None
    sensor_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_sensors(self.sensors, self.sensor_names, len(self.images))

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def digest(self) -> str:
        """Sha256, in hex, over images, names and any sensors."""
        return digest(self.images, None, self.names, None, self.sensors, self.sensor_names)


def check_sensors(sensors: NDArray[np.float32] | None, names: Sequence[str], count: int) -> None:
    """Raise HighwallError unless `sensors` are (count, m) finite float32 and `names`, if any, one for each feature."""
    if sensors is None:
        if names:
            raise HighwallError(f"{len(names)} sensor names without sensor features; give both or neither")
        return
    if sensors.dtype != np.float32 or sensors.ndim != 2 or len(sensors) != count or sensors.shape[1] == 0:
        raise HighwallError(
            f"sensors are {sensors.dtype}{list(sensors.shape)}; expected float32 of shape {count},m with m from 1"
        )
    if bad := int(sensors.size - np.isfinite(sensors).sum()):
        row = int(np.flatnonzero(~np.isfinite(sensors).all(axis=1))[0])
        raise HighwallError(f"{bad} sensor features are NaN or infinite, the first in row {row}; leave such rows out")
    if names and (len(names) != sensors.shape[1] or len(set(names)) != len(names) or not all(names)):
        raise HighwallError(
            f"sensor names are {', '.join(names)} for {sensors.shape[1]} features; give each a name of its own"
        )


def digest(
    images: NDArray[Any],
    labels: NDArray[Any] | None,
    names: Sequence[str],
    folds: NDArray[Any] | None,
    sensors: NDArray[Any] | None = None,
    sensor_names: Sequence[str] = (),
) -> str:
    """Sha256, in hex, of the arrays with their shapes and dtypes, so that no two layouts collide.

    Without sensors it is what it was before there were any.
    """
    sha = hashlib.sha256()
    for array in (images, labels, folds):
        if array is None:
            sha.update(b"none;")
            continue
        sha.update(f"{array.dtype.str}{array.shape};".encode())
        sha.update(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
    for name in names:
        _update(sha, name)
    if sensors is not None:
        sha.update(f"sensors{sensors.dtype.str}{sensors.shape};".encode())
        sha.update(np.ascontiguousarray(sensors).data.cast("B") if sensors.size else b"")
        for name in sensor_names:
            _update(sha, name)
    return sha.hexdigest()


def _update(sha: "hashlib._Hash", name: str) -> None:
    encoded = name.encode("utf-8", "surrogateescape")
    sha.update(f"{len(encoded)}:".encode())
    sha.update(encoded)
