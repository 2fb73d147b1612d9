"""Reading an ELF file as far as the gate asks: for which machine, what it needs, where its code is.

The file may be damaged or made to harm: every offset and count is checked against the bytes there are, and whatever
does not fit raises HighwallError. Layouts are those of the System V ABI, chapters 4 and 5, and of the GNU version
extension (Linux Standard Base 5.0, section 10.7).
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from targets.runtime.errors import HighwallError, plain

MAGIC: Final = b"\x7fELF"
AARCH64: Final = 183
MACHINES: Final = {
    **{3: "i386", 8: "MIPS", 20: "PowerPC", 21: "ppc64le", 22: "s390x", 40: "armv7l (32-bit ARM)", 62: "x86_64"},
    **{AARCH64: "aarch64", 243: "RISC-V", 247: "BPF", 258: "LoongArch"},
}
_SHARED, _PROGRAM = 3, 2
_LOAD, _DYNAMIC, _INTERPRETER = 1, 2, 3
_EXECUTABLE_SEGMENT, _EXECUTABLE_SECTION = 1, 4
_NOBITS, _SYMBOL_TABLES = 8, (2, 11)
_NEEDED, _STRTAB, _STRSZ, _SONAME, _VERNEED, _VERNEEDNUM = 1, 5, 10, 14, 0x6FFFFFFE, 0x6FFFFFFF
_MOST = 1 << 16  # entries of one table: far more than any library has
_SYMBOL: Final = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8")]
)
Segment = tuple[int, int, int, int, int]  # type, flags, offset, address, size in the file


@dataclass(frozen=True)
class Elf:
    """A shared library or program for 64-bit ARM.

    `needed` are the libraries it asks for, `versions` the symbol versions of them (`GLIBC_2.17`); `code` is what
    can be executed, as (offset, size) in the file.
    """

    data: bytes
    program: bool
    soname: str
    needed: tuple[str, ...]
    versions: tuple[str, ...]
    code: tuple[tuple[int, int], ...]
    segments: tuple[Segment, ...]
    tables: tuple[tuple[int, int, int, int], ...]

    @property
    def glibc(self) -> tuple[int, ...]:
        """The newest glibc whose symbols it uses, (2, 17) for GLIBC_2.17; (0,) for none."""
        found = [re.fullmatch(r"GLIBC_(\d{1,4}(?:\.\d{1,4})*)", version) for version in self.versions]
        return max((tuple(map(int, match[1].split("."))) for match in found if match), default=(0,))

    def asks_for_features(self) -> bool:
        """Whether it calls getauxval, by which a program learns which instructions its CPU has."""
        return any(b"getauxval\0" in names for _, names in self._symbol_tables())

    def place(self, offset: int) -> str:
        """Where byte `offset` of the file is loaded: `+0x1a2b0`, with the function it lies in where that is known."""
        rows = (row for row in self.segments if row[0] == _LOAD and row[2] <= offset < row[2] + row[4])
        address = next((at + offset - start for _, _, start, at, _ in rows), offset) % (1 << 64)
        name = self._function(address)
        return f"+0x{address:x}{f' ({name})' if name else ''}"

    def _function(self, address: int) -> str:
        for symbols, names in self._symbol_tables():
            inside = symbols["value"] <= address
            inside &= address - symbols["value"] < np.maximum(symbols["size"], 1)
            inside &= (symbols["info"] & 15 == 2) & (symbols["section"] != 0)
            for at in symbols["name"][inside][:1]:
                return _text(names, int(at))
        return ""

    def _symbol_tables(self) -> Iterator[tuple[NDArray[Any], bytes]]:
        for offset, size, names_at, names_size in self.tables:
            symbols = np.frombuffer(self.data, _SYMBOL, size // _SYMBOL.itemsize, offset)
            yield symbols, self.data[names_at : names_at + names_size]


def read_elf(data: bytes) -> Elf:
    """What `data` holds. Raises HighwallError, in words that follow the file's name, for anything else."""
    try:
        return _read(data)
    except (struct.error, ValueError, OverflowError, IndexError) as error:
        raise HighwallError(f"is damaged: {error}") from error


def _read(data: bytes) -> Elf:
    if not data.startswith(MAGIC):
        raise HighwallError("is no ELF file, so no library Linux can load")
    if len(data) < 64:
        raise HighwallError("is truncated in its header")
    machine = int.from_bytes(data[18:20], "big" if data[5] == 2 else "little")
    if machine != AARCH64:
        raise HighwallError(f"is for {MACHINES.get(machine, f'machine {machine}')}, not for aarch64")
    if data[4] != 2 or data[5] != 1:
        raise HighwallError("is for aarch64, but not the little-endian 64-bit one that boards run")
    kind = int.from_bytes(data[16:18], "little")
    if kind not in (_SHARED, _PROGRAM):
        raise HighwallError("is an object file or the like, no shared library; link it first")
    program_at, section_at, _, _, program_size, programs, section_size, sections, _ = struct.unpack_from(
        "<2QI6H", data, 32
    )
    segments = tuple(_segments(data, program_at, program_size, programs))
    rows = _sections(data, section_at, section_size, sections)
    code = [(at, size) for kind_, flags, at, size, _ in rows if flags & _EXECUTABLE_SECTION and kind_ != _NOBITS]
    if not code:  # section headers may be stripped
        code = [(at, size) for kind_, flags, at, _, size in segments if kind_ == _LOAD and flags & _EXECUTABLE_SEGMENT]
    for at, size in code:
        _inside(data, at, size, "its code")
    needed, soname, versions = _dynamic(data, segments)
    return Elf(
        data=data,
        program=kind == _PROGRAM or any(segment[0] == _INTERPRETER for segment in segments),
        soname=soname,
        needed=needed,
        versions=versions,
        code=tuple((at, size) for at, size in code),
        segments=segments,
        tables=tuple(_tables(data, rows)),
    )


