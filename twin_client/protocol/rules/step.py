"""One record after the other: the state after it, and the alarms whose level it has changed."""

import math
from collections.abc import Mapping

from msgspec.structs import replace

from twin_client.protocol.records import Alarm, Gap, Measure, Prediction, Reading, Record
from twin_client.protocol.rules.axis import placed
from twin_client.protocol.rules.book import PAIRED, Book
from twin_client.protocol.rules.case import Case, Scene
from twin_client.protocol.rules.state import Clockwork, State, Subject, broken, with_subjects

Ref = tuple[str, str, int]
AGAIN = 1000  # a tag's number this far below its last is one that began anew, and not a late frame
LOOKS = 50  # for missing tags in the shortest time that one may be silent, so these are found 2 % late at most


def step(book: Book, state: State, ref: Ref, record: Record) -> tuple[State, list[Alarm]]:
    """The state after `record`, and what the rules say of it: an Alarm for each subject and rule whose level changed.

    ref: (gateway, epoch, number) of its entry. Entries of an epoch are to come in order; one that has been stepped
    over is passed over, so a stretch that is handed in twice changes nothing. Alarms are what rules say, not what they
    judge: they change nothing either, not even the time.
    """
    last = state.clockwork.ref
    if isinstance(record, Alarm) or (last is not None and last[:2] == ref[:2] and ref[2] <= last[2]):
        return state, []
    work = _Step(book, state, ref, record)
    if work.clock.rules != book.digests:
        work.renew()
    match record:
        case Reading():
            work.read(record)
        case Prediction():
            work.see(record)
        case Gap():
            work.lose(record)
    if book.missing and (work.clock.due is None or work.scene.at >= work.clock.due):
        work.look()
    return work.done(), work.alarms


