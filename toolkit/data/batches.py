"""Samples into training batches: balanced draws, crops, augmentation, normalisation."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from targets.runtime.errors import HighwallError
from toolkit.data import augment
from toolkit.data.samples import Pixels, Samples

# What one unit of brightness is, for augmentation alone: 8-bit full scale, and a reflectance of 1.
FULL_SCALE = {"uint8": 255.0, "uint16": 10000.0}
CEILING = {"uint8": 255.0, "uint16": 65535.0}

# A satellite's reflectance is calibrated, so a chip's brightness is evidence and may vary little; how bright
# a photograph is says nothing of its cracks.
WEATHER = {"classify": 0.3, "segment": 1.0}
# How many of the photographs get a straight edge that is no crack.
SEAMS = 0.5

# A sensor feature further from its mean counts as this far, in standard deviations. A broken gauge then cannot
# shout down the camera, and int8 ranges can cover every reading there may be, not only those seen so far.
SENSOR_LIMIT = 4.0


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of raw pixels, per band, and of raw sensor features, each in its own unit."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    sensor_mean: tuple[float, ...] = ()
    sensor_std: tuple[float, ...] = ()

    @staticmethod
    def of(samples: Samples) -> "Normalisation":
        """From the training images, fewer than 2,000 of them, evenly spaced."""
        mean, std = _statistics(samples.images[:: max(1, len(samples) // 1000)])
        std = np.maximum(std, 1.0)
        return Normalisation(
            tuple(float(x) for x in mean.round(3)),
            tuple(float(x) for x in std.round(3)),
            *_sensor_statistics(samples.sensors),
        )

    def apply(self, pixels: Tensor) -> Tensor:
        """Raw pixels (N, C, H, W) to what the network sees."""
        mean = torch.tensor(self.mean, device=pixels.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(1, -1, 1, 1)
        return (pixels - mean) / std

    def of_sensors(self, sensors: NDArray[np.float32] | None) -> Tensor | None:
        """Raw sensor features (N, m) to what the network joins with the image; None where there are none."""
        if sensors is None:
            return None
        if len(self.sensor_mean) != sensors.shape[1]:
            raise HighwallError(
                f"the scaling of {len(self.sensor_mean)} sensor features is known, {sensors.shape[1]} were given; "
                "give those that the network was trained on"
            )
        mean, std = torch.tensor(self.sensor_mean), torch.tensor(self.sensor_std)
        return standardised(torch.from_numpy(sensors), mean, std)


def standardised(sensors: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Raw features (N, m) in standard deviations from their means, at most SENSOR_LIMIT of them."""
    return ((sensors - mean) / std).clamp(-SENSOR_LIMIT, SENSOR_LIMIT)


def _statistics(images: Pixels) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each band, (C,): image by image, because eight bytes a pixel fill a memory."""
    mean = np.mean([image.mean((0, 1), np.float64) for image in images], 0)
    square = np.mean([((image - mean) ** 2).mean((0, 1)) for image in images], 0)
    return mean, np.sqrt(square)


def _sensor_statistics(sensors: NDArray[np.float32] | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each feature to six digits; a feature that never changes is left as it is."""
    if sensors is None:
        return (), ()
    mean, std = sensors.mean(0, np.float64), sensors.std(0, np.float64)
    std = np.where(std > 1e-6 * np.maximum(np.abs(mean), 1e-6), std, 1.0)
    return tuple(float(f"{x:.6g}") for x in mean), tuple(float(f"{x:.6g}") for x in std)


def to_tensor(images: NDArray[np.generic]) -> Tensor:
    """(N, H, W, C) raw pixels to float (N, C, H, W), laid out channels last, which is fastest on a CPU."""
    return torch.from_numpy(np.ascontiguousarray(images).astype(np.float32)).permute(0, 3, 1, 2)


