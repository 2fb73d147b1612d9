"""Text lines of loggers that know no tag frames: one JSON object a line, or CSV with columns that are declared.

    {"tag": "L-1", "boot": 2, "seq": 17, "battery": 3.6, "values": {"strain": 12.5, "temperature": null}}

Of JSON only `values` must be there; `signal` (dBm), `position` (latitude, longitude, error, height) and keys that
are not known here may be. In CSV an empty field was not measured; `null`, `none` and `nan` are the sensor's own null.

Text carries no check: a flipped bit can turn one number into another, and nobody can tell. Where a tag can speak
frames it should. What keeps numbers right all the same: every field is read strictly, and of CSV the first line after
the port was opened is thrown away, because a line whose beginning is missing can look whole.
"""

import csv
import math
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Final, Literal

import msgspec

from twin_client.protocol.errors import ProtocolError
from twin_client.protocol.pieces import Pieces
from twin_client.protocol.records import Position
from twin_client.protocol.tags import Frame

LONGEST: Final = 8_192  # bytes of a line
MOST_TAGS: Final = 1_000  # that are numbered here, those of the marks aside: garbage may not fill the memory

COUNTERS: Final = (
    "lines",  # good ones
    "bad_lines",  # what is no line of this kind
    "too_long",  # stretches without an end that no line can be
    "skipped_bytes",  # all bytes that were no part of a good line
    "restarts",  # loggers without a count of their starts, whose own numbers began anew
)

PLACES: Final = ("latitude", "longitude", "error", "height")
FIELDS: Final = ("tag", "boot", "seq", "battery", "signal", *PLACES)  # columns that are no quantity

_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_COUNT = re.compile(r"[0-9]{1,10}")
_SWAPPED: Final = str.maketrans(",.", ".,")
_NULLS: Final = ("null", "none", "nan")
_NOT_JSON = re.compile(rb"(?<=[:\s,])(?:[Nn]a[Nn]|-?Infinity)(?=\s*[,}])")  # what careless loggers print for null

Tag = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}\Z")]
Quantity = Annotated[str, msgspec.Meta(pattern=r"\A[a-z][a-z0-9_]{0,31}\Z")]
Count = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]


