"""A seeded open-pit mine: what its tags send and its cameras see, second by second, with the truth beside it.

The same seed gives the same events to the byte, whatever part of them is taken. Every source draws from chance of its
own, so that one source more changes nothing of the others.
"""

import heapq
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np

from twin_client.protocol.records import Position, Window
from twin_client.protocol.tags import Frame
from twin_client.simulation.body import Body, Subject
from twin_client.simulation.motion import Sensor
from twin_client.simulation.radio import Air, degrees

HOUR: Final = 3600.0
DAY: Final = 86_400.0
RATE: Final = 25.0  # samples a second of worn tags
SHAKEN: Final = 200.0  # of those that listen for blasts
WINDOW_S: Final = 2.0
ORIGIN: Final = (-30.7583, 121.5022)  # degrees; a pit in Western Australia
GATEWAY: Final = np.array([0.0, 0.0, 30.0])  # metres east, north and up
LOOP: Final = (420.0, 260.0)  # metres, half axes of the haul road
BLASTS: Final = (12 * HOUR, 17 * HOUR)  # seconds of the day


@dataclass(frozen=True)
class Mine:
    """How the mine is, and what happens in it. Times are seconds from the beginning of the simulation."""

    seed: int = 0
    begin: float = 8 * HOUR  # of the day
    failure: float = 6 * HOUR  # when the slope behind `ext-4` fails
    fall: float = 0.25 * HOUR  # when `person-2` falls, and lies for `lies` seconds
    lies: float = 300.0
    extensometers: int = 6
    people: int = 3
    trucks: int = 2
    images: float = 60.0  # seconds between two of the camera's images; 0: none
    boot: int = 1  # of all tags; a gateway drops what it has heard of a boot before

    def events(self) -> "Iterator[Event]":
        """Everything that happens, in order of time, without end."""
        yield from heapq.merge(*_streams(self), key=lambda event: event.time)

    def rain(self, time: float) -> float:
        """Millimetres an hour: an hour of it every other day or so."""
        day = int((self.begin + time) // DAY)
        dice = _dice(self.seed, f"rain-{day}")
        begin, strength = dice.uniform(0.0, 20 * HOUR), dice.uniform(2.0, 12.0) * (dice.uniform() < 0.5)
        inside = 0 < (self.begin + time) % DAY - begin < 2 * HOUR
        return float(strength) if inside else 0.0

    def temperature(self, time: float) -> float:
        """Degrees Celsius: coldest at five in the morning."""
        hour = (self.begin + time) % DAY / HOUR
        return 18.0 - 8.0 * math.cos((hour - 5.0) / 24 * 2 * math.pi)

    def daylight(self, time: float) -> float:
        """0 at night, 1 at noon."""
        return max(0.0, math.sin(((self.begin + time) % DAY / HOUR - 6.0) / 12 * math.pi))

    def displacement(self, number: int, time: float) -> float:
        """Millimetres at extensometer `number`, without noise: steady creep, but for the fourth, which fails.

        That one follows Fukuzono: its velocity is 4 mm over the hours that are left.
        """
        steady = 0.02 * number * time / HOUR
        if number != 4:
            return steady
        if time >= self.failure:
            return 2000.0
        return 4.0 * math.log(self.failure / (self.failure - time))

    def crack(self, time: float) -> float:
        """How far the camera's crack has opened, 0 to 1."""
        return min(1.0, time / self.failure)


@dataclass(frozen=True)
class Event:
    """Something that is sent, or seen: a tag's frame, an image to be taken, or only the truth of something."""

    time: float  # seconds since the beginning
    kind: Literal["frame", "image", "truth"]
    subject: str
    frame: Frame | None = None
    truth: dict[str, Any] = field(default_factory=dict)


def _dice(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def _streams(mine: Mine) -> list[Iterator[Event]]:
    streams = [_extensometer(mine, number) for number in range(1, mine.extensometers + 1)]
    streams += [_person(mine, number) for number in range(1, mine.people + 1)]
    streams += [_truck(mine, number) for number in range(1, mine.trucks + 1)]
    streams += [_weather(mine), _ground(mine)]
    if mine.images > 0:
        streams.append(_camera(mine))
    return streams


def _extensometer(mine: Mine, number: int) -> Iterator[Event]:
    """Movement, strain and tilt on a bench, every ten seconds; rain and warmth stretch the wire a little."""
    name = f"ext-{number}"
    dice, air = _dice(mine.seed, name), Air(noise=3.0)
    place = np.array([dice.uniform(-300, 300), dice.uniform(150, 300), dice.uniform(-40, 40)])
    offset = dice.uniform(0, 10)
    for seq in range(1 << 31):
        time = 10.0 * seq + number
        moved = mine.displacement(number, time)
        warmth = 0.02 * (mine.temperature(time) - 18.0)
        values: dict[str, float | None] = {
            "extensometer": offset + moved + warmth + dice.normal(0, 0.05),
            "strain": 40.0 * warmth + 0.5 * mine.rain(time) + dice.normal(0, 0.4),
            "tilt_x": 0.004 * moved + dice.normal(0, 0.01),
            "temperature": mine.temperature(time) + dice.normal(0, 0.2),
        }
        if dice.uniform() < 0.002:
            values["strain"] = None  # the gauge lost its contact for a moment
        strength = float(air.heard(GATEWAY[None], place, dice)[0])
        battery = 3.65 - 0.2 * time / (300 * DAY)
        frame = _frame(mine, name, seq, values, signal=None if math.isnan(strength) else strength, battery=battery)
        yield Event(time, "frame", name, frame, {"moved": moved})


def _person(mine: Mine, number: int) -> Iterator[Event]:
    """Windows of what a worn tag feels, one after another; the truth is what the wearer does."""
    name = f"person-{number}"
    dice = _dice(mine.seed, name)
    subject, sensor = Subject.draw(dice), Sensor.draw(dice, RATE)
    seq, begun = 0, 0.0
    while True:
        script = _script(mine, number, begun, dice)
        track = Body(subject, dice, RATE).perform(script)
        for at, (window, act) in enumerate(track.windows(sensor, dice, WINDOW_S)):
            time = begun + (at + 1) * WINDOW_S + 0.1 * number
            frame = _frame(mine, name, seq, {}, window=window, battery=3.9)
            yield Event(time, "frame", name, frame, {"does": act})
            seq += 1
        begun += sum(seconds for _, seconds in script)


def _script(mine: Mine, number: int, begun: float, dice: np.random.Generator) -> list[tuple[str, float]]:
    """Ten minutes or so of a shift; in even seconds, so that windows do not drift."""
    script = [(str(act), 2.0 * int(dice.integers(15, 90))) for act in dice.choice(["walk", "work", "stand", "ride"], 6)]
    length = sum(seconds for _, seconds in script)
    if number != 2 or not begun <= mine.fall < begun + length:
        return script
    before, passed = [], begun
    for act, seconds in script:
        if passed + seconds >= mine.fall:
            before.append((act, max(2.0, 2.0 * round((mine.fall - passed) / 2))))
            break
        before.append((act, seconds))
        passed += seconds
    return [*before, ("fall", 4.0), ("lie", mine.lies), ("rise", 6.0), ("stand", 60.0)]


def _truck(mine: Mine, number: int) -> Iterator[Event]:
    """Round the haul road: a place every ten seconds, with two seconds of what the seat feels."""
    name = f"truck-{number}"
    dice = _dice(mine.seed, name)
    subject, sensor = Subject.draw(dice), Sensor.draw(dice, RATE)
    phase, pace = dice.uniform(0, 2 * math.pi), dice.uniform(0.9, 1.1) * 2 * math.pi / 600
    for seq in range(1 << 31):
        time = 10.0 * seq + 5.0 + 0.3 * number
        angle = phase + pace * time
        east, north = LOOP[0] * math.cos(angle), LOOP[1] * math.sin(angle)
        latitude, longitude = degrees(ORIGIN, (east + dice.normal(0, 1.5), north + dice.normal(0, 1.5)))
        track = Body(subject, dice, RATE).perform([("ride", WINDOW_S)])
        window, _ = next(iter(track.windows(sensor, dice, WINDOW_S)))
        place = Position(latitude, longitude, 400.0 + 20 * math.sin(angle), 2.0)
        frame = _frame(mine, name, seq, {}, window=window, position=place, battery=24.1)
        yield Event(time, "frame", name, frame, {"east": east, "north": north})


def _weather(mine: Mine) -> Iterator[Event]:
    dice = _dice(mine.seed, "weather")
    for seq in range(1 << 31):
        time = 60.0 * seq + 2.0
        values: dict[str, float | None] = {
            "temperature": mine.temperature(time) + dice.normal(0, 0.1),
            "rain": mine.rain(time),
            "humidity": 40.0 + 40.0 * (mine.rain(time) > 0) + dice.normal(0, 1.0),
            "air_pressure": 1010.0 + dice.normal(0, 0.2),
        }
        yield Event(time, "frame", "weather", _frame(mine, "weather", seq, values))


def _ground(mine: Mine) -> Iterator[Event]:
    """Peak and mean of the ground's vibration every half minute; of a blast, the samples too."""
    dice = _dice(mine.seed, "ground")
    air = Sensor(rate=SHAKEN, scale=0.001, range=3.0, noise=0.0005)
    for seq in range(1 << 31):
        time = 30.0 * seq + 3.0
        until_blast = min((blast - (mine.begin + time)) % DAY for blast in BLASTS)
        blast = until_blast < 30.0  # it is in this half minute
        force = dice.normal(0, 0.002, (round(SHAKEN * WINDOW_S), 3))
        if blast:
            at = np.arange(len(force)) / SHAKEN
            force += (0.6 * np.exp(-3 * at) * np.sin(2 * np.pi * 14 * at))[:, None] * [0.5, 0.6, 1.0]
        size = np.linalg.norm(force, axis=1) * 9.80665
        values: dict[str, float | None] = {
            "vibration_rms": float(np.sqrt((size**2).mean())),
            "vibration_peak": float(size.max()),
        }
        window = None
        if blast:
            window = Window(SHAKEN, air.scale, 3, air.read(force, dice).astype("<i2").tobytes())
        yield Event(time, "frame", "ground", _frame(mine, "ground", seq, values, window=window), {"blast": blast})


def _camera(mine: Mine) -> Iterator[Event]:
    for number in range(1 << 31):
        time = mine.images * (number + 0.5)
        yield Event(time, "image", "east", None, {"crack": mine.crack(time), "daylight": mine.daylight(time)})


def _frame(mine: Mine, name: str, seq: int, values: dict[str, float | None], **more: Any) -> Frame:
    return Frame(name, mine.boot, seq, values, **more)
