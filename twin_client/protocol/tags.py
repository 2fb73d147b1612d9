"""The binary frame that a tag sends over its serial line or radio, and a decoder that finds frames in any noise.

On the line a frame is `0x00`, the COBS coding of its bytes, `0x00`. Those bytes, all numbers little-endian:

    version   u8      1
    tag       u8 + n  length, then the barcode in ASCII, 1 to 20 letters, digits or _ . : -
    tag_boot  u32     how often the tag has started; a tag that cannot keep count draws a number at every start
    tag_seq   u32     counts every frame of one boot, from 0; a frame that is sent again keeps its number
    items             type u8, length u16, then that many bytes; each type at most once, in any order
    crc       u32     CRC-32 (that of zlib and Ethernet) over all of the above

An item of a quantity holds a float32, or no byte at all: the sensor said null. What was not measured has no item.
Items of a type or length that is not known here are skipped, so a newer tag can talk to an older gateway.

Why 32 bits: 10 MB of random bytes hold 10e6 / 256 = 39,000 stretches between zeros, each a candidate. A CRC-16 alone
would let 39,000 / 2**16 = 0.6 false frames through, CRC-32 alone 9e-6. One stretch in 150 is COBS to its end, and of
those fewer than one in 10,000 has version 1, a length, and as many characters of a barcode. Below 1e-11 are left.
"""

import math
import re
import struct
import zlib
from collections.abc import Iterator
from typing import Final

import msgspec

from twin_client.protocol.cobs import stuff, unstuff
from twin_client.protocol.errors import ProtocolError
from twin_client.protocol.pieces import Pieces
from twin_client.protocol.records import Measure, Position, Reading, Stamp, Window

VERSION: Final = 1
LARGEST: Final = 16_384  # bytes of a frame before COBS; two seconds of three axes at 1,300 samples a second fit
LONGEST: Final = LARGEST + LARGEST // 254 + 1  # ... in COBS
SMALLEST: Final = 15  # one letter of a tag, and no item

QUANTITIES: Final = {  # by item type; each with its unit
    0x01: "strain",  # µm/m, stretched is positive
    0x02: "extensometer",  # mm, opening is positive
    0x03: "tilt_x",  # degrees
    0x04: "tilt_y",  # degrees
    0x05: "temperature",  # °C
    0x06: "vibration_rms",  # mm/s
    0x07: "vibration_peak",  # mm/s, the peak particle velocity
    0x08: "pore_pressure",  # kPa
    0x09: "load",  # kN, of an anchor or a bolt
    0x0A: "humidity",  # % relative
    0x0B: "air_pressure",  # hPa
    0x0C: "rain",  # mm since the frame before
    0x0D: "wind",  # m/s
}
NAMED: Final = 0x7F  # any other quantity: length u8 and name in ASCII, then the float32 or nothing; may come repeatedly
BATTERY: Final = 0x80  # float32, volts
SIGNAL: Final = 0x81  # float32, dBm; written by the radio receiver at the gateway, not by the tag
POSITION: Final = (
    0x82  # i32 latitude, i32 longitude, both 1e-7 degrees, float32 error in m, float32 height in m or nothing
)
WINDOW: Final = 0x83  # float32 samples a second, float32 units a count, u8 axes, then the counts as i16

COUNTERS: Final = (
    "frames",  # good ones
    "bad_cobs",  # stretches between zeros that are no COBS
    "bad_crc",  # ... whose check does not hold, or that are too short to have one
    "malformed",  # the check holds, the structure does not: a fault of the tag's program
    "newer_version",  # good frames of a version that is not read here
    "too_long",  # stretches without a zero that no frame can be
    "skipped_bytes",  # all bytes that were no part of a good frame, zeros aside
    "unknown_items",  # items of good frames whose type or length is not known here
    "bad_items",  # items of good frames that cannot be: a latitude of 200°, a second strain, a NaN (read as null)
)

_CODES: Final = {name: code for code, name in QUANTITIES.items()}
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,19}")  # what a command that pairs can name, cut to 20
_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_NUMBERS = struct.Struct("<II")
_ITEM = struct.Struct("<BH")
_FLOAT = struct.Struct("<f")
_PLACE = struct.Struct("<iif")
_SAMPLED = struct.Struct("<ffB")
_CRC = struct.Struct("<I")