class Text(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the lines of a port are read."""

    tag: Tag | None = None  # whose lines these are, where a line does not say so itself
    columns: tuple[Annotated[str, msgspec.Meta(pattern=r"\A(?:-|[a-z][a-z0-9_]{0,31})\Z")], ...] = ()  # `-`: ignored
    separator: Literal[",", ";", "\t", "|"] = ","
    decimal: Literal[".", ","] = "."

    def __post_init__(self) -> None:
        named = [column for column in self.columns if column != "-"]
        if len(set(named)) < len(named):
            raise ValueError("columns: a name is there twice")
        if self.separator == self.decimal:
            raise ValueError("decimal: the comma is the separator already")
        if self.columns and self.tag is None and "tag" not in self.columns:
            raise ValueError("tag: neither given nor a column")
        if 0 < len({"latitude", "longitude", "error"} & set(named)) < 3 or ("height" in named and "error" not in named):
            raise ValueError("columns: a place is latitude, longitude and error, and height if it is known")


class _Place(msgspec.Struct, frozen=True):
    latitude: Annotated[float, msgspec.Meta(ge=-90, le=90)]
    longitude: Annotated[float, msgspec.Meta(ge=-180, le=180)]
    error: Annotated[float, msgspec.Meta(ge=0)]
    height: float | None = None


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    """A line as it was said: what it does not say is None, and numbered later."""

    values: dict[Quantity, float | None]  # must be there, or any object would be a line
    tag: Tag | None = None
    boot: Count | None = None
    seq: Count | None = None
    position: _Place | None = None
    signal: float | None = None
    battery: float | None = None


_json: Final = msgspec.json.Decoder(_Line)


class LineDecoder:
    """Finds the good lines in a stream of bytes, however it is cut. `feed` never raises; `counters` only grow.

    Loggers that do not number their lines are numbered here: on from `marks` ({tag: (boot, seq)}, the last that is
    known of each), or from 0 in the boot `boot`, which must never have been used before. A logger that numbers its
    lines but does not count its starts has started anew where its numbers fall.
    """

    def __init__(
        self,
        kind: Literal["json", "csv"],
        text: Text,
        boot: int,
        marks: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        if kind == "csv" and not text.columns:
            raise ProtocolError("columns: CSV cannot be read without")
        self.counters: dict[str, int] = dict.fromkeys(COUNTERS, 0)
        self._text = text
        self._read: Callable[[bytes], _Line | None] = self._json_line if kind == "json" else self._csv_line
        # Half a JSON object is none, half a CSV line may be one.
        self._pieces = Pieces(b"\n", LONGEST, self.counters, headless=kind == "csv")
        self._boot = boot
        self._marks = dict(marks or {})
        self._most = len(self._marks) + MOST_TAGS

    def feed(self, data: bytes) -> list[Frame]:
        """The lines that `data` completes, in order, in the form of frames."""
        frames: list[Frame] = []
        for piece in self._pieces.cut(data.replace(b"\r", b"\n")):
            if line := piece.strip():
                self._take(line, frames)
        return frames

    def reset(self) -> None:
        """Give up on a line that has begun: the line was cut, and what comes next is not its end."""
        self._pieces.reset()

    def _take(self, line: bytes, frames: list[Frame]) -> None:
        try:
            said = self._read(line)
            if said is not None:
                frames.append(self._numbered(said))
                self.counters["lines"] += 1
        except (msgspec.MsgspecError, ValueError, RecursionError, csv.Error):
            self.counters["bad_lines"] += 1
            self.counters["skipped_bytes"] += len(line)

    def _json_line(self, line: bytes) -> _Line:
        try:
            return _json.decode(line)
        except msgspec.DecodeError:
            return _json.decode(_NOT_JSON.sub(b"null", line))

    def _csv_line(self, line: bytes) -> _Line | None:
        (fields,) = csv.reader([line.decode()], delimiter=self._text.separator, strict=True)
        said = [field.strip() for field in fields]
        if len(said) != len(self._text.columns):
            raise ValueError("columns are missing, or are too many")
        if tuple(said) == self._text.columns:
            return None  # the heading, which loggers print when they start
        columns = dict(zip(self._text.columns, said, strict=True))
        columns.pop("-", None)
        tag, boot, seq = (columns.pop(name, "") for name in ("tag", "boot", "seq"))
        numbers = {name: self._number(field) for name, field in columns.items() if field}
        place = {name: numbers.pop(name) for name in PLACES if name in numbers}
        line_of = {
            "tag": tag or None,
            "boot": _count(boot),
            "seq": _count(seq),
            "battery": numbers.pop("battery", None),
            "signal": numbers.pop("signal", None),
            "position": place if place and None not in (place.get(name) for name in PLACES[:3]) else None,
            "values": numbers,
        }
        return msgspec.convert(line_of, _Line)

    def _number(self, field: str) -> float | None:
        if field.lower() in _NULLS:
            return None
        # Where the comma is the decimal, 1.234 may well be a thousand: refused rather than guessed.
        plain = field.translate(_SWAPPED) if self._text.decimal == "," else field
        if not _NUMBER.fullmatch(plain) or not math.isfinite(float(plain)):
            raise ValueError(f"{field!a} is no number")
        return float(plain)

    def _numbered(self, line: _Line) -> Frame:
        tag = line.tag or self._text.tag
        if tag is None:
            raise ValueError("whose line this is, neither it nor the settings say")
        boot, seq = line.boot, line.seq
        if boot is None or seq is None:
            boot, seq = self._counted(tag, boot, seq)
        at = line.position
        position = None if at is None else Position(at.latitude, at.longitude, at.height, at.error)
        return Frame(tag, boot, seq, dict(line.values), None, position, line.signal, line.battery)

    def _counted(self, tag: str, boot: int | None, seq: int | None) -> tuple[int, int]:
        """Number what is not numbered, and remember it."""
        known = self._marks.get(tag)
        if known is None and len(self._marks) >= self._most:
            raise ValueError("garbage has made up more tags than there can be")
        last_boot, last = (self._boot, -1) if known is None else known
        if boot is None:
            fell = seq is not None and seq < last
            self.counters["restarts"] += fell
            boot = last_boot + fell
        if seq is None:
            seq = last + 1 if boot == last_boot else 0
        self._marks[tag] = boot, seq
        return boot, seq


def _count(field: str) -> int | None:
    if field and not _COUNT.fullmatch(field):
        raise ValueError(f"{field!a} is no count")
    return int(field) if field else None
