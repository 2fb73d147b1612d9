"""Corruptions repeat to the byte, grow with their strength, keep an image's form, and move masks with the image."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets.runtime.errors import HighwallError
from toolkit.data.corrupt import KINDS, STRENGTHS, corrupt, corrupted, possible, shift_mask
from toolkit.data.synthetic import crack_images, mine_chips


def photograph(seed: int = 3) -> np.ndarray:
    return crack_images(2, size=96, seed=seed).images[0]


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(float) - other.astype(float)).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_a_corruption_repeats_to_the_byte_and_grows_with_its_strength(kind: str) -> None:
    image = photograph()
    kept = image.copy()
    seen = [corrupt(image, kind, strength, seed=5) for strength in STRENGTHS]
    assert np.array_equal(image, kept)
    for strength, one in zip(STRENGTHS, seen, strict=True):
        assert (one.dtype, one.shape) == (image.dtype, image.shape)
        assert np.array_equal(one, corrupt(image, kind, strength, seed=5))
    off = [distance(one, image) for one in seen]
    assert 0 < off[0] < off[1] < off[2]


@pytest.mark.parametrize("kind", ["dust", "haze", "motion", "noise", "shift"])
def test_another_seed_corrupts_otherwise(kind: str) -> None:
    image = photograph()
    assert not np.array_equal(corrupt(image, kind, 2, seed=1), corrupt(image, kind, 2, seed=2))


@given(
    kind=st.sampled_from(sorted(KINDS)),
    strength=st.sampled_from(STRENGTHS),
    shape=st.tuples(st.integers(1, 19), st.integers(1, 19), st.sampled_from([1, 3, 4, 13])),
    dtype=st.sampled_from(["uint8", "uint16"]),
    seed=st.integers(0, 2**32),
)
def test_any_shape_and_depth_keeps_its_form(
    kind: str, strength: int, shape: tuple[int, int, int], dtype: str, seed: int
) -> None:
    if not possible(kind, dtype):
        return
    image = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)
    seen = corrupt(image, kind, strength, seed)
    assert (seen.dtype, seen.shape) == (image.dtype, image.shape)


@pytest.mark.parametrize("kind", ["motion", "defocus", "shift", "jpeg"])
def test_what_only_moves_light_leaves_an_even_image_as_it_was(kind: str) -> None:
    even = np.full((40, 33, 3), 117, np.uint8)
    assert np.abs(corrupt(even, kind, 3).astype(int) - 117).max() <= 1


def test_veils_cost_contrast_and_dust_is_brown() -> None:
    image = photograph()
    for kind in ("dust", "haze"):
        assert corrupt(image, kind, 3).std() < 0.8 * image.std()
    grey = np.repeat(np.random.default_rng(0).integers(60, 200, (64, 64, 1)), 3, 2).astype(np.uint8)
    red, green, blue = corrupt(grey, "dust", 2).reshape(-1, 3).mean(0)
    assert red > green > blue
    red, green, blue = corrupt(grey, "haze", 2).reshape(-1, 3).mean(0)
    assert red == green == blue


def test_light_changes_by_its_gain_and_saturates_where_the_sensor_does() -> None:
    image = np.full((4, 4, 1), 100, np.uint8)
    assert [int(corrupt(image, "darker", s)[0, 0, 0]) for s in STRENGTHS] == [70, 45, 25]
    assert int(corrupt(image + 100, "brighter", 3)[0, 0, 0]) == 255
    # A reflectance above 1 is no full scale of uint16.
    assert int(corrupt(np.full((4, 4, 13), 9000, np.uint16), "brighter", 1)[0, 0, 0]) == 11700


def test_noise_is_louder_where_it_is_brighter_and_keeps_the_mean() -> None:
    dark, bright = (np.full((80, 80, 1), level, np.uint8) for level in (30, 180))
    quiet, loud = corrupt(dark, "noise", 1).astype(float), corrupt(bright, "noise", 1).astype(float)
    assert loud.std() > 1.5 * quiet.std()
    assert (quiet.mean(), loud.mean()) == (pytest.approx(30, abs=0.5), pytest.approx(180, abs=0.5))


def test_jpeg_is_what_pillow_encodes_and_not_of_16_bits() -> None:
    image = photograph()
    seen = corrupt(image, "jpeg", 3).astype(int)
    blocks = np.abs(np.diff(seen, axis=1)).mean((0, 2))
    assert blocks[7::8].mean() > 1.2 * blocks.mean()  # the seams of its 8x8 blocks
    with pytest.raises(HighwallError, match="8-bit"):
        corrupt(image.astype(np.uint16), "jpeg", 1)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_a_mask_moves_with_its_image(strength: int) -> None:
    rng = np.random.default_rng(0)
    for seed in range(12):
        mask = np.zeros((61, 47), np.uint8)
        half = np.s_[rng.integers(15, 40) :] if seed % 2 else np.s_[:, rng.integers(12, 30) :]
        mask[half] = 1
        moved = corrupt((mask * 200)[..., None], "shift", strength, seed)[..., 0]
        followed = shift_mask(mask, strength, seed)
        assert np.abs(moved.astype(int) - followed * 200.0).max() <= 101  # half of an edge pixel, and rounding
        assert not np.array_equal(followed, mask) or strength == 1


def test_an_image_is_corrupted_alike_whichever_others_stand_beside_it() -> None:
    samples = crack_images(5, size=48, seed=3)
    whole, alone = corrupted(samples, "shift", 3), corrupted(samples.take([3]), "shift", 3)
    assert np.array_equal(whole.images[3], alone.images[0])
    assert np.array_equal(whole.labels[3], alone.labels[0])
    assert not np.array_equal(whole.labels, samples.labels)
    assert corrupted(samples, "haze", 3).labels is samples.labels
    chips = mine_chips(4, size=24, seed=1)
    assert np.array_equal(corrupted(chips, "shift", 3).labels, chips.labels)


@pytest.mark.parametrize(
    ("kind", "strength", "message"), [("fog", 1, "fog"), ("dust", 0, "strength 0"), ("dust", 4, "strength 4")]
)
def test_an_unknown_corruption_is_refused(kind: str, strength: int, message: str) -> None:
    with pytest.raises(HighwallError, match=message):
        corrupt(photograph(), kind, strength)
    with pytest.raises(HighwallError, match="float32"):
        corrupt(photograph().astype(np.float32), "dust", 1)
