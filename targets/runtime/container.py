"""The one zip layout an artifact may have: stored members, fixed times and attributes, nothing beside them.

Written and parsed here byte by byte, not through `zipfile`, for two reasons: the bytes must not depend on
the Python that wrote or checks them, and a reader that accepts exactly one layout has no room for a hidden
member, a second directory, a compressed bomb or a name that leaves the folder.
"""

import io
import math
import re
import struct
import zlib
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from targets.runtime.errors import HighwallError

MAX_BYTES: Final = 256 * 2**20  # a gateway has 512 MiB in all; a model of this size could never run there
_LOCAL: Final = struct.Struct("<4s5H3I2H")
_ENTRY: Final = struct.Struct("<4s6H3I5H2I")
_END: Final = struct.Struct("<4s4H2IH")
_LOCAL_MARK: Final = b"PK\x03\x04"
_VERSION: Final = 20
_TIME, _DATE = 0, 0x21  # 1980-01-01 00:00, the first moment a zip can name
_UNIX: Final = 3 << 8
_MODE: Final = 0o100644 << 16
_NAME: Final = re.compile(rb"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_NPY: Final = re.compile(
    rb"\{'descr': '(<f4|<f8|<i8|<u4|<u2|\|u1)', 'fortran_order': False, "
    rb"'shape': \(((?:\d{1,9}, ?){0,4}(?:\d{1,9})?)\), \} *\n"
)


def pack(members: Mapping[str, bytes]) -> bytes:
    """The bytes of the zip that holds `members` (at most MAX_BYTES in all) in their order."""
    body, directory = bytearray(), bytearray()
    for name, data in members.items():
        label, size = name.encode("ascii"), len(data)
        common = (_VERSION, 0, 0, _TIME, _DATE, zlib.crc32(data), size, size, len(label), 0)
        directory += _ENTRY.pack(b"PK\x01\x02", _UNIX | _VERSION, *common, 0, 0, 0, _MODE, len(body)) + label
        body += _LOCAL.pack(_LOCAL_MARK, *common) + label + data
    count = len(members)
    end = _END.pack(b"PK\x05\x06", 0, 0, count, count, len(directory), len(body), 0)
    return bytes(body + directory + end)


def unpack(data: bytes, where: str) -> dict[str, bytes]:
    """The members of a zip that `pack` wrote, in order.

    Raises HighwallError, beginning with `where`, for any other bytes: packing what was read must give `data`.
    """
    if not data:
        raise HighwallError(f"{where} is empty; copy it again from where it was built")
    if not data.startswith(_LOCAL_MARK):
        raise HighwallError(f"{where} is not a Highwall artifact: it is no zip file or does not begin as one")
    members: dict[str, bytes] = {}
    at = 0
    while data.startswith(_LOCAL_MARK, at):
        name, member, at = _member(data, at, where)
        if name in members:
            raise HighwallError(f"{where} holds {name} twice; it was tampered with, build it again")
        members[name] = member
    whole = pack(members)
    if whole != data:
        if whole.startswith(data):
            raise HighwallError(f"{where} is truncated in its directory; copy it again")
        if data.startswith(whole):
            extra = len(data) - len(whole)
            raise HighwallError(f"{where} has {extra} bytes after its end that are no part of it")
        raise HighwallError(f"{where} is damaged: the bytes after member {name} are not those Highwall writes")
    return members


def _member(data: bytes, at: int, where: str) -> tuple[str, bytes, int]:
    """Name, data and end of the member whose local header begins at `at`."""
    if len(data) < at + _LOCAL.size:
        raise HighwallError(f"{where} is truncated in a member's header; copy it again")
    _, _, _, method, _, _, crc, packed, size, name_length, extra = _LOCAL.unpack_from(data, at)
    label = data[at + _LOCAL.size : at + _LOCAL.size + name_length]
    if len(label) < name_length:
        raise HighwallError(f"{where} is truncated in a member's name; copy it again")
    if not _NAME.fullmatch(label):
        raise HighwallError(f"{where} holds a member named {label[:80]!r}, which no artifact has")
    name = label.decode("ascii")
    if method != 0 or packed != size or extra:
        raise HighwallError(f"{where}: member {name} is compressed or extended; artifacts store members plain")
    if size > MAX_BYTES:
        raise HighwallError(f"{where}: member {name} claims {size} bytes; at most {MAX_BYTES} are read")
    start = at + _LOCAL.size + name_length
    member = data[start : start + size]
    if len(member) < size:
        raise HighwallError(f"{where} is truncated in member {name}; copy it again")
    if zlib.crc32(member) != crc:
        raise HighwallError(f"{where}: member {name} is damaged (its checksum differs); copy it again")
    return name, member, start + size


def pack_arrays(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """An uncompressed npz of `arrays`, the same bytes for the same arrays; `numpy.load` reads it."""
    members = {}
    for name, array in arrays.items():
        stream = io.BytesIO()
        little = np.asarray(array, dtype=np.asarray(array).dtype.newbyteorder("<"), order="C")
        np.lib.format.write_array(stream, little, version=(1, 0), allow_pickle=False)
        members[f"{name}.npy"] = stream.getvalue()
    return pack(members)


def unpack_arrays(data: bytes, where: str) -> dict[str, NDArray[Any]]:
    """The arrays of an npz that `pack_arrays` wrote.

    Headers are matched, not evaluated, and no byte is reserved that the file does not hold.
    Raises HighwallError, beginning with `where`.
    """
    return {
        name.removesuffix(".npy"): _array(member, f"{where}: {name}") for name, member in unpack(data, where).items()
    }


def _array(data: bytes, where: str) -> NDArray[Any]:
    if not data.startswith(b"\x93NUMPY\x01\x00") or len(data) < 10:
        raise HighwallError(f"{where} is not a numpy array of format 1.0")
    start = 10 + int.from_bytes(data[8:10], "little")
    match = _NPY.fullmatch(data[10:start])
    if match is None:
        raise HighwallError(f"{where} has an array header that Highwall does not write")
    dtype = np.dtype(match[1].decode("ascii"))
    shape = tuple(int(number) for number in match[2].replace(b",", b" ").split())
    if math.prod(shape) * dtype.itemsize != len(data) - start:
        raise HighwallError(f"{where} says its shape is {shape} but holds {len(data) - start} bytes")
    try:
        return np.ndarray(shape, dtype, buffer=data, offset=start)
    except ValueError as error:  # no pixels, yet sides whose product overflows
        raise HighwallError(f"{where} says its shape is {shape}, which no array can have") from error
