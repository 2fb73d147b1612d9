"""The agent: every part of a gateway put together, kept going, watched, and stopped in good order.

One loop, and three threads beside it: the disk's, the serial ports', and one for what is heavy or may hang for long:
the model, and connecting.
"""

import asyncio
import os
import signal
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from targets.runtime.errors import HighwallError
from twin_client import systemd
from twin_client.cameras import Cameras
from twin_client.clock import Clock
from twin_client.config import Settings, local
from twin_client.config import serial as serial_in_force
from twin_client.handlers import Handlers
from twin_client.health import Reporter
from twin_client.judgement import Judge, faults_of, without_faulty
from twin_client.outbox import Outbox
from twin_client.pairing import Pairing
from twin_client.parts import Part, ended
from twin_client.pipeline import Pipeline
from twin_client.protocol.orders import VERSION, Answer, Command, Desired
from twin_client.protocol.records import Reading, Record
from twin_client.protocol.site import Destination, Site
from twin_client.services import tls
from twin_client.services.configuration import Configuration
from twin_client.services.execution import Execution
from twin_client.services.https import address_of
from twin_client.services.journal import Journal
from twin_client.services.models import Models
from twin_client.services.registration import Registration
from twin_client.services.update import Surroundings, Update
from twin_client.sources.serial import SerialSource
from twin_client.uplink import Uplink
from twin_client.worker import Worker

if TYPE_CHECKING:
    from targets.runtime.trust import Trust

# Libraries that start a thread for each core of their own accord would do so for one small network.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

T = TypeVar("T")

TICK_S: Final = 5.0
STOP_S: Final = 4.0  # within which all is committed and closed
STUCK_S: Final = 30.0  # seconds without progress after which the watchdog is not fed any more
LINK_STUCK_S: Final = 180.0  # the same for the link, whose connecting may take long
ENROLLED_S: Final = 5.0  # seconds between two looks for a certificate
RENEW_S: Final = 3600.0  # seconds between two requests for its renewal


