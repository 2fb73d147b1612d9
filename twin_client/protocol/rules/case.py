"""One subject at one record: its values go through the rules that mind it, and what changes becomes alarms."""

import math
from typing import NamedTuple

from msgspec.structs import replace

from twin_client.protocol.records import Alarm, Measure, Stamp
from twin_client.protocol.rules.book import Duties, Plan
from twin_client.protocol.rules.fits import HOUR, Failure, failure, slope
from twin_client.protocol.rules.levels import CALM, Grade, Latch, graded, level_of, pressed, reached
from twin_client.protocol.rules.series import Sample, Series, held, invalid, sifted
from twin_client.protocol.rules.settings import ForecastRule, Graded, Rule, SpikingRule, ValidityRule, VelocityRule
from twin_client.protocol.rules.state import Subject
from twin_client.protocol.rules.trend import NONE, grown, points_of

PER = {"h": HOUR, "day": 24 * HOUR}


class Scene(NamedTuple):
    """The record that is being judged."""

    ref: tuple[str, str, int]  # gateway, epoch, number
    stamp: Stamp
    at: int  # microseconds on the axis


class Case:
    """A copy of a subject to work on; `subject` gives what has become of it, `alarms` what is to be said."""

    def __init__(self, scene: Scene, key: str, subject: Subject, plan: Plan):
        self.alarms: list[Alarm] = []
        self._scene, self._name, self._plan, self._subject = scene, key.removeprefix("/"), plan, subject
        self._series, self._grades = dict(subject.series), dict(subject.grades)
        self._trends, self._stuck = dict(subject.trends), dict(subject.stuck)

    def subject(self) -> Subject:
        """The subject as it is now."""
        return replace(self._subject, series=self._series, grades=self._grades, trends=self._trends, stuck=self._stuck)

    def measured(self, quantity: str, measure: Measure) -> None:
        """One quantity of the record: a null is no number, and neither is what its calibration cannot read."""
        duties = self._plan.quantities.get(quantity)
        if duties is None:
            return
        raw, value, version = measure.raw, measure.value, measure.calibration
        if value is None and version == 0:  # not calibrated at all: it is read as it is
            value = raw
        if raw is None or (value is not None and not math.isfinite(value)):
            return
        series = self._series.get(quantity) or Series(version)
        if series.calibration != version:  # another curve: a difference to what was before says nothing
            self._forgotten(duties)
            series = Series(version, series.heard)
        wrong = value is None or invalid(duties.validity, value)
        for rule in duties.validity:
            grade = self._grades.get(rule.name)
            if grade is not None or wrong:
                self._doubted(rule, grade or CALM, wrong, value)
        if value is None or wrong:
            self._series[quantity] = series
            return
        taken: tuple[Sample, ...] = (Sample(self._scene.at, value),)
        if duties.spiking is not None:
            series, taken = sifted(duties.spiking, series, taken[0])
            if series.spikes or duties.spiking.name in self._grades:
                self._spiked(duties.spiking, series.spikes.bit_count())
        self._series[quantity] = series._replace(heard=self._scene.at)
        for each in taken:
            self._valued(duties, each)

    def heard(self) -> None:
        """The subject has spoken: what was missing is no more, once it has said the number that was waited for."""
        for rule in self._plan.missing:
            grade = self._grades.get(rule.name)
            if grade is not None and grade.level:
                series = self._series.get(rule.quantity) if rule.quantity is not None else None
                if rule.quantity is None or (series is not None and series.heard == self._scene.at):
                    self._stand(rule, grade, 0, 0.0, rule.seconds)

    def missed(self, rule: Rule, level: int, silent: float, limit: float) -> None:
        """It has said nothing for `silent` seconds. One record may find several missing, so their ids name them."""
        self._stand(rule, self._grades.get(rule.name, CALM), level, silent, limit, named=True)

    def ended(self, rule: str, version: int, text: str) -> None:
        """Nothing of a rule is left but the word that its alarm is over."""
        grade = self._grades.pop(rule, CALM)
        self._trends.pop(rule, None)
        self._stuck.pop(rule, None)
        if grade.level:
            at = self._scene.stamp
            self.alarms.append(Alarm(at, grade.id, self._name, rule, version, 0, "", None, None, text))

    def _forgotten(self, duties: Duties) -> None:
        for rule in (*duties.windowed, *duties.stuck):
            self._trends.pop(rule.name, None)
            self._stuck.pop(rule.name, None)

    def _doubted(self, rule: ValidityRule, grade: Grade, wrong: bool, value: float | None) -> None:
        latch = grade.latches[0] if grade.latches else Latch()
        latch = pressed(latch, wrong != latch.on, rule.count, 0.0, self._scene.at)
        self._stand(rule, grade, rule.level * latch.on, value, None, (latch,))

    def _spiked(self, rule: SpikingRule, many: int) -> None:
        grade = self._grades.get(rule.name, CALM)
        spiking = many > rule.most // 2 if grade.level else many >= rule.most
        self._stand(rule, grade, rule.level * spiking, float(many), float(rule.most))

    def _valued(self, duties: Duties, sample: Sample) -> None:
        """A value that is neither invalid nor a spike."""
        for level in duties.levels:
            self._graded(level, sample.value, sample.at)
        for stuck in duties.stuck:
            run, bad = held(stuck, self._stuck.get(stuck.name), sample)
            self._stuck[stuck.name] = run
            if bad or stuck.name in self._grades:
                same = (sample.at - run.since) / 1e6
                self._stand(stuck, self._grades.get(stuck.name, CALM), stuck.level * bad, same, stuck.seconds)
        for rule in duties.windowed:
            trend, closed = grown(rule, self._trends.get(rule.name, NONE), *sample)
            self._trends[rule.name] = trend
            points = points_of(rule, trend) if closed else []
            if not points:
                continue
            if isinstance(rule, ForecastRule):
                self._foreseen(rule, failure(points, rule.floor, rule.confidence), sample.at, points[-1][0])
            elif isinstance(rule, VelocityRule) and (velocity := slope(points)) is not None:
                self._graded(rule, velocity * PER[rule.per], sample.at)

    def _foreseen(self, rule: ForecastRule, found: Failure | None, at: int, last: float) -> None:
        if found is None:
            self._graded(rule, math.inf, at)
            return
        passed = (at / 1e6 - last) / HOUR  # since the last point
        hours, earliest, latest = (max(0.0, ahead - passed) for ahead in (found.hours, found.earliest, found.latest))
        text = f"failure in {hours:.3g} h, between {earliest:.3g} and {latest:.3g} h, at {found.velocity:.3g} an hour"
        self._graded(rule, hours, at, text)

    def _graded(self, rule: Graded, value: float, at: int, text: str = "") -> None:
        grade = self._grades.get(rule.name, CALM)
        if grade is CALM and not reached(rule, value):
            return
        latches = graded(rule, grade, value, at)
        level = level_of(rule, latches)
        limit = rule.limits[max(level, grade.level) - rule.first] if level != grade.level else None
        self._stand(rule, grade, level, value, limit, latches, text=text)

    def _stand(
        self,
        rule: Rule | Graded,
        grade: Grade,
        level: int,
        value: float | None,
        limit: float | None,
        latches: tuple[Latch, ...] = (),
        *,
        text: str = "",
        named: bool = False,
    ) -> None:
        """Note how a rule stands, and say so where its level has changed."""
        name = grade.id
        if level != grade.level:
            if not grade.level:
                gateway, epoch, seq = self._scene.ref
                name = f"{gateway}/{epoch}/{seq}/{rule.name}@{rule.version}" + (f"/{self._name}" if named else "")
            told = value if value is not None and math.isfinite(value) else None
            quantity = getattr(rule, "quantity", None) or ""
            stamp, text = self._scene.stamp, "; ".join(filter(None, (rule.text, text))) if level else ""
            self.alarms.append(
                Alarm(stamp, name, self._name, rule.name, rule.version, level, quantity, told, limit, text)
            )
        if level or any(latch.run for latch in latches):
            self._grades[rule.name] = Grade(level, name if level else "", latches)
        else:
            self._grades.pop(rule.name, None)
