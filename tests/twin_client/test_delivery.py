"""Delivery: what is stored is sent, once at a time, in order, live first, and again until it is acknowledged."""

import random
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from twin_client.protocol.delivery import Ask, Delivery, Flight, Held, Pace, Retry
from twin_client.protocol.ranges import ranges_of


@dataclass(frozen=True)
class Row:
    epoch: str
    seq: int
    kind: str = "reading"
    body: bytes = b"x" * 40


class Shelf:
    """A store in memory that answers as the outbox does. `size`: bytes of a row."""

    def __init__(self, size: int = 40) -> None:
        self.body = b"x" * size
        self.rows: dict[tuple[str, int], Row] = {}
        self.lasts: dict[str, int] = {"a": 0}

    def append(self, count: int) -> tuple[str, int]:
        epoch = list(self.lasts)[-1]
        for _ in range(count):
            self.lasts[epoch] += 1
            self.rows[epoch, self.lasts[epoch]] = Row(epoch, self.lasts[epoch], body=self.body)
        return epoch, self.lasts[epoch]

    def reborn(self) -> None:
        self.lasts[chr(ord(list(self.lasts)[-1]) + 1)] = 0

    def held(self) -> list[Held]:
        found = []
        for epoch, last in self.lasts.items():
            numbers = [seq for each, seq in self.rows if each == epoch]
            found.append(Held(epoch, min(numbers, default=last + 1), last))
        return found

    def read(self, ask: Ask) -> list[Row]:
        found, total = [], 0
        for seq in sorted(seq for epoch, seq in self.rows if epoch == ask.epoch and seq >= ask.first):
            row = self.rows[ask.epoch, seq]
            total += len(row.body)
            if len(found) == ask.rows or (found and total > ask.bytes):
                break
            found.append(row)
        return found

    def drop(self, epoch: str, seqs: list[int]) -> None:
        for seq in seqs:
            self.rows.pop((epoch, seq), None)


def numbers(flight: Flight) -> list[int]:
    return [row.seq for row in flight.rows]


def fly(delivery: Delivery, shelf: Shelf, now: float) -> list[Flight]:
    """All that may be sent just now."""
    sent = []
    while (ask := delivery.wanted(now)) is not None:
        flight = delivery.loaded(ask, shelf.read(ask), now)
        if flight is not None:
            sent.append(flight)
    return sent


def land(delivery: Delivery, shelf: Shelf, flight: Flight, now: float) -> None:
    shelf.drop(flight.epoch, numbers(flight))
    delivery.acknowledged(flight.epoch, ranges_of(numbers(flight)), now)


class Storms(RuleBasedStateMachine):
    """Anything may happen, in any order; then the weather clears."""

    @initialize(rows=st.integers(1, 7), flights=st.integers(1, 4), behind=st.sampled_from([100, 20_000]))
    def begin(self, rows: int, flights: int, behind: int) -> None:
        pace = Pace(flights=flights, least_rows=1, most_rows=rows, share=3, behind=behind, wait=1.0)
        self.delivery, self.shelf, self.now = Delivery(pace), Shelf(), 0.0
        self.acknowledged: Counter[tuple[str, int]] = Counter()
        self.asked: tuple[Ask, list[Row]] | None = None
        self.delivery.connected(self.shelf.held())

    @rule(count=st.integers(1, 60))
    def append(self, count: int) -> None:
        self.delivery.grown(*self.shelf.append(count))

    @rule(count=st.integers(1, 9))
    def file_replaced(self, count: int) -> None:
        if len(self.shelf.lasts) < 20:
            self.shelf.reborn()
            self.delivery.grown(*self.shelf.append(count))

    @rule()
    def ask(self) -> None:
        ask = self.delivery.wanted(self.now)
        if ask is not None:
            self.asked = ask, self.shelf.read(ask)

    @rule()
    def load(self) -> None:
        if self.asked is not None:
            self.delivery.loaded(*self.asked, self.now)
            self.asked = None

    @rule(at=st.integers(0, 5), keep=st.sets(st.integers(0, 6)))
    def answer(self, at: int, keep: set[int]) -> None:
        """The twin acknowledges a batch, or some of it."""
        if at < len(self.delivery.flights):
            flight = self.delivery.flights[at]
            said = [seq for index, seq in enumerate(numbers(flight)) if index not in keep]
            for seq in said:
                self.acknowledged[flight.epoch, seq] += 1
            self.shelf.drop(flight.epoch, said)
            self.delivery.acknowledged(flight.epoch, ranges_of(said), self.now)

    @rule(number=st.integers(1, 300))
    def answer_late(self, number: int) -> None:
        """An acknowledgement of any number that was ever given, from before a reconnection perhaps."""
        epoch = next(iter(self.shelf.lasts))
        if number <= self.shelf.lasts[epoch]:
            self.shelf.drop(epoch, [number])
            self.delivery.acknowledged(epoch, [(number, number)], self.now)

    @rule(at=st.integers(0, 5))
    def refuse(self, at: int) -> None:
        if at < len(self.delivery.flights):
            self.delivery.refused(self.delivery.flights[at], self.now)

    @rule(seconds=st.floats(0, 5))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.delivery.expired(self.now)

    @rule(number=st.integers(1, 300))
    def evict(self, number: int) -> None:
        self.shelf.drop(list(self.shelf.lasts)[-1], [number])

    @rule()
    def reconnect(self) -> None:
        self.delivery.connected(self.shelf.held())
        self.asked = None

    @invariant()
    def no_number_is_in_flight_twice(self) -> None:
        if hasattr(self, "delivery"):
            flying = Counter(
                (flight.epoch, seq)
                for flight in self.delivery.flights
                for first, last in flight.left
                for seq in range(first, last + 1)
            )
            assert not [number for number, count in flying.items() if count > 1]
            assert len(self.delivery.flights) <= self.delivery.pace.flights
            assert all(len(flight.rows) <= self.delivery.pace.most_rows for flight in self.delivery.flights)

    def teardown(self) -> None:
        if not hasattr(self, "delivery"):
            return
        self.load()
        for _ in range(5000):
            for flight in list(self.delivery.flights):
                land(self.delivery, self.shelf, flight, self.now)
            fly(self.delivery, self.shelf, self.now)
            if self.delivery.idle():
                break
            wake = self.delivery.wake(self.now)
            self.now = max(self.now + 0.01, wake or 0.0)
        assert self.delivery.idle()
        assert not self.shelf.rows, "everything that is stored was sent and acknowledged"


