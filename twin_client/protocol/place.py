"""Where a tag is, from how strongly several gateways hear it: for when there is no satellite fix.

Signals fade with distance as `at_metre - 10 exponent log10(d)`, give or take `noise` dB, the paper's location
environmental noise value; now and then a bench or a truck stands between and takes `loss` more. `locate` weighs every
place within reach by how well it explains all signals (on a grid that closes in on what remains likely) and returns
the mean with its spread. So one rule serves every case: one gateway gives a ring around it, two or several in a line
give mirrored places and a mean between them whose error spans both, many give a spot.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated

import msgspec

from twin_client.protocol.errors import ProtocolError
from twin_client.protocol.records import Position

Positive = Annotated[float, msgspec.Meta(gt=0)]
Point = tuple[float, float]
Box = tuple[float, float, float, float]  # west, south, east, north, metres
Cell = tuple[float, float, float]  # east, north, weight

A, E2 = 6378137.0, 6.69437999014e-3  # WGS 84
FAR = 3.5  # standard deviations beyond which a signal is not believed to be stronger than it should be
NEAREST = 0.5  # metres: nearer than this an antenna's field follows other laws
SAME = 5.0  # metres: gateways nearer than this hear through the same air and count as one
SIDE, ROUNDS = 16, 4  # cells a side of the grid, and how often it closes in; finer changes no figure by 2 %
WEAKEST, STRONGEST = -160.0, 30.0  # dBm; no receiver hears less, no tag sends more
STEP = 0.25  # dB, of the table of likelihoods


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How signals fade at this site: dB, dBm, metres. Walk away with a tag to measure `at_metre` and `exponent`."""

    at_metre: Annotated[float, msgspec.Meta(ge=-120, le=30)] = -40.0  # dBm heard at 1 m: 10 dBm sent at 868 MHz
    exponent: Annotated[float, msgspec.Meta(ge=1, le=6)] = 2.7  # 2 in free air, up to 4 behind benches and machines
    noise: Annotated[float, msgspec.Meta(ge=0.5, le=20)] = (
        6.0  # dB, one standard deviation: open ground 4, a pit 6 to 8
    )
    blocked: Annotated[float, msgspec.Meta(ge=0, le=0.5)] = 0.05  # share of the paths that something stands in
    loss: Annotated[float, msgspec.Meta(ge=0, le=60)] = 20.0  # dB that it takes then, as much as half more or less
    reach: Positive = 3000.0  # metres: no tag is heard from farther away


class Signal(msgspec.Struct, frozen=True, array_like=True):
    """One tag as one gateway hears it; the mean of several frames is better than one."""

    latitude: float  # of the gateway, degrees, WGS 84
    longitude: float
    height: float  # metres above the ellipsoid
    strength: float  # dBm


class _Heard(msgspec.Struct, frozen=True):
    east: float  # metres from the middle of the gateways
    north: float
    height: float
    strength: float


def locate(settings: Settings, signals: Sequence[Signal], height: float | None = None) -> Position:
    """The mean of all places that explain `signals`; `error` is the root mean square distance of these places from it.

    height: the tag's, metres above the ellipsoid, where it is known; without it the gateways' mean height is assumed
    and the answer has none. Gateways within 5 m of each other count as one. Where no place explains all signals (a
    gateway's position is wrong, or two tags have one number) the error reaches as far as they contradict each other.
    Raises ProtocolError for no signals at all, and for numbers that no gateway can have said.
    """
    _check(signals, height)
    origin, heard = _local(signals)
    level = height if height is not None else sum(one.height for one in heard) / len(heard)
    box, short = _within(settings, heard)
    table = _likelihoods(settings)
    cells: list[Cell] = []
    for _ in range(ROUNDS):
        cells = _weigh(settings, table, heard, level, box)
        likely = _around(cells, box)
        if _area(likely) > 0.5 * _area(box):
            break
        box = likely
    east, north, error = _moments(cells, box)
    latitude, longitude = _global(origin, east, north)
    return Position(latitude, longitude, height, max(error, short), "signal")


def _check(signals: Sequence[Signal], height: float | None) -> None:
    if not signals:
        raise ProtocolError("no gateway heard the tag, so nothing says where it is")
    if height is not None and not math.isfinite(height):
        raise ProtocolError(f"a height of {height} m")
    for one in signals:
        if not (abs(one.latitude) < 89 and abs(one.longitude) <= 180 and math.isfinite(one.height)):
            raise ProtocolError(f"a gateway at {one.latitude}, {one.longitude}, {one.height} m")
        if not WEAKEST <= one.strength <= STRONGEST:
            raise ProtocolError(f"a signal of {one.strength} dBm; between {WEAKEST:g} and {STRONGEST:g} can be heard")


def _within(settings: Settings, heard: Sequence[_Heard]) -> tuple[Box, float]:
    """Where the tag must be, and by how many metres that is contradicted.

    A signal may be weak for many reasons, but hardly stronger than distance allows: so it bounds how far the tag is.
    """
    west, south, east, north = -math.inf, -math.inf, math.inf, math.inf
    for one, far in zip(heard, bounds := [_farthest(settings, one) for one in heard], strict=True):
        west, east = max(west, one.east - far), min(east, one.east + far)
        south, north = max(south, one.north - far), min(north, one.north + far)
    if west < east and south < north:
        return (west, south, east, north), 0.0
    far, near = min(zip(bounds, heard, strict=True), key=lambda pair: pair[0])
    apart = (
        math.hypot(one.east - near.east, one.north - near.north) - reach
        for one, reach in zip(heard, bounds, strict=True)
    )
    return (near.east - far, near.north - far, near.east + far, near.north + far), max(apart)


