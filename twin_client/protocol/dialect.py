"""What a dialect is: the words in which a gateway speaks with one kind of twin. Each is a file of `dialects/`.

A file there holds a class `Speaker` made of the gateway's name and a `Voice`. It knows topics and payloads and
nothing of connections; the little that it remembers (which devices it has introduced) begins anew with `hello`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import Annotated, Protocol

import msgspec

from twin_client.protocol import dialects
from twin_client.protocol.delivery import Stored
from twin_client.protocol.errors import ProtocolError
from twin_client.protocol.orders import Answer, Command, Desired, Reported
from twin_client.protocol.records import Acknowledgement


@dataclass(frozen=True)
class Message:
    """What is published, always at QoS 1."""

    topic: str
    payload: bytes
    retain: bool = False


class Voice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a dialect speaks, as far as that is anybody's choice."""

    compress: bool = False  # where the dialect can: half the bytes, for a tenth of the processor's time more
    most_message: Annotated[int, msgspec.Meta(ge=4096, le=1 << 20)] = 60_000  # bytes of a JSON message


Heard = Acknowledgement | Command | Desired


class Speaker(Protocol):
    """What every dialect can do. Raises ProtocolError for what it hears and cannot understand."""

    puback: bool  # whether the broker's PUBACK is the twin's own word, as where the twin is the broker

    def subscriptions(self) -> tuple[str, ...]:
        """The topics on which it listens."""

    def will(self) -> Message | None:
        """What the broker says when the gateway has gone without a word."""

    def hello(self) -> list[Message]:
        """What is said first on a new connection."""

    def goodbye(self) -> list[Message]:
        """What is said last before a connection is closed in good order."""

    def batch(self, rows: Sequence[Stored]) -> list[Message]:
        """Stored records of one epoch; they are delivered when all of these messages are."""

    def hear(self, topic: str, payload: bytes) -> Heard | None:
        """What a message says; None: nothing for us."""

    def answer(self, answer: Answer) -> list[Message]:
        """A command's answer."""

    def reported(self, reported: Reported) -> list[Message]:
        """How the gateway is set."""


def names() -> list[str]:
    """The dialects that there are."""
    return sorted(module.name for module in iter_modules(dialects.__path__))


def speaker(name: str, gateway: str, voice: Voice | None = None) -> Speaker:
    """The dialect called `name`, for this gateway. Raises ProtocolError where there is none."""
    if name not in names():
        raise ProtocolError(f"no dialect is called {ascii(name)[:60]}; there are {', '.join(names())}")
    made: Speaker = import_module(f"{dialects.__name__}.{name}").Speaker(gateway, voice or Voice())
    return made
