"""What to send next, how much of it at once, and when to try again: decided from what is stored and acknowledged.

Live rows, those that came since the connection was made, go first; one batch in so many is kept for the backlog.
Within either, rows go in order. A row is never in flight twice, and is done with only when it was acknowledged.
Nothing here reads a clock or draws by chance of its own: times are arguments, in seconds of any steady clock.
"""

import random
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Final, Protocol

import msgspec

from twin_client.protocol.ranges import Range, ranges_of, subtract, union

_GROW_WITHIN: Final = 0.25  # of the time that a batch may take: then the next one may be larger
_SHRINK_ABOVE: Final = 0.5  # of it: then the next one is smaller
_PATIENCE: Final = 5  # how often the time to wait for an acknowledgement doubles, at most
_LEAST_BYTES: Final = 1024  # of a batch, unless one row is larger


class Pace(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much may be on its way, and how long an acknowledgement may take."""

    flights: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4  # batches on their way at once
    least_rows: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 10  # of a batch, on a link that is slow
    most_rows: Annotated[int, msgspec.Meta(ge=1, le=5000)] = 500
    most_bytes: Annotated[int, msgspec.Meta(ge=_LEAST_BYTES, le=1 << 20)] = 1 << 17  # of a batch, or else one row
    share: Annotated[int, msgspec.Meta(ge=2, le=100)] = 4  # one batch in so many is for the backlog
    behind: Annotated[int, msgspec.Meta(ge=100)] = 20_000  # live rows; where more wait, these become backlog too
    wait: Annotated[float, msgspec.Meta(ge=0.1, le=600)] = 10.0  # seconds for an acknowledgement

    def __post_init__(self) -> None:
        if self.least_rows > self.most_rows:
            raise ValueError(f"least_rows, {self.least_rows}, is more than most_rows, {self.most_rows}")


class Stored(Protocol):
    """A row as the outbox gives it."""

    @property
    def epoch(self) -> str: ...
    @property
    def seq(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def body(self) -> bytes: ...


@dataclass(frozen=True)
class Held:
    """Numbers of one epoch that may lie in the outbox."""

    epoch: str
    first: int
    last: int


@dataclass(frozen=True)
class Ask:
    """What to read from the outbox: rows from `first` on, and none above `last`."""

    epoch: str
    first: int
    last: int
    rows: int
    bytes: int
    live: bool


@dataclass
class Flight:
    """A batch on its way."""

    epoch: str
    rows: tuple[Stored, ...]
    sent: float
    live: bool
    since: float  # when its turn came: it was sent, and all that went before it was answered
    left: list[Range] = field(default_factory=list)  # numbers that were not acknowledged yet


class Delivery:
    """The state of one gateway's sending. It survives reconnections, of which it is told."""

    def __init__(self, pace: Pace | None = None):
        self.pace = pace or Pace()
        self.flights: list[Flight] = []
        self.rows = max(self.pace.least_rows, min(50, self.pace.most_rows))  # of the next batch, at most
        self.bytes = self.pace.most_bytes  # the same
        self.quiet = False  # the last batch came to nothing
        self._patience = 0  # how often the time to wait is doubled just now
        self._live = Held("", 1, 0)
        self._backlog: deque[Held] = deque()
        self._again: deque[Held] = deque()
        self._since_backlog = 0
        self._probes = 0
        self._rest_until = 0.0
        self._asked = False

    def connected(self, held: Sequence[Held]) -> None:
        """Begin anew: everything in the outbox is backlog, what comes from now on is live. The present epoch is last.

        What was in flight is still stored, since it was not acknowledged, and so is part of the backlog.
        """
        present = held[-1] if held else Held("", 1, 0)
        self._live = Held(present.epoch, present.last + 1, present.last)
        self._backlog = deque(each for each in held if each.first <= each.last)
        self._again.clear()
        self.flights.clear()
        self._since_backlog, self._rest_until, self._asked = 0, 0.0, False

    def grown(self, epoch: str, last: int) -> None:
        """The outbox's present epoch reaches to `last` now; another one than before where its file was replaced."""
        if epoch != self._live.epoch:
            self._live_is_backlog(Held(epoch, 1, 0))
        self._live = replace(self._live, last=max(self._live.last, last))
        if self._live.last - self._live.first >= self.pace.behind:
            self._live_is_backlog(Held(epoch, self._live.last + 1, self._live.last))

    def wanted(self, now: float) -> Ask | None:
        """What to read next; None: there is nothing to send, or enough is on its way. One at a time: then `loaded`."""
        most = 1 if self.quiet else self.pace.flights  # while nobody answers one batch is enough to find out
        if self._asked or len(self.flights) >= most or now < self._rest_until:
            return None
        held = self._next()
        if held is None:
            return None
        self._asked = True
        return Ask(held.epoch, held.first, held.last, self.rows, self.bytes, held is self._live)

    def loaded(self, ask: Ask, rows: Iterable[Stored], now: float) -> Flight | None:
        """Take the rows that were read for `ask`; the batch to send now, or None where there is nothing to send."""
        self._asked = False
        found = tuple(row for row in rows if row.epoch == ask.epoch and ask.first <= row.seq <= ask.last)
        if not self._pass(ask, found[-1].seq if found else ask.last) or not found:
            return None  # the queue is no longer what was asked for, or these rows are not there any more
        self._since_backlog = self._since_backlog + 1 if ask.live else 0
        flight = Flight(ask.epoch, found, now, ask.live, now, ranges_of(row.seq for row in found))
        self.flights.append(flight)
        return flight

    def acknowledged(self, epoch: str, ranges: Iterable[Range], now: float) -> None:
        """The twin has these for good, whether they are in flight or wait to go again."""
        known = union(ranges)
        for flight in [each for each in self.flights if each.epoch == epoch]:
            left = subtract(flight.left, known)
            if left == flight.left:
                continue
            flight.left, self.quiet = left, False
            self._patience = self._patience_for(now - flight.since)
            if not left:
                for behind in self.flights[self.flights.index(flight) + 1 :]:
                    behind.since = now  # on a slow link it waited for its turn, not for its answer
                self.flights.remove(flight)
                self._adapt(now - flight.since, flight.rows)
        again, self._again = self._again, deque()
        for held in again:
            whole = [(held.first, held.last)]
            left = subtract(whole, known) if held.epoch == epoch else whole
            self._again.extend(Held(held.epoch, first, last) for first, last in left)

    def expired(self, now: float) -> list[Flight]:
        """Batches that nobody acknowledged in time: they go again, smaller, and one at a time until one is answered."""
        late = [flight for flight in self.flights if now - flight.since >= self.wait]
        for flight in late:
            self._fail(flight)
        if late:
            self._less()
        return late

    def unanswered(self) -> None:
        """The link is given up as nothing came back: after the next `connected` less goes at once, with more time."""
        self._less()

    def refused(self, flight: Flight, now: float) -> None:
        """The broker would not have this batch: it goes again after a while, for the reason may pass."""
        if flight in self.flights:
            self._fail(flight)
            self._rest_until = now + self.wait
            self._less()

    @property
    def wait(self) -> float:
        """Seconds that an acknowledgement may take just now."""
        return self.pace.wait * float(2**self._patience)

    def wake(self, now: float) -> float | None:
        """When to look again even if nothing happens; None: no need."""
        times = [flight.since + self.wait for flight in self.flights]
        if self._rest_until > now:
            times.append(self._rest_until)
        return min(times, default=None)

    def idle(self) -> bool:
        """Whether everything there was is acknowledged."""
        return not self.flights and not self._asked and self._next() is None

    def _next(self) -> Held | None:
        """Where the next batch comes from."""
        live = [self._live] if self._live.first <= self._live.last else []
        backlog = [self._backlog[0]] if self._backlog else []
        again = [self._again[0]] if self._again else []
        if self.quiet:  # in turn: one batch that the twin cannot read must not keep back all the others
            choice = again + live + backlog
            return choice[self._probes % len(choice)] if choice else None
        if self._since_backlog >= self.pace.share - 1:
            live, backlog = backlog, live
        return next(iter(again + live + backlog), None)

    def _pass(self, ask: Ask, reached: int) -> bool:
        """Move the queue that was asked from beyond `reached`; whether it is still as it was."""
        if (self._live.epoch, self._live.first) == (ask.epoch, ask.first) and reached <= self._live.last:
            self._live = replace(self._live, first=reached + 1)
            return True
        for queue in (self._again, self._backlog):
            for at, held in enumerate(queue):
                if (held.epoch, held.first) == (ask.epoch, ask.first) and reached <= held.last:
                    del queue[at]
                    if reached < held.last:
                        queue.insert(at, replace(held, first=reached + 1))
                    return True
        return False

    def _live_is_backlog(self, live: Held) -> None:
        if self._live.first <= self._live.last:
            self._backlog.append(self._live)
        self._live = live

    def _fail(self, flight: Flight) -> None:
        self.flights.remove(flight)
        self._again.extend(Held(flight.epoch, first, last) for first, last in flight.left)

    def _less(self) -> None:
        self._smaller()
        self.quiet = True
        self._patience = min(self._patience + 1, _PATIENCE)
        self._probes += 1

    def _patience_for(self, took: float) -> int:
        """For the next batch at least twice the time that this one has needed."""
        return next((n for n in range(_PATIENCE) if self.pace.wait * 2**n >= 2 * took), _PATIENCE)

    def _smaller(self) -> None:
        self.rows = max(self.pace.least_rows, self.rows // 2)
        self.bytes = max(_LEAST_BYTES, self.bytes // 2)

    def _adapt(self, took: float, rows: Sequence[Stored]) -> None:
        if took > self.pace.wait * _SHRINK_ABOVE:
            self._smaller()
        elif took <= self.pace.wait * _GROW_WITHIN:  # and only a full batch says that more would do
            if len(rows) >= self.rows:
                self.rows = min(self.pace.most_rows, self.rows * 2)
            if sum(len(row.body) for row in rows) >= self.bytes // 2:
                self.bytes = min(self.pace.most_bytes, self.bytes * 2)


class Retry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long to wait before the next connection, seconds."""

    first: Annotated[float, msgspec.Meta(gt=0, le=60)] = 1.0
    most: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 60.0

    def __post_init__(self) -> None:
        if self.first > self.most:
            raise ValueError(f"first, {self.first:g}, is more than most, {self.most:g}")

    def after(self, failures: int, dice: random.Random) -> float:
        """The wait after so many failures in a row: doubled each time, and anywhere in its upper half.

        The chance in it keeps the gateways of a pit from all coming back in the same second.
        """
        full = min(self.most, self.first * float(2 ** min(max(failures, 1) - 1, 30)))
        return full * (0.5 + 0.5 * dice.random())
