"""The memory of a trend: at most so many means of equal spans of time, however often its tag speaks."""

from array import array
from typing import NamedTuple

from twin_client.protocol.rules.settings import Windowed


class Trend(NamedTuple):
    """Of one rule and subject. Points lie before the open span, whose values are only summed."""

    points: bytes = b""  # of each its seconds on the axis and its value, 8 bytes each, native doubles
    began: int = 0  # the open span, microseconds
    last: int = 0  # the newest value's time, microseconds
    size: int = 0  # values in the open span
    seconds: float = 0.0  # their sum, from the span's beginning
    total: float = 0.0


NONE = Trend()
POINT = 16  # bytes
HAIR = 1e-3  # seconds by which rounding may place a point before its span


def grown(rule: Windowed, trend: Trend, at: int, value: float) -> tuple[Trend, bool]:
    """The trend with a value at `at` microseconds, and whether that has closed a span, so that it says something new.

    A value from before the newest is left out, and a trend whose newest value lies more than `break_us` to either
    side of this one begins anew.
    """
    if not trend.size or abs(at - trend.last) > rule.break_us:
        return Trend(b"", at, at, 1, 0.0, value), False
    if at <= trend.last:
        return trend, False
    span = rule.window_s / rule.points * 1e6
    if at - trend.began < span:
        seconds = trend.seconds + (at - trend.began) / 1e6
        return trend._replace(last=at, size=trend.size + 1, seconds=seconds, total=trend.total + value), False
    mean = array("d", (trend.began / 1e6 + trend.seconds / trend.size, trend.total / trend.size))
    kept = (trend.points + mean.tobytes())[-POINT * rule.points :]
    # Spans follow on one another, whenever values come: else each would be longer, and fewer fit into the window.
    began = trend.began + int((at - trend.began) // span * span)
    return Trend(kept, began, at, 1, (at - began) / 1e6, value), True


def points_of(rule: Windowed, trend: Trend) -> list[tuple[float, float]]:
    """The closed spans that lie in the window, (seconds, value) in order; none while they are too few, or too close."""
    flat = array("d")
    flat.frombytes(trend.points)
    oldest = trend.began / 1e6 - rule.window_s - HAIR
    points = [(t, x) for t, x in zip(flat[::2], flat[1::2], strict=True) if t >= oldest]
    if len(points) < rule.enough or points[-1][0] - points[0][0] < rule.span:
        return []
    return points
