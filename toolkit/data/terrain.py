"""Paints one satellite chip of invented ground, with or without an open pit, in Sentinel-2 reflectance."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit.data.noise import FAR, Field, cover, fractal, hillshade, smoothstep, soften, stroke, wander

BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
RGB = tuple(BANDS.index(name) for name in ("B04", "B03", "B02"))

# Top-of-atmosphere reflectance in the order of BANDS; haze lifts the blue end as in level-1C scenes.
_MATERIALS = {
    "forest": (0.116, 0.096, 0.087, 0.050, 0.085, 0.200, 0.250, 0.240, 0.270, 0.085, 0.002, 0.130, 0.058),
    "grass": (0.122, 0.105, 0.106, 0.088, 0.130, 0.220, 0.250, 0.255, 0.280, 0.090, 0.002, 0.200, 0.110),
    "crop": (0.114, 0.096, 0.112, 0.066, 0.120, 0.320, 0.400, 0.420, 0.430, 0.120, 0.002, 0.170, 0.080),
    "soil": (0.118, 0.107, 0.118, 0.155, 0.185, 0.210, 0.225, 0.230, 0.260, 0.080, 0.003, 0.320, 0.250),
    "rock": (0.190, 0.205, 0.240, 0.290, 0.315, 0.330, 0.340, 0.340, 0.350, 0.115, 0.004, 0.400, 0.360),
    "sand": (0.165, 0.180, 0.215, 0.275, 0.300, 0.310, 0.320, 0.325, 0.335, 0.110, 0.004, 0.390, 0.340),
    "seam": (0.112, 0.092, 0.084, 0.082, 0.085, 0.090, 0.095, 0.100, 0.105, 0.045, 0.002, 0.120, 0.110),
    "silt": (0.128, 0.124, 0.142, 0.162, 0.150, 0.110, 0.105, 0.085, 0.070, 0.040, 0.001, 0.018, 0.012),
    "water": (0.112, 0.092, 0.074, 0.045, 0.040, 0.035, 0.030, 0.026, 0.020, 0.015, 0.001, 0.008, 0.005),
    "turquoise": (0.150, 0.160, 0.178, 0.112, 0.095, 0.065, 0.060, 0.050, 0.040, 0.020, 0.001, 0.010, 0.008),
    "roof": (0.170, 0.175, 0.182, 0.200, 0.205, 0.215, 0.220, 0.230, 0.240, 0.090, 0.003, 0.270, 0.240),
    "cloud": (0.400, 0.385, 0.375, 0.375, 0.390, 0.400, 0.410, 0.420, 0.430, 0.230, 0.050, 0.320, 0.260),
}


@dataclass(frozen=True)
class Region:
    """What neighbouring chips share: the mix of land cover, its colour cast, the sun and the haze."""

    cleared: float  # 0 is closed forest, 1 is open pasture and soil
    cast: NDArray[np.float32]  # factor per band
    azimuth: float
    elevation: float
    relief: float
    haze: float

    @staticmethod
    def draw(rng: np.random.Generator) -> "Region":
        """A region at random."""
        return Region(
            cleared=float(rng.beta(0.8, 1.2)),
            cast=rng.normal(1.0, 0.02, len(BANDS)).astype(np.float32),
            azimuth=float(rng.uniform(-2.4, -1.6)),
            elevation=float(rng.uniform(0.7, 1.2)),
            relief=float(rng.gamma(2.0, 0.25)),
            haze=float(rng.gamma(1.5, 0.006)),
        )


class _Canvas:
    """One chip while it is painted: reflectance (H,W,C), terrain height (H,W) in pixels, and the dice."""

    def __init__(self, rng: np.random.Generator, region: Region, size: int, bands: tuple[int, ...]) -> None:
        self.rng, self.region, self.size = rng, region, size
        self.bands = list(bands)
        self.unit = max(size / 48, 0.5)  # features keep their share of the chip at every size
        self.height: Field = fractal(rng, size, size * 0.7, 4) * np.float32(region.relief * self.unit)
        self.image: NDArray[np.float32] = np.empty((size, size, len(bands)), dtype=np.float32)
        self.image[:] = self.material("forest")

    def material(self, name: str) -> NDArray[np.float32]:
        """A material's reflectance in this chip's bands, (C,), a little different each time."""
        spectrum = np.array(_MATERIALS[name], dtype=np.float32) * self.region.cast
        return np.asarray(spectrum[self.bands] * np.float32(self.rng.normal(1.0, 0.06)), dtype=np.float32)

    def put(self, name: str, share: Field, mottle: float = 0.0, grain: float = 3.0, *, shine: float = 1.0) -> None:
        """Covers the chip with a material `shine` times as bright as usual.

        `mottle` is the deviation of its brightness from pixel to pixel, in spots of `grain` pixels.
        """
        paint = (self.material(name) * np.float32(shine))[None, None]
        if mottle:
            texture = 1 + np.float32(mottle) * fractal(self.rng, self.size, grain * self.unit, 2)
            paint = paint * np.clip(texture, 0.3, 2.0)[:, :, None]
        cover(self.image, np.asarray(paint, dtype=np.float32), share)

    def patches(self, cell: float, amount: float, edge: float = 0.25) -> Field:
        """Irregular patches over about `amount` (0 to 1) of the chip, `cell` pixels across."""
        level = float(np.interp(amount, (0, 0.02, 0.16, 0.5, 0.84, 0.98, 1), (9, 2, 1, 0, -1, -2, -9)))
        return smoothstep(level - edge, level + edge, fractal(self.rng, self.size, cell * self.unit, 4))

    def line(self, points: NDArray[np.float64], width: float) -> Field:
        """An antialiased stroke, (H,W), `width` pixels wide."""
        field = np.full((self.size, self.size), FAR, dtype=np.float32)
        stroke(field, points, np.full(len(points), width / 2), 1.0)
        return np.asarray(np.clip(0.5 - field, 0, 1), dtype=np.float32)

    def crossing(self, turn: float, through: tuple[float, float] | None = None) -> NDArray[np.float64]:
        """A path from edge to edge, through a point given or near the middle."""
        rng, size = self.rng, self.size
        at = through or (float(rng.uniform(0.2, 0.8) * size), float(rng.uniform(0.2, 0.8) * size))
        heading = float(rng.uniform(0, 2 * math.pi))
        step, count = size / 24, 40
        ahead = wander(rng, at, heading, step=step, count=count, turn=turn)
        behind = wander(rng, at, heading + math.pi, step=step, count=count, turn=turn)
        return np.concatenate([behind[:0:-1], ahead])


def paint_chip(
    rng: np.random.Generator, region: Region, mine: bool, size: int, bands: tuple[int, ...]
) -> NDArray[np.float32]:
    """Reflectance of one chip, (size,size,C), for the bands at those positions in BANDS.

    A mine has at least one open pit; other chips have what is easily taken for one.
    """
    canvas = _Canvas(rng, region, size, bands)
    _ground(canvas)
    if mine:
        for setting in (_river, _road, _fields):
            if rng.random() < 0.2:
                setting(canvas)
        _mine(canvas)
    else:
        chosen = rng.choice(len(_HARD_NEGATIVES), size=int(rng.integers(0, 4)), replace=False)
        for setting in sorted(chosen):  # in the order of the table: clouds lie over everything
            _HARD_NEGATIVES[setting](canvas)
    return _develop(canvas)


def _ground(canvas: _Canvas) -> None:
    rng, region = canvas.rng, canvas.region
    canopy = 1 + 0.07 * fractal(rng, canvas.size, 2.2 * canvas.unit, 2)
    canopy += rng.normal(0, 0.04, canopy.shape).astype(np.float32)
    canvas.image *= np.clip(canopy, 0.5, 1.5)[:, :, None]
    canvas.height += np.float32(0.05) * fractal(rng, canvas.size, 2.0 * canvas.unit, 1)
    canvas.put("grass", canvas.patches(26, region.cleared * 0.9), 0.08, 6)
    canvas.put("soil", canvas.patches(20, region.cleared * 0.5, 0.6) * np.float32(0.6), 0.10, 5)


def _develop(canvas: _Canvas) -> NDArray[np.float32]:
    rng, region = canvas.rng, canvas.region
    shade = hillshade(canvas.height, region.azimuth, region.elevation)
    # Skylight fills shadows; without it slopes would turn black, which 10 m pixels never do.
    image = canvas.image * (np.float32(0.35) + np.float32(0.65) * shade)[:, :, None]
    image = soften(image, 0.14) + np.float32(region.haze)
    image += rng.normal(0.0, 0.0012, image.shape).astype(np.float32)
    return np.asarray(np.maximum(image, np.float32(0.0005)), dtype=np.float32)


def _mine(canvas: _Canvas) -> None:
    rng, size = canvas.rng, canvas.size
    if rng.random() < 0.35:  # workings strung along a valley, as alluvial mines are
        path = canvas.crossing(0.25)
        inside = path[((path > 0.1 * size) & (path < 0.9 * size)).all(axis=1)]
        chosen = rng.choice(len(inside), size=min(len(inside), int(rng.integers(3, 8))), replace=False)
        spots = [(x, y, size * float(rng.uniform(0.06, 0.12))) for x, y in inside[chosen]]
        valley = canvas.line(path, 5 * canvas.unit) * canvas.patches(8, 0.6)
        canvas.put("soil", valley, 0.15, 3)
    else:
        count = int(rng.choice([1, 2, 3], p=[0.6, 0.25, 0.15]))
        reach = size * float(rng.uniform(0.14, 0.34)) / math.sqrt(count)
        middles = rng.uniform(0.28, 0.72, (count, 2)) * size
        spots = [(x, y, reach * float(rng.uniform(0.7, 1.2))) for x, y in middles]
    for x, y, radius in spots:
        _pit(canvas, x, y, radius)


def _pit(canvas: _Canvas, x: float, y: float, radius: float) -> None:
    """One pit: disturbed ground around it, stepped benches, a floor with a pond or a seam, a road out."""
    rng, size = canvas.rng, canvas.size
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    angle = rng.uniform(0, math.pi)
    squash = float(rng.uniform(0.55, 1.0))
    across = (columns - x) * math.cos(angle) + (rows - y) * math.sin(angle)
    along = ((rows - y) * math.cos(angle) - (columns - x) * math.sin(angle)) / squash
    theta = np.arctan2(along, across)
    wobble = np.float32(1)
    for order in (2, 3, 5):
        wobble = wobble + np.float32(rng.normal(0, 0.16 / order)) * np.cos(order * theta + rng.uniform(0, 6.3))
    rough = 0.07 * fractal(rng, size, max(radius * 0.5, 2.0), 3)
    outward = np.asarray(np.hypot(across, along) / (radius * wobble) + rough, dtype=np.float32)  # 1 at the rim

    shine = float(rng.triangular(0.4, 0.7, 1.1))  # wet, dark and weathered rock keeps brightness from telling
    canvas.put("soil", smoothstep(1.7, 0.9, outward) * canvas.patches(9, 0.65), 0.15, 3, shine=shine)
    spoil = smoothstep(1.9, 1.2, outward) * canvas.patches(5, 0.2)
    canvas.put("rock", spoil, 0.12, 2, shine=shine)
    canvas.height += spoil * np.float32(0.8 * canvas.unit)

    edge = 0.8 / max(radius, 1.0)
    inside = smoothstep(1 + edge, 1 - edge, outward)
    canvas.put(
        "rock" if rng.random() < 0.75 else "sand", inside * np.float32(rng.uniform(0.7, 1)), 0.10, 2, shine=shine
    )
    depth = np.clip(1 - outward, 0, 1) * np.float32(1.35)
    benches = int(np.clip(radius / 2.5, 2, 8))
    level = np.minimum(depth * benches, benches * 0.75)
    step = np.floor(level)
    face = smoothstep(0.55, 0.95, level - step)
    canvas.height -= (step + face) * np.float32(0.55 * canvas.unit)
    canvas.image *= 1 - (inside * face * np.float32(rng.uniform(0.10, 0.35)))[:, :, None]

    if radius > 6 * canvas.unit and rng.random() < 0.7:  # the haul road winds down once or twice
        turn = np.linspace(0, 2 * math.pi * rng.uniform(0.8, 1.8), 40) + rng.uniform(0, 6.3)
        spiral = radius * np.linspace(1.0, 0.35, 40)
        right, up = spiral * np.cos(turn), spiral * np.sin(turn) * squash
        winding = np.stack(
            [
                x + right * math.cos(angle) - up * math.sin(angle),
                y + right * math.sin(angle) + up * math.cos(angle),
            ],
            axis=1,
        )
        canvas.put("sand", canvas.line(winding, 1.1 * canvas.unit) * np.float32(0.7), shine=shine)
    floor = rng.random()
    low = smoothstep(0.45, 0.35, outward + np.float32(0.12) * fractal(rng, size, max(radius * 0.6, 2.0), 2))
    if floor < 0.5:
        canvas.put(str(rng.choice(["turquoise", "turquoise", "silt", "water"])), low)
    elif floor < 0.65:
        canvas.put("seam", low * np.float32(0.85), 0.1, 2)
    if rng.random() < 0.7:
        leading = wander(rng, (x, y), float(rng.uniform(0, 6.3)), step=size / 20, count=36, turn=0.12)
        outside = smoothstep(0.9, 1.05, outward)
        canvas.put("soil", canvas.line(leading, 1.2 * canvas.unit) * outside)


def _river(canvas: _Canvas) -> None:
    rng, unit = canvas.rng, canvas.unit
    path = canvas.crossing(float(rng.uniform(0.1, 0.35)))
    width = float(rng.uniform(2, 11)) * unit
    banks = canvas.line(path + rng.normal(0, width * 0.3, 2), width * 1.5) * canvas.patches(10, 0.5)
    canvas.put("sand", banks, 0.12, 3)
    canvas.put("silt" if rng.random() < 0.65 else "water", canvas.line(path, width), 0.04, 8)


def _road(canvas: _Canvas) -> None:
    rng, unit = canvas.rng, canvas.unit
    for _ in range(int(rng.integers(1, 3))):
        share = canvas.line(canvas.crossing(float(rng.uniform(0.0, 0.06))), float(rng.uniform(0.8, 1.8)) * unit)
        canvas.put(str(rng.choice(["soil", "sand", "roof"])), share * np.float32(rng.uniform(0.5, 1)))


def _fields(canvas: _Canvas) -> None:
    for _ in range(int(canvas.rng.integers(2, 9))):
        share = _rectangle(canvas, float(canvas.rng.uniform(5, 16)), float(canvas.rng.uniform(0, 0.1)))
        canvas.put(str(canvas.rng.choice(["crop", "grass", "soil", "crop"])), share, 0.05, 4)


def _ponds(canvas: _Canvas) -> None:
    """Aquaculture: straight-edged basins, often the colour of a pit's pond."""
    tilt = float(canvas.rng.uniform(0, 1.6))
    for _ in range(int(canvas.rng.integers(2, 7))):
        share = _rectangle(canvas, float(canvas.rng.uniform(3, 9)), tilt)
        canvas.put("sand", soften(share[:, :, None], 0.25)[:, :, 0] * np.float32(0.8))
        canvas.put(str(canvas.rng.choice(["water", "silt", "turquoise"])), share)


