"""What had to be given up, so that a Gap names all of it, and the few records that wait while no disk takes them."""

import heapq
from collections import Counter, deque
from collections.abc import Iterable
from itertools import pairwise
from typing import Final, TypeVar

from twin_client.outbox.tables import NAMES, Kind, kind_of
from twin_client.protocol.ranges import Range, union
from twin_client.protocol.records import Gap, Lost, Prediction, Reading, Reason, Record, Stamp

MOST: Final = 256  # ranges that one Gap names, about 4 kB: it must pass every batch and may not fill the file

K = TypeVar("K")


def coarse(ranges: Iterable[Range], most: int) -> list[Range]:
    """`ranges` as at most `most` ranges that hold all of them, and as little else as can be."""
    exact = union(ranges)
    if len(exact) <= most:
        return exact
    widest = heapq.nlargest(most - 1, range(1, len(exact)), key=lambda at: exact[at][0] - exact[at - 1][1])
    cuts = [0, *sorted(widest), len(exact)]
    return [(exact[begin][0], exact[end - 1][1]) for begin, end in pairwise(cuts)]


class Losses:
    """A ledger of what is lost. Its size is bounded by the number of tags and of their boots, not by what was lost.

    Where there are too many ranges to name, neighbours are named as one, with what lies between them: that may well
    arrive, or be with the twin already, and is lost only if it never does. Nothing lost is ever left unnamed.
    """

    def __init__(self) -> None:
        self._rows: dict[str, list[Range]] = {}
        self._numbers: dict[tuple[str, int], list[Range]] = {}
        self._open: dict[tuple[str, int], int] = {}  # from whatever the twin has, up to this
        self._kinds: Counter[str] = Counter()

    def __bool__(self) -> bool:
        return bool(self._rows or self._numbers or self._open or self._kinds)

    def add(self, record: Record) -> None:
        """This record is lost. A lost Gap's own losses are taken over."""
        if isinstance(record, Gap):
            self.add_rows(record.epoch, record.seqs)
            for lost in record.lost:
                self.add_lost(lost)
            return
        self._kinds[NAMES[kind_of(record)]] += 1
        if isinstance(record, Reading):
            self._grow(self._numbers, (record.tag, record.tag_boot), [(record.tag_seq, record.tag_seq)])
        elif isinstance(record, Prediction):
            self._grow(self._numbers, (record.camera, 0), [(record.capture, record.capture)])

    def add_rows(self, epoch: str, ranges: Iterable[Range]) -> None:
        """The entries of `epoch` with these numbers are lost."""
        if ranges := list(ranges):
            self._grow(self._rows, epoch, ranges)

    def add_lost(self, lost: Lost) -> None:
        """These numbers of a tag or camera are lost."""
        key = (lost.subject, lost.boot)
        if lost.first is None:
            self._open[key] = max(self._open.get(key, lost.last), lost.last)
        else:
            self._grow(self._numbers, key, [(lost.first, lost.last)])

    def gaps(self, at: Stamp, reason: Reason, text: str = "") -> list[Gap]:
        """All of it as Gaps: one, unless rows of several epochs are lost, or very many tags are concerned."""
        share = max(1, MOST // max(1, len(self._numbers) + len(self._open) + len(self._rows)))
        lost = [Lost(*key, None, last) for key, last in sorted(self._open.items())]
        lost += [
            Lost(*key, first, last)
            for key, ranges in sorted(self._numbers.items())
            for first, last in coarse(ranges, share)
        ]
        rows = [(epoch, coarse(ranges, MOST)) for epoch, ranges in sorted(self._rows.items())] or [("", [])]
        counted = ", ".join(f"{count} {kind}" for kind, count in sorted(self._kinds.items()))
        words = "; ".join(filter(None, (text, counted)))
        parts = [lost[begin : begin + MOST] for begin in range(0, len(lost), MOST)] or [[]]
        parts += [[]] * (len(rows) - len(parts))
        rows += [("", [])] * (len(parts) - len(rows))
        return [
            Gap(at, reason, epoch, tuple(ranges), tuple(part), words if number == 0 else text)
            for number, ((epoch, ranges), part) in enumerate(zip(rows, parts, strict=True))
            if self
        ]

    @staticmethod
    def _grow(ledger: dict[K, list[Range]], key: K, ranges: list[Range]) -> None:
        known = ledger.setdefault(key, [])
        for first, last in ranges:
            if known and known[-1][0] <= first <= known[-1][1] + 1:  # most come in order, one after the other
                known[-1] = (known[-1][0], max(known[-1][1], last))
            else:
                known.append((first, last))
        if len(known) > 4 * MOST:
            known[:] = coarse(known, MOST)


class Holding:
    """Records in memory while the disk takes none: at most `most`, beyond which the least worth go to a ledger."""

    def __init__(self, most: int = 2000):
        self._most, self._count, self._came = most, 0, 0
        self._waiting: dict[Kind, deque[tuple[int, Record]]] = {kind: deque() for kind in Kind}
        self._losses = Losses()

    def __len__(self) -> int:
        return self._count

    def hold(self, records: Iterable[Record]) -> None:
        """Keep these after those that are held. What overflows is the oldest of the kind of least worth."""
        for record in records:
            self._waiting[kind_of(record)].append((self._came, record))
            self._came += 1
            self._count += 1
            if self._count > self._most:
                self._losses.add(next(held for held in self._waiting.values() if held).popleft()[1])
                self._count -= 1

    def records(self, at: Stamp, reason: Reason = "disk") -> list[Record]:
        """What is held, in the order it came, after a Gap that names what is not. They stay held until `clear`."""
        held = heapq.merge(*self._waiting.values(), key=lambda pair: pair[0])
        return [*self._losses.gaps(at, reason), *(record for _, record in held)]

    def clear(self) -> None:
        """All of it is in the outbox now."""
        for held in self._waiting.values():
            held.clear()
        self._count, self._losses = 0, Losses()
