"""Cuts balanced training slices out of a georeferenced scene, labelled by polygons (extra `geo`)."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from targets.runtime.errors import HighwallError
from toolkit.data.samples import PIXEL_DTYPES, Samples
from toolkit.data.shapes import read_polygons, require_geo
from toolkit.data.write import require_empty, write

DEFAULT_COUNT = 2000
FOLDS = 5

Flags = NDArray[np.bool_]
Corners = NDArray[np.int64]  # (N,2): first row and first column of a slice


@dataclass(frozen=True)
class Block:
    """A square of the scene, pixels; slices lie wholly inside one block, so blocks never share a pixel."""

    row: int
    column: int
    side: int

    @property
    def window(self) -> tuple[slice, slice]:
        """The block's rows and columns."""
        return slice(self.row, self.row + self.side), slice(self.column, self.column + self.side)

    @property
    def name(self) -> str:
        """What index.csv calls it as `source`."""
        return f"block-{self.row}-{self.column}"


def cut_slices(scene: Path, shapes: Path, out: Path, *, size: int, count: int | None = None, seed: int = 0) -> Samples:
    """Writes `count` slices of `size` pixels, half of them positive, to the folder `out`, and returns them.

    A slice is positive when its centre pixel (first row + size // 2, first column + size // 2) has its
    midpoint in a polygon. Only whole slices without nodata are taken, evenly from all blocks. index.csv has
    chip, label, source (the block), lon, lat, row, col (of the centre pixel); folds.csv deals whole blocks.

    Raises HighwallError for a scene or polygons that cannot be used, or too few slices for `count`.
    """
    require_geo()
    require_empty(out)
    if size < 1 or (count is not None and (count < 2 or count % 2)):
        raise HighwallError(f"cannot cut {count} slices of {size} px; choose an even count and a size above 0")
    rng = np.random.default_rng(seed)
    with _open(Path(scene)) as dataset:
        if size > min(dataset.shape):
            raise HighwallError(
                f"{scene} is {dataset.height}x{dataset.width} px, smaller than a slice of {size}; choose less"
            )
        inside = _burn(dataset, shapes)
        usable = _usable(dataset)
        chosen = _choose(inside, usable, size, count, rng)
        corners = np.array([corner for _, corner, _ in chosen], dtype=np.int64)
        images = _read_slices(dataset, corners, size)
        centres = corners + size // 2
        lon, lat = _lon_lat(dataset, centres)
    labels = np.array([label for _, _, label in chosen], dtype=np.uint8)
    sources = np.array([block.name for block, _, _ in chosen], dtype=np.str_)
    samples = Samples(
        task="classify",
        images=images,
        labels=labels,
        names=tuple(str(i) for i in range(len(labels))),
        folds=deal_folds(sources, labels),
        groups=sources,
        class_names=("no mine", "mine"),
        found=f"cut from {scene} by {shapes}",
    )
    columns = {"lon": lon, "lat": lat, "row": centres[:, 0].tolist(), "col": centres[:, 1].tolist()}
    write(samples, out, columns)
    return samples


