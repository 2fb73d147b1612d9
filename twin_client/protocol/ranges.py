"""Sets of sequence numbers as sorted, disjoint, inclusive (first, last) pairs."""

from collections.abc import Iterable, Sequence

Range = tuple[int, int]


def ranges_of(numbers: Iterable[int]) -> list[Range]:
    """The fewest ranges that hold exactly `numbers`, in any order, repeats allowed."""
    return union([(number, number) for number in numbers])


def union(*sets: Iterable[Range]) -> list[Range]:
    """The fewest ranges that hold what any of `sets` holds; these need be neither sorted nor disjoint."""
    merged: list[Range] = []
    for first, last in sorted(pair for ranges in sets for pair in ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return merged


def subtract(ranges: Iterable[Range], holes: Iterable[Range]) -> list[Range]:
    """What `ranges` holds and `holes` does not."""
    left: list[Range] = []
    removed = union(holes)
    for first, last in union(ranges):
        begin = first
        for start, end in removed:
            if end < begin or start > last:
                continue
            if start > begin:
                left.append((begin, start - 1))
            begin = end + 1
        if begin <= last:
            left.append((begin, last))
    return left


def covers(ranges: Sequence[Range], number: int) -> bool:
    """Whether `number` lies in one of `ranges`."""
    return any(first <= number <= last for first, last in ranges)


def size(ranges: Iterable[Range]) -> int:
    """How many numbers disjoint `ranges` hold."""
    return sum(last - first + 1 for first, last in ranges)
