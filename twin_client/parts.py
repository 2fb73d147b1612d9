"""A part of the agent: work that goes on for ever, begun again when it fails, and never the end of the others."""

import asyncio
import traceback
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from targets.runtime.errors import HighwallError, plain

FIRST_S: Final = 1.0  # seconds before a part that failed is begun again
MOST_S: Final = 60.0
STEADY_S: Final = 300.0  # seconds of running after which an earlier failure is over


class Part:
    """`work` is a function whose coroutine runs until cancelled; one that returns has nothing to do for now."""

    def __init__(self, name: str, work: Callable[[], Awaitable[None]], say: Callable[[str], None]):
        self.name, self.problem, self.failures = name, "", 0
        self._work, self._say = work, say
        self._task: asyncio.Future[None] | None = None
        self._again = asyncio.Event()

    async def run(self) -> None:
        """Keep it going, until cancelled."""
        loop, wait = asyncio.get_running_loop(), FIRST_S
        while True:
            begun, rest = loop.time(), None
            self._again.clear()
            self._task = asyncio.ensure_future(self._work())
            steady = loop.call_later(STEADY_S, self._steady)
            try:
                await self._task
            except asyncio.CancelledError:
                if not self._again.is_set():
                    raise
            except Exception as error:
                self._failed(error)
                wait = FIRST_S if loop.time() - begun > STEADY_S else min(2 * wait, MOST_S)
                rest = wait
            else:
                self.problem = ""
            finally:
                steady.cancel()
            with suppress(TimeoutError):
                async with asyncio.timeout(rest):
                    await self._again.wait()

    def restart(self) -> None:
        """Begin again, with whatever has changed around it."""
        self._again.set()
        if self._task is not None and not self._task.done():
            self._task.cancel()

    def _steady(self) -> None:
        if self.problem:
            self._say(f"{self.name}: runs again")
        self.problem = ""

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        words = plain(str(error) or type(error).__name__)
        if not isinstance(error, HighwallError):  # a mistake of ours: say where, so that it can be mended
            frame = (traceback.extract_tb(error.__traceback__) or [None])[-1]
            where = "" if frame is None else f" at {Path(frame.filename).name}:{frame.lineno}"
            words = f"{type(error).__name__}: {words}{where}"
        if words != self.problem:
            self._say(f"{self.name}: {words}; it is begun again")
        self.problem = words


async def ended(task: "asyncio.Future[object]", patience: float) -> None:
    """Cancel a task and wait for its end, no longer than `patience` seconds."""
    task.cancel()
    with suppress(asyncio.CancelledError, TimeoutError, Exception):
        async with asyncio.timeout(patience):
            await asyncio.shield(task)
