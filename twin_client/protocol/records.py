"""What a gateway says, one immutable record each, and their coding: MessagePack on the wire, JSON for people.

Three things are kept apart throughout: a value of 0, a value that its sensor sent as null, and a value that was
not sent at all. A quantity that was not sent is not a key of `Reading.values`.
"""

import math
from enum import IntEnum
from typing import Literal, TypeVar

import msgspec

from twin_client.protocol.errors import ProtocolError
from twin_client.protocol.ranges import Range

VERSION = 1  # of the wire; raised when an older reader would misread a newer writer


class ClockQuality(IntEnum):
    """How far a wall time may be trusted; a Pi has no clock of its own."""

    LOST = 0  # since this boot nothing has set the clock: it runs on from the last time kept on disk
    HELD = 1  # set in this boot, but what set it has been silent for long
    NETWORK = 2  # NTP
    SATELLITE = 3  # GNSS


class Stamp(msgspec.Struct, frozen=True, array_like=True):
    """When: by the wall, and by a clock that is never set, which tells what the wall should have said."""

    wall: int  # microseconds since 1970, UTC, as the gateway believed at the time
    mono: int  # microseconds since this boot
    boot: str  # which boot, the kernel's boot id
    clock: ClockQuality = ClockQuality.LOST


class Measure(msgspec.Struct, frozen=True, array_like=True):
    """One value, as the sensor said it and as its sensor calibration reads it."""

    raw: float | None  # None: the sensor itself said null
    value: float | None = None  # in the quantity's own unit; None: raw is null, or has no valid reading
    calibration: int = 0  # version of the sensor calibration; 0: none, `value` is `raw`, of what is derived too

    def __post_init__(self) -> None:
        for number in (self.raw, self.value):
            if number is not None and not math.isfinite(number):
                raise ValueError(f"{number} is not a measured value; say null")


class Window(msgspec.Struct, frozen=True, array_like=True):
    """Acceleration or vibration sampled evenly: what takes the room, and is thinned first."""

    rate: float  # samples a second
    scale: float  # physical units a count
    axes: int  # values a sample: 3 for x, y, z
    counts: bytes  # little-endian int16, sample after sample


class Position(msgspec.Struct, frozen=True, array_like=True):
    """Where, with how far the truth may lie from it."""

    latitude: float  # degrees, WGS 84
    longitude: float
    height: float | None  # metres above the ellipsoid; None: no fix in height
    error: float  # metres, one standard deviation, level
    source: Literal["gnss", "signal", "set"] = "gnss"  # signal: from its strength at several gateways


class Reading(msgspec.Struct, frozen=True, tag="reading", tag_field="kind", omit_defaults=True):
    """One frame of one tag. `(tag, tag_boot, tag_seq)` is the tag's own word for it, and unique."""

    at: Stamp  # when the gateway received it
    tag: str  # the barcode it is paired by
    tag_boot: int  # how often the tag has started: its numbers begin anew with it
    tag_seq: int
    values: dict[str, Measure] = {}  # by quantity, such as `strain`, `tilt_x`, `temperature`
    window: Window | None = None
    position: Position | None = None
    signal: float | None = None  # dBm at this gateway
    battery: float | None = None  # volts


class Box(msgspec.Struct, frozen=True, array_like=True):
    """A component of the crack mask, pixels of the whole image, right and bottom exclusive."""

    left: int
    top: int
    right: int
    bottom: int
    score: float


class Prediction(msgspec.Struct, frozen=True, tag="prediction", tag_field="kind", omit_defaults=True):
    """What the network said of one captured image."""

    at: Stamp
    camera: str
    capture: int  # the camera's own count; as unique as a tag's number
    model: str  # sha256 of the artifact
    probability: float  # the highest of the image, 0 to 1
    threshold: float
    width: int  # of the image, pixels
    height: int
    positive: int = 0  # pixels above the threshold; a classifier counts its windows' pixels
    boxes: tuple[Box, ...] = ()
    thumbnail: bytes = b""  # JPEG; empty: over its byte budget
    joined: tuple[str, int, int] | None = None  # (tag, tag_boot, tag_seq) whose window went in with the image
    position: Position | None = None