def _segments(data: bytes, at: int, size: int, count: int) -> Iterator[Segment]:
    if count and size < 56:
        raise HighwallError(f"is damaged: its program headers are {size} bytes long, not 56")
    _inside(data, at, size * count, "its program headers")
    for row in range(count):
        kind, flags, offset, address, _, length = struct.unpack_from("<2I4Q", data, at + row * size)
        if kind in (_LOAD, _DYNAMIC):
            _inside(data, offset, length, "a segment")
        yield kind, flags, offset, address, length


def _sections(data: bytes, at: int, size: int, count: int) -> list[tuple[int, int, int, int, int]]:
    """Type, flags, offset, size and link of every section; none where the headers are not there."""
    if not at or not count or size < 64 or at + size * count > len(data):
        return []
    found = []
    for row in range(count):
        _, kind, flags, _, offset, length, link = struct.unpack_from("<2I4QI", data, at + row * size)
        found.append((kind, flags, offset, length, link))
    return found


def _tables(data: bytes, rows: list[tuple[int, int, int, int, int]]) -> Iterator[tuple[int, int, int, int]]:
    """Offset and size of every whole symbol table and of its names; they only help, so a faulty one is left out."""
    for kind, _, offset, size, link in rows:
        if kind in _SYMBOL_TABLES and link < len(rows):
            _, _, names_at, names_size, _ = rows[link]
            if size >= _SYMBOL.itemsize and offset + size <= len(data) and names_at + names_size <= len(data):
                yield offset, size, names_at, names_size


def _dynamic(data: bytes, segments: tuple[Segment, ...]) -> tuple[tuple[str, ...], str, tuple[str, ...]]:
    """Needed libraries, own name and needed symbol versions, of the dynamic segment."""
    entries: list[tuple[int, int]] = []
    for kind, _, offset, _, size in segments:
        if kind == _DYNAMIC:
            if size // 16 > _MOST:
                raise HighwallError("is damaged: its dynamic segment has more entries than any library")
            entries = list(struct.iter_unpack("<2Q", data[offset : offset + size // 16 * 16]))
    ends = [row for row, (tag, _) in enumerate(entries) if tag == 0]
    entries = entries[: ends[0]] if ends else entries
    values = dict(entries)
    if _STRTAB not in values:
        return (), "", ()
    start = _offset(segments, values[_STRTAB], "its names")
    names = data[start : start + values.get(_STRSZ, 0)]
    needed = tuple(_text(names, value) for tag, value in entries if tag == _NEEDED)
    versions: tuple[str, ...] = ()
    if _VERNEED in values:
        at = _offset(segments, values[_VERNEED], "its symbol versions")
        versions = tuple(dict.fromkeys(_versions(data, at, values.get(_VERNEEDNUM, 0), names)))
    return needed, _text(names, values[_SONAME]) if _SONAME in values else "", versions


def _versions(data: bytes, at: int, count: int, names: bytes) -> Iterator[str]:
    """The names in a chain of libraries, each with a chain of versions; a chain only ever goes forward."""
    left = _MOST
    for _ in range(min(count, _MOST)):
        _, versions, _, first, following = struct.unpack_from("<2H3I", data, at)
        inner = at + first
        for _ in range(versions):
            left -= 1
            if left < 0:
                raise HighwallError("is damaged: it asks for more symbol versions than there can be")
            _, _, _, name, step = struct.unpack_from("<I2H2I", data, inner)
            yield _text(names, name)
            if not step:
                break
            inner += step
        if not following:
            return
        at += following


def _offset(segments: tuple[Segment, ...], address: int, what: str) -> int:
    """Where in the file the byte at `address` of memory is."""
    for kind, _, offset, start, size in segments:
        if kind == _LOAD and start <= address < start + size:
            return offset + address - start
    raise HighwallError(f"is damaged: {what} are outside of what it loads")


def _inside(data: bytes, at: int, size: int, what: str) -> None:
    if at + size > len(data):
        raise HighwallError(f"is truncated: {what} would end at byte {at + size} of {len(data)}")


def _text(names: bytes, at: int) -> str:
    """The name at `at`, fit to be printed."""
    if at >= len(names):
        raise HighwallError("is damaged: a name lies outside of its names")
    raw = names[at : names.find(b"\0", at, at + 256) if b"\0" in names[at : at + 256] else at + 256]
    return plain(raw.decode("utf-8", "replace"))
