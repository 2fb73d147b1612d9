"""A gateway's outbox and uplink against a real broker, for the tests of the link."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from receiver import Receiver

from twin_client.outbox import Outbox
from twin_client.protocol import orders
from twin_client.protocol.delivery import Pace, Retry
from twin_client.protocol.records import ClockQuality, Measure, Reading, Stamp
from twin_client.protocol.site import Destination
from twin_client.uplink import Settings, Uplink

QUICK = Settings(
    keepalive=2, connect=2.0, tls=False, pace=Pace(wait=1.0, most_rows=100), retry=Retry(first=0.05, most=0.2)
)


def stamp() -> Stamp:
    return Stamp(time.time_ns() // 1000, time.monotonic_ns() // 1000, "boot", ClockQuality.NETWORK)


class Gateway:
    """An outbox and its uplink on a loop of their own; `with` starts and ends them."""

    def __init__(
        self,
        folder: Path,
        port: int,
        settings: Settings = QUICK,
        *,
        dialect: str = "highwall",
        host: str = "127.0.0.1",
        security: Any = None,
        reports: bool = False,
    ):
        self._reports = reports
        self.said: list[str] = []
        self.heard: list[object] = []
        self.sent = 0
        self._settings, self._destination, self._security = settings, Destination(host, port, dialect), security
        self._disk = ThreadPoolExecutor(1)
        self.outbox = self._disk.submit(lambda: Outbox.open(folder, "gw-1", stamp=stamp, say=self.said.append)).result()
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> "Gateway":
        self._thread.start()
        assert self._started.wait(5)
        return self

    def __exit__(self, *_: object) -> None:
        begun = time.monotonic()
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self.stopped_in = time.monotonic() - begun
        self._disk.submit(self.outbox.close).result()
        self._disk.shutdown()

    def append(self, count: int) -> None:
        """So many readings of one tag, on the disk when this returns."""
        records = [
            Reading(stamp(), "tag-7", 1, self.sent + each, {"strain": Measure(0.5)}) for each in range(1, count + 1)
        ]
        self.sent += count
        self._disk.submit(lambda: self.outbox.write(lambda t: t.append(records))).result()
        epoch, last = self.ask(lambda: (self.outbox.epoch, self.outbox.last(self.outbox.epoch)))
        self._loop.call_soon_threadsafe(self.uplink.nudge, epoch, last)

    def ask(self, question: Callable[[], Any]) -> Any:
        return self._disk.submit(question).result()

    def tell(self, messages: Iterable[Any]) -> bool:
        return asyncio.run_coroutine_threadsafe(self.uplink.tell(messages), self._loop).result(5)

    def emptied(self, seconds: float = 20.0) -> bool:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.ask(self.outbox.count) == 0:
                return True
            time.sleep(0.05)
        return False

    def _connected(self) -> None:
        if self._reports:
            reported = orders.Reported(1, "gw-1", 0, {}, False, stamp())
            self._telling = asyncio.ensure_future(self.uplink.tell(self.uplink.speaker.reported(reported)))

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()

        async def run(work: Callable[..., Any], *arguments: Any) -> Any:
            return await self._loop.run_in_executor(self._disk, lambda: work(*arguments))

        self.uplink = Uplink(
            "gw-1",
            self._destination,
            self._settings,
            self.outbox,
            run,
            security=self._security,
            heard=self.heard.append,
            connected=self._connected,
            say=self.said.append,
        )
        task = asyncio.create_task(self.uplink.run())
        self._started.set()
        await self._stop.wait()
        await self.uplink.close()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def all_there_once(gateway: Gateway, twin: Receiver) -> bool:
    return not twin.missing("tag-7", 1, range(1, gateway.sent + 1)) and not twin.twice()


def wait_for(true: Callable[[], object], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.02)
    return False
