"""Ranges that int8 clips at: exact where they must be, the same in any order, never outside what was seen."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from targets.runtime.errors import HighwallError
from toolkit.quantize.ranges import BINS, Histogram, limits
from toolkit.quantize.recipes import RANGES

VALUES = arrays.arrays(np.float32, st.integers(1, 300), elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False))


def counted(*parts: np.ndarray) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    return histogram


@given(VALUES)
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("method", RANGES)
def test_a_range_holds_zero_and_stays_within_what_was_seen(method: str, values: np.ndarray) -> None:
    low, high = limits(counted(values), method)
    assert min(0.0, float(values.min())) <= low <= 0 <= high <= max(0.0, float(values.max()))


@given(st.lists(VALUES, min_size=2, max_size=4))
@settings(max_examples=60, deadline=None)
def test_the_order_of_the_images_does_not_matter(parts: list[np.ndarray]) -> None:
    one, other = counted(*parts), counted(*reversed(parts))
    assert (one.low, one.high, one.count, one.zeros, one.exponent) == (
        other.low,
        other.high,
        other.count,
        other.zeros,
        other.exponent,
    )
    assert np.array_equal(one.bins, other.bins)
    assert one.bins.sum() + one.zeros == one.count == sum(part.size for part in parts)


def test_minmax_is_exact_even_where_values_are_sampled() -> None:
    values = np.zeros(3_000_001, np.float32)
    values[1234567], values[7] = 5.25, -0.125
    assert limits(counted(values), "minmax") == (-0.125, 5.25)


def test_percentile_cuts_a_ten_thousandth_and_no_more() -> None:
    values = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
    low, high = limits(counted(values), "percentile")
    clipped = np.mean((values < low) | (values > high))
    assert 0.2e-4 < clipped <= 1.05e-4


@pytest.mark.parametrize("method", ["entropy", "percentile"])
def test_a_lone_outlier_is_clipped_and_a_flat_spread_is_not(method: str) -> None:
    rng = np.random.default_rng(1)
    body = rng.normal(size=100_000).astype(np.float32)
    assert limits(counted(np.append(body, np.float32(400))), method)[1] < 200
    flat = rng.uniform(0, 1, 100_000).astype(np.float32)
    assert limits(counted(flat), method)[1] > 0.97


def test_mse_loses_less_than_minmax_where_tails_are_long() -> None:
    values = np.random.default_rng(2).laplace(size=100_000).astype(np.float32)

    def lost(method: str) -> float:
        low, high = limits(counted(values), method)
        step = (high - low) / 255
        return float(np.mean((np.rint(values.clip(low, high) / step) * step - values) ** 2))

    assert lost("mse") < 0.9 * lost("minmax")


def test_a_tensor_that_is_always_zero_has_no_range() -> None:
    for method in RANGES:
        assert limits(counted(np.zeros(5, np.float32)), method) == (0.0, 0.0)
    assert limits(Histogram(), "minmax") == (0.0, 0.0)


def test_values_on_a_power_of_two_are_counted_inside() -> None:
    histogram = counted(np.array([1.0, -1.0, 2.0, -2.0], np.float32))
    assert histogram.bins.sum() == 4
    assert histogram.bins.shape == (BINS,)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_is_refused(bad: float) -> None:
    with pytest.raises(HighwallError, match="NaN or infinity"):
        counted(np.array([0.0, bad], np.float32))


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(HighwallError, match="entropy"):
        limits(counted(np.ones(3, np.float32)), "magic")