def centre_window(shape: tuple[int, ...], size: int) -> tuple[slice, slice]:
    """Rows and columns of the `size` x `size` pixels around the centre; all of a side that is no longer."""
    starts = [max(0, (side - size) // 2) for side in shape]
    return slice(starts[0], starts[0] + size), slice(starts[1], starts[1] + size)


def centre_crop(samples: Samples, size: int) -> Samples:
    """Images, and masks with them, cut to their centre; a slice's label is that of its centre anyway."""
    if samples.size == (size, size):
        return samples
    window = (slice(None), *centre_window(samples.size, size))
    labels = samples.labels if samples.task == "classify" else np.ascontiguousarray(samples.labels[window])
    return replace(samples, images=np.ascontiguousarray(samples.images[window]), labels=labels)


def balanced_order(samples: Samples, count: int) -> NDArray[np.int64]:
    """`count` draws with replacement, half of them positive where there are both labels (section 5)."""
    positive = samples.positive
    weights = np.ones(len(samples))
    for label in (True, False):
        chosen = positive == label
        if chosen.any():
            weights[chosen] /= chosen.sum()
    drawn = torch.multinomial(torch.from_numpy(weights), count, replacement=True)
    return np.asarray(drawn.numpy(), np.int64)


def crop(samples: Samples, index: int, size: int) -> tuple[NDArray[np.generic], NDArray[np.uint8]]:
    """A square of image `index` and its mask; three times in four around a positive pixel, if it has one."""
    height, width = samples.size
    rows, columns = np.nonzero(samples.labels[index])
    if rows.size and float(torch.rand(())) < 0.75:
        k = int(torch.randint(rows.size, ()))
        jitter = torch.randint(-size // 3, size // 3 + 1, (2,))
        row, column = rows[k] - size // 2 + int(jitter[0]), columns[k] - size // 2 + int(jitter[1])
    else:
        row, column = int(torch.randint(height - size + 1, ())), int(torch.randint(width - size + 1, ()))
    row, column = int(np.clip(row, 0, height - size)), int(np.clip(column, 0, width - size))
    window = np.s_[row : row + size, column : column + size]
    return samples.images[index][window], samples.labels[index][window]


def training_batches(
    samples: Samples, normalisation: Normalisation, batch: int, count: int, crop_size: int, harsh: float = 0.0
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """One epoch of augmented (images, targets, sensors): targets (N, 1) to classify, (N, 1, H, W) to segment.

    sensors: (N, m) as the network sees them, None where the samples have none. harsh: the share of images in haze, as
    many out of focus or in motion, and twice as many noisy. `toolkit.data.corrupt` draws each otherwise, so its table
    shows more than what was practised.
    """
    dtype = str(samples.images.dtype)
    full, ceiling = FULL_SCALE[dtype], CEILING[dtype] / FULL_SCALE[dtype]
    order = balanced_order(samples, count)
    for start in range(0, count - batch + 1, batch):
        chosen = order[start : start + batch]
        masks: Tensor | None = None
        if samples.task == "segment":
            pairs = [crop(samples, int(i), min(crop_size, *samples.size)) for i in chosen]
            images = to_tensor(np.stack([image for image, _ in pairs]))
            masks = torch.from_numpy(np.stack([mask for _, mask in pairs])).float().unsqueeze(1)
        else:
            images = to_tensor(samples.images[chosen])
        images, masks = augment.turn(images / full, masks)
        if float(torch.rand(())) < 0.5 and min(images.shape[2:]) >= 9:
            images, masks = augment.zoom(images, masks)
        if masks is not None:
            images, masks = augment.seam(images, masks, SEAMS)
            images = augment.shadow(images)
        if harsh:
            images = augment.blur(augment.haze(images, harsh), harsh, max(samples.size))
        images = augment.weather(images, WEATHER[samples.task], ceiling)
        if harsh:
            images = augment.noise(images, 2 * harsh, ceiling=ceiling)
        if masks is None:  # a patch without data over a crack would teach that black is crack
            images = augment.dropout_patches(images)
        labels = torch.from_numpy(samples.labels[chosen]).float().unsqueeze(1) if masks is None else masks
        images = normalisation.apply(images * full)
        sensors = None if samples.sensors is None else normalisation.of_sensors(samples.sensors[chosen])
        yield images.contiguous(memory_format=torch.channels_last), labels, sensors
