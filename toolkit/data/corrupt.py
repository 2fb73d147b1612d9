"""Corruptions: what dust, haze, a shaking mast, night and a bad link do to an image, at three strengths, seeded.

Each acts on one image (H, W, C), uint8 or uint16, and gives one of the same form. The same image name, kind and seed
give the same bytes; a greater strength is more of the same veil, along the same direction. None changes a label but
`shift`, which moves the mask with the image.
"""

import io
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from targets.runtime.errors import HighwallError
from toolkit.data.batches import CEILING, FULL_SCALE
from toolkit.data.blur import Kernel, convolve, disc, line, mirrored
from toolkit.data.noise import Field, fractal
from toolkit.data.samples import Samples

STRENGTHS: Final = (1, 2, 3)
DUST: Final = (0.66, 0.53, 0.38)  # laterite in sunlight, as shares of the brightest the scene has
AIR: Final = 0.95  # what hides a scene in haze is about as bright as its brightest part

Pixels = NDArray[np.float32]  # (H, W, C), 1 is full scale: 255, or a reflectance of 1


@dataclass(frozen=True)
class Draw:
    """What a corruption may use beside the pixels: the strength's number, the image's own dice, its sensor."""

    amount: float
    rng: np.random.Generator
    dtype: str


def corrupt(image: NDArray[Any], kind: str, strength: int, seed: int = 0) -> NDArray[Any]:
    """`image` (H, W, C) after the corruption `kind` at strength 1, 2 or 3.

    Raises HighwallError for an unknown kind or strength, and for `jpeg` of uint16, which that format cannot hold.
    """
    level = _level(kind, strength)
    dtype = str(image.dtype)
    if dtype not in FULL_SCALE:
        raise HighwallError(f"{dtype} pixels cannot be corrupted; give uint8 or uint16")
    if not possible(kind, dtype):
        raise HighwallError(f"{kind} is of 8-bit images; these are {dtype}")
    full, ceiling = np.float32(FULL_SCALE[dtype]), CEILING[dtype]
    pixels = image.astype(np.float32) / full
    worse = KINDS[kind].apply(pixels, Draw(level, _dice(kind, seed), dtype))
    raw: NDArray[Any] = np.rint((worse * full).clip(0, ceiling)).astype(image.dtype)
    return raw


def corrupted(samples: Samples, kind: str, strength: int, seed: int = 0) -> Samples:
    """Every image of `samples` corrupted, each by dice of its own that its name and `seed` throw."""
    images = np.empty_like(samples.images)
    labels = samples.labels
    if kind == "shift" and samples.task == "segment":
        labels = labels.copy()
    for row, (image, name) in enumerate(zip(samples.images, samples.names, strict=True)):
        own = zlib.crc32(name.encode("utf-8", "surrogateescape")) ^ seed
        images[row] = corrupt(image, kind, strength, own)
        if labels is not samples.labels:
            labels[row] = shift_mask(samples.labels[row], strength, own)
    return replace(samples, images=images, labels=labels, found=f"{samples.found} under {kind} {strength}".strip())


def possible(kind: str, dtype: str) -> bool:
    """Whether `kind` means anything for pixels of `dtype`."""
    return not (kind == "jpeg" and dtype != "uint8")


def shift_mask(mask: NDArray[np.uint8], strength: int, seed: int = 0) -> NDArray[np.uint8]:
    """The mask (H, W) of an image that `corrupt(image, "shift", strength, seed)` moved, to the nearest pixel."""
    down, right = _offset(Draw(_level("shift", strength), _dice("shift", seed), "uint8"))
    rows = mirrored(np.rint(np.arange(mask.shape[0]) - down).astype(np.int64), mask.shape[0])
    columns = mirrored(np.rint(np.arange(mask.shape[1]) - right).astype(np.int64), mask.shape[1])
    return np.ascontiguousarray(mask[rows][:, columns])


def _level(kind: str, strength: int) -> float:
    if kind not in KINDS:
        raise HighwallError(f"no corruption is called {kind!r}; known are {', '.join(KINDS)}")
    if strength not in STRENGTHS:
        raise HighwallError(f"strength {strength} is none; choose 1, 2 or 3")
    return KINDS[kind].amounts[strength - 1]


def _dice(kind: str, seed: int) -> np.random.Generator:
    # Without the strength: a stronger veil has the same lumps.
    return np.random.default_rng([seed, zlib.crc32(kind.encode())])


# --- what hangs in the air ------------------------------------------------------------------------------


def _dust(x: Pixels, draw: Draw) -> Pixels:
    """A brown veil, denser in lumps, with the grain of what is near the lens."""
    lumps = _field(draw.rng, x.shape, 0.4)
    opacity = draw.amount * (1 + 0.4 * lumps)
    grain = draw.rng.standard_normal(x.shape[:2], np.float32)
    opacity = (opacity + draw.amount * 0.08 * grain).clip(0, 0.97)[..., None]
    colour = np.asarray(DUST, np.float32) if x.shape[2] == 3 else np.full(x.shape[2], np.mean(DUST), np.float32)
    return x * (1 - opacity) + colour * _brightest(x) * opacity