class Alarm(msgspec.Struct, frozen=True, tag="alarm", tag_field="kind", omit_defaults=True):
    """A subject's level changed. `id` names onset and rule, so an outage makes no second alarm of one event."""

    at: Stamp  # of the record that changed it
    id: str  # GATEWAY/EPOCH/SEQ of the onset record, then /RULE@VERSION, and /TAG of a tag that is missed
    subject: str  # a tag or a camera
    rule: str
    version: int
    level: int  # of the TARP: 0 is over, 1 watch, up to 4 evacuate
    quantity: str
    value: float | None  # what crossed the limit
    limit: float | None
    text: str = ""


class Health(msgspec.Struct, frozen=True, tag="health", tag_field="kind", omit_defaults=True):
    """How the gateway itself fares. Counters grow from the start of the agent; gauges are of now."""

    at: Stamp
    gauges: dict[str, float] = {}  # queue_rows, queue_bytes, queue_age (s), rss (bytes), temperature (C), ...
    counters: dict[str, int] = {}  # frames, bad_crc, skipped_bytes, evicted, duplicates, ...
    words: dict[str, str] = {}  # version, model, config, clock, ...


class Lost(msgspec.Struct, frozen=True, array_like=True):
    """Numbers of one tag or camera that will not come. `first` None: from whatever the twin has last."""

    subject: str
    boot: int  # the tag's boot; 0 for a camera
    first: int | None
    last: int


Reason = Literal["radio", "overrun", "evicted", "disk", "corrupt", "restarted", "unjudged"]


class Gap(msgspec.Struct, frozen=True, tag="gap", tag_field="kind", omit_defaults=True):
    """A loss, owned up to: what is named here will never arrive, and why."""

    at: Stamp
    reason: Reason  # unjudged: an image that the network could not be run on
    epoch: str = ""  # whose `seqs` are lost; empty: no rows of an outbox
    seqs: tuple[Range, ...] = ()
    lost: tuple[Lost, ...] = ()
    text: str = ""


Record = Reading | Prediction | Alarm | Health | Gap


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """A record that is on disk, with the number that its outbox gave it."""

    seq: int
    record: Record


class Batch(msgspec.Struct, frozen=True):
    """Entries of one epoch on their way up."""

    version: int
    gateway: str
    epoch: str  # born with an outbox file, so that a lost file can never reuse a number
    entries: tuple[Entry, ...]


class Acknowledgement(msgspec.Struct, frozen=True):
    """The twin's word that it has these entries for good; only then may the gateway forget them."""

    version: int
    gateway: str
    epoch: str
    seqs: tuple[Range, ...]


T = TypeVar("T")
Versioned = TypeVar("Versioned", Batch, Acknowledgement)

_pack = msgspec.msgpack.Encoder()
_json = msgspec.json.Encoder()
_record: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)
_batch = msgspec.msgpack.Decoder(Batch)
_acknowledgement = msgspec.msgpack.Decoder(Acknowledgement)


def pack(message: Record | Batch | Acknowledgement) -> bytes:
    """As MessagePack, which is what travels and what lies on disk."""
    return _pack.encode(message)


def to_json(message: Record | Batch | Acknowledgement) -> bytes:
    """As JSON for people; bytes become base64."""
    return _json.encode(message)


def record_of(data: bytes) -> Record:
    """One record from MessagePack. Raises ProtocolError where it is none."""
    return _decoded(_record, data, "a record")


def batch_of(data: bytes) -> Batch:
    """A batch from MessagePack. Raises ProtocolError where it is none, or of a newer version."""
    return _of_version(_decoded(_batch, data, "a batch"))


def acknowledgement_of(data: bytes) -> Acknowledgement:
    """An acknowledgement from MessagePack. Raises ProtocolError where it is none, or of a newer version."""
    return _of_version(_decoded(_acknowledgement, data, "an acknowledgement"))


def _decoded(decoder: "msgspec.msgpack.Decoder[T]", data: bytes, what: str) -> T:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ProtocolError(f"not {what}: {error}") from error


def _of_version(message: Versioned) -> Versioned:
    if not 1 <= message.version <= VERSION:
        raise ProtocolError(f"version {message.version} of the protocol; versions 1 to {VERSION} are read here")
    return message
