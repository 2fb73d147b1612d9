"""What went over a line once, again: a capture, or the readings of a drained outbox, into a pty at their own pace.

Frames keep their boots and numbers, so that a gateway which has heard them drops them as repeated.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from targets.runtime.errors import HighwallError
from twin_client.protocol.dialects.highwall import batch_in
from twin_client.protocol.errors import ProtocolError
from twin_client.protocol.records import Reading
from twin_client.protocol.tags import Frame
from twin_client.sources.simulate import NAP_S, Port

_MOST_BEFORE: Final = 20
Said = tuple[float, bytes]  # seconds, and what went over the line then


def chunks(path: Path, bad: Callable[[str], None]) -> Iterator[Said]:
    """What lies in a capture, a batch, or a folder of batches. `bad` hears of each line or file that is none.

    Raises HighwallError where there is nothing at all to read. That is known only at the end, so what is bad before the
    first piece is held back until then, the first few of it; the error names one of them.
    """
    before: list[str] = []
    count = 0

    def hear(text: str) -> None:
        if count:
            bad(text)
        elif len(before) < _MOST_BEFORE:
            before.append(text)

    for said in _pieces(path, hear):
        if not count:
            for text in before:
                bad(text)
        count += 1
        yield said
    if not count:
        why = before[0] if before else "it is empty, or holds no readings"
        raise HighwallError(f"there is nothing in {path} to say again: {why}")


def _pieces(path: Path, bad: Callable[[str], None]) -> Iterator[Said]:
    if path.is_dir():
        found = list(path.rglob("*.batch"))
        if not found:
            raise HighwallError(f"there are no batches in {path}; name the folder that was drained to, or a capture")
        for file in _in_order(found):
            yield from _batch(file, bad)
    elif path.suffix == ".batch":
        yield from _batch(path, bad)
    else:
        yield from _capture(path, bad)


def replay(said: Iterator[Said], line: Port, speed: float, bad: Callable[[str], None]) -> int:
    """Say it again, `speed` times as fast; how many pieces there were. A line that nobody reads is waited for."""
    begun, first, count = time.monotonic(), None, 0
    for at, data in said:
        first = at if first is None else first
        while (left := begun + (at - first) / speed - time.monotonic()) > 0:
            time.sleep(min(left, NAP_S))  # no clock can sleep for what a damaged time may ask
        patience = time.monotonic() + 5.0
        while not line.write(data):
            if time.monotonic() > patience:
                bad("nobody reads the line; it is given up")
                return count
            time.sleep(0.02)
        count += 1
    return count


def _capture(path: Path, bad: Callable[[str], None]) -> Iterator[Said]:
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    said = json.loads(line)
                    at, data = float(said["time"]), bytes.fromhex(said["data"])
                    if not math.isfinite(at):
                        raise ValueError(f"{at} is no time")
                except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
                    bad(f"{path}:{number}: no piece of a capture: {error}")
                else:
                    yield at, data
    except OSError as error:
        raise HighwallError(f"cannot read {path}: {error.strerror or error}") from error


def _in_order(files: Sequence[Path]) -> list[Path]:
    """Epochs by the time of their first record, for their names are drawn by chance; within each by its numbers."""
    epochs: dict[tuple[Path, str], list[Path]] = {}
    for file in sorted(files):
        epochs.setdefault((file.parent, file.stem.rsplit("-", 2)[0]), []).append(file)
    return [file for epoch in sorted(epochs.values(), key=_begun) for file in epoch]


def _begun(files: Sequence[Path]) -> int:
    """Microseconds; 0 where no file can be read."""
    for file in files:
        with suppress(OSError, ProtocolError):
            for entry in batch_in(file.read_bytes()).entries:
                return entry.record.at.wall
    return 0


def _batch(path: Path, bad: Callable[[str], None]) -> Iterator[Said]:
    try:
        batch = batch_in(path.read_bytes())
    except (OSError, ProtocolError) as error:
        bad(f"{path}: {error}")
        return
    for entry in batch.entries:
        record = entry.record
        if not isinstance(record, Reading):
            continue
        values = {name: measure.raw for name, measure in record.values.items()}
        frame = Frame(
            record.tag,
            record.tag_boot,
            record.tag_seq,
            values,
            record.window,
            record.position,
            record.signal,
            record.battery,
        )
        try:
            yield record.at.wall / 1e6, frame.to_bytes()
        except ProtocolError as error:  # it came as a line of text, which may hold what no frame can
            bad(f"{path}: {error}")