Storms.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestWhateverHappensEverythingStoredIsDelivered = Storms.TestCase


def test_live_rows_go_first_and_one_batch_in_four_is_backlog() -> None:
    shelf = Shelf()
    shelf.append(1000)
    delivery = Delivery(Pace(flights=1, least_rows=10, most_rows=10, share=4))
    delivery.connected(shelf.held())
    sent = []
    for _ in range(40):
        delivery.grown(*shelf.append(10))
        (flight,) = fly(delivery, shelf, 0.0)
        sent.append(flight)
        land(delivery, shelf, flight, 0.0)
    assert Counter(flight.live for flight in sent) == {True: 30, False: 10}
    for live in (True, False):
        order = [seq for flight in sent if flight.live == live for seq in numbers(flight)]
        assert order == sorted(order)


def test_a_quiet_link_gives_the_whole_of_it_to_the_backlog() -> None:
    shelf = Shelf()
    shelf.append(95)
    delivery = Delivery(Pace(flights=4, least_rows=10, most_rows=10))
    delivery.connected(shelf.held())
    assert [numbers(flight) for flight in fly(delivery, shelf, 0.0)] == [
        list(range(begin, begin + 10)) for begin in (1, 11, 21, 31)
    ]


def test_live_rows_that_pile_up_become_backlog_so_that_the_newest_are_seen() -> None:
    shelf = Shelf()
    delivery = Delivery(Pace(flights=1, least_rows=10, most_rows=10, behind=100, share=4))
    delivery.connected(shelf.held())
    delivery.grown(*shelf.append(150))
    delivery.grown(*shelf.append(5))
    assert [numbers(flight) for flight in fly(delivery, shelf, 0.0)] == [[151, 152, 153, 154, 155]]


def test_batches_grow_while_answers_are_quick_and_shrink_when_none_come() -> None:
    shelf = Shelf()
    shelf.append(3000)
    delivery = Delivery(Pace(flights=1, least_rows=5, most_rows=400, wait=10.0))
    delivery.connected(shelf.held())
    sizes = []
    for _ in range(5):
        (flight,) = fly(delivery, shelf, 0.0)
        sizes.append(len(flight.rows))
        land(delivery, shelf, flight, 0.1)
    assert sizes == [50, 100, 200, 400, 400]
    now = 0.0
    for expected in (200, 100, 50):
        (flight,) = fly(delivery, shelf, now)
        now = delivery.wake(now) or 0.0
        assert delivery.expired(now) == [flight]
        assert delivery.rows == expected


