"""The outbox to files on a stick, for a site without a link; the twin imports them, and knows what it has already.

In `DIR/GATEWAY/` lie batches, `EPOCH-FIRST-LAST.batch`, each the payload that would have gone up (`records.Batch` as a
zlib stream), and `index.json` with the size, digest and numbers of each. Nothing leaves the outbox by this: rows go
when the twin acknowledges them, or with `forget`, after every file has been read back from the stick. Files that were
taken from the stick since the last drain are written again where the outbox still has their rows; otherwise they are
the twin's, and leave the index.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from targets.runtime.errors import HighwallError
from targets.runtime.files import atomic_write
from twin_client.outbox import Outbox, Rows, Stored
from twin_client.protocol.dialect import Voice
from twin_client.protocol.dialects.highwall import Speaker, batch_in
from twin_client.protocol.errors import ProtocolError
from twin_client.protocol.ranges import Range, ranges_of, union

ROWS: Final = 1000  # of a file
BYTES: Final = 1 << 20


class File(msgspec.Struct, frozen=True):
    """One batch on the stick."""

    name: str
    sha256: str
    size: int  # bytes
    epoch: str
    rows: int
    first: int
    last: int


class Index(msgspec.Struct):
    """What lies in the folder; written anew after every file."""

    version: int
    gateway: str
    files: list[File] = []


def drain(
    outbox: Rows, gateway: str, to: Path, progress: Callable[[int, int], None] = lambda done, of: None
) -> tuple[Path, Index]:
    """Write all rows of `outbox` to `to`/`gateway`, and go on where an earlier drain stopped.

    `progress` is told rows done and rows in all. Raises HighwallError where the stick is full or is taken out; what
    is there then is whole.
    """
    folder = to / gateway
    index = _index(folder, gateway)
    there = {(file.epoch, file.first): file for file in index.files}
    whole: set[str] = set()  # the files that hold what is in the outbox now
    done, total = 0, outbox.count()
    for rows in _batches(outbox):
        file = _file(Speaker(gateway, Voice(compress=True)).batch(rows)[0].payload, rows)
        known = there.get((file[0].epoch, file[0].first))
        if known is None or known != file[0] or not _is_whole(folder, known):
            with atomic_write(folder / file[0].name) as partial:
                partial.write_bytes(file[1])
            index.files = [each for each in index.files if each.name != file[0].name] + [file[0]]
            _save(folder, index)
        whole.add(file[0].name)
        done += len(rows)
        progress(done, total)
    index.files = [each for each in index.files if each.name in whole or (folder / each.name).exists()]
    _save(folder, index)
    if hasattr(os, "sync"):
        os.sync()  # a stick is pulled out the moment that the command ends
    return folder, index


def check(folder: Path, index: Index) -> dict[str, list[Range]]:
    """Read every file back; the numbers that are there, by epoch. Raises HighwallError for one that is not whole."""
    held: dict[str, list[Range]] = {}
    for file in index.files:
        path = folder / file.name
        try:
            data = _read_back(path)
            if hashlib.sha256(data).hexdigest() != file.sha256:
                raise ProtocolError("it is not what was written")
            batch = batch_in(data)
        except (OSError, ProtocolError) as error:
            raise HighwallError(f"{path}: {error}; drain again, or use another stick") from error
        held[batch.epoch] = union(held.get(batch.epoch, []), ranges_of(entry.seq for entry in batch.entries))
    return held


def forget(outbox: Outbox, held: dict[str, list[Range]]) -> int:
    """Let what is on the stick leave the outbox; how many rows went."""
    return sum(outbox.acknowledge(epoch, ranges) for epoch, ranges in held.items())


def _batches(outbox: Rows) -> Iterator[Sequence[Stored]]:
    for epoch in outbox.epochs():
        first = 0
        while rows := outbox.read(epoch, first, ROWS, BYTES):
            yield rows
            first = rows[-1].seq + 1


def _file(payload: bytes, rows: Sequence[Stored]) -> tuple[File, bytes]:
    epoch, first, last = rows[0].epoch, rows[0].seq, rows[-1].seq
    name = f"{epoch}-{first:012d}-{last:012d}.batch"
    return File(name, hashlib.sha256(payload).hexdigest(), len(payload), epoch, len(rows), first, last), payload


def _is_whole(folder: Path, file: File) -> bool:
    try:
        return hashlib.sha256((folder / file.name).read_bytes()).hexdigest() == file.sha256
    except OSError:
        return False


def _read_back(path: Path) -> bytes:
    """What the stick itself gives, not what the memory has kept of the writing."""
    with path.open("rb") as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return file.read()


def _index(folder: Path, gateway: str) -> Index:
    path = folder / "index.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Index)
    except FileNotFoundError:
        return Index(1, gateway)
    except (OSError, msgspec.MsgspecError) as error:
        raise HighwallError(f"{path}: {error}; remove it, or name another folder") from error


def _save(folder: Path, index: Index) -> None:
    with atomic_write(folder / "index.json") as partial:
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(index), indent=1) + b"\n")
