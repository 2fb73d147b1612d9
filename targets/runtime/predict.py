"""What an artifact says of an image of any size: run it once, or tile, and put the answers together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from targets.runtime.components import Box, components
from targets.runtime.engine import Engine
from targets.runtime.errors import HighwallError
from targets.runtime.manifest import Manifest


@dataclass(frozen=True)
class Tile:
    """One classified piece of the image: its top left pixel, its size in pixels and its probability."""

    row: int
    col: int
    height: int
    width: int
    probability: float


@dataclass(frozen=True, eq=False)
class Prediction:
    """The answer for one image.

    `probability` is the highest of the tiles' or the map's; `positive` says it reaches `threshold`.
    To classify: `tiles`. To segment: `map` float32 (H, W) of the image's size, the count of `pixels` that
    reach the threshold, and `boxes` around them.
    """

    probability: float
    positive: bool
    threshold: float
    tiles: tuple[Tile, ...] | None = None
    map: NDArray[np.float32] | None = None
    pixels: int = 0
    boxes: tuple[Box, ...] = ()

    @property
    def fraction(self) -> float:
        """Share of the image's pixels that reach the threshold, 0 to 1; 0 when classified."""
        return 0.0 if self.map is None else self.pixels / self.map.size


def predict(
    session: Engine,
    manifest: Manifest,
    image: NDArray[Any],
    sensors: NDArray[np.float32] | None = None,
    threshold: float | None = None,
) -> Prediction:
    """Run the model over `image` (H, W, C) of the input dtype, at the manifest's threshold unless given one.

    Raises HighwallError for an image too small to classify and for an output that is not a number.
    """
    check_size(image, manifest)
    level = manifest.threshold if threshold is None else threshold
    if manifest.task == "segment":
        return _segment(session, manifest, image, sensors, level)
    tiles = tuple(
        Tile(row, col, tile.shape[0], tile.shape[1], float(_run(session, tile, sensors)[-1]))
        for row, col, tile in _tiles(image, manifest)
    )
    highest = max(tile.probability for tile in tiles)
    return Prediction(highest, highest >= float(np.float32(level)), level, tiles=tiles)


def check_size(image: NDArray[Any], manifest: Manifest) -> None:
    """Raise HighwallError if `image` is too small to classify; a map is padded, so any size will do."""
    height, width = image.shape[:2]
    spec = manifest.input
    if manifest.task == "classify" and (height < spec.height or width < spec.width):
        raise HighwallError(
            f"the image is {width} x {height} pixels, smaller than the {spec.width} x {spec.height} the model takes"
        )


def sensor_names(manifest: Manifest) -> tuple[str, ...]:
    """What the model's sensor features are called, in their order; empty where the workbench did not say."""
    scaling = manifest.provenance.get("sensors")
    names = scaling.get("names") if isinstance(scaling, dict) else None
    if not isinstance(names, list) or len(names) != manifest.input.sensors:
        return ()
    return tuple(map(str, names))


def check_sensors(given: Sequence[float] | None, manifest: Manifest) -> NDArray[np.float32] | None:
    """`given` as the model takes it, (m,) raw readings, or None where it takes none.

    Raises HighwallError for a missing reading, another number of them, NaN and infinity.
    """
    count, names = manifest.input.sensors, sensor_names(manifest)
    wanted = f"{manifest.name} takes {count or 'no'} sensor features" + (f" ({', '.join(names)})" if names else "")
    if given is None:
        if count:
            raise HighwallError(f"{wanted} beside the image; give the sensor readings with --sensors")
        return None
    if len(given) != count:
        raise HighwallError(f"{wanted}, {len(given)} were given")
    with np.errstate(over="ignore"):
        values = np.asarray(given, np.float32)
    if not np.isfinite(values).all():
        raise HighwallError(f"{wanted}, and {given[int(np.argmin(np.isfinite(values)))]} is no reading")
    return values if count else None


def label(manifest: Manifest, positive: bool) -> str:
    """The word for a verdict: the last label, or the first one (or 'no LABEL' where there is only one)."""
    if positive:
        return manifest.labels[-1]
    return manifest.labels[0] if len(manifest.labels) > 1 else f"no {manifest.labels[0]}"


