"""Which images find a model's int8 ranges, and which other ones judge the result."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from targets.runtime.errors import HighwallError
from toolkit.checkpoint import Model
from toolkit.data.batches import centre_crop, centre_window
from toolkit.data.samples import Samples, Unlabelled
from toolkit.data.split import By, hold_out

CALIBRATION_IMAGES = {"classify": 200, "segment": 50}  # a photograph has as many pixels as 87 chips
JUDGED_CHIPS, JUDGED_PIXELS = 2000, 8_000_000  # judgement stops here, so that a build ends within a minute


@dataclass(frozen=True)
class Calibration:
    """Images to find ranges on (N, H, W, C), labelled ones to judge by, and the hash of all that was given."""

    images: NDArray[Any]
    judged: Samples | None
    digest: str
    held: str | None = None
    by: By = "fold"

    @property
    def identity(self) -> dict[str, Any]:
        """What decides which images these are: enough to find them again in the same data."""
        names = "" if self.judged is None else "\n".join(self.judged.names)
        division = hashlib.sha256(self.images.tobytes() + names.encode()).hexdigest()
        return {"sha256": self.digest, "held": self.held, "by": self.by, "division_sha256": division}

    @staticmethod
    def of(data: Samples | Unlabelled, model: Model, held: str | int | None = None, by: By = "fold") -> "Calibration":
        """Divide `data`, so that what ranges are fitted to never judges the result.

        With `held`, that fold (or source, or group) judges and only the others calibrate; otherwise both are
        drawn at random, always the same, with the labels in proportion. Images larger than the model's are
        cut to their centre. Raises HighwallError where they do not fit `model`.
        """
        size, most_images = model.network.slice_size, CALIBRATION_IMAGES[model.network.task]
        if not isinstance(data, Samples):
            if held is not None:
                raise HighwallError("the calibration images have no labels, so no fold of them can judge")
            images = data.images[:, *centre_window(data.images.shape[1:3], size)]
            check_fits(model, Unlabelled(images, data.names))
            return Calibration(images[draw(np.zeros(len(images), bool), most_images)], None, data.digest)
        cut = centre_crop(data, size)
        check_fits(model, cut)
        if held is not None:
            fitting, judging = hold_out(cut, by, held, 0)
            chosen = fitting[draw(cut.positive[fitting], most_images)]
        else:
            chosen = draw(cut.positive, min(most_images, max(1, len(cut) // 2)))
            judging = np.setdiff1d(np.arange(len(cut)), chosen)
        named = None if held is None else str(held)
        if model.classes > 2 or not len(judging):
            return Calibration(cut.images[chosen], None, data.digest, named, by)
        most = max(1, JUDGED_PIXELS // cut.labels[0].size) if cut.task == "segment" else JUDGED_CHIPS
        judged: Samples | None = cut.take(judging[draw(cut.positive[judging], most)])
        if judged is not None and len(np.unique(judged.labels)) < 2:
            judged = None  # one class has no AUC, and no drop of it either
        return Calibration(cut.images[chosen], judged, data.digest, named, by)


def draw(positive: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
    """Sorted indices of at most `count` samples, seeded, each label in proportion and, from two on, at least once."""
    if len(positive) <= count:
        return np.arange(len(positive))
    members = {label: np.flatnonzero(positive == label) for label in (True, False)}
    shares = {label: max(1, round(count * len(found) / len(positive))) for label, found in members.items()}
    rarer = bool(2 * len(members[True]) <= len(positive))
    shares[not rarer] = min(shares[not rarer], count - min(shares[rarer], len(members[rarer])))  # both were rounded up
    rng = np.random.default_rng(0)
    return np.sort(np.concatenate([rng.permutation(found)[: shares[label]] for label, found in members.items()]))


def check_fits(model: Model, data: Samples | Unlabelled) -> None:
    """Refuse images the model cannot take as they are, naming both sides."""
    check_kind(model, data)
    side, (_, height, width, _) = model.network.slice_size, data.images.shape
    if (height, width) != (side, side):
        raise HighwallError(
            f"{model.name} takes {side}x{side} images, these are {height}x{width}; give images at least that large"
        )


def check_kind(model: Model, data: Samples | Unlabelled) -> None:
    """Refuse images of another task, band count or dtype, whatever their size."""
    if not len(data.images):
        raise HighwallError("there is no image to work on")
    if isinstance(data, Samples) and data.task != model.network.task:
        raise HighwallError(
            f"{model.name} is trained to {model.network.task}, but this data is labelled to {data.task}"
        )
    bands, found = model.network.bands, data.images.shape[3]
    if found != bands:
        raise HighwallError(f"{model.name} takes {bands} bands, the images have {found}; choose matching data")
    if str(data.images.dtype) != model.dtype:
        raise HighwallError(f"{model.name} takes {model.dtype} pixels, the images are {data.images.dtype}")
