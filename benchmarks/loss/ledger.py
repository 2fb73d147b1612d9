"""The far end: a subscriber that writes down every reading's number, and what was owned up to as lost."""

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from targets.runtime.errors import HighwallError


@dataclass
class Arrival:
    """What one message says: readings' numbers, numbers declared lost, and what to answer the client."""

    numbers: list[int] = field(default_factory=list)
    declared: list[tuple[int, int]] = field(default_factory=list)
    answer: tuple[str, bytes] | None = None


class Ledger:
    """Counts arrivals by number. `read` decodes one (topic, payload) as the client's dialect has it."""

    def __init__(self, port: int, topics: list[str], read: Callable[[str, bytes], Arrival]) -> None:
        self.counts: Counter[int] = Counter()
        self.declared: set[int] = set()
        self.unread = 0
        self._read = read
        self._topics = topics
        self._lock = threading.Lock()
        self._subscribed = threading.Event()
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id="ledger", protocol=mqtt.MQTTv5, reconnect_on_failure=True
        )
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = self._connected
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._arrived
        keep = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        keep.SessionExpiryInterval = 3600
        self._client.connect("127.0.0.1", port, keepalive=10, clean_start=False, properties=keep)
        self._client.loop_start()
        if not self._subscribed.wait(10):
            raise HighwallError("the ledger could not subscribe within 10 s; see the broker's log")

    def close(self) -> None:
        """Leave the broker."""
        self._client.disconnect()
        self._client.loop_stop()

    def account(self, sent: int) -> dict[str, int]:
        """Of the numbers 1 to `sent`: those that never came, those that came again, and those declared lost."""
        with self._lock:
            came = {number for number in self.counts if 1 <= number <= sent}
            missing = set(range(1, sent + 1)) - came
            return {
                "sent": sent,
                "lost": len(missing - self.declared),
                "declared": len(missing & self.declared),
                "duplicated": sum(count - 1 for count in self.counts.values()),
            }

    def complete(self, sent: int) -> bool:
        """Whether every number came or was declared lost."""
        found = self.account(sent)
        return found["lost"] == 0

    def _connected(self, client: mqtt.Client, *_: object) -> None:
        for topic in self._topics:
            client.subscribe(topic, qos=1)

    def _arrived(self, client: mqtt.Client, _: object, message: mqtt.MQTTMessage) -> None:
        try:
            arrival = self._read(message.topic, bytes(message.payload))
        except (ValueError, KeyError, TypeError):
            self.unread += 1
            return
        with self._lock:
            self.counts.update(arrival.numbers)
            for first, last in arrival.declared:
                self.declared.update(range(first, last + 1))
        if arrival.answer is not None:
            client.publish(arrival.answer[0], arrival.answer[1], qos=1)