class Frame(msgspec.Struct, frozen=True):
    """What a tag says at once. `None` among `values` is the sensor's own null; what was not measured is no key.

    Numbers are those of the wire: values are float32, given as the shortest decimal that is the same float32;
    positions are in steps of 1e-7 degrees.
    """

    tag: str
    tag_boot: int
    tag_seq: int
    values: dict[str, float | None] = {}
    window: Window | None = None
    position: Position | None = None
    signal: float | None = None  # dBm
    battery: float | None = None  # volts

    def to_bytes(self) -> bytes:
        """As it goes over the line, zeros at both ends included. Raises ProtocolError where no frame can hold it."""
        try:
            body = b"".join(self._parts())
        except (struct.error, OverflowError, UnicodeEncodeError, ValueError) as error:
            raise ProtocolError(f"frame {self.tag_seq} of tag {self.tag!a:.60}: {error}") from error
        if len(body) + _CRC.size > LARGEST:
            raise ProtocolError(f"frame {self.tag_seq} of tag {self.tag} has {len(body) + 4} bytes, over {LARGEST}")
        return b"\0" + stuff(body + _CRC.pack(zlib.crc32(body))) + b"\0"

    @classmethod
    def from_bytes(cls, data: bytes) -> "Frame":
        """The one frame that `data` is, with its zeros or without. Raises ProtocolError where it is none."""
        decoder = Decoder()
        frames = decoder.feed(b"\0" + data + b"\0")
        if len(frames) != 1 or decoder.counters["skipped_bytes"]:
            found = ", ".join(f"{name} {count}" for name, count in decoder.counters.items() if count)
            raise ProtocolError(f"{len(data)} bytes are not one frame: {found or 'nothing but zeros'}")
        return frames[0]

    def _parts(self) -> Iterator[bytes]:
        if not _TAG.fullmatch(self.tag):
            raise ValueError("a tag's name is 1 to 20 letters, digits or _ . : -, the first a letter or digit")
        yield bytes((VERSION, len(self.tag))) + self.tag.encode() + _NUMBERS.pack(self.tag_boot, self.tag_seq)
        for name, value in self.values.items():
            number = b"" if value is None else _float32(value)
            code = _CODES.get(name, NAMED)
            if code == NAMED:
                if not _NAME.fullmatch(name):
                    raise ValueError(f"{name!a:.60} is no quantity: a to z, 0 to 9 and _, at most 32")
                number = bytes((len(name),)) + name.encode() + number
            yield _ITEM.pack(code, len(number)) + number
        for code, level in ((BATTERY, self.battery), (SIGNAL, self.signal)):
            if level is not None:
                yield _ITEM.pack(code, 4) + _float32(level)
        if (at := self.position) is not None:
            degrees = (round(at.latitude * 1e7), round(at.longitude * 1e7))
            place = _PLACE.pack(*degrees, at.error) + (b"" if at.height is None else _float32(at.height))
            if _position(place) is None:
                raise ValueError(f"no place: {at}")
            yield _ITEM.pack(POSITION, len(place)) + place
        if (window := self.window) is not None:
            sampled = _SAMPLED.pack(window.rate, window.scale, window.axes) + window.counts
            if _window(sampled) is None:
                raise ValueError("no window: rate and scale are positive, axes 1 to 9, counts whole samples")
            yield _ITEM.pack(WINDOW, len(sampled)) + sampled


