"""Velocity and failure are found in noise whose truth is known, better than the simpler ways find them."""

import math
import random
from statistics import fmean, median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twin_client.protocol.rules.fits import HOUR, failure, slope

COUNT, MINUTE = 40, 60.0


def least_squares(points):
    """Slope and height at 0."""
    middle, mean = fmean(t for t, _ in points), fmean(x for _, x in points)
    steep = sum((t - middle) * (x - mean) for t, x in points) / sum((t - middle) ** 2 for t, _ in points)
    return steep, mean - steep * middle


def least_squares_cut(points):
    """What was not chosen: least squares again and again without what lies 3 deviations off."""
    for _ in range(5):
        steep, height = least_squares(points)
        over = [abs(x - height - steep * t) for t, x in points]
        kept = [point for point, off in zip(points, over, strict=True) if off <= 3 * 1.4826 * median(over)]
        if len(kept) == len(points):
            break
        points = kept
    return steep


def error_of(fit, outliers, at_the_end, runs=200):
    """Root mean square error of slopes in noise of 1 a point, per minute; outliers lie 10 to 20 off."""
    errors = []
    for seed in range(runs):
        dice = random.Random(seed)
        values = [0.1 * i + dice.gauss(0, 1) for i in range(COUNT)]
        for i in range(COUNT - outliers, COUNT) if at_the_end else dice.sample(range(COUNT), outliers):
            values[i] += dice.uniform(10, 20)
        errors.append(fit([(i * MINUTE, x) for i, x in enumerate(values)]) * MINUTE - 0.1)
    return math.hypot(*errors) / math.sqrt(runs)


def test_the_slope_is_as_sharp_as_least_squares_in_plain_noise():
    assert error_of(slope, 0, False) < 1.1 * error_of(lambda points: least_squares(points)[0], 0, False)


def test_a_fifth_of_the_points_may_lie_anywhere_where_cut_least_squares_are_led_astray():
    for at_the_end in (False, True):
        assert error_of(slope, 8, at_the_end) < error_of(least_squares_cut, 8, at_the_end) / 2


def test_points_without_two_times_have_no_slope():
    assert slope([]) is slope([(1.0, 2.0)]) is slope([(1.0, 2.0), (1.0, 3.0)]) is None


# --- failure --------------------------------------------------------------------------------------------


def failing(ahead, noise, seed, *, onset=0, size=10.0):
    """40 hours of a slope that fails `ahead` hours after the last; it creeps evenly until `onset`."""
    dice = random.Random(seed)
    whole = COUNT - 1 + ahead
    creep = size / (whole - onset)
    return [
        (i * HOUR, -size * math.log(whole - max(i, onset)) + creep * min(i, onset) + dice.gauss(0, noise))
        for i in range(COUNT)
    ]


def inverse_line(points, parts=8):
    """What was not chosen: 1/v of stretches of the window, and a line through them. Hours, or None."""
    size = len(points) // parts
    stretches = [points[i * size : (i + 1) * size] for i in range(parts)]
    lines = [(fmean(t for t, _ in part), slope(part)) for part in stretches]
    steep, height = least_squares([(t, 1 / v) for t, v in lines if v > 0] or [(0, 0), (1, 0)])
    return (-height / steep - points[-1][0]) / HOUR if steep < 0 else None


@pytest.mark.parametrize(("ahead", "within"), [(2.0, 0.1), (6.0, 0.15), (12.0, 0.2), (24.0, 0.35)])
def test_a_failure_is_forecast_within_a_share_of_the_time_that_is_left(ahead, within):
    found = [failure(failing(ahead, 0.2, seed), 0.01, 0.95) for seed in range(60)]
    assert None not in found
    errors = sorted(abs(each.hours - ahead) / ahead for each in found)
    assert errors[53] < within  # nine in ten
    assert sum(each.earliest <= ahead <= each.latest for each in found) >= 0.8 * len(found)


def test_the_forecast_is_sharper_than_a_line_through_inverse_velocities():
    ahead, ours, theirs = 12.0, [], []
    for seed in range(60):
        points = failing(ahead, 0.2, seed)
        found, line = failure(points, 0.01, 0.95), inverse_line(points)
        ours.append(math.inf if found is None else abs(found.hours - ahead))
        theirs.append(math.inf if line is None else abs(line - ahead))
    assert median(ours) < median(theirs) / 2


def test_a_failure_is_found_although_only_the_end_of_the_window_accelerates():
    found = [failure(failing(6.0, 0.1, seed, onset=20), 0.01, 0.95) for seed in range(40)]
    assert median(abs(each.hours - 6) for each in found if each is not None) < 1.0
    assert found.count(None) <= 2


def test_values_that_are_simply_wrong_spoil_no_forecast():
    errors = []
    for seed in range(30):
        points = failing(6.0, 0.1, seed)
        for i in (7, 22, 31):
            points[i] = (points[i][0], points[i][1] + 8)
        found = failure(points, 0.01, 0.95)
        errors.append(math.inf if found is None else abs(found.hours - 6))
    assert median(errors) < 0.6


def test_the_way_of_the_movement_does_not_matter():
    points = failing(6.0, 0.1, 1)
    down = failure([(t, -x) for t, x in points], 0.01, 0.95)
    up = failure(points, 0.01, 0.95)
    assert (up.hours, up.velocity) == pytest.approx((down.hours, -down.velocity))


@pytest.mark.parametrize("per_hour", [0.0, 0.3])
def test_steady_creep_and_rest_are_no_failure(per_hour):
    told = 0
    for seed in range(200):
        dice = random.Random(seed)
        told += failure([(i * HOUR, per_hour * i + dice.gauss(0, 0.5)) for i in range(COUNT)], 0.2, 0.95) is not None
    assert told <= 12  # 6 %, of which what follows asks for more than one window in a row


def swinging(hours, seed):
    """A value that swings by 1 with the day and creeps, over a window of so many hours."""
    dice = random.Random(seed)
    phase, step = dice.uniform(0, 24), hours / COUNT
    swing = [math.sin((i * step + phase) / 24 * math.tau) + 0.1 * i * step / 24 for i in range(COUNT)]
    return [(i * step * HOUR, x + dice.gauss(0, 0.1)) for i, x in enumerate(swing)]


@pytest.mark.parametrize(("hours", "floor"), [(96, 0.001), (40, 0.4)])
def test_the_daily_swing_is_no_failure_in_a_long_window_or_below_the_floor(hours, floor):
    assert sum(failure(swinging(hours, seed), floor, 0.95) is not None for seed in range(50)) <= 1


def test_what_slows_down_is_no_failure():
    for seed in range(50):
        dice = random.Random(seed)
        assert (
            failure([(i * HOUR, 10 * math.log(1 + i) + dice.gauss(0, 0.2)) for i in range(COUNT)], 0.01, 0.95) is None
        )


def test_a_velocity_below_the_floor_is_no_failure():
    points = failing(6.0, 0.05, 1)
    velocity = failure(points, 0.01, 0.95).velocity
    assert failure(points, velocity * 1.01, 0.95) is None


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.floats(1e-3, 1e6), st.floats(-1e300, 1e300)), max_size=20))
def test_no_points_break_a_fit(steps):
    points, t = [], 0.0
    for step, x in steps:
        t += step
        points.append((t, x))
    velocity, found = slope(points), failure(points, 1e-6, 0.95)
    assert velocity is None or math.isfinite(velocity)
    assert found is None or (0 <= found.earliest <= found.hours <= found.latest < math.inf)
