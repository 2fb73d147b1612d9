"""How strongly gateways hear a tag, out of a seed, with the truth of where it was."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twin_client.protocol.place import Settings, Signal

DEGREE = 111_320.0  # metres a degree of latitude; good to half a percent, which no signal strength can see
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Air:
    """How signals really fade, whatever those who locate by them believe."""

    at_metre: float = -40.0  # dBm at 1 m
    exponent: float = 2.7
    noise: float = 6.0  # dB
    blocked: float = 0.0  # share of the paths that something stands in
    loss: float = 20.0  # dB that it takes then
    deaf: float = -137.0  # dBm; a gateway hears nothing weaker

    def heard(self, gateways: Array, tag: Array, dice: np.random.Generator) -> Array:
        """Whole dBm at each of `gateways` (n,3) from a tag at (3,), in metres; NaN where it is not heard."""
        distance = np.maximum(np.linalg.norm(gateways - tag, axis=1), 0.5)
        strength = self.at_metre - 10 * self.exponent * np.log10(distance)
        strength += dice.normal(0.0, self.noise, len(gateways))
        behind = dice.uniform(size=len(gateways)) < self.blocked
        strength -= np.where(behind, dice.normal(self.loss, 0.25 * self.loss, len(gateways)), 0.0)
        return np.where(strength < self.deaf, np.nan, np.rint(strength))

    @classmethod
    def of(cls, settings: Settings) -> "Air":
        """The air that `settings` believe in."""
        return cls(settings.at_metre, settings.exponent, settings.noise, settings.blocked, settings.loss)


def signals(gateways: Array, strengths: Array, origin: tuple[float, float]) -> list[Signal]:
    """What the gateways that heard the tag say. gateways: (n,3), metres east, north and up of `origin`, degrees."""
    found = []
    for (east, north, up), strength in zip(gateways.tolist(), strengths.tolist(), strict=True):
        if not np.isnan(strength):
            latitude, longitude = degrees(origin, (east, north))
            found.append(Signal(latitude, longitude, up, strength))
    return found


def degrees(origin: tuple[float, float], place: Sequence[float]) -> tuple[float, float]:
    """Latitude and longitude of a place (east, north) metres from `origin`."""
    return origin[0] + place[1] / DEGREE, origin[1] + place[0] / (DEGREE * float(np.cos(np.radians(origin[0]))))


def metres(origin: tuple[float, float], latitude: float, longitude: float) -> tuple[float, float]:
    """East and north of `origin`."""
    return (longitude - origin[1]) * DEGREE * float(np.cos(np.radians(origin[0]))), (latitude - origin[0]) * DEGREE
