"""One HTTPS request on the agent's loop, without a thread: enrolment and the fetching of a model need no more.

The far end is judged before the first byte is sent, and nothing is read without a bound.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from targets.runtime.errors import HighwallError, plain

_MOST_HEAD: Final = 32_768  # bytes of status line and headers
_CHUNK: Final = 65_536


class LinkError(HighwallError):
    """The far end was not reached, or fell silent: worth another try."""


@dataclass(frozen=True)
class Address:
    """Where an https:// URL leads."""

    host: str
    port: int
    path: str  # with its query

    @property
    def authority(self) -> str:
        """Host and port as headers and URLs have them; a bare IPv6 address stands in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        """As a person writes it."""
        return f"https://{self.authority}{self.path}"


def address_of(url: str) -> Address:
    """The address in a URL. Raises HighwallError unless it is https, of a host and without a password."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise HighwallError(f"{url!a:.200} is no address: {error}") from error
    if not all("!" <= letter <= "~" for letter in url):  # of url itself: urlsplit drops some of these silently
        raise HighwallError(f"{url!a:.200} has a character that no address has; copy it again")
    if parts.scheme != "https" or not host or parts.username is not None or parts.fragment:
        raise HighwallError(f"{url!a:.200} is no address of the form https://HOST[:PORT][/PATH]")
    path = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    return Address(host, port or 443, path)


class Reply:
    """What came back: `status`, `headers` (names in lower case), and a body to be read once."""

    def __init__(self, status: int, headers: Mapping[str, str], reader: asyncio.StreamReader, patience: float):
        self.status, self.headers = status, headers
        self._reader, self._patience = reader, patience

    @property
    def length(self) -> int | None:
        """Bytes of the body, where the far end says how many."""
        stated = self.headers.get("content-length", "")
        return int(stated) if stated.isascii() and stated.isdigit() and len(stated) < 19 else None

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body in pieces. Raises LinkError where it ends too soon or `patience` seconds pass without a byte."""
        if "chunked" in self.headers.get("transfer-encoding", "").lower():
            async for piece in self._framed():
                yield piece
            return
        left = self.length
        while left is None or left > 0:
            piece = await self._wait(self._reader.read(_CHUNK if left is None else min(_CHUNK, left)))
            if not piece:
                if left is not None:
                    raise LinkError(f"the connection ended {left} bytes before the end")
                return
            left = left if left is None else left - len(piece)
            yield piece

    async def body(self, most: int) -> bytes:
        """The whole body. Raises HighwallError where it is longer than `most` bytes."""
        data = bytearray()
        async for piece in self.chunks():
            data += piece
            if len(data) > most:
                raise HighwallError(f"the answer is longer than {most} bytes")
        return bytes(data)

    async def _framed(self) -> AsyncIterator[bytes]:
        while True:
            size, _, _ = (await self._wait(self._reader.readuntil(b"\r\n"))).strip().partition(b";")
            try:
                left = int(size, 16)
            except ValueError as error:
                raise LinkError(f"the answer is framed wrongly: {size[:20]!a}") from error
            if left <= 0:
                return
            while left > 0:
                piece = await self._wait(self._reader.read(min(_CHUNK, left)))
                if not piece:
                    raise LinkError("the connection ended in the middle of the answer")
                left -= len(piece)
                yield piece
            await self._wait(self._reader.readexactly(2))

    async def _wait(self, reading: Any) -> bytes:
        try:
            async with asyncio.timeout(self._patience):
                data: bytes = await reading
                return data
        except TimeoutError as error:
            raise LinkError(f"nothing came for {self._patience:g} s") from error
        except (OSError, EOFError, asyncio.LimitOverrunError) as error:
            raise LinkError(f"the connection broke: {error}") from error


@asynccontextmanager
async def exchange(
    method: str,
    address: Address,
    context: ssl.SSLContext,
    check: Callable[[Any], None],
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    patience: float = 30.0,
) -> AsyncIterator[Reply]:
    """Send one request and yield the reply; the connection is closed behind it.

    `check` is called with the connection's ssl.SSLObject before anything is sent, and raises to prevent that.
    `patience` is seconds to connect, and seconds of silence. Raises LinkError where another try may help, and
    HighwallError where it will not.
    """
    reader, writer = await connect(address, context, patience)
    try:
        check(writer.get_extra_info("ssl_object"))
        lines = {"Host": address.authority, "Connection": "close", **(headers or {})}
        if body or method == "POST":
            lines["Content-Length"] = str(len(body))
        head = f"{method} {address.path} HTTP/1.1\r\n" + "".join(f"{name}: {text}\r\n" for name, text in lines.items())
        try:
            writer.write(head.encode("ascii") + b"\r\n" + body)
            async with asyncio.timeout(patience):
                await writer.drain()
                raw = await reader.readuntil(b"\r\n\r\n")
        except TimeoutError as error:
            raise LinkError(f"{address} did not answer for {patience:g} s") from error
        except (OSError, EOFError, asyncio.LimitOverrunError) as error:
            raise LinkError(f"{address} broke the connection: {error}") from error
        status, fields = _head(raw, address)
        yield Reply(status, fields, reader, patience)
    finally:
        writer.transport.abort()  # at once: a far end that is silent must not hold us while we say goodbye


async def connect(
    address: Address, context: ssl.SSLContext, patience: float
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """An open TLS connection; raises LinkError, or HighwallError where the far end's certificate is refused."""
    try:
        async with asyncio.timeout(patience):
            return await asyncio.open_connection(
                address.host, address.port, ssl=context, server_hostname=address.host, limit=_MOST_HEAD
            )
    except ssl.SSLCertVerificationError as error:
        why = f"the certificate of {address} is refused: {error.verify_message}"
        raise HighwallError(
            f"{why}; it must be of the CA that this gateway was invited by, and for that host"
        ) from error
    except TimeoutError as error:
        raise LinkError(f"{address} was not reached in {patience:g} s") from error
    except (OSError, UnicodeError) as error:
        raise LinkError(f"{address} was not reached: {error}") from error


async def shown_chain(address: Address, context: ssl.SSLContext, look: Callable[[Any], list[bytes]]) -> list[bytes]:
    """What `look` finds on a connection that is opened and closed without a byte of ours sent through it."""
    _, writer = await connect(address, context, 30.0)
    try:
        return look(writer.get_extra_info("ssl_object"))
    finally:
        with suppress(OSError):
            writer.transport.abort()


def _head(raw: bytes, address: Address) -> tuple[int, dict[str, str]]:
    first, *lines = raw.decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    code = rest[:3]
    if not version.startswith("HTTP/1.") or not (code.isascii() and code.isdigit() and len(code) == 3):
        raise HighwallError(f"{address} does not speak HTTP: {plain(first, 60)}")
    fields = {}
    for line in lines:
        name, colon, text = line.partition(":")
        if colon:
            fields[name.strip().lower()] = text.strip()
    return int(code), fields