class _Step:
    """The subjects that one record changes, and the clockwork after it."""

    def __init__(self, book: Book, state: State, ref: Ref, record: Record):
        self.alarms: list[Alarm] = []
        self._book, self._state = book, state
        self._subjects: dict[str, Subject] = {}
        clock = state.clockwork
        axis, moment = placed(clock.axis, record.at, clock.now)
        self.scene, self._era, self._before = Scene(ref, record.at, moment.at), moment.era, clock.now
        silence, began, due = book.rules.silence_s * 1e6, clock.began, clock.due
        if not clock.axis or axis[-1].boot != clock.axis[-1].boot or abs(moment.at - clock.now) > silence:
            began, due = moment.at, None  # the gateway was off, or silent: no tag is missed for that
        self.clock = Clockwork(axis, moment.at, began, due, ref, clock.rules)

    def done(self) -> State:
        most = self._book.rules.most_subjects
        state = with_subjects(self._state, self._subjects, most) if self._subjects else self._state
        return State(self.clock, state.shards)

    def read(self, reading: Reading) -> None:
        """A tag has spoken; a frame that was here before, or is older than its last, says nothing of now."""
        subject = self._known(reading.tag)
        behind = subject.seq - reading.tag_seq if subject.boot == reading.tag_boot else -1
        values: Mapping[str, Measure] = {} if 0 <= behind < AGAIN else reading.values
        if values is reading.values:
            subject = replace(subject, boot=reading.tag_boot, seq=reading.tag_seq)
        self._speak(reading.tag, subject, values)

    def see(self, prediction: Prediction) -> None:
        """A camera's image has been judged."""
        key = f"/{prediction.camera}"
        values = {}
        if math.isfinite(prediction.probability):
            values["crack_probability"] = Measure(prediction.probability)
        if prediction.width > 0 and prediction.height > 0:
            values["crack_area"] = Measure(prediction.positive / (prediction.width * prediction.height))
        self._speak(key, self._known(key), values)

    def lose(self, gap: Gap) -> None:
        """Of these something will never come, so what was seen before it and after joins only where that was little.

        Numbers come evenly: of the time since a subject's last word, what was lost takes its share.
        """
        numbers: dict[str, float] = {}
        for lost in gap.lost:
            many = math.inf if lost.first is None else lost.last - lost.first + 1
            numbers[lost.subject] = numbers.get(lost.subject, 0) + many
        for name, many in numbers.items():
            for key in (name, f"/{name}"):
                subject = self._subject(key)
                if subject is not None:
                    plan = self._book.plan(key)
                    kept = {rule for rule, enough in plan.lost.items() if many < enough}
                    spiking = {name: each.spiking.name for name, each in plan.quantities.items() if each.spiking}
                    since = max(0, self.scene.at - subject.heard)
                    unseen = int(since * many / (many + 1)) if math.isfinite(many) else since
                    self._subjects[key] = broken(subject, kept, spiking, unseen)

    def look(self) -> None:
        """Find the tags that have said nothing for too long, and tell when to look again."""
        at, dues = self.scene.at, []
        for rule, tags in self._book.missing:
            limit = int(rule.seconds * 1e6)
            for tag in tags:
                subject = self._subject(tag)
                heard = None if subject is None else subject.heard
                if rule.quantity is not None:
                    series = None if subject is None else subject.series.get(rule.quantity)
                    heard = None if series is None else series.heard
                since = self.clock.began if heard is None or heard > at else max(self.clock.began, heard)
                if at - since < limit:
                    dues.append(since + limit)
                elif subject is None or rule.name not in subject.grades:
                    case = self._case(tag, subject or Subject(since, self._era))
                    case.missed(rule, rule.level, (at - since) / 1e6, rule.seconds)
                    self._keep(tag, case)
        shortest = min(rule.seconds for rule, _ in self._book.missing) * 1e6
        due = max(min(dues, default=0), at + int(shortest / LOOKS)) if dues else at + int(shortest)
        self.clock = replace(self.clock, due=due)

    def renew(self) -> None:
        """The rules are others than with the record before: what a changed one has said is over."""
        old, new = self.clock.rules, self._book.digests
        gone = [name for name in old if name != PAIRED and new.get(name) != old[name]]
        waited = {rule.name: set(tags) for rule, tags in self._book.missing}
        for shard in self._state.shards:
            for key, subject in shard.items():
                case = self._case(key, subject)
                for name in gone:
                    text = "the rule is another one now" if name in new else "there is no such rule any more"
                    case.ended(name, old[name][0], text)
                left = self._book.left(key)
                held = sorted(subject.grades.keys() & new.keys() - set(gone))
                over = [name for name in held if (key not in waited[name] if name in waited else left)]
                for name in over:
                    case.ended(name, new[name][0], "the tag is not paired any more")
                if gone or over:
                    self._keep(key, case)
        self.clock = replace(self.clock, rules=new, began=self.scene.at, due=None)  # nothing is missed from before

    def _subject(self, key: str) -> Subject | None:
        """A subject as this record has left it so far."""
        return self._subjects.get(key) or self._state.subject(key)

    def _known(self, key: str) -> Subject:
        subject = self._subject(key)
        return Subject(self.scene.at, self._era) if subject is None else subject

    def _speak(self, key: str, subject: Subject, values: Mapping[str, Measure]) -> None:
        at = self.scene.at
        if subject.era > self._era or at < min(subject.heard, self._before):
            return  # from before its last word
        if subject.era != self._era or at < subject.heard:  # or that one was stamped wrongly, for all go on from here
            subject = broken(subject)
        case = self._case(key, replace(subject, heard=at, era=self._era))
        for quantity, measure in values.items():
            case.measured(quantity, measure)
        case.heard()
        self._keep(key, case)

    def _case(self, key: str, subject: Subject) -> Case:
        return Case(self.scene, key, subject, self._book.plan(key))

    def _keep(self, key: str, case: Case) -> None:
        self._subjects[key] = case.subject()
        self.alarms += case.alarms
