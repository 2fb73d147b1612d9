"""A connection to an MQTT 5 broker: aiomqtt, and what it leaves out.

Its `publish` takes any PUBACK for a yes, also one that says no; what comes down it acknowledges before anybody has seen
it; its end waits for a broker that may not be there; and an attempt that is given up leaves its socket open. Nothing
else of it is changed.
"""

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import aiomqtt
from paho.mqtt.client import MQTT_ERR_SUCCESS
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from twin_client.protocol.dialect import Message

_AT_ONCE: Final = struct.pack("ii", 1, 0)  # SO_LINGER: what was not sent yet is thrown away


class Refused(Exception):
    """The broker says no; the text is its reason."""


class Connection(aiomqtt.Client):
    """One connection. `most_packet`: bytes that the broker takes at once, from its CONNACK."""

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        self.most_packet = 1 << 28
        self._waiting: dict[int, Callable[[Exception | None], None]] = {}
        self._given_up = False
        self._client.manual_ack_set(True)  # else the broker forgets what we have not kept yet

    def kept(self, message: aiomqtt.Message) -> None:
        """What has come down is in safe hands, or not worth keeping: the broker need not send it again."""
        self._client.ack(message.mid, message.qos)

    def send(self, message: Message, done: Callable[[Exception | None], None]) -> None:
        """Publish at QoS 1; `done` is called with None on the broker's PUBACK, or with a `Refused`.

        Raises MqttError where the connection is gone. Where it goes later, `done` is never called.
        """
        info = self._client.publish(message.topic, message.payload, 1, message.retain)
        if info.rc != MQTT_ERR_SUCCESS:
            raise aiomqtt.MqttCodeError(info.rc, "the connection is gone")
        self._waiting[info.mid] = done

    def break_off(self, politely: bool = False) -> None:
        """Close at once, and send nothing more of what waits in the socket; `politely`: after a word to the broker."""
        self._given_up = True
        if not self._disconnected.done():
            self._disconnected.set_result(None)
        elif not self._disconnected.cancelled():
            self._disconnected.exception()  # it is known why, and need not be said again
        client = self._client
        held = client.socket()
        with suppress(OSError):
            if politely:
                client.disconnect()
            elif isinstance(held, socket.socket):
                held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        with suppress(OSError):
            client._sock_close()

    def tls(self) -> ssl.SSLSocket | None:
        """The socket, where the connection is encrypted."""
        held: Any = self._client.socket()
        return held if isinstance(held, ssl.SSLSocket) else None

    def _client_connect(self) -> None:
        super()._client_connect()
        if self._given_up:  # by the loop, while this thread was still connecting
            self._loop.call_soon_threadsafe(self.break_off)

    def _on_connect(self, client: Any, userdata: Any, flags: Any, reason_code: Any, properties: Any = None) -> None:
        self.most_packet = getattr(properties, "MaximumPacketSize", self.most_packet)
        client._max_inflight_messages = min(20, getattr(properties, "ReceiveMaximum", 20))  # its setter comes too early
        super()._on_connect(client, userdata, flags, reason_code, properties)

    def _on_socket_register_write(self, client: Any, userdata: Any, sock: Any) -> None:
        def write() -> None:
            try:
                client.loop_write()
            except Exception as error:
                if not self._disconnected.done():
                    self._disconnected.set_exception(error)

        def register() -> None:
            if sock.fileno() >= 0:  # it may have been closed meanwhile
                self._loop.add_writer(sock.fileno(), write)

        self._loop.call_soon_threadsafe(register)

    def _on_publish(self, client: Any, userdata: Any, mid: int, reason_code: Any, properties: Any) -> None:
        if (done := self._waiting.pop(mid, None)) is None:
            super()._on_publish(client, userdata, mid, reason_code, properties)
        elif reason_code.is_failure or reason_code.value == _NOBODY:
            done(Refused(str(reason_code).lower()))
        else:
            done(None)


_NOBODY: Final = 0x10  # "no matching subscribers": a success for MQTT, but what was sent is gone


@asynccontextmanager
async def connect(
    host: str,
    port: int,
    *,
    identifier: str,
    context: ssl.SSLContext | None,
    check: Callable[[ssl.SSLSocket], None] | None,
    will: Message | None,
    keepalive: int,
    patience: float,
    expiry: int,
    username: str | None = None,
    password: str | None = None,
) -> AsyncIterator[Connection]:
    """Connect, within `patience` seconds, and keep the session of before; at the end go without long goodbyes.

    `check` judges the far end's certificate before anything is published. `expiry`: seconds that the broker keeps
    what it has for us. Raises MqttError and OSError.
    """
    keep = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    keep.SessionExpiryInterval = expiry
    connection = Connection(
        host,
        port,
        identifier=identifier,
        protocol=aiomqtt.ProtocolVersion.V5,
        tls_context=context,
        will=None if will is None else aiomqtt.Will(will.topic, will.payload, 1, will.retain),
        keepalive=keepalive,
        timeout=patience,
        clean_start=False,
        properties=keep,
        username=username,
        password=password,
    )
    connection._client.connect_timeout = patience
    try:
        await connection.__aenter__()
        if check is not None and (held := connection.tls()) is not None:
            check(held)
        yield connection
    except BaseException as error:
        # aiomqtt's own end waits for the broker, and where that is silent its complaint would hide a cancellation.
        connection.break_off(politely=isinstance(error, asyncio.CancelledError))
        raise
    connection.break_off(politely=True)


async def delivered(connection: Connection, message: Message, patience: float) -> None:
    """Publish a message and wait `patience` seconds for its PUBACK. Raises Refused, MqttError and TimeoutError."""
    answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def done(error: Exception | None) -> None:
        if not answer.done():
            answer.set_result(None) if error is None else answer.set_exception(error)

    connection.send(message, done)
    async with asyncio.timeout(patience):
        await answer