class Agent:
    """One gateway's. `run` is its life; everything else belongs to the loop that it runs on."""

    def __init__(self, settings: Settings, say: Callable[[str], None] = print):
        self.settings, self.say = settings, say
        self.folder = Path(settings.folder)
        self.stopping = asyncio.Event()
        self._tasks: set[asyncio.Future[Any]] = set()
        loop = asyncio.get_running_loop()
        self.worker = Worker(settings.watch.duty)
        loop.set_default_executor(_Through(self.worker))
        self._disk = ThreadPoolExecutor(1, "disk")
        self.clock = Clock(self.folder)
        self.pairing = Pairing(self.folder, settings.tags)
        self.registration = Registration(self.folder / "identity", self.clock.stamp, settings.services.asking)
        self.configuration = Configuration(
            self.folder,
            settings.gateway,
            local(settings),
            self.clock.stamp,
            self._apply,
            faults_of,
            settings.services.trial,
            without_faulty,
        )
        self.site = self.configuration.start()
        self.judge = Judge(settings, self.site, self.folder, self.pairing.tags)
        self.pipeline = Pipeline(
            self._open_outbox, self.on_disk, self.judge, self.clock.stamp, committed=self._committed, say=say
        )
        own = Path(settings.model) if settings.model else None
        self.models = Models(self.folder / "models", self.clock.stamp, settings.services.probation, own)
        self.latest: dict[str, Reading] = {}
        self.cameras = Cameras(
            settings,
            lambda: self.site,
            self.models,
            self.worker,
            self.pipeline,
            self.clock.stamp,
            self.latest.get,
            say,
        )
        services = settings.services
        self.update = Update(self.models, self._surroundings(), services.link, services.shadow, settings.watch)
        self.execution: Execution | None = None
        self.serial: SerialSource | None = None
        self._heard_to: dict[str, tuple[int, int]] = {}  # marks of the serial source that ended last
        self.uplink: Uplink | None = None
        self.reporter = Reporter(self)
        self.parts = [
            Part(name, work, say)
            for name, work in (
                ("outbox", self.pipeline.run),
                ("serial ports", self._serial),
                ("cameras", self.cameras.run),
                ("uplink", self._uplink),
                ("commands", self._commands),
                ("health", self.reporter.run),
                ("certificate", self._certificate),
                ("clock", self._tick),
            )
        ]

    # --- life -----------------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Live until SIGTERM, SIGINT or the command to restart; the process's exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            with suppress(ValueError, NotImplementedError):  # not in the main thread, as in a test
                loop.add_signal_handler(number, self.stopping.set)
        await self.pipeline.open()
        parts = {part.name: self._task(part.run()) for part in self.parts}
        watchdog = self._task(self._watchdog())
        self.say(f"gateway {self.settings.gateway} is up, its data in {self.folder}")
        systemd.notify("READY=1")
        try:
            await self.stopping.wait()
        finally:
            systemd.notify("STOPPING=1")
            await self._stop(parts, watchdog)
        return 0

    def part(self, name: str) -> Part:
        """One of the parts."""
        return next(part for part in self.parts if part.name == name)

    async def on_disk(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run `work` in the disk's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._disk, lambda: work(*arguments))

    async def heavy(self, work: Callable[[], T]) -> T:
        """Run `work` in the model's thread."""
        return await asyncio.wrap_future(self.worker.call(work))

    def _task(self, work: Any) -> "asyncio.Future[Any]":
        task: asyncio.Future[Any] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _stop(self, parts: "dict[str, asyncio.Future[Any]]", watchdog: "asyncio.Future[Any]") -> None:
        """Sources first, then what they have delivered, then the link; nothing of it may take the whole time."""
        for name in ("serial ports", "cameras", "health"):
            await ended(parts.pop(name), STOP_S / 4)
        await ended(parts.pop("outbox"), STOP_S / 4)
        with suppress(HighwallError, TimeoutError):
            async with asyncio.timeout(STOP_S / 4):
                await self.pipeline.flush()
        if self.uplink is not None:
            with suppress(HighwallError, TimeoutError):
                async with asyncio.timeout(STOP_S / 4):
                    await self.uplink.close()
        for task in (*parts.values(), watchdog, *self._tasks):
            task.cancel()
        await asyncio.wait([*parts.values(), watchdog], timeout=STOP_S / 4)
        self.clock.keep(now=True)
        self.models.stop()
        if self.pipeline.outbox is not None:
            await self.on_disk(self.pipeline.outbox.close)
        self._disk.shutdown(wait=True)
        self.worker.close(STOP_S / 4)

    async def _watchdog(self) -> None:
        """Feed systemd's watchdog for as long as everything gets on."""
        wanted = systemd.watchdog()
        while True:
            stuck = self.stuck()
            if not stuck:
                systemd.notify("WATCHDOG=1", f"STATUS={self.reporter.line()}")
            else:
                systemd.notify(f"STATUS={', '.join(stuck)} do not get on")
            await asyncio.sleep(TICK_S if wanted is None else min(TICK_S, wanted / 3))

    def stuck(self) -> list[str]:
        """The parts that have made no progress for too long; a link that is down is no lack of progress."""
        now, found = time.monotonic(), []
        if now - self.pipeline.beat > STUCK_S:
            found.append("the outbox")
        if self.serial is not None and (not self.serial.alive or now - self.serial.beat > STUCK_S):
            found.append("the serial ports")
        if self.uplink is not None and now - self.uplink.beat > LINK_STUCK_S:
            found.append("the uplink")
        if self.cameras.watch is not None and self.cameras.watch.hung():
            found.append("the model")
        return found

    # --- parts ----------------------------------------------------------------------------------------------------

    def _open_outbox(self) -> Outbox:
        return Outbox.open(
            self.folder, self.settings.gateway, self.settings.outbox, stamp=self.clock.stamp, say=self.say
        )

    def _committed(self, epoch: str, last: int, records: Sequence[Record]) -> None:
        wanted = set(self.settings.joined.values())
        for record in records:
            if isinstance(record, Reading) and record.tag in wanted:
                self.latest[record.tag] = record
        self.reporter.committed(records)
        if self.uplink is not None:
            self.uplink.nudge(epoch, last)

    async def _serial(self) -> None:
        wanted = serial_in_force(self.settings, self.site)
        if not any(port.enabled for port in wanted.ports):
            return
        marks = {}
        if self.pipeline.outbox is not None:
            marks = await self.on_disk(self.pipeline.outbox.marks)
        paired = self.pairing.tags
        # What the last source has delivered may wait for its commit yet.
        marks = {tag: mark for tag, mark in (marks | self._heard_to).items() if tag in paired}
        source = SerialSource(wanted, paired, self.pipeline.offer, self.clock.stamp, marks=marks, say=self.say)
        source.start()
        self.serial = source
        try:
            await asyncio.Event().wait()
        finally:
            self.serial = None
            try:
                await asyncio.shield(self.on_disk(source.stop, 1.0))
            finally:
                self._heard_to = source.marks()

    async def _uplink(self) -> None:
        settings = self.settings.uplink
        while (identity := self.registration.identity()) is None and settings.tls:
            self.reporter.link = "not enrolled: everything is recorded and nothing sent; highwall gateway enroll"
            await asyncio.sleep(ENROLLED_S)
        destination = self.site.destination or self.settings.destination
        if destination is None:
            if identity is None:
                raise HighwallError("gateway.toml has no destination, and this gateway is not enrolled with a twin")
            destination = Destination(address_of(identity.url).host)
        await self.pipeline.open()
        while self.pipeline.outbox is None:
            await asyncio.sleep(ENROLLED_S)
        self.uplink = Uplink(
            self.settings.gateway,
            destination,
            settings,
            self.pipeline.outbox,
            self.on_disk,
            security=None if identity is None else _Papers(self),
            heard=self._heard,
            connected=self._connected,
            say=self.say,
        )
        try:
            await self.uplink.run()
        finally:
            self.uplink = None

    async def _commands(self) -> None:
        """Run what the twin asks for; on a disk that takes nothing all of it is refused until it does again."""
        journal = Journal(self.folder / "journal.sqlite", self.settings.services.memory)
        self.execution = Execution(
            journal, self.settings.gateway, Handlers(self).by_name(), self.clock.stamp, self._answer
        )
        try:
            await self.execution.run()
        finally:
            self.execution = None
            journal.close()

    async def _certificate(self) -> None:
        """Wait for a person's approval, and have the certificate renewed in time."""
        now, due = asyncio.get_running_loop().time, 0.0
        while True:
            if self.registration.pending() is not None:  # also one that is to replace the identity there is
                with suppress(TimeoutError):
                    async with asyncio.timeout(RENEW_S):
                        await self.registration.wait(self.say)
                        self.part("uplink").restart()
            if now() >= due and self.registration.renewal_due():
                due = now() + RENEW_S
                await self.registration.renew_and_say(self.say)
            await asyncio.sleep(ENROLLED_S)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.clock.keep()
            if self.pairing.look():
                await self.pair()
            if self.configuration.tick():
                self.say("the twin was not reached with the new configuration; the one before is back")

    async def pair(self) -> None:
        """Other tags are paired than before."""
        await self.rejudge(self.judge.paired(self.pairing.tags))
        if self.serial is not None:
            self.serial.pair(self.pairing.tags)

    async def rejudge(self, judge: Judge) -> None:
        """Judge by other rules, calibrations or tags from the next commit on."""
        self.judge = judge
        await self.on_disk(self.pipeline.renew, judge)

    # --- what the twin says ---------------------------------------------------------------------------------------

    def _heard(self, said: Command | Desired) -> None:
        if isinstance(said, Command):
            try:
                if self.execution is None:
                    raise HighwallError("this gateway can remember no commands just now")
                self.execution.receive(said)
            except HighwallError as error:
                text = f"{error}; send it again under another id"
                self._answer(Answer(VERSION, self.settings.gateway, said.id, "refused", text, self.clock.stamp()))
            return
        before = self.configuration.number
        reported = self.configuration.desire(said)
        if reported.refused is not None:
            self.say(f"the configuration {reported.refused.number} is not taken: {reported.refused.why}")
        elif self.configuration.number != before:
            self.say(f"the configuration {said.number} is on trial")
        self._task(self._report())

    def _connected(self) -> None:
        if self.execution is not None:
            self.execution.resend()
        self._task(self._report())

    async def _report(self) -> None:
        """Tell the twin how this gateway is set; that it could be told ends the trial of a configuration."""
        if self.uplink is None:
            return
        number = self.configuration.number
        if await self.uplink.tell(self.uplink.speaker.reported(self.configuration.reported())) and (
            self.configuration.confirm(number)
        ):
            self.say(f"the configuration {number} has proven itself")
            await self.uplink.tell(self.uplink.speaker.reported(self.configuration.reported()))

    def _answer(self, answer: Answer) -> None:
        async def send() -> None:
            if self.uplink is None or not await self.uplink.tell(self.uplink.speaker.answer(answer)):
                return
            if self.execution is not None:
                self.execution.delivered(answer.id)

        self._task(send())

    def _apply(self, site: Site) -> None:
        """Put a configuration in force: what it changes is begun again with it."""
        before, self.site = self.site, site
        self._task(self.rejudge(Judge(self.settings, site, self.folder, self.pairing.tags)))
        for name, changed in (
            ("serial ports", before.ports != site.ports),
            ("cameras", (before.cameras, before.windows) != (site.cameras, site.windows)),
            ("uplink", before.destination != site.destination),
        ):
            if changed:
                self.part(name).restart()

    def _surroundings(self) -> Surroundings:
        def trust() -> "Trust":
            from targets.runtime.trust import load_trust  # brings numpy, which a gateway without a model can do without

            return load_trust(Path(self.settings.trust))

        async def reload(path: Path | None) -> None:
            await self.cameras.reload(path)
            self.part("cameras").restart()

        def context() -> ssl.SSLContext:
            identity = self.registration.identity()
            if identity is None:
                raise HighwallError("this gateway is not enrolled, so nothing can be fetched")
            return identity.context()

        heavy: Callable[[Callable[[], Any]], Awaitable[Any]] = self.heavy
        return Surroundings(
            self.clock.stamp,
            context,
            trust,
            heavy,
            self.cameras.recent,
            self.cameras.running,
            reload,
        )


class _Papers:
    """The gateway's identity as it is at the moment of each connection: it may have been renewed."""

    def __init__(self, agent: Agent):
        self._agent = agent

    def context(self) -> ssl.SSLContext:
        identity = self._agent.registration.identity()
        if identity is None:
            raise HighwallError("this gateway has no certificate any more; enroll it again")
        return identity.context()

    def check(self, connection: ssl.SSLSocket) -> None:
        tls.check_peer(self._agent.clock.stamp)(connection)


class _Through(ThreadPoolExecutor):
    """The loop's executor, for what may block such as looking up a host's name: it has the model's thread do it."""

    def __init__(self, worker: Worker):
        self._worker = worker

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> "Future[T]":
        return self._worker.call(lambda: fn(*args, **kwargs))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        Executor.shutdown(self)