def _settlement(canvas: _Canvas) -> None:
    rng, unit = canvas.rng, canvas.unit
    tilt = float(rng.uniform(0, 1.6))
    middle = rng.uniform(0.25, 0.75, 2) * canvas.size
    canvas.put("soil", canvas.patches(14, 0.35) * np.float32(0.5), 0.1, 4)
    for _ in range(int(rng.integers(10, 40))):
        at = middle + rng.normal(0, 8 * unit, 2)
        house = _rectangle(canvas, float(rng.uniform(0.8, 2.6)), tilt, at)
        canvas.put("roof", house * np.float32(rng.uniform(0.5, 1.3)))


def _clearing(canvas: _Canvas) -> None:
    """Bare ground without a working in it: the hardest of the negatives."""
    share = canvas.patches(22, float(canvas.rng.uniform(0.1, 0.3)), 0.12)
    canvas.put(str(canvas.rng.choice(["soil", "soil", "sand", "rock"])), share * np.float32(0.85), 0.12, 5)


def _clouds(canvas: _Canvas) -> None:
    share = canvas.patches(float(canvas.rng.uniform(10, 26)), float(canvas.rng.uniform(0.08, 0.35)), 0.7)
    away = max(2, round(5 * canvas.unit))
    shadow = np.roll(share, (away, away), axis=(0, 1))
    shadow[:away], shadow[:, :away] = 0, 0
    canvas.image *= 1 - np.float32(0.45) * shadow[:, :, None]
    canvas.put("cloud", share * np.float32(canvas.rng.uniform(0.3, 1)), 0.08, 6)


def _rectangle(canvas: _Canvas, half: float, tilt: float, at: NDArray[np.float64] | None = None) -> Field:
    """An antialiased rectangle, (H,W), about `half` pixels (of a 48 px chip) from middle to side."""
    rng, size = canvas.rng, canvas.size
    x, y = rng.uniform(0, size, 2) if at is None else at
    rows, columns = np.ogrid[:size, :size]
    across = (columns - x) * math.cos(tilt) + (rows - y) * math.sin(tilt)
    along = (rows - y) * math.cos(tilt) - (columns - x) * math.sin(tilt)
    half *= canvas.unit
    beyond = np.maximum(np.abs(across) - half, np.abs(along) - half * float(rng.uniform(0.4, 1)))
    return np.asarray(np.clip(0.5 - beyond, 0, 1), dtype=np.float32)


_HARD_NEGATIVES: tuple[Callable[[_Canvas], None], ...] = (
    *(_clearing, _fields, _river, _ponds, _settlement, _road, _clouds),
)