def blocks(shape: tuple[int, int], size: int) -> list[Block]:
    """The squares a scene of `shape` is divided into: about 6 by 6, each from 2 to 16 slices wide."""
    side = max(size, min(max(2 * size, min(shape) // 6), 16 * size))
    return [Block(row, column, side) for row in range(0, shape[0], side) for column in range(0, shape[1], side)]


def corners_in(block: Block, inside: Flags, usable: Flags, size: int) -> tuple[Corners, Corners]:
    """The corners of all slices wholly in `block` and in usable pixels: (negative ones, positive ones)."""
    good = usable[block.window]
    height, width = good.shape
    if height < size or width < size:
        return np.empty((0, 2), dtype=np.int64), np.empty((0, 2), dtype=np.int64)
    sums = np.zeros((height + 1, width + 1), dtype=np.int64)
    sums[1:, 1:] = good.cumsum(axis=0).cumsum(axis=1)
    held = sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]
    whole = held == size * size
    half = size // 2
    centre = inside[block.window][half : half + whole.shape[0], half : half + whole.shape[1]]
    offset = (block.row, block.column)
    return np.argwhere(whole & ~centre) + offset, np.argwhere(whole & centre) + offset


def share_out(total: int, capacity: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """`total` dealt as evenly as `capacity` (B,) allows, the remainder at random; total <= capacity.sum()."""
    given = np.zeros_like(capacity)
    while (left := total - int(given.sum())) > 0:
        open_ = rng.permutation(np.flatnonzero(given < capacity))
        share = left // len(open_)
        if share == 0:
            given[open_[:left]] += 1
        else:
            given[open_] += np.minimum(share, capacity[open_] - given[open_])
    return given


def deal_folds(sources: NDArray[np.str_], labels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """A fold for each sample, (N,): whole sources, dealt so that each fold has its part of both labels."""
    names, member = np.unique(sources, return_inverse=True)
    counts = np.zeros((len(names), 2))
    np.add.at(counts, (member, labels.astype(np.int64)), 1)
    load = np.zeros((min(FOLDS, len(names)), 2))
    fold_of = np.empty(len(names), dtype=np.int64)
    for source in np.argsort(-counts.sum(axis=1), kind="stable"):
        fold = int(np.argmin(load @ counts[source] + 1e-3 * load.sum(axis=1)))
        fold_of[source] = fold
        load[fold] += counts[source]
    return np.asarray(fold_of[member], dtype=np.int64)


def _choose(
    inside: Flags, usable: Flags, size: int, count: int | None, rng: np.random.Generator
) -> list[tuple[Block, NDArray[np.int64], int]]:
    """The slices to cut, as (block, corner, label), half of each label, spread over the blocks."""
    shape = (inside.shape[0], inside.shape[1])
    grid = blocks(shape, size)
    # Candidates are counted first and found again when chosen from: a large scene has a hundred million.
    room = np.array([[len(c) for c in corners_in(block, inside, usable, size)] for block in grid])
    negatives, positives = (int(n) for n in room.sum(axis=0))
    if negatives + positives == 0:
        raise HighwallError(f"there is no room for a whole slice of {size} px without nodata; choose less")
    if positives == 0 or negatives == 0:
        where = "in" if positives == 0 else "outside"
        raise HighwallError(f"no whole slice of {size} px has its centre {where} the polygons; check both files")
    most = 2 * min(negatives, positives)
    if count is not None and count > most:
        raise HighwallError(f"only {most} slices can be cut in balance, not {count}; lower --count or --size")
    each = (count or min(DEFAULT_COUNT, most)) // 2
    shares = np.stack([share_out(each, room[:, label], rng) for label in (0, 1)], axis=1)
    chosen = []
    for block, wanted in zip(grid, shares, strict=True):
        if not wanted.any():
            continue
        for label, corners in enumerate(corners_in(block, inside, usable, size)):
            picked = rng.choice(len(corners), size=wanted[label], replace=False) if wanted[label] else ()
            chosen += [(block, corners[i], label) for i in sorted(picked)]
    return chosen


@contextmanager
def _open(scene: Path) -> Iterator[Any]:
    """The scene's dataset; whatever GDAL has to say against it becomes one line."""
    import rasterio
    from rasterio._err import CPLE_BaseError  # GDAL's own errors, which rasterio lets through here and there
    from rasterio.errors import RasterioError

    if not scene.is_file():
        raise HighwallError(f"no file {scene}; check the path of the scene")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a scene without georeference is refused below, in one line
            dataset = rasterio.open(scene)
        with dataset:
            if dataset.crs is None or dataset.transform.is_identity:
                raise HighwallError(f"{scene} has no CRS or geotransform; georeference it, then cut slices")
            dtypes = set(dataset.dtypes)
            if len(dtypes) != 1 or np.dtype(next(iter(dtypes))) not in PIXEL_DTYPES:
                raise HighwallError(
                    f"{scene} has {', '.join(sorted(dtypes))} bands; expected uint8, or uint16 such as "
                    "reflectance * 10000"
                )
            yield dataset
    except (RasterioError, CPLE_BaseError) as error:
        raise HighwallError(f"cannot read {scene}: {' '.join(str(error).split())}; copy it again") from error


def _burn(dataset: Any, shapes: Path) -> Flags:
    """Which pixels have their midpoint in a polygon, (H,W)."""
    from rasterio.features import rasterize

    polygons = read_polygons(shapes, dataset.crs)
    try:
        inside: NDArray[np.uint8] = rasterize(
            polygons, out_shape=dataset.shape, transform=dataset.transform, default_value=1, dtype="uint8"
        )
    except (ValueError, TypeError) as error:
        raise HighwallError(f"{shapes} has a polygon that cannot be drawn: {error}; mend it") from error
    if not inside.any():
        raise HighwallError(
            f"the {len(polygons)} polygons of {shapes} lie outside {dataset.name} or between its pixels; "
            "check that they belong together"
        )
    return inside.astype(np.bool_)


def _usable(dataset: Any) -> Flags:
    """Which pixels have data in every band, (H,W)."""
    usable = np.ones(dataset.shape, dtype=np.bool_)
    for band in dataset.indexes:
        usable &= dataset.read_masks(band) != 0
    return usable


def _read_slices(dataset: Any, corners: Corners, size: int) -> NDArray[Any]:
    from rasterio.windows import Window

    images = np.empty((len(corners), size, size, dataset.count), dtype=dataset.dtypes[0])
    progress = tqdm(corners.tolist(), desc="cutting slices", unit="slice", leave=False, delay=2, disable=None)
    for i, (row, column) in enumerate(progress):
        images[i] = np.moveaxis(dataset.read(window=Window(column, row, size, size)), 0, -1)
    return images


def _lon_lat(dataset: Any, pixels: Corners) -> tuple[list[str], list[str]]:
    """Longitude and latitude of the midpoints of pixels (N,2), in degrees to about 0.1 m."""
    from rasterio.transform import xy
    from rasterio.warp import transform

    x, y = xy(dataset.transform, pixels[:, 0], pixels[:, 1])
    lon, lat = transform(dataset.crs, "OGC:CRS84", x, y)
    return [f"{value:.6f}" for value in lon], [f"{value:.6f}" for value in lat]
