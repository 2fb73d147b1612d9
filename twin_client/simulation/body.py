"""What a person feels who stands, walks, rides, works, jumps, falls or faints, out of a seed and with the truth.

A body performs a script of activities. The numbers are those of the literature on waist and chest sensors: steps of
1.5 to 2.2 Hz, falls that dip below 0.6 g and strike with 3 to 8 g, trucks that shake at the bounce of their
suspension, breath that rocks a chest by a degree or three.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from twin_client.simulation.motion import Act, Array, Track


@dataclass(frozen=True)
class Subject:
    """How one person moves, and the machine that they ride."""

    step: float = 1.8  # Hz
    vigour: float = 0.25  # g, the vertical swing of a step
    sway: float = 0.006  # g, of one who stands
    breath: tuple[float, float] = (0.25, 2.0)  # Hz, degrees
    fidget: float = 8.0  # seconds between the small movements of one who rests, on average
    bounce: float = 1.6  # Hz, of the suspension
    damping: float = 0.25
    rough: float = 0.08  # g, what the ride gives to who rides
    engine: float = 0.015  # g
    impact: float = 5.0  # g, of a fall

    @classmethod
    def draw(cls, dice: np.random.Generator) -> "Subject":
        """Somebody else."""
        return cls(
            step=float(dice.uniform(1.5, 2.2)),
            vigour=float(dice.uniform(0.15, 0.4)),
            sway=float(dice.uniform(0.003, 0.009)),
            breath=(float(dice.uniform(0.15, 0.4)), float(dice.uniform(0.5, 3.0))),
            fidget=float(dice.uniform(4.0, 12.0)),
            bounce=float(dice.uniform(1.1, 2.8)),
            damping=float(dice.uniform(0.2, 0.4)),
            rough=float(dice.uniform(0.04, 0.15)),
            engine=float(dice.uniform(0.005, 0.03)),
            impact=float(dice.uniform(3.0, 8.0)),
        )


@dataclass
class Body:
    """A subject with a posture; each activity begins where the last one left it."""

    subject: Subject
    dice: np.random.Generator
    rate: float = 50.0
    lean: float = 0.0  # degrees from upright
    towards: float = 0.0  # radians, the way it leans
    force: list[Array] = field(default_factory=list)
    acts: list[Act] = field(default_factory=list)

    def perform(self, script: Sequence[tuple[str, float]]) -> Track:
        """Do all of `script`, pairs of an activity (`ACTIVITIES`) and its seconds."""
        for name, seconds in script:
            ACTIVITIES[name](self, seconds)
        force = np.concatenate(self.force) if self.force else np.empty((0, 3))
        return Track(self.rate, force, tuple(self.acts))

    def stand(self, seconds: float) -> None:
        """On the feet, at ease: sways, and moves a little every now and then."""
        self._upright()
        self._felt("stand", self._still(seconds, self.subject.sway, fidgets=True))

    def sit(self, seconds: float) -> None:
        """In an office: leans back, moves a little every now and then."""
        self._felt("sit", self._still(seconds, 0.6 * self.subject.sway, fidgets=True))

    def lie(self, seconds: float) -> None:
        """Without consciousness, wherever the body came to rest: breath alone."""
        self._felt("lie", self._still(seconds, 0.001, fidgets=False))

    def aside(self, seconds: float) -> None:
        """The tag, put on a table: nothing but its own noise."""
        self._felt("aside", (np.zeros((self._count(seconds), 3)), np.zeros(self._count(seconds))))

    def walk(self, seconds: float) -> None:
        """Steps: vertical and forward at the step's rhythm with the heel's harmonics, sideways at half of it."""
        self._upright()
        self._felt("walk", self._gait(seconds, self.subject.step, self.subject.vigour))

    def run(self, seconds: float) -> None:
        """Hard steps with flight between them: dips and strikes as a fall has, again and again."""
        self._upright()
        self._felt("run", self._gait(seconds, 1.5 * self.subject.step, 3.2 * self.subject.vigour + 0.3))

    def ride(self, seconds: float) -> None:
        """Seated in a truck under way: suspension, tyres, engine, potholes."""
        force, _ = self._shaken(seconds, self.subject.rough, self.subject.engine)
        self._felt("ride", (force, self._wander(len(force), 1.0, 0.3)))

    def idle(self, seconds: float) -> None:
        """A parked machine whose engine runs."""
        self._felt("idle", self._shaken(seconds, 0.002, self.subject.engine))

    def work(self, seconds: float) -> None:
        """With the hands: bends, reaches, strikes; no rhythm that lasts."""
        count = self._count(seconds)
        level = np.abs(self._wander(count, 1.0, 0.5)) * 0.1 + 0.02
        force = np.stack([self._band(count, 0.5, 6.0) for _ in range(3)], 1) * level[:, None]
        self._felt("work", (force, self._wander(count, 18.0, 0.25)))

    def jump(self, seconds: float) -> None:
        """Off a ladder: a dip and a strike as in a fall, and then on the feet; stands out the rest."""
        self._upright()
        drop, strike = self._drop(self.dice.uniform(0.25, 0.4), 0.05), self._strike(self.dice.uniform(2.5, 4.5))
        force = np.concatenate([drop, strike])
        self._felt("jump", (force, np.zeros(len(force))))
        self._felt("stand", self._still(max(0.0, seconds - len(force) / self.rate), self.subject.sway, fidgets=True))

    def fall(self, seconds: float) -> None:
        """From the feet to the ground within a second; lies stunned for the rest of `seconds`."""
        depth = self.dice.uniform(0.1, 0.5)
        drop, strike = self._drop(self.dice.uniform(0.2, 0.5), depth), self._strike(self.subject.impact)
        end = self.dice.uniform(60.0, 110.0)
        force = np.concatenate([drop, strike])
        before, self.towards = self.lean, self.dice.uniform(0.0, 2 * np.pi)
        turn = _eased(len(drop)) * (end - before)
        self.lean = end
        self._felt("fall", (force, np.concatenate([turn, np.full(len(strike), end - before)]) - (end - before)))
        self._felt("stunned", self._still(max(0.0, seconds - len(force) / self.rate), 0.001, fidgets=False))

    def slump(self, seconds: float) -> None:
        """Down a wall in `seconds`, softly: what a faint looks like when nothing strikes the ground."""
        count = self._count(seconds)
        force, end = np.zeros((count, 3)), self.dice.uniform(40.0, 90.0)
        force[:, 2] = -0.25 * np.sin(np.pi * np.linspace(0.0, 1.0, count))
        turn, self.lean = (_eased(count) - 1.0) * (end - self.lean), end
        self._felt("slump", (force, turn))

    def rise(self, seconds: float) -> None:
        """Back on the feet within `seconds`."""
        count = self._count(seconds)
        turn, self.lean = (1.0 - _eased(count)) * self.lean, 0.0
        force = np.stack([self._band(count, 0.5, 5.0) for _ in range(3)], 1) * 0.08
        self._felt("rise", (force, turn))

    # --- what the activities are made of: force beyond gravity (n,3) in g, z up; lean beyond `self.lean` (n) in degrees

    def _felt(self, name: str, moved: tuple[Array, Array]) -> None:
        force, lean = moved
        if not len(force):
            return
        angle = np.radians(self.lean + lean)
        total = force + np.array([0.0, 0.0, 1.0])
        axis = np.array([-np.sin(self.towards), np.cos(self.towards), 0.0])  # level; Rodrigues, turned back
        along = total @ axis
        turned = (
            total * np.cos(angle)[:, None]
            - np.cross(axis, total) * np.sin(angle)[:, None]
            + axis * (along * (1.0 - np.cos(angle)))[:, None]
        )
        first = self.acts[-1].last if self.acts else 0
        self.acts.append(Act(name, first, first + len(force)))
        self.force.append(turned)

    def _upright(self) -> None:
        self.lean, self.towards = float(self.dice.uniform(0.0, 8.0)), float(self.dice.uniform(0.0, 2 * np.pi))

    def _count(self, seconds: float) -> int:
        return max(0, round(seconds * self.rate))

    def _times(self, count: int) -> Array:
        return np.arange(count) / self.rate

    def _still(self, seconds: float, sway: float, fidgets: bool) -> tuple[Array, Array]:
        count = self._count(seconds)
        force = np.stack([self._band(count, 0.2, 3.0) for _ in range(3)], 1) * sway
        pace, depth = self.subject.breath
        lean = depth * np.sin(2 * np.pi * (pace * self._times(count) + self.dice.uniform()))
        at = self.dice.exponential(self.subject.fidget) if fidgets else seconds
        while at < seconds:  # shifts the weight or moves an arm: half a second to two
            begin, length = self._count(at), self._count(self.dice.uniform(0.5, 2.0))
            end = min(count, begin + length)
            shape = np.sin(np.pi * np.linspace(0.0, 1.0, max(2, end - begin)))[: end - begin, None]
            jolt = np.stack([self._band(end - begin, 0.8, 5.0) for _ in range(3)], 1)
            force[begin:end] += jolt * shape * self.dice.uniform(0.04, 0.2)
            lean[end:] += (shift := self.dice.normal(0.0, 4.0))
            lean[begin:end] += shift * _eased(end - begin)
            at += self.dice.exponential(self.subject.fidget)
        return force, lean

    def _gait(self, seconds: float, step: float, vigour: float) -> tuple[Array, Array]:
        count = self._count(seconds)
        drift = 1.0 + 0.03 * self._wander(count, 1.0, 0.3)  # nobody is a metronome
        phase = 2 * np.pi * (np.cumsum(step * drift) / self.rate + self.dice.uniform())
        shape = self.dice.uniform(0.0, 2 * np.pi, 4)
        up = np.cos(phase) + 0.4 * np.cos(2 * phase + shape[0]) + 0.2 * np.cos(3 * phase + shape[1])
        heel = np.exp(-0.5 * ((np.mod(phase, 2 * np.pi) - 1.0) / 0.25) ** 2)
        limp = 1.0 + self.dice.uniform(0.0, 0.15) * np.cos(phase / 2)
        forward = 0.6 * np.cos(phase + shape[2]) + 0.2 * np.cos(2 * phase)
        side = 0.4 * np.cos(phase / 2 + shape[3])
        force = np.stack([forward, side, (up + 0.8 * (heel - heel.mean())) * limp], 1) * vigour
        force += np.stack([self._band(count, 0.5, 10.0) for _ in range(3)], 1) * 0.12 * vigour
        return np.maximum(force, (-9.0, -9.0, -1.0)), self._wander(count, 2.0, 0.5)

    def _shaken(self, seconds: float, rough: float, engine: float) -> tuple[Array, Array]:
        count = self._count(seconds)
        surface = 1.0 + 0.35 * self._wander(count, 1.0, 0.1)  # the road changes
        bounce = self._resonance(count, self.subject.bounce, self.subject.damping)
        up = 0.8 * bounce + 0.6 * self._band(count, 3.0, 18.0)
        level = np.stack([self._band(count, 0.5, 8.0) for _ in range(2)], 1) * 0.5
        force = np.concatenate([level, up[:, None]], 1) * (rough * surface.clip(0.3, 2.0))[:, None]
        tone = np.sin(2 * np.pi * (min(self.dice.uniform(15.0, 30.0), 0.45 * self.rate) * self._times(count)))
        force[:, 2] += engine * np.sqrt(2) * tone
        force[:, :2] += 0.03 * min(1.0, rough / 0.04) * np.stack([self._wander(count, 1.0, 0.1) for _ in range(2)], 1)
        for at in np.flatnonzero(self.dice.uniform(size=count) < (0.1 if rough > 0.01 else 0.0) / self.rate):
            since = self._times(count - int(at))
            force[at:, 2] += np.exp(-since / 0.15) * np.cos(8 * np.pi * since) * self.dice.uniform(0.2, 0.8)
        return force, np.zeros(count)

    def _drop(self, seconds: float, depth: float) -> Array:
        count = max(2, self._count(seconds))
        force = self.dice.normal(0.0, 0.05, (count, 3))
        force[:, 2] -= (1.0 - depth) * np.minimum(1.0, 3.0 * np.linspace(0.0, 1.0, count))
        return force

    def _strike(self, peak: float) -> Array:
        """An impact of `peak` g, 60 ms wide, and the body's ringing."""
        times = self._times(max(3, self._count(0.6)))
        force = self.dice.normal(0.0, 0.2, (len(times), 3)) * np.exp(-times / 0.15)[:, None]
        begin = self.dice.uniform(0.5, 1.5) / self.rate
        force[:, 2] += (peak - 1.0) * np.exp(-0.5 * ((times - begin) / 0.025) ** 2)
        force[:, 2] += 0.3 * (peak - 1.0) * np.exp(-times / 0.08) * np.sin(2 * np.pi * 7.0 * times)
        return force

    def _band(self, count: int, low: float, high: float) -> Array:
        """Noise of unit variance between two frequencies in Hz."""
        if count < 4:
            return np.zeros(count)
        longer = max(count, self._count(8.0))  # a short piece of a long one keeps the low frequencies
        spectrum = np.fft.rfft(self.dice.normal(size=longer))
        at = np.fft.rfftfreq(longer, 1.0 / self.rate)
        spectrum[(at < low) | (at > high)] = 0.0
        made = np.fft.irfft(spectrum, longer)
        return np.asarray((made / max(float(made.std()), 1e-12))[:count])

    def _wander(self, count: int, size: float, pace: float) -> Array:
        return size * self._band(count, 0.02 if count > 60 * self.rate else 0.0, pace)

    def _resonance(self, count: int, at: float, damping: float) -> Array:
        """White noise through a spring and its damper, of unit variance."""
        longer = count + self._count(4.0)
        spectrum = np.fft.rfft(self.dice.normal(size=longer))
        ratio = np.fft.rfftfreq(longer, 1.0 / self.rate) / at
        made = np.fft.irfft(spectrum / (1.0 - ratio**2 + 2j * damping * ratio), longer)
        return np.asarray((made / max(float(made.std()), 1e-12))[:count])


ACTIVITIES: dict[str, Callable[[Body, float], None]] = {
    each.__name__: each
    for each in (
        *(Body.stand, Body.sit, Body.lie, Body.aside, Body.walk, Body.run, Body.ride, Body.idle),
        *(Body.work, Body.jump, Body.fall, Body.slump, Body.rise),
    )
}


def _eased(count: int) -> Array:
    """From 0 to 1 without a jerk."""
    return np.asarray(0.5 - 0.5 * np.cos(np.pi * np.linspace(0.0, 1.0, count)))
