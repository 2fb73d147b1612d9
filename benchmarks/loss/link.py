"""A link between client and broker that is slow or stalls, as a mine's radio does: bytes stop and no socket closes."""

import asyncio
import contextlib
import socket
import struct
import threading
from types import TracebackType

CHUNK = 4096


class Link:
    """A TCP relay from a port of its own to `target`, in a thread of its own; `with` starts and ends it.

    `rate`: bytes a second that it carries up, each connection for itself; None: as many as come.
    """

    def __init__(self, target: int, host: str = "127.0.0.1", rate: int | None = None) -> None:
        self.target, self.host, self.rate = target, host, rate
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._open: asyncio.Event
        self._pairs: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._serve, name="link", daemon=True)
        self._ready = threading.Event()

    def __enter__(self) -> "Link":
        self._thread.start()
        self._ready.wait(10)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def stall(self) -> None:
        """From now on no byte passes, either way, of old connections or new ones; sockets stay open."""
        self._loop.call_soon_threadsafe(self._open.clear)

    def flow(self) -> None:
        """Bytes pass again, those that waited first."""
        self._loop.call_soon_threadsafe(self._open.set)

    def cut(self) -> None:
        """Every connection is reset, as when a modem restarts; new ones are welcome."""

        def reset() -> None:
            for writer in list(self._pairs):
                # without lingering, the close is a reset and not a farewell
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()

        self._loop.call_soon_threadsafe(reset)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._open = asyncio.Event()
        self._open.set()
        server = self._loop.run_until_complete(asyncio.start_server(self._pair, sock=self._listener()))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        pending = asyncio.all_tasks(self._loop)
        for task in pending:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        self._loop.close()

    def _listener(self) -> socket.socket:
        listener = socket.create_server((self.host, 0))
        if self.rate is not None:  # else its buffer would swallow what the link is too slow for
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, CHUNK)
        return listener

    async def _pair(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._pairs.add(writer)
        try:
            await self._open.wait()
            far_reader, far_writer = await asyncio.open_connection(self.host, self.target)
            self._pairs.add(far_writer)
            try:
                ways = [self._carry(reader, far_writer, self.rate), self._carry(far_reader, writer)]
                tasks = [asyncio.create_task(way) for way in ways]
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:
                    task.cancel()
            finally:
                self._pairs.discard(far_writer)
                far_writer.transport.abort()
        except (OSError, asyncio.CancelledError):
            pass  # the broker is away, as a refused connection looks behind a modem; or the benchmark is over
        finally:
            self._pairs.discard(writer)
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rate: int | None = None) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK if rate is None else min(CHUNK, max(1, rate // 20))):
                if rate is not None:
                    await asyncio.sleep(len(data) / rate)
                await self._open.wait()
                writer.write(data)
                await writer.drain()
