"""An axis of time that no clock step moves: microseconds since the state began, told from records' stamps alone.

Within a boot the clock that is never set tells the time, whatever the wall says. From one boot to another only the
wall can, where both clocks were better than LOST; else nobody knows how long the gateway was off, and a new era
begins, in which no trend goes on.
"""

from typing import NamedTuple

from twin_client.protocol.records import ClockQuality, Stamp

BOOTS = 4  # that are remembered, so that a late record of an earlier one is placed where it belongs


FAR = 2**61  # microseconds, 73,000 years: no stamp, however wrong, leads to a number that cannot be packed


class Anchor(NamedTuple):
    """A boot: what to add to its `mono`, its era, and to its wall as it was believed last."""

    boot: str
    era: int
    shift: int  # microseconds from its mono to the axis
    wall: int | None = None  # microseconds from the wall to the axis; None: never believed


class Moment(NamedTuple):
    """Where a record lies."""

    at: int  # microseconds on the axis
    era: int


Axis = tuple[Anchor, ...]  # the newest boot last


def placed(axis: Axis, stamp: Stamp, last: int) -> tuple[Axis, Moment]:
    """The axis after `stamp`, and where that lies. `last`: of the record before."""
    believed = stamp.clock > ClockQuality.LOST
    known = next((anchor for anchor in reversed(axis) if anchor.boot == stamp.boot), None)
    if known is not None:
        at = _near(stamp.mono + known.shift)
        wall = _near(at - stamp.wall)
        # The wall is as good as when it was believed last, in this very boot; its drift is too slow to matter sooner.
        if believed and known is axis[-1] and (known.wall is None or abs(known.wall - wall) > 1_000_000):
            axis = (*axis[:-1], known._replace(wall=wall))
        return axis, Moment(at, known.era)
    before = axis[-1] if axis else None
    if before is None:
        at, era = 0, 0
    elif believed and before.wall is not None and stamp.wall + before.wall >= last:
        at, era = _near(stamp.wall + before.wall), before.era
    else:
        at, era = last, before.era + 1
    anchor = Anchor(stamp.boot, era, _near(at - stamp.mono), _near(at - stamp.wall) if believed else None)
    return (*axis, anchor)[-BOOTS:], Moment(at, era)


def _near(time: int) -> int:
    return max(-FAR, min(FAR, time))
