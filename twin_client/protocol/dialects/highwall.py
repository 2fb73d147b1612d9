"""Highwall's own dialect: batches as MessagePack, acknowledged by the twin in ranges of numbers.

| topic | way | payload |
| --- | --- | --- |
| `mine/GATEWAY/up` | up | `records.Batch`, or that as a zlib stream, told apart by the first byte |
| `mine/GATEWAY/ack` | down | `records.Acknowledgement` |
| `mine/GATEWAY/command`, `/answer` | down, up | `orders.Command`, `orders.Answer` |
| `mine/GATEWAY/desired`, `/reported` | down, up, both retained | `orders.Desired`, `orders.Reported` |
| `mine/GATEWAY/status` | up, retained | `{"gateway": .., "online": true}`; false is the last will |
"""

import zlib
from collections.abc import Sequence
from typing import Final

import msgspec

from twin_client.protocol import orders
from twin_client.protocol.delivery import Stored
from twin_client.protocol.dialect import Heard, Message, Voice
from twin_client.protocol.errors import ProtocolError
from twin_client.protocol.orders import Answer, Command, Desired, Reported
from twin_client.protocol.records import VERSION, Batch, acknowledgement_of, batch_of

MOST_BYTES: Final = 4 << 20  # of a batch when it is no longer compressed
_ZLIB: Final = 0x78  # how a zlib stream begins; to MessagePack it is the number 120, which no batch is
_encoder = msgspec.msgpack.Encoder()


class Speaker:
    """See the module."""

    puback = False

    def __init__(self, gateway: str, voice: Voice):
        self._gateway, self._voice = gateway, voice

    def subscriptions(self) -> tuple[str, ...]:
        return tuple(map(self._topic, ("ack", "command", "desired")))

    def will(self) -> Message | None:
        return self._status(online=False)

    def hello(self) -> list[Message]:
        return [self._status(online=True)]

    def goodbye(self) -> list[Message]:
        return [self._status(online=False)]

    def batch(self, rows: Sequence[Stored]) -> list[Message]:
        entries = [(row.seq, msgspec.Raw(row.body)) for row in rows]
        whole = {"version": VERSION, "gateway": self._gateway, "epoch": rows[0].epoch, "entries": entries}
        payload = _encoder.encode(whole)
        return [Message(self._topic("up"), zlib.compress(payload, 3) if self._voice.compress else payload)]

    def hear(self, topic: str, payload: bytes) -> Heard | None:
        said: Heard
        if topic == self._topic("ack"):
            said = acknowledgement_of(payload)
        elif topic == self._topic("command"):
            said = orders.unpack(Command, payload)
        elif topic == self._topic("desired") and payload:  # nothing: what was retained there is taken away
            said = orders.unpack(Desired, payload)
        else:
            return None
        if said.gateway != self._gateway:
            raise ProtocolError(f"on {topic}: this is for the gateway {ascii(said.gateway)[:80]}")
        return said

    def answer(self, answer: Answer) -> list[Message]:
        return [Message(self._topic("answer"), orders.pack(answer))]

    def reported(self, reported: Reported) -> list[Message]:
        return [Message(self._topic("reported"), orders.pack(reported), retain=True)]

    def _status(self, online: bool) -> Message:
        said = {"gateway": self._gateway, "online": online}
        return Message(self._topic("status"), msgspec.json.encode(said), retain=True)

    def _topic(self, last: str) -> str:
        return f"mine/{self._gateway}/{last}"


def batch_in(payload: bytes) -> Batch:
    """The batch in a message on `mine/GATEWAY/up`. Raises ProtocolError, also for one that would fill the memory."""
    if payload[:1] == bytes([_ZLIB]):
        stream = zlib.decompressobj()
        try:
            payload = stream.decompress(payload, MOST_BYTES)
        except zlib.error as error:
            raise ProtocolError(f"not a batch: {error}") from error
        if not stream.eof:
            raise ProtocolError(f"not a batch: it is cut off, or more than {MOST_BYTES} bytes")
    return batch_of(payload)
