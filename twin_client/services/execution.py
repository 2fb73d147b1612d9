"""Execution: every command ends in exactly one answer, is run at most once, and never after it has expired.

A command is on the disk before it is queued, `begun` before it runs, and its answer before it is sent. So after a
kill at any point the agent knows: what was not begun is run now, what was begun is answered `failed: interrupted`,
unless its order is declared repeatable, and what was answered is sent again until the twin has it.

Expiry is judged by the corrected clock. While that is LOST, its time is only a floor: a command that has expired by
it surely has, but of another nobody can say. Then harmless ones (an image, diagnostics) run and the rest are
refused, because a `restart` or `unpair_tag` of last month that a broker kept must not be run today. They are refused
and not kept waiting, because the one answer that a twin gets should say what it must do: send it again later.

Where the journal was lost, what was issued before its successor began may have been run and is refused, now and after
any restart. While the clock is LOST nobody can say when that was: then only what may be repeated runs.

Orders are judged when they come, and run one at a time: a long one makes others wait, but delays no refusal.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final, Literal

import msgspec

from targets.runtime.errors import HighwallError, plain
from twin_client.protocol import orders
from twin_client.protocol.errors import ProtocolError
from twin_client.protocol.orders import ORDERS, Answer, Command, arguments_of
from twin_client.protocol.records import ClockQuality, Stamp
from twin_client.services.journal import Journal, Known

MOST_LIFE: Final = 30 * 86_400.0  # seconds a command may live: it must be remembered that long
_AHEAD: Final = 3600.0  # seconds the issuer's clock may be before ours
_PATIENCE: Final = 5.0  # seconds until a disk that took no answer is tried again
_MOST_WAITING: Final = 32
_MOST_STARTS: Final = 3  # of a repeatable command that ends the agent each time
_MOST_TEXT: Final = 1000
_MOST_TURNED_AWAY: Final = 1000
_AGAIN: Final = "send it again, under another id"
_LATER: Final = "send it again later, under another id"


class Refused(HighwallError):
    """A handler's word that it has begun nothing."""


class Done(msgspec.Struct, frozen=True):
    """A handler's word that all is done, with figures for the answer."""

    text: str
    figures: dict[str, float] = {}


class Failed(HighwallError):
    """A handler's word that it could not do it, with figures for the answer."""

    def __init__(self, text: str, figures: Mapping[str, float] | None = None):
        super().__init__(text)
        self.figures = dict(figures or {})


Handler = Callable[[Any], Awaitable[Done | str]]  # takes the order's arguments struct
Outcome = Literal["done", "refused", "failed"]


