"""Components agree with SciPy's on every mask."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from targets.runtime.components import Box, components

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=17)


def by_scipy(mask, probability):
    label, count = ndimage.label(mask, structure=np.ones((3, 3)))
    boxes = []
    for number, (rows, cols) in enumerate(ndimage.find_objects(label), 1):
        there = label == number
        boxes.append(
            Box(
                rows.start,
                cols.start,
                rows.stop - rows.start,
                cols.stop - cols.start,
                int(there.sum()),
                float(probability[there].max()),
            )
        )
    assert len(boxes) == count
    return tuple(boxes)


@settings(max_examples=300, deadline=None)
@given(hnp.arrays(np.bool_, SHAPES), st.integers(0, 2**32 - 1))
def test_boxes_areas_peaks_and_order_are_those_of_scipy(mask, seed):
    probability = np.random.RandomState(seed).random_sample(mask.shape).astype(np.float32)
    assert components(mask, probability) == by_scipy(mask, probability)


@pytest.mark.parametrize("density", [0.05, 0.2, 0.4, 0.6, 0.9])
def test_a_large_noisy_mask_agrees_too(density):
    noise = np.random.RandomState(3).random_sample((97, 131)).astype(np.float32)
    mask = noise < density
    assert components(mask, noise) == by_scipy(mask, noise)


def test_a_spiral_and_a_comb_are_one_component_each():
    comb = np.zeros((9, 21), bool)
    comb[:, ::2] = True
    comb[-1] = True
    assert components(comb) == (Box(0, 0, 9, 21, int(comb.sum()), 1.0),)
    spiral = np.array([[1, 1, 1, 1, 1], [0, 0, 0, 0, 1], [1, 1, 1, 0, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]], bool)
    assert components(spiral) == (Box(0, 0, 5, 5, int(spiral.sum()), 1.0),)


def test_corners_touch_and_row_ends_do_not():
    assert len(components(np.eye(5, dtype=bool))) == 1
    ends = np.array([[0, 0, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]], bool)
    assert len(components(ends)) == 2
    assert len(components(np.array([[0, 0, 0, 1], [1, 0, 0, 0]], bool))) == 2


def test_an_empty_mask_has_no_boxes():
    assert components(np.zeros((4, 3), bool)) == ()
