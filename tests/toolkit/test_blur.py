"""A blur spreads a point and loses no light, on images of any size."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toolkit.data.blur import convolve, disc, line, mirrored

KERNELS = [disc(0.5), disc(2.2), disc(6.0), line(1.0, 0.3), line(7.4, 0.0), line(12.0, 2.0)]


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_is_odd_and_symmetric_and_loses_no_light(kernel: np.ndarray) -> None:
    assert all(side % 2 for side in kernel.shape)
    assert kernel.min() >= 0
    assert kernel.sum() == pytest.approx(1)
    np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=1e-12)


@pytest.mark.parametrize(("angle", "axis"), [(0.0, 0), (math.pi / 2, 1)])
def test_motion_leaves_a_line_along_its_direction(angle: float, axis: int) -> None:
    spread = np.flatnonzero(line(9.0, angle).sum(axis) > 1e-9)
    across = np.flatnonzero(line(9.0, angle).sum(1 - axis) > 1e-9)
    assert 9 <= np.ptp(spread) + 1 <= 11
    assert np.ptp(across) + 1 <= 2


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 3, 5), (1, 4, 40)])
def test_an_even_image_stays_even_though_smaller_than_the_blur(kernel: np.ndarray, size: tuple[int, int, int]) -> None:
    images = torch.full((size[0], 3, *size[1:]), 0.3)
    torch.testing.assert_close(convolve(images, kernel), images)


def test_a_point_becomes_the_kernel_in_its_own_band_alone() -> None:
    images = torch.zeros(2, 3, 31, 31)
    images[1, 2, 15, 15] = 1
    kernel = line(5.0, 0.7)
    seen = convolve(images, kernel)
    half = kernel.shape[0] // 2
    window = seen[1, 2, 15 - half : 16 + half, 15 - half : 16 + half]
    np.testing.assert_allclose(window, kernel, atol=1e-7)
    assert float(seen.sum()) == pytest.approx(1, abs=1e-6)


@given(st.lists(st.integers(-500, 500), min_size=1), st.integers(1, 40))
def test_any_index_falls_inside_and_those_inside_stay(indices: list[int], size: int) -> None:
    index = np.array(indices)
    folded = mirrored(index, size)
    assert ((folded >= 0) & (folded < size)).all()
    inside = (index >= 0) & (index < size)
    np.testing.assert_array_equal(folded[inside], index[inside])
    np.testing.assert_array_equal(mirrored(-1 - index, size), folded)
