"""What an accelerometer makes of what a body feels: mounting, noise, offset, gain, clipping, a dead axis."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twin_client.protocol.records import Window

G = 9.80665  # m/s² in one g
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Sensor:
    """An accelerometer as it is mounted, with the faults that it has."""

    rate: float = 50.0  # samples a second
    scale: float = 16 * G / 32768  # m/s² a count
    range: float = 16.0  # g; what is more is clipped
    noise: float = 0.004  # g, one standard deviation an axis
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)  # g
    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    mounting: tuple[tuple[float, ...], ...] = ((1, 0, 0), (0, 1, 0), (0, 0, 1))  # body to sensor, a rotation
    dead: tuple[int, float] | None = None  # axis, and the g that it always says

    @classmethod
    def draw(cls, dice: np.random.Generator, rate: float = 50.0) -> "Sensor":
        """One as it comes: any way up, offsets up to 0.1 g, gains within 3 %, noise of 2 to 8 mg, ±4 to ±16 g."""
        span = float(dice.choice([4.0, 8.0, 16.0]))
        offset = [float(value) for value in dice.uniform(-0.1, 0.1, 3)]
        gain = [float(value) for value in dice.uniform(0.97, 1.03, 3)]
        return cls(
            rate=rate,
            scale=span * G / 32768,
            range=span,
            noise=float(dice.uniform(0.002, 0.008)),
            offset=(offset[0], offset[1], offset[2]),
            gain=(gain[0], gain[1], gain[2]),
            mounting=tuple(tuple(float(value) for value in row) for row in _any_rotation(dice)),
        )

    def read(self, force: Array, dice: np.random.Generator) -> NDArray[np.int16]:
        """Counts (n,3) for the force (n,3) in g that the body feels."""
        felt = force @ np.asarray(self.mounting, float).T * self.gain + self.offset
        felt = felt + dice.normal(0.0, self.noise, felt.shape) if self.noise else felt
        if self.dead is not None:
            felt[:, self.dead[0]] = self.dead[1]
        counts = np.rint(felt.clip(-self.range, self.range) * (G / self.scale))
        return np.asarray(counts.clip(-32768, 32767), np.int16)


@dataclass(frozen=True)
class Act:
    """A stretch of one activity, by the samples of its track: first, and one past the last."""

    name: str
    first: int
    last: int


@dataclass(frozen=True)
class Track:
    """What was felt (n,3 in g, along the axes of the body) and what was done meanwhile."""

    rate: float
    force: Array
    acts: tuple[Act, ...]

    def windows(self, sensor: Sensor, dice: np.random.Generator, seconds: float = 3.0) -> Iterator[tuple[Window, str]]:
        """Windows one after another, each with its activity; `a+b` where it holds a change. The rest is left out."""
        counts = sensor.read(self.force, dice)
        length = max(1, round(seconds * self.rate))
        for begin in range(0, len(counts) - length + 1, length):
            names = [act.name for act in self.acts if act.first < begin + length and act.last > begin]
            data = counts[begin : begin + length].astype("<i2").tobytes()
            yield Window(self.rate, sensor.scale, 3, data), "+".join(dict.fromkeys(names))


def _any_rotation(dice: np.random.Generator) -> Array:
    """Uniform over all ways to mount a tag."""
    made, upper = np.linalg.qr(dice.normal(size=(3, 3)))
    made = made * np.sign(np.diag(upper))
    return np.asarray(made * np.linalg.det(made))