class Decoder:
    """Finds the good frames in a stream of bytes, however it is cut and whatever else is in it. Never raises.

    It holds at most one frame's bytes from one call to the next. `counters` (names in `COUNTERS`) only grow.
    """

    def __init__(self) -> None:
        self.counters: dict[str, int] = dict.fromkeys(COUNTERS, 0)
        self._pieces = Pieces(b"\0", LONGEST, self.counters)

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes, in order."""
        frames = []
        for piece in self._pieces.cut(data):
            frame = self._frame(piece)
            if frame is None:
                self.counters["skipped_bytes"] += len(piece)
            else:
                frames.append(frame)
        return frames

    def reset(self) -> None:
        """Give up on a frame that has begun: the line was cut, and what comes next is not its end."""
        self._pieces.reset()

    def _frame(self, piece: bytes) -> Frame | None:
        count = self.counters
        body = unstuff(piece)
        if body is None:
            count["bad_cobs"] += 1
            return None
        if len(body) < SMALLEST or _CRC.unpack_from(body, len(body) - 4)[0] != zlib.crc32(body[:-4]):
            count["bad_crc"] += 1
            return None
        if body[0] != VERSION:
            count["newer_version" if body[0] > VERSION else "malformed"] += 1
            return None
        try:
            frame, unknown, bad = _parse(body)
        except (struct.error, UnicodeDecodeError, ValueError):
            count["malformed"] += 1
            return None
        count["frames"] += 1
        count["unknown_items"] += unknown
        count["bad_items"] += bad
        return frame


def reading_of(frame: Frame, at: Stamp, signal: float | None = None) -> Reading:
    """The record of a frame that arrived `at`. `signal`, dBm, where the receiver said it beside the frame."""
    return Reading(
        at=at,
        tag=frame.tag,
        tag_boot=frame.tag_boot,
        tag_seq=frame.tag_seq,
        values={name: Measure(value, value) for name, value in frame.values.items()},
        window=frame.window,
        position=frame.position,
        signal=frame.signal if signal is None else signal,
        battery=frame.battery,
    )


def _parse(body: bytes) -> tuple[Frame, int, int]:
    """The frame, how many of its items are not known here, and how many cannot be. Raises ValueError, struct.error."""
    end = len(body) - _CRC.size
    at = 2 + body[1]
    tag = body[2:at].decode("ascii")
    if not _TAG.fullmatch(tag):
        raise ValueError("no tag")
    boot, seq = _NUMBERS.unpack_from(body, at)
    at += _NUMBERS.size
    values: dict[str, float | None] = {}
    levels: dict[int, float | None] = {}
    position: Position | None = None
    window: Window | None = None
    unknown = bad = 0
    while at < end:
        code, length = _ITEM.unpack_from(body, at)
        begin = at + _ITEM.size
        at = begin + length
        name = QUANTITIES.get(code)
        if at > end:
            raise ValueError("an item reaches beyond the frame")
        if code == NAMED and length:
            begin += 1 + body[begin]
            name = body[at - length + 1 : begin].decode("ascii", "replace")
            length = at - begin
            if not _NAME.fullmatch(name) or name in _CODES:
                bad += 1
                continue
        if length in (0, 4) and (name is not None or code in (BATTERY, SIGNAL)):
            value = _finite(body, begin) if length else None
            bad += bool(length and value is None)
            if name is None:
                bad += code in levels
                levels.setdefault(code, value)
            else:
                bad += name in values
                values.setdefault(name, value)
        elif code == POSITION and length in (_PLACE.size, _PLACE.size + 4):
            found = _position(body[begin:at])
            bad += found is None or position is not None
            position = position or found
        elif code == WINDOW and length >= _SAMPLED.size:
            sampled = _window(body[begin:at])
            bad += sampled is None or window is not None
            window = window or sampled
        else:
            unknown += 1
    if at != end:
        raise ValueError("no room for the numbers of the frame")
    return Frame(tag, boot, seq, values, window, position, levels.get(SIGNAL), levels.get(BATTERY)), unknown, bad


def _position(data: bytes) -> Position | None:
    latitude, longitude, error = _PLACE.unpack_from(data)
    height = _finite(data, _PLACE.size) if len(data) > _PLACE.size else None
    if not (abs(latitude) <= 90e7 and abs(longitude) <= 180e7 and 0 <= error < math.inf):
        return None
    return Position(latitude / 1e7, longitude / 1e7, height, _plain(error))


def _window(data: bytes) -> Window | None:
    rate, scale, axes = _SAMPLED.unpack_from(data)
    if not (0 < rate < math.inf and 0 < scale < math.inf and 1 <= axes <= 9):
        return None
    if (len(data) - _SAMPLED.size) % (2 * axes):
        return None
    return Window(_plain(rate), _plain(scale), axes, data[_SAMPLED.size :])


def _finite(data: bytes, at: int) -> float | None:
    (value,) = _FLOAT.unpack_from(data, at)
    return _plain(value) if math.isfinite(value) else None


def _float32(value: float) -> bytes:
    if not math.isfinite(value):
        raise ValueError(f"{value} is not a measured value; say null")
    return _FLOAT.pack(value)


def _plain(value: float) -> float:
    """The shortest decimal that is the same float32: 0.1 instead of 0.10000000149011612, which costs a slow link."""
    wire = _FLOAT.pack(value)
    for digits in (6, 7, 8):
        short = float(f"{value:.{digits}g}")
        if _FLOAT.pack(short) == wire:
            return short
    return float(f"{value:.9g}")
