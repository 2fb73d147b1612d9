"""The link to the twin: what is in the outbox goes up, acknowledged rows leave it, what the twin says comes down.

Everything runs on the agent's loop; the outbox is asked in its own thread. A link that is down is nothing unusual:
it is said once, tried again with back-off for as long as it takes, and costs no memory meanwhile.
"""

import asyncio
import random
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Annotated, Any, Final, Literal, Protocol

import msgspec
from aiomqtt import MqttError

from targets.runtime.errors import HighwallError, plain
from twin_client.mqtt import Connection, Refused, connect, delivered
from twin_client.protocol.delivery import Ask, Delivery, Flight, Held, Pace, Retry, Stored
from twin_client.protocol.dialect import Message, Speaker, Voice, speaker
from twin_client.protocol.errors import ProtocolError
from twin_client.protocol.orders import Command, Desired
from twin_client.protocol.ranges import Range, union
from twin_client.protocol.records import Acknowledgement
from twin_client.protocol.site import Destination

SETTLE_S: Final = 1.0  # acknowledged rows leave the outbox together, so that a card is not written for each batch
_TRIES: Final = 3
_SHUN_S: Final = 600.0
_LOOK_S: Final = 5.0  # at least so often the loop shows that it gets on


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to send. Where to is a `Destination`."""

    keepalive: Annotated[int, msgspec.Meta(ge=2, le=3600)] = 20  # seconds; a silent link is noticed within two of them
    connect: Annotated[float, msgspec.Meta(ge=0.5, le=120)] = 10.0  # seconds that a connection may take
    expiry: Annotated[int, msgspec.Meta(ge=0, le=2**31)] = 604_800  # seconds that the broker keeps commands for us
    confirm: Literal["dialect", "puback", "message"] = "dialect"  # whose word it is that rows may leave; see docs
    tls: bool = True  # False: to a broker on this very machine, or in a test
    username: str = ""  # such as a ThingsBoard access token, where there is no certificate
    password: str = ""
    pace: Pace = Pace()
    retry: Retry = Retry()
    voice: Voice = Voice()


class Store(Protocol):
    """What the link needs of an outbox."""

    def epochs(self) -> list[str]: ...
    def first(self, epoch: str) -> int | None: ...
    def last(self, epoch: str) -> int: ...
    def read(self, epoch: str, first_seq: int, limit_rows: int, limit_bytes: int) -> Sequence[Stored]: ...
    def acknowledge(self, epoch: str, ranges: Iterable[Range]) -> int: ...


Run = Callable[..., Awaitable[Any]]  # run(function, *arguments) in the outbox's thread


class Security(Protocol):
    """Who this gateway is, and how the far end is judged."""

    def context(self) -> ssl.SSLContext: ...
    def check(self, connection: ssl.SSLSocket) -> None: ...


class Uplink:
    """One gateway's link. All methods belong to the loop that `run` runs on."""

    def __init__(
        self,
        gateway: str,
        destination: Destination,
        settings: Settings,
        store: Store,
        run: Run,
        *,
        security: Security | None,
        heard: Callable[[Command | Desired], None] = lambda _: None,
        connected: Callable[[], None] = lambda: None,
        say: Callable[[str], None] = print,
        now: Callable[[], float] = time.monotonic,
        dice: random.Random | None = None,
    ):
        self.gateway, self.destination, self.settings = gateway, destination, settings
        self.counters: Counter[str] = Counter()
        self.state = self._said = "not connected yet"
        self._fine = f"connected to {destination.host}"
        self.up = False
        self.round_trip: float | None = None  # seconds, of the last batch
        self.last_acknowledged: float | None = None  # by `now`
        self.beat = now()  # when the loop last showed that it gets on
        self.delivery = Delivery(settings.pace)
        self.speaker: Speaker = speaker(destination.dialect, gateway, settings.voice)
        self._puback = self.speaker.puback if settings.confirm == "dialect" else settings.confirm == "puback"
        self._store, self._run, self._security = store, run, security
        self._heard, self._connected, self._say, self._now = heard, connected, say, now
        self._dice = dice or random.Random()
        self._news = asyncio.Event()
        self._in_vain: Counter[str] = Counter()  # messages in a row, by topic
        self._shunned: dict[str, float] = {}  # until when a topic is left alone
        self._acknowledged: dict[str, list[Range]] = {}
        self._unconfirmed: dict[int, float] = {}  # when each message went that has no PUBACK yet
        self._answered = now()  # when the broker confirmed a message last
        self._token = 0
        self._settled = 0.0
        self._connection: Connection | None = None
        self._failures = 0

    def nudge(self, epoch: str, last: int) -> None:
        """The outbox's present epoch has grown to `last`."""
        if self.up:
            self.delivery.grown(epoch, last)
            self._news.set()

    async def tell(self, messages: Iterable[Message]) -> bool:
        """Publish what is no record, such as an answer; whether the broker has all of it.

        Some brokers hang up on who publishes where the access rules forbid it. A topic on which nothing comes through
        is therefore left alone for a while, so that it cannot keep the records back.
        """
        for message in messages:
            if self._connection is None or not self.up or self._now() < self._shunned.get(message.topic, 0.0):
                return False
            try:
                batches = 1 + len(self.delivery.flights)  # which are on their way already, and go before it
                await delivered(self._connection, message, self.settings.pace.wait * batches)
            except (MqttError, Refused, TimeoutError):
                self._in_vain[message.topic] += 1
                if self._in_vain[message.topic] >= _TRIES:
                    self._shunned[message.topic] = self._now() + _SHUN_S
                    del self._in_vain[message.topic]
                    where = f"{self.destination.host} takes nothing on {message.topic}"
                    self._say(f"{where}, or hangs up; do its access rules allow it? It is left alone for ten minutes")
                return False
            del self._in_vain[message.topic]
        return True

    async def run(self) -> None:
        """Connect, send and listen, again and again, until cancelled."""
        while True:
            try:
                await self._once()
            except* (MqttError, OSError, HighwallError, ssl.SSLError) as group:
                self._went(_first(group))
            finally:
                self._connection, self.up = None, False
                self._unconfirmed.clear()
            self._failures += 1
            await self._rest(self.settings.retry.after(self._failures, self._dice))

    async def _once(self) -> None:
        settings, where = self.settings, self.destination
        context = check = None
        if settings.tls:
            if self._security is None:
                raise HighwallError("this gateway has no certificate yet; highwall gateway enroll gets it one")
            context, check = self._security.context(), self._security.check
        async with connect(
            where.host,
            where.port,
            identifier=self.gateway,
            context=context,
            check=check,
            will=self.speaker.will(),
            keepalive=settings.keepalive,
            patience=settings.connect,
            expiry=settings.expiry,
            username=settings.username or None,
            password=settings.password or None,
        ) as connection:
            for topic in self.speaker.subscriptions():
                for code in await connection.subscribe(topic, qos=1):
                    if getattr(code, "is_failure", False):
                        raise HighwallError(f"{where.host} does not let this gateway listen on {topic}: {code}")
            for message in self.speaker.hello():
                connection.send(message, self._told)
            await self._begin(connection)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._listen(connection))
                tasks.create_task(self._send(connection))

    async def _begin(self, connection: Connection) -> None:
        await self._settle()
        held = await self._run(_held, self._store)
        self.delivery.connected(held)
        self._connection, self.up = connection, True
        if self._said != self._fine:
            self._say(f"{self._fine}, {'nothing' if self.delivery.idle() else 'something'} to send")
        self.state = self._said = self._fine
        self.counters["connections"] += 1
        self._connected()

    async def close(self) -> None:
        """Say goodbye, where there is somebody to say it to, and let go of what is acknowledged; then cancel `run`."""
        await self.tell(self.speaker.goodbye())
        await self._settle()

    # --- up -------------------------------------------------------------------------------------------------------

    async def _send(self, connection: Connection) -> None:
        while True:
            self.beat = now = self._now()
            self._news.clear()
            if now - self._settled >= SETTLE_S:
                await self._settle()
            self._watch_for_silence(now)
            ask = self.delivery.wanted(now)
            if ask is None:
                await self._wait(now)
                continue
            rows = await self._run(self._read, ask, min(ask.bytes, connection.most_packet // 2))
            flight = self.delivery.loaded(ask, rows, self._now())
            if flight is not None:
                self._publish(connection, flight)

    def _read(self, ask: Ask, most_bytes: int) -> Sequence[Stored]:
        return self._store.read(ask.epoch, ask.first, ask.rows, most_bytes)

    def _publish(self, connection: Connection, flight: Flight) -> None:
        try:
            messages = self.speaker.batch(flight.rows)
        except ProtocolError as error:
            self._say(f"rows {flight.rows[0].seq} to {flight.rows[-1].seq} cannot be said: {error}; they are kept")
            self.delivery.refused(flight, self._now())
            return
        left = set(range(len(messages)))
        for number, message in enumerate(messages):
            self._token += 1
            self._unconfirmed[self._token] = flight.sent

            def done(error: Exception | None, number: int = number, token: int = self._token) -> None:
                self._unconfirmed.pop(token, None)
                self._answered = self._now()
                left.discard(number)
                self._confirmed(flight, error, last=not left)

            connection.send(message, done)
            self.counters["bytes"] += len(message.payload)
        self.counters["batches"] += 1
        self.counters["rows"] += len(flight.rows)

    def _confirmed(self, flight: Flight, error: Exception | None, last: bool) -> None:
        """The broker has answered one message of a batch."""
        self._news.set()
        if error is not None:
            self.counters["refused"] += 1
            self._became(f"connected to {self.destination.host}, which takes no records: {error}")
            if flight in self.delivery.flights:
                self.delivery.refused(flight, self._now())
        elif last and self._puback and flight in self.delivery.flights:
            self._take(flight.epoch, flight.left)

    def _told(self, error: Exception | None) -> None:
        if error is not None:
            self.counters["refused"] += 1

    def _take(self, epoch: str, ranges: Iterable[Range]) -> None:
        """These rows are the twin's now."""
        now = self._now()
        known = list(ranges)
        flights = [flight for flight in self.delivery.flights if flight.epoch == epoch]
        self.delivery.acknowledged(epoch, known, now)
        for flight in flights:
            if not flight.left:
                self.round_trip = now - flight.sent
        self._acknowledged.setdefault(epoch, []).extend(known)
        self.state = self._said = self._fine
        self.last_acknowledged, self._failures = now, 0
        self._news.set()

    async def _settle(self) -> None:
        """Let acknowledged rows leave the outbox. Where its disk refuses they stay known, and are tried again."""
        self._settled = self._now()
        taken, self._acknowledged = self._acknowledged, {}
        for epoch, ranges in taken.items():
            try:
                self.counters["acknowledged"] += await self._run(self._store.acknowledge, epoch, union(ranges))
            except HighwallError:
                self._acknowledged.setdefault(epoch, []).extend(union(ranges))

    def _watch_for_silence(self, now: float) -> None:
        """Where the broker itself is silent, the link is down; where only the twin is, its batches go again.

        A slow link looks like that too, so less goes after it: else the same bytes would go up for ever.
        """
        silent = now - self._waits_since(now)
        if silent >= self.delivery.wait:
            self.delivery.unanswered()
            raise MqttError(f"no answer for {silent:.0f} s")
        late = self.delivery.expired(now)
        self.counters["resent"] += sum(len(flight.rows) for flight in late)
        if late:
            self._became(f"connected to {self.destination.host}, where nobody acknowledges anything")

    def _waits_since(self, now: float) -> float:
        """Since when nothing came back though something should; an answer to what went before shows a link."""
        return max(min(self._unconfirmed.values()), self._answered) if self._unconfirmed else now

    async def _wait(self, now: float) -> None:
        times = [_LOOK_S]
        if (wake := self.delivery.wake(now)) is not None:
            times.append(wake - now)
        if self._acknowledged:
            times.append(self._settled + SETTLE_S - now)
        if self._unconfirmed:
            times.append(self._waits_since(now) + self.delivery.wait - now)
        with suppress(TimeoutError):
            # Not `wait_for`, which until Python 3.12 forgets a cancellation that comes together with the event.
            async with asyncio.timeout(max(0.01, min(times))):
                await self._news.wait()

    # --- down -----------------------------------------------------------------------------------------------------

    async def _listen(self, connection: Connection) -> None:
        async for message in connection.messages:
            payload = message.payload if isinstance(message.payload, bytes) else b""
            try:
                said = self.speaker.hear(message.topic.value, payload)
            except ProtocolError as error:
                self.counters["not understood"] += 1
                self._say(f"on {message.topic.value}: {error}; it is ignored")
                said = None
            if isinstance(said, Acknowledgement):
                self._take(said.epoch, said.seqs)
            elif said is not None:
                self._take_in(said)
            connection.kept(message)
        raise MqttError("the connection ended")

    def _take_in(self, said: Command | Desired) -> None:
        try:
            self._heard(said)
        except Exception as error:  # a mistake of ours must not have the broker send it again for ever
            self.counters["not understood"] += 1
            self._say(f"{type(said).__name__.lower()} cannot be taken: {type(error).__name__}: {plain(str(error))}")

    # --- between connections --------------------------------------------------------------------------------------

    def _went(self, error: BaseException) -> None:
        why = error.__cause__ or error  # aiomqtt only says that it was disconnected, and keeps the reason behind it
        words = (str(why).strip() or type(why).__name__).splitlines()[0]
        self._became(f"not connected to {self.destination.host}: {words}")

    def _became(self, state: str) -> None:
        """Say what is wrong, once for as long as it is that."""
        if state != self._said:
            self._say(f"{state}; everything is kept, and tried again")
        self.state = self._said = state

    async def _rest(self, seconds: float) -> None:
        until = self._now() + seconds
        while (left := until - self._now()) > 0:
            self.beat = self._now()
            await asyncio.sleep(min(left, _LOOK_S))


def _held(store: Store) -> list[Held]:
    """What is in the outbox, in its thread."""
    found = []
    for epoch in store.epochs():
        last = store.last(epoch)
        found.append(Held(epoch, store.first(epoch) or last + 1, last))
    return found


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
