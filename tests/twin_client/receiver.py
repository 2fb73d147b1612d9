"""A small reference receiver: the twin as a gateway sees it. It decodes, keeps each number once, and acknowledges."""

import ssl
import threading
import time
from collections import Counter, defaultdict

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from twin_client.protocol import orders
from twin_client.protocol.dialects.highwall import batch_in
from twin_client.protocol.ranges import Range, covers, ranges_of, union
from twin_client.protocol.records import (
    VERSION,
    Acknowledgement,
    Batch,
    Entry,
    Gap,
    Prediction,
    Reading,
    pack,
)


class Receiver:
    """Subscribes at once; `with` ends it. What it has is in memory, and survives its being away."""

    def __init__(self, port: int, context: ssl.SSLContext | None = None, name: str = "twin"):
        self.entries: dict[tuple[str, str], dict[int, Entry]] = defaultdict(dict)  # by gateway and epoch
        self.tags: Counter[tuple[str, int, int]] = Counter()  # tag or camera, boot, number; of new entries only
        self.gaps: list[Gap] = []
        self.again = 0  # entries that came when they were already here
        self.batches: list[Batch] = []
        self.said: list[tuple[str, bytes]] = []  # status, answers, reported
        self.silent = False  # commits, and says nothing
        self.deaf_to: set[int] = set()  # batches with these entries are thrown away
        self._lock = threading.Lock()
        self._port, self._context, self._name = port, context, name
        self._subscribed = threading.Event()
        self._client: mqtt.Client | None = None
        self.come()

    def __enter__(self) -> "Receiver":
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def come(self) -> None:
        """Connect; from then on, and over restarts of the broker, it is there."""
        self._subscribed.clear()
        self._client = client = mqtt.Client(CallbackAPIVersion.VERSION2, self._name, protocol=mqtt.MQTTv5)
        client.reconnect_delay_set(0.2, 0.5)
        client.on_connect = self._connected
        client.on_subscribe = lambda *_: self._subscribed.set()
        client.on_message = self._arrived
        if self._context is not None:
            client.tls_set_context(self._context)
        keep = Properties(PacketTypes.CONNECT)
        keep.SessionExpiryInterval = 3600
        client.connect("127.0.0.1", self._port, keepalive=5, clean_start=False, properties=keep)
        client.loop_start()
        assert self._subscribed.wait(10)

    def leave(self) -> None:
        """Be away; the broker keeps what it is sent meanwhile."""
        if self._client is not None:
            self._client.disconnect()
            self._client.loop_stop()
            self._client = None

    def command(self, command: orders.Command) -> None:
        self.say(f"mine/{command.gateway}/command", orders.pack(command))

    def say(self, topic: str, payload: bytes, retain: bool = False) -> None:
        assert self._client is not None
        self._client.publish(topic, payload, 1, retain).wait_for_publish(5)

    def until(self, true, seconds: float = 20.0) -> bool:
        """Wait until `true(self)`, at most so long; whether it came true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with self._lock:
                if true(self):
                    return True
            time.sleep(0.02)
        return False

    def count(self) -> int:
        return sum(map(len, self.entries.values()))

    def missing(self, subject: str, boot: int, numbers: range) -> list[int]:
        """Of these numbers of a tag or camera: what neither came nor lies in a Gap."""
        with self._lock:
            lost = self._owned_up(subject, boot)
            return [number for number in numbers if not self.tags[subject, boot, number] and not covers(lost, number)]

    def twice(self) -> list[tuple[str, int, int]]:
        """Readings that are here under two entry numbers."""
        with self._lock:
            return [number for number, count in self.tags.items() if count > 1]

    def _owned_up(self, subject: str, boot: int) -> list[Range]:
        ranges = [
            (0 if lost.first is None else lost.first, lost.last)
            for gap in self.gaps
            for lost in gap.lost
            if (lost.subject, lost.boot) == (subject, boot)
        ]
        return union(ranges)

    def _connected(self, client: mqtt.Client, *_: object) -> None:
        client.subscribe([(f"mine/+/{name}", 1) for name in ("up", "status", "answer", "reported")])

    def _arrived(self, client: mqtt.Client, _: object, message: mqtt.MQTTMessage) -> None:
        if not message.topic.endswith("/up"):
            with self._lock:
                self.said.append((message.topic, bytes(message.payload)))
            return
        batch = batch_in(bytes(message.payload))
        if self.deaf_to & {entry.seq for entry in batch.entries}:
            return
        with self._lock:
            self.batches.append(batch)
            have = self.entries[batch.gateway, batch.epoch]
            for entry in batch.entries:
                if entry.seq in have:
                    self.again += 1
                    continue
                have[entry.seq] = entry
                self._note(entry)
            said = Acknowledgement(VERSION, batch.gateway, batch.epoch, tuple(ranges_of(e.seq for e in batch.entries)))
        if not self.silent:
            client.publish(f"mine/{batch.gateway}/ack", pack(said), 1)

    def _note(self, entry: Entry) -> None:
        record = entry.record
        if isinstance(record, Reading):
            self.tags[record.tag, record.tag_boot, record.tag_seq] += 1
        elif isinstance(record, Prediction):
            self.tags[record.camera, 0, record.capture] += 1
        elif isinstance(record, Gap):
            self.gaps.append(record)