def _farthest(settings: Settings, one: _Heard) -> float:
    surplus = settings.at_metre + FAR * settings.noise - one.strength
    return float(max(2 * NEAREST, min(settings.reach, 10 ** (surplus / (10 * settings.exponent)))))


@lru_cache(maxsize=4)
def _likelihoods(settings: Settings) -> list[float]:
    """Log likelihood of what was heard less what was expected, from -255 dB in steps of 0.25: free path or blocked."""
    free, walled = settings.noise, math.hypot(settings.noise, settings.loss / 2)
    made = []
    for i in range(2048):
        more = i * STEP - 255.0
        log = -0.5 * (more / free) ** 2
        if settings.blocked:
            clear = math.log((1 - settings.blocked) / free) + log
            dim = math.log(settings.blocked) - math.log(walled) - 0.5 * ((more + settings.loss) / walled) ** 2
            most = max(clear, dim)
            log = most + math.log(math.exp(clear - most) + math.exp(dim - most))
        made.append(log)
    return made


def _weigh(settings: Settings, table: Sequence[float], heard: Sequence[_Heard], level: float, box: Box) -> list[Cell]:
    """The middles of the grid's cells with their likelihood, 1 at the best."""
    west, south, east, north = box
    wide, tall = (east - west) / SIDE, (north - south) / SIDE
    slope, log10 = 5 * settings.exponent / STEP, math.log10
    known = [
        (one.east, one.north, (one.height - level) ** 2, (one.strength - settings.at_metre + 255.0) / STEP + 0.5)
        for one in heard
    ]
    reach, near = settings.reach**2, NEAREST**2
    made = []
    for j in range(SIDE):
        y = south + (j + 0.5) * tall
        rows = [(at, rise + (y - up) ** 2, surplus) for at, up, rise, surplus in known]
        for i in range(SIDE):
            x = west + (i + 0.5) * wide
            log = 0.0
            for at, rest, surplus in rows:
                square = (x - at) ** 2 + rest
                if square > reach:
                    log -= 1e3 * (square / reach)  # out of reach: only where nothing else is left
                index = int(surplus + slope * log10(square if square > near else near))
                log += table[0 if index < 0 else 2047 if index > 2047 else index]
            made.append((x, y, log))
    best = max(cell[2] for cell in made)
    return [(x, y, math.exp(log - best)) for x, y, log in made]


def _around(cells: Sequence[Cell], box: Box) -> Box:
    """The part of `box` that holds all but the unlikely cells, with a cell's margin."""
    west, south, east, north = box
    wide, tall = 1.5 * (east - west) / SIDE, 1.5 * (north - south) / SIDE
    xs = [x for x, _, weight in cells if weight > 1e-3]
    ys = [y for _, y, weight in cells if weight > 1e-3]
    return max(west, min(xs) - wide), max(south, min(ys) - tall), min(east, max(xs) + wide), min(north, max(ys) + tall)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _moments(cells: Sequence[Cell], box: Box) -> tuple[float, float, float]:
    """Mean east and north, and the root mean square distance from there; a cell's own width counts."""
    total = sum(weight for _, _, weight in cells)
    east = sum(x * weight for x, _, weight in cells) / total
    north = sum(y * weight for _, y, weight in cells) / total
    spread = sum(((x - east) ** 2 + (y - north) ** 2) * weight for x, y, weight in cells) / total
    inside = ((box[2] - box[0]) ** 2 + (box[3] - box[1]) ** 2) / SIDE**2 / 12
    return east, north, math.sqrt(spread + inside)


# --- degrees and metres ---------------------------------------------------------------------------------


def _local(signals: Sequence[Signal]) -> tuple[Point, list[_Heard]]:
    """The middle of the gateways, degrees, and what they heard around it, those that stand together merged."""
    first = signals[0]
    latitude = sum(one.latitude for one in signals) / len(signals)
    longitude = first.longitude + sum(_wrapped(one.longitude - first.longitude) for one in signals) / len(signals)
    per_north, per_east = _metres_a_degree(latitude)
    groups: list[list[_Heard]] = []
    for one in signals:
        east, north = _wrapped(one.longitude - longitude) * per_east, (one.latitude - latitude) * per_north
        heard = _Heard(east, north, one.height, one.strength)
        for group in groups:
            if math.dist((east, north, one.height), (group[0].east, group[0].north, group[0].height)) < SAME:
                group.append(heard)
                break
        else:
            groups.append([heard])
    return (latitude, longitude), [_merged(group) for group in groups]


def _merged(group: Sequence[_Heard]) -> _Heard:
    east, north, height, strength = (
        sum(getattr(one, name) for one in group) / len(group) for name in ("east", "north", "height", "strength")
    )
    return _Heard(east, north, height, strength)


def _global(origin: Point, east: float, north: float) -> Point:
    per_north, per_east = _metres_a_degree(origin[0])
    return origin[0] + north / per_north, _wrapped(origin[1] + east / per_east)


def _metres_a_degree(latitude: float) -> Point:
    """Of latitude and of longitude, on the ellipsoid."""
    sine = math.sin(math.radians(latitude))
    bent = 1 - E2 * sine * sine
    return math.radians(A * (1 - E2) / bent**1.5), math.radians(A / math.sqrt(bent)) * math.cos(math.radians(latitude))


def _wrapped(degrees: float) -> float:
    """From -180 up to 180."""
    return (degrees + 180.0) % 360.0 - 180.0
