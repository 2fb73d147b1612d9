"""What went over a line once, again: a capture, or the readings of a drained outbox, into a pty at their own pace."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from targets.runtime.errors import HighwallError
from twin_client.protocol.dialects.highwall import batch_in
from twin_client.protocol.errors import ProtocolError
from twin_client.protocol.records import Reading
from twin_client.protocol.tags import Frame
from twin_client.sources.simulate import Port

Said = tuple[float, bytes]  # seconds, and what went over the line then


def chunks(path: Path, bad: Callable[[str], None]) -> Iterator[Said]:
    """What lies in a capture, a batch, or a folder of batches. `bad` hears of each line or file that is none.

    Raises HighwallError where there is nothing at all to read.
    """
    if path.is_dir():
        found = sorted(path.rglob("*.batch"))
        if not found:
            raise HighwallError(f"there are no batches in {path}; name the folder that was drained to, or a capture")
        for file in found:
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
        if (left := begun + (at - first) / speed - time.monotonic()) > 0:
            time.sleep(left)
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
                    yield float(said["time"]), bytes.fromhex(said["data"])
                except (ValueError, KeyError, TypeError) as error:
                    bad(f"{path}:{number}: no piece of a capture: {error}")
    except OSError as error:
        raise HighwallError(f"cannot read {path}: {error.strerror or error}") from error


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
