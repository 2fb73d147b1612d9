"""Frames on a stream: four bytes of length, most significant first, and as many bytes of payload."""

import json
import socket
import struct
from typing import Any, Final

from targets.runtime.errors import HighwallError

MOST: Final = 1 << 26
_LENGTH: Final = struct.Struct(">I")


def send(connection: socket.socket, payload: bytes) -> None:
    """Send one frame, however long the far end takes. Raises HighwallError for more than 64 MiB."""
    if len(payload) > MOST:
        raise HighwallError(f"a frame holds {MOST} bytes at most, not {len(payload)}")
    connection.sendall(_LENGTH.pack(len(payload)) + payload)


def receive(connection: socket.socket) -> bytes:
    """The next frame's payload. Raises HighwallError where the stream ends, or announces more than 64 MiB."""
    (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    if length > MOST:
        raise HighwallError(f"a frame of {length} bytes is announced and {MOST} is the most; the stream is not ours")
    return _exactly(connection, length)


def send_json(connection: socket.socket, value: dict[str, Any]) -> None:
    """Send one object as a frame of JSON."""
    send(connection, json.dumps(value).encode())


def receive_json(connection: socket.socket) -> dict[str, Any]:
    """The next frame as an object. Raises HighwallError where it is none."""
    payload = receive(connection)
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise HighwallError(f"a frame is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise HighwallError(f"a frame holds a {type(value).__name__}, not an object")
    return value


def _exactly(connection: socket.socket, count: int) -> bytes:
    parts, left = [], count
    while left:
        part = connection.recv(min(left, 1 << 20))
        if not part:
            raise HighwallError(f"the stream ended {left} bytes early")
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
