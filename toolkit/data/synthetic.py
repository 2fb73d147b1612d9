"""Labelled images out of a seed: mine chips and crack photographs for the demo, the tests and first tries."""

from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from targets.runtime.errors import HighwallError
from toolkit.data.samples import Pixels, Samples
from toolkit.data.terrain import BANDS, RGB, Region, paint_chip
from toolkit.data.walls import Wall, paint_wall
from toolkit.data.write import write

__all__ = ["crack_images", "mine_chips", "write"]

SMALLEST = 16
FOLDS = 5
GROUP = 4  # consecutive samples that share a region or a face
_FULL_SCALE = 0.3  # reflectance that 8-bit chips show as 255
_BARE = 5  # every fifth photograph has no crack


def mine_chips(count: int, size: int = 48, bands: int = 3, seed: int = 0) -> Samples:
    """`count` satellite chips, every second one with an open pit; the same seed gives the same bytes.

    bands 3: red, green, blue (B4, B3, B2), uint8, 255 at reflectance 0.3. bands 13: Sentinel-2's B01 to B12
    with B8A after B08, uint16, reflectance * 10000. Sample i does not depend on `count`.

    Raises HighwallError for fewer than two samples, a size below 16, or another band count.
    """
    _check(count, size, seed)
    if bands not in (len(RGB), len(BANDS)):
        raise HighwallError(f"no chips of {bands} bands can be generated; choose 3 or 13")
    rgb = bands == len(RGB)
    chosen = RGB if rgb else tuple(range(len(BANDS)))
    images: Pixels = np.empty((count, size, size, bands), dtype=np.uint8 if rgb else np.uint16)
    for i, rng, shared in _dice(count, seed, "chip"):
        reflectance = paint_chip(rng, Region.draw(shared), bool(i % 2), size, chosen)
        if rgb:
            images[i] = np.rint(np.clip(reflectance / _FULL_SCALE, 0, 1) * 255)
        else:
            images[i] = np.rint(np.clip(reflectance, 0, 6) * 10000)
    index = np.arange(count)
    return Samples(
        task="classify",
        images=images,
        labels=(index % 2).astype(np.uint8),
        names=tuple(str(i) for i in index),
        folds=index // GROUP % FOLDS,
        groups=np.array([f"region{i // GROUP:04d}" for i in index]),
        class_names=("no mine", "mine"),
        found=f"generated with seed {seed}",
    )


def crack_images(count: int, size: int = 448, seed: int = 0) -> Samples:
    """`count` photographs of rock and concrete, (size,size,3) uint8, and the exact masks of their cracks.

    About one pixel in a hundred is crack; every fifth image has none. The same seed gives the same bytes, and
    sample i does not depend on `count`. Raises HighwallError for fewer than two samples or a size below 16.
    """
    _check(count, size, seed)
    images = np.empty((count, size, size, 3), dtype=np.uint8)
    masks = np.empty((count, size, size), dtype=np.uint8)
    for i, rng, shared in _dice(count, seed, "image"):
        images[i], masks[i] = paint_wall(rng, Wall.draw(shared), i % _BARE != _BARE - 1, size)
    index = np.arange(count)
    return Samples(
        task="segment",
        images=images,
        labels=masks,
        names=tuple(f"face{i // GROUP:05d}-{i % GROUP}" for i in index),
        folds=index // GROUP % FOLDS,
        groups=np.array([f"face{i // GROUP:05d}" for i in index]),
        class_names=("no crack", "crack"),
        found=f"generated with seed {seed}",
    )


def _dice(count: int, seed: int, unit: str) -> Iterator[tuple[int, np.random.Generator, np.random.Generator]]:
    """Per sample: its number, dice of its own, and dice that roll alike throughout its group."""
    for i in tqdm(range(count), desc="generating", unit=unit, leave=False, delay=2, disable=None):
        yield i, np.random.default_rng([seed, 0, i]), np.random.default_rng([seed, 1, i // GROUP])


def _check(count: int, size: int, seed: int) -> None:
    if count < 2:
        raise HighwallError(f"{count} samples cannot hold both classes; generate 2 or more")
    if size < SMALLEST:
        raise HighwallError(f"size {size} is too small to show anything; choose {SMALLEST} or more pixels")
    if seed < 0:
        raise HighwallError(f"seed {seed} is negative; choose 0 or more")
