"""Thumbnails: never over their budget, and never without the crack."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from targets.runtime.overlay import thumbnail


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(0, 12_000), st.integers(16, 400), st.randoms())
def test_a_thumbnail_is_within_its_budget_whatever_the_image(height, width, most, side, random):
    noise = np.random.RandomState(random.randrange(99)).randint(0, 256, (height, width, 3), np.uint8)
    made = thumbnail(noise, noise[:, :, 0] > 250, most, side)
    assert len(made) <= most
    if made:
        small = Image.open(io.BytesIO(made))
        small.load()
        assert max(small.size) <= side
    else:
        assert most < 900  # the smallest JPEG has that many


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (1500, 2001)])
def test_a_crack_one_pixel_wide_is_seen_on_the_thumbnail(shape):
    mask = np.zeros(shape, bool)
    mask[:, shape[1] // 2] = True
    grey = np.full((*shape, 1), 128, np.uint8)
    for seen in (mask, None):
        pixels = np.asarray(Image.open(io.BytesIO(thumbnail(grey, seen, 60_000, 320))).convert("RGB"), int)
        redder = (pixels[:, :, 0] - pixels[:, :, 2]).max()
        assert (redder > 40) == (seen is not None)