def _haze(x: Pixels, draw: Draw) -> Pixels:
    """I = J t + A (1 - t), t = exp(-amount * depth) (Narasimhan and Nayar 2002); depth is smooth, about 1."""
    rows = np.linspace(1.3, 0.7, x.shape[0], dtype=np.float32)[:, None]  # what is higher in an image is farther away
    depth = np.maximum(rows + 0.15 * _field(draw.rng, x.shape, 0.8), 0.2)
    t: Pixels = np.exp(np.float32(-draw.amount) * depth)[..., None]
    return x * t + np.float32(AIR) * _brightest(x) * (1 - t)


def _field(rng: np.random.Generator, shape: tuple[int, ...], part: float) -> Field:
    """Smooth noise (H, W) of mean 0 and deviation 1 whose largest features are `part` of the longer side."""
    side = max(shape[:2])
    return fractal(rng, side, max(2.0, part * side), octaves=3)[: shape[0], : shape[1]]


def _brightest(x: Pixels) -> np.float32:
    """Airlight: the brightness that one pixel in a hundred exceeds, so that dust at dusk does not glow."""
    return np.float32(np.percentile(x.mean(2), 99))


# --- the lens and the sensor ----------------------------------------------------------------------------


def _motion(x: Pixels, draw: Draw) -> Pixels:
    """The mean along a straight line of 1 + amount * side pixels, in a direction of its own."""
    length = 1 + draw.amount * max(x.shape[:2])
    return _seen_through(x, line(length, float(draw.rng.uniform(0, math.pi))))


def _defocus(x: Pixels, draw: Draw) -> Pixels:
    """The mean over a disc of radius 0.5 + amount * side pixels."""
    return _seen_through(x, disc(0.5 + draw.amount * max(x.shape[:2])))


def _seen_through(x: Pixels, kernel: Kernel) -> Pixels:
    bands = torch.from_numpy(np.ascontiguousarray(x.transpose(2, 0, 1)))
    blurred: Pixels = convolve(bands.unsqueeze(0), kernel).squeeze(0).numpy().transpose(1, 2, 0)
    return blurred


def _noise(x: Pixels, draw: Draw) -> Pixels:
    """Shot noise of a sensor whose full well holds 1 / amount**2 electrons, and read noise of a third of one."""
    well = 1 / draw.amount**2
    shot = draw.rng.poisson(x.astype(np.float64) * well) / well
    return np.asarray(shot + draw.rng.normal(0, draw.amount / 3, x.shape), np.float32)


def _brightness(x: Pixels, draw: Draw) -> Pixels:
    """Exposure: every value times the amount; what exceeds the sensor's range is lost."""
    return x * np.float32(draw.amount)


def _jpeg(x: Pixels, draw: Draw) -> Pixels:
    """Encoded and decoded at quality `amount`; three bands as colour, any other number band by band."""
    pixels = np.rint((x * 255).clip(0, 255)).astype(np.uint8)
    if x.shape[2] == 3:
        return _coded(pixels, draw.amount)
    bands = [_coded(pixels[..., band], draw.amount) for band in range(x.shape[2])]
    return np.stack(bands, -1)


def _coded(pixels: NDArray[np.uint8], quality: float) -> Pixels:
    kept = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(kept, "JPEG", quality=int(quality))
    return np.asarray(Image.open(kept), np.float32) / np.float32(255)


# --- where it looks -------------------------------------------------------------------------------------


def _shift(x: Pixels, draw: Draw) -> Pixels:
    """The camera turned a little: `amount` pixels in some direction, between pixels linearly, edges mirrored."""
    for axis, offset in enumerate(_offset(draw)):
        at = np.arange(x.shape[axis]) - offset
        first = np.floor(at).astype(np.int64)
        part = (at - first).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        size = x.shape[axis]
        x = x.take(mirrored(first, size), axis) * (1 - part) + x.take(mirrored(first + 1, size), axis) * part
    return x


def _offset(draw: Draw) -> tuple[float, float]:
    """Rows and columns by which the image moves."""
    angle = float(draw.rng.uniform(0, 2 * math.pi))
    return draw.amount * math.sin(angle), draw.amount * math.cos(angle)


@dataclass(frozen=True)
class Kind:
    """A corruption: what it does, and its amount at each strength."""

    apply: Callable[[Pixels, Draw], Pixels]
    amounts: tuple[float, float, float]


KINDS: Final[dict[str, Kind]] = {
    "dust": Kind(_dust, (0.2, 0.4, 0.6)),  # opacity of the veil
    "haze": Kind(_haze, (0.4, 0.9, 1.6)),  # optical thickness: 67, 41 and 20 % of the light comes through
    "motion": Kind(_motion, (0.01, 0.02, 0.04)),  # of the longer side
    "defocus": Kind(_defocus, (0.003, 0.006, 0.012)),
    "noise": Kind(_noise, (0.04, 0.08, 0.16)),  # deviation at full scale
    "darker": Kind(_brightness, (0.7, 0.45, 0.25)),  # gain
    "brighter": Kind(_brightness, (1.3, 1.7, 2.2)),
    "jpeg": Kind(_jpeg, (50, 25, 10)),  # quality
    "shift": Kind(_shift, (0.5, 2.5, 7.5)),  # pixels
}
