"""What the outbox's tests share, and the child process that is killed, starved of disk and made to share it.

As a program: `outbox_child.py FOLDER BOOT [FILE_SIZE]` appends readings until it is killed, and prints the last number
of a tag whose commit has returned, and `full` when the disk takes no more.
"""

import random
import resource
import sys
import time
from collections.abc import Iterable
from itertools import count
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from twin_client.outbox import Limits, Outbox
from twin_client.outbox.rows import Rows
from twin_client.outbox.tables import OutboxFull
from twin_client.protocol.ranges import Range, covers, union
from twin_client.protocol.records import (
    Alarm,
    ClockQuality,
    Gap,
    Health,
    Measure,
    Prediction,
    Reading,
    Record,
    Stamp,
    Window,
    record_of,
)

ROOMY = Limits(spare=0)


def stamp(boot: str = "this boot") -> Stamp:
    """Now."""
    return Stamp(time.time_ns() // 1000, time.monotonic_ns() // 1000, boot, ClockQuality.NETWORK)


def opened(folder: Path, limits: Limits = ROOMY, gateway: str = "gw-1", boot: str = "this boot") -> Outbox:
    """The outbox in `folder`, which says nothing."""
    return Outbox.open(folder, gateway, limits, stamp=lambda: stamp(boot), say=lambda _: None)


def reading(number: int, tag: str = "tag-7", boot: int = 3, window: int = 0) -> Reading:
    """A frame of a tag, with a window of so many bytes that do not compress."""
    counts = Window(100.0, 0.01, 3, random.Random(number).randbytes(window)) if window else None
    return Reading(stamp(), tag, boot, number, {"strain": Measure(number / 8, number / 4, 2)}, window=counts)


def prediction(number: int, camera: str = "bench-4", thumbnail: int = 0) -> Prediction:
    """What the network said of an image."""
    return Prediction(stamp(), camera, number, "0" * 64, 0.7, 0.5, 640, 480, thumbnail=bytes(thumbnail))


def health() -> Health:
    """How the gateway fares."""
    return Health(stamp(), {"rss": 3e7}, {"frames": 7})


def alarm(number: int) -> Alarm:
    """A level has changed."""
    return Alarm(stamp(), f"gw-1/e/{number}/tarp@1", "tag-7", "tarp", 1, 2, "strain", 3.0, 2.5)


def everything(rows: Rows) -> dict[tuple[str, int], Record]:
    """All records of an outbox, by epoch and number."""
    found: dict[tuple[str, int], Record] = {}
    for epoch in rows.epochs():
        at = 1
        while stored := rows.read(epoch, at, 500, 1 << 20):
            found |= {(epoch, row.seq): record_of(row.body) for row in stored}
            at = stored[-1].seq + 1
    return found


def named(gaps: Iterable[Gap]) -> tuple[dict[str, list[Range]], dict[tuple[str, int], list[Range]]]:
    """What Gaps own up to: rows by epoch, and numbers by tag and boot."""
    rows: dict[str, list[Range]] = {}
    numbers: dict[tuple[str, int], list[Range]] = {}
    for gap in gaps:
        rows.setdefault(gap.epoch, []).extend(gap.seqs)
        for lost in gap.lost:
            numbers.setdefault((lost.subject, lost.boot), []).append((lost.first or 0, lost.last))
    return {key: union(value) for key, value in rows.items()}, {key: union(value) for key, value in numbers.items()}


def subject(record: Record) -> tuple[str, int, int] | None:
    """Whose number the record carries."""
    if isinstance(record, Reading):
        return record.tag, record.tag_boot, record.tag_seq
    return (record.camera, 0, record.capture) if isinstance(record, Prediction) else None


def unaccounted(
    appended: dict[tuple[str, int], Record], told: dict[tuple[str, int], Record], rows: Rows
) -> list[tuple[object, ...]]:
    """Rows and tags' numbers that are neither here, nor with the twin (`told`), nor named by a Gap of either."""
    known = everything(rows) | told
    gone, lost = named(record for record in known.values() if isinstance(record, Gap))
    numbers = {subject(record) for record in known.values()}
    left: list[tuple[object, ...]] = []
    for (epoch, seq), record in appended.items():
        whose = subject(record)
        if (epoch, seq) not in known and not covers(gone.get(epoch, []), seq):
            left.append((epoch, seq))
        if whose and whose not in numbers and not covers(lost.get(whose[:2], []), whose[2]):
            left.append(whose)
    return left


def main(folder: Path, boot: int, most: int | None) -> None:
    """Append until killed."""
    random_groups = random.Random(boot)
    outbox = opened(folder)
    if most:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    numbers = count()
    number = -1
    while True:
        group = [reading(next(numbers), boot=boot, window=600) for _ in range(random_groups.randint(1, 40))]
        try:
            outbox.write(lambda t, group=group: (t.append(group), t.remember("done", str(group[-1].tag_seq).encode())))
        except OutboxFull:
            print("full", flush=True)
            break
        number = group[-1].tag_seq
        print(number, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None)