class Execution:
    """Runs the commands of `gateway` with `handlers` (by name). Call `receive` for each, and keep `run` running.

    `send` gets every answer, those of repeated commands again; call `delivered` when the twin has one, and
    `resend` whenever the link is back. A handler returns, or raises Refused, Failed or any HighwallError; whatever
    else it raises is a failed command too, and never the agent's end.
    """

    def __init__(
        self,
        journal: Journal,
        gateway: str,
        handlers: Mapping[str, Handler],
        now: Callable[[], Stamp],
        send: Callable[[Answer], None],
    ):
        self._journal, self._gateway, self._handlers, self._now, self._send = journal, gateway, handlers, now, send
        self._waiting: list[Command] = []
        self._turned_away: dict[str, None] = {}  # what the journal did not take, by id
        self._wake = asyncio.Event()
        self._begun = now().mono
        with suppress(HighwallError):  # then with the first command
            self._note_birth(now())

    def receive(self, command: Command) -> None:
        """Take a command: it is on the disk or answered when this returns, so its delivery can be acknowledged.

        Raises HighwallError where the disk refuses; then it was not taken, and this id will be refused from now on:
        whoever called may tell the twin so.
        """
        if command.gateway != self._gateway:
            return self._send(self._answer(command, "refused", f"it is for {command.gateway}"))
        try:
            self._take(command)
        except HighwallError:
            self._turn_away(command)
            raise
        return None

    def _take(self, command: Command) -> None:
        known = self._journal.find(command.id)
        if known is not None:
            return self._again(known, command)
        self._note_birth(self._now())
        why = self._why_not(command) or self._why_not_again(command)
        if why is None and len(self._waiting) >= _MOST_WAITING:
            why = f"{_MOST_WAITING} commands are waiting already; {_LATER}"
        # With the command or not at all: one that is remembered without its refusal would be run after a restart.
        answer = None if why is None else self._answer(command, "refused", why)
        if not self._journal.received(command, self._now().wall, answer):
            self._turn_away(command)
            full = f"no more commands can be remembered until some expire; {_LATER}"
            return self._send(self._answer(command, "refused", full))
        if answer is not None:
            return self._send(answer)
        self._waiting.append(command)
        self._wake.set()
        return None

    def delivered(self, command_id: str) -> None:
        """The twin has the answer."""
        self._journal.sent(command_id)

    def resend(self) -> None:
        """Send every answer that the twin may not have."""
        for answer in self._journal.unsent():
            self._send(answer)

    async def run(self) -> None:
        """Run what waits, one at a time, for ever; first what an earlier run left open, of this agent or one before."""
        self._wake = asyncio.Event()
        self._waiting.clear()
        for known in self._journal.open_commands():
            if (outcome := _after_end(known)) is None:
                self._waiting.append(known.command)
            else:
                await self._surely(partial(self._finish, self._answer(known.command, *outcome)))
        while True:
            while self._waiting:
                answer = await self._run(self._waiting[0])
                await self._surely(partial(self._finish, answer))
                self._waiting.pop(0)
            self._wake.clear()
            await self._wake.wait()

    async def _run(self, command: Command) -> Answer:
        why = self._why_not(command)  # it may have expired while it waited
        if why is not None:
            return self._answer(command, "refused", why)
        await self._surely(partial(self._journal.begun, command.id))
        limit = ORDERS[command.name].limit
        outcome: Outcome = "failed"
        figures: Mapping[str, float] = {}
        try:
            async with asyncio.timeout(limit) as deadline:
                done = await self._handlers[command.name](arguments_of(command))
            text, figures = (done.text, done.figures) if isinstance(done, Done) else (done, {})
            outcome = "done"
        except Refused as error:
            outcome, text = "refused", str(error)
        except HighwallError as error:
            text, figures = str(error), getattr(error, "figures", {})
        except Exception as error:  # a bug in a handler is the answer to one command, not the end of the agent
            text = f"it was not done in {limit:g} s" if deadline.expired() else f"{type(error).__name__}: {error}"
        return self._answer(command, outcome, text, figures)

    async def _surely(self, write: Callable[[], None]) -> None:
        """Write to the journal however long the disk is full: what ran may neither be forgotten nor run again."""
        while True:
            try:
                return write()
            except HighwallError:
                await asyncio.sleep(_PATIENCE)

    def _why_not(self, command: Command) -> str | None:
        """Why a command may not be begun now; None: it may."""
        try:
            arguments_of(command)
        except ProtocolError as error:
            return str(error)
        if command.name not in self._handlers:
            return f"this gateway has nothing to do {command.name} with"
        return self._untimely(command, ORDERS[command.name].harmless)

    def _why_not_again(self, command: Command) -> str | None:
        """Why a command that the journal does not know may all the same have been here before; None: it was not."""
        journal = self._journal
        if command.id in self._turned_away:
            return f"it was refused before, as it could not be remembered; {_AGAIN}"
        if not journal.born_anew:
            return None
        if journal.birth is None and not ORDERS[command.name].repeatable:
            lost = "the journal of commands was lost, and this gateway's clock is not set"
            return f"{lost}, so nobody can say whether this has been run before; {_LATER}"
        if journal.birth is not None and command.issued < journal.birth:
            return f"the journal of commands was lost, and this may have been run before; {_AGAIN}"
        return None

    def _note_birth(self, at: Stamp) -> None:
        """Of a journal that took a lost one's place: keep when, once the time is known.

        It is never forgotten: after MOST_LIFE all that it refuses has expired anyway. Only one that lies ahead is
        replaced, for a wrong clock had it, and every command would be refused until then.
        """
        journal = self._journal
        if not journal.born_anew or at.clock == ClockQuality.LOST:
            return
        if journal.birth is None or journal.birth > at.wall + _AHEAD * 1e6:
            journal.was_born(at.wall - (at.mono - self._begun))

    def _turn_away(self, command: Command) -> None:
        self._turned_away[command.id] = None
        if len(self._turned_away) > _MOST_TURNED_AWAY:
            del self._turned_away[next(iter(self._turned_away))]

    def _untimely(self, command: Command, harmless: bool) -> str | None:
        at = self._now()
        if command.expires - command.issued > MOST_LIFE * 1e6:
            return f"it would live longer than {MOST_LIFE / 86_400:g} days; send one that expires earlier"
        if at.wall > command.expires:
            return f"it expired {(at.wall - command.expires) / 1e6:.0f} s ago"
        if at.clock != ClockQuality.LOST and command.issued > at.wall + _AHEAD * 1e6:
            return "it was issued in the future by this gateway's clock; one of the two clocks is wrong"
        if at.clock == ClockQuality.LOST and not harmless:
            return f"this gateway's clock is not set, so nobody can say whether it has expired; {_LATER}"
        return None

    def _again(self, known: Known, command: Command) -> None:
        """Answer a command that was here before; one that is still to be run is answered when it has."""
        before = known.command
        if (before.name, before.arguments, before.issuer) != (command.name, command.arguments, command.issuer):
            self._send(self._answer(command, "refused", f"another command ({before.name}) has this id"))
        elif known.answer is not None:
            self._send(known.answer)

    def _finish(self, answer: Answer) -> None:
        self._journal.answered(answer)
        self._send(answer)

    def _answer(
        self, command: Command, outcome: Outcome, text: str, figures: Mapping[str, float] | None = None
    ) -> Answer:
        said = plain(text, _MOST_TEXT)
        return Answer(orders.VERSION, self._gateway, command.id, outcome, said, self._now(), dict(figures or {}))


def _after_end(known: Known) -> tuple[Outcome, str] | None:
    """What to answer of a command that the agent ended in; None: it can be run, or run again."""
    order = ORDERS.get(known.command.name)
    if known.begun == 0 or (order is not None and order.repeatable and known.begun < _MOST_STARTS):
        return None
    if order is not None and order.ends_agent:
        return "done", "the agent has started again"
    times = "" if known.begun == 1 else f" {known.begun} times"
    return "failed", f"interrupted{times}: the agent ended while it ran"