@given(rate=st.floats(200, 2e6), size=st.integers(1, 9000), delay=st.floats(0.01, 2))
def test_over_any_link_on_which_one_row_arrives_everything_does(rate: float, size: int, delay: float) -> None:
    """A pipe of `rate` bytes a second; where nothing comes back in time it is given up, and what it held is lost."""
    shelf = Shelf(size)
    shelf.append(60)
    delivery = Delivery(Pace(wait=10.0))
    delivery.connected(shelf.held())
    now = free = answered = carried = 0.0
    arrivals: dict[int, float] = {}
    while shelf.rows:
        for flight in fly(delivery, shelf, now):
            carried += len(flight.rows) * size
            free = max(free, now) + len(flight.rows) * size / rate
            arrivals[id(flight)] = free + delay
        first = delivery.flights[0]
        late = max(first.sent, answered) + delivery.wait
        if arrivals[id(first)] < late:
            now = answered = max(now, arrivals[id(first)])
            assert not delivery.expired(now)
            land(delivery, shelf, first, now)
        else:
            now = free = late
            delivery.unanswered()
            delivery.connected(shelf.held())
    assert carried <= 7 * (1 << 17) + 4 * 60 * size, "what goes up in vain is what it took to find out how slow it is"


def test_the_longer_nobody_answers_the_longer_it_waits_with_one_batch_on_its_way() -> None:
    shelf = Shelf()
    shelf.append(500)
    delivery = Delivery(Pace(flights=4, wait=10.0))
    delivery.connected(shelf.held())
    assert len(fly(delivery, shelf, 0.0)) == 4
    now, waits = 0.0, []
    for _ in range(9):
        wake = delivery.wake(now)
        assert wake is not None
        waits.append(wake - now)
        now = wake
        assert delivery.expired(now)
        assert len(fly(delivery, shelf, now)) == 1
    assert waits == [10, 20, 40, 80, 160, 320, 320, 320, 320]


def test_a_twin_that_was_away_for_a_day_is_found_again_within_minutes_and_has_everything() -> None:
    shelf, now, probes = Shelf(), 0.0, 0
    delivery = Delivery(Pace(wait=10.0))
    delivery.connected(shelf.held())
    while now < 86_400:
        delivery.grown(*shelf.append(1))
        probes += len(fly(delivery, shelf, now))
        delivery.expired(now)
        now += 10.0
    assert probes < 400, "nobody is pestered meanwhile"
    assert len(shelf.rows) == 8640
    back = now
    while shelf.rows:
        for flight in fly(delivery, shelf, now):
            land(delivery, shelf, flight, now)
        delivery.expired(now)
        now += 1.0
        assert now < back + 400


def test_a_batch_that_the_twin_cannot_read_does_not_keep_back_the_others() -> None:
    shelf = Shelf()
    shelf.append(400)
    delivery = Delivery(Pace(flights=2, least_rows=1, most_rows=50, wait=1.0))
    delivery.connected(shelf.held())
    now = 0.0
    for _ in range(400):
        fly(delivery, shelf, now)
        for flight in list(delivery.flights):
            if 77 not in numbers(flight):
                land(delivery, shelf, flight, now)
        now = max(now + 0.1, delivery.wake(now) or 0.0)
        delivery.expired(now)
    assert [seq for _, seq in shelf.rows] == [77]


def test_what_the_broker_refuses_goes_again_after_a_while_and_not_at_once() -> None:
    shelf = Shelf()
    shelf.append(10)
    delivery = Delivery(Pace(wait=5.0))
    delivery.connected(shelf.held())
    (flight,) = fly(delivery, shelf, 0.0)
    delivery.refused(flight, 0.0)
    assert not fly(delivery, shelf, 4.9)
    assert delivery.wake(0.0) == 5.0
    assert [numbers(again) for again in fly(delivery, shelf, 5.0)] == [numbers(flight)]


def test_rows_evicted_meanwhile_are_passed_over() -> None:
    shelf = Shelf()
    shelf.append(30)
    delivery = Delivery(Pace(least_rows=5, most_rows=5, flights=8))
    delivery.connected(shelf.held())
    shelf.drop("a", [*range(1, 12), 30])
    assert [seq for flight in fly(delivery, shelf, 0.0) for seq in numbers(flight)] == list(range(12, 30))


@given(failures=st.integers(1, 2000), seed=st.integers())
def test_the_wait_between_connections_doubles_to_its_limit_with_chance_in_it(failures: int, seed: int) -> None:
    retry = Retry(first=1.0, most=60.0)
    full = min(60.0, 2.0 ** min(failures - 1, 30))
    assert full / 2 <= retry.after(failures, random.Random(seed)) <= full


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="least_rows"):
        Pace(least_rows=20, most_rows=10)
    with pytest.raises(ValueError, match="first"):
        Retry(first=10.0, most=5.0)