def _segment(
    session: Engine,
    manifest: Manifest,
    image: NDArray[Any],
    sensors: NDArray[np.float32] | None,
    level: float,
) -> Prediction:
    height, width = image.shape[:2]
    spec = manifest.input
    short = (max(0, spec.height - height), max(0, spec.width - width))
    padded = np.pad(image, ((0, short[0]), (0, short[1]), (0, 0)), mode="edge") if any(short) else image
    stitched = _stitch(session, manifest, padded, sensors)[:height, :width]
    mask = stitched >= np.float32(level)
    highest = float(stitched.max())
    return Prediction(
        highest,
        bool(mask.any()),
        level,
        map=stitched,
        pixels=int(np.count_nonzero(mask)),
        boxes=components(mask, stitched),
    )


def _stitch(
    session: Engine, manifest: Manifest, image: NDArray[Any], sensors: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """The map of an image no smaller than a tile: tiles overlap by a quarter and fade into each other."""
    spec = manifest.input
    if image.shape[:2] == (spec.height, spec.width):
        return _run(session, image, sensors)
    weight = np.outer(_fade(spec.height), _fade(spec.width))
    down, across = _summed_fades(image.shape[0], spec.height), _summed_fades(image.shape[1], spec.width)
    # A band of rows at a time, because a gateway has no room for several maps of a large image; and with full
    # precision, because a quantized model answers in steps, and many a pixel lies exactly on the threshold.
    band = np.zeros((spec.height, image.shape[1]), np.float64)
    stitched = np.empty(image.shape[:2], np.float32)
    starts = _starts(image.shape[0], spec.height, overlap=4)
    for row, following in zip(starts, [*starts[1:], image.shape[0]], strict=True):
        for col in _starts(image.shape[1], spec.width, overlap=4):
            tile = image[row : row + spec.height, col : col + spec.width]
            band[:, col : col + spec.width] += weight * _run(session, tile, sensors)
        done = following - row
        stitched[row:following] = band[:done] / np.outer(down[row:following], across)
        band[:-done] = band[done:]
        band[-done:] = 0
    return stitched


def _summed_fades(length: int, size: int) -> NDArray[np.float64]:
    """What the fades of all tiles along one side of the image add up to, pixel by pixel."""
    total = np.zeros(length, np.float64)
    for start in _starts(length, size, overlap=4):
        total[start : start + size] += _fade(size)
    return total


def _fade(length: int) -> NDArray[np.float64]:
    """Weights that rise from the edges over a quarter of `length`, where a tile knows least of its surroundings.

    sin^2, because it is all but 0 at the rim and two that overlap regularly add up to 1.
    """
    steps = np.minimum(np.arange(1, length + 1), np.arange(length, 0, -1))
    return np.sin(np.pi / 2 * np.minimum(steps / (length // 4 + 1), 1.0)) ** 2


def _tiles(image: NDArray[Any], manifest: Manifest) -> Iterator[tuple[int, int, NDArray[Any]]]:
    """Row, column and pixels of tiles that cover `image`, side by side; the last ones lie flush with the edge."""
    spec = manifest.input
    for row in _starts(image.shape[0], spec.height):
        for col in _starts(image.shape[1], spec.width):
            yield row, col, image[row : row + spec.height, col : col + spec.width]


def _starts(length: int, size: int, overlap: int = 0) -> list[int]:
    """Where tiles of `size` begin that overlap by 1/`overlap` of it (0: not); the last is flush with the end."""
    step = size - (size // overlap if overlap else 0)
    starts = list(range(0, length - size + 1, step))
    if starts[-1] + size < length:
        starts.append(length - size)
    return starts


def _run(session: Engine, image: NDArray[Any], sensors: NDArray[np.float32] | None) -> NDArray[np.float32]:
    output = session.run(image, sensors)
    if not np.isfinite(output).all():
        raise HighwallError("the model's output is not a number for this image; run `highwall verify`")
    return output
