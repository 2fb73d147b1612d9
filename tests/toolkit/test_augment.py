"""Augmentation: masks go where pixels go, values stay what a camera can give, and nothing turns into a crack."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from toolkit.data import augment

SIZES = [(1, 9, 13), (5, 17, 9), (4, 3, 31)]


def marked(n: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Images whose cracks are exactly the pixels of value 0.9 in every band, and their masks."""
    masks = (torch.rand(n, 1, height, width) < 0.3).float()
    return torch.where(masks > 0, 0.9, 0.2).expand(-1, 3, -1, -1).clone(), masks


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(7)


@pytest.mark.parametrize("size", SIZES)
def test_a_turn_moves_the_mask_with_the_image(size: tuple[int, int, int]) -> None:
    for _ in range(8):
        images, masks = augment.turn(*marked(*size))
        assert masks is not None
        assert torch.equal((images[:, :1] > 0.5).float(), masks)


@pytest.mark.parametrize("size", SIZES)
def test_a_zoom_moves_the_mask_with_the_image(size: tuple[int, int, int]) -> None:
    images, masks = augment.zoom(*marked(*size))
    assert masks is not None
    assert set(masks.unique().tolist()) <= {0.0, 1.0}
    clear = ((images[:, :1] - 0.55).abs() > 0.02).float()  # half-covered pixels may round either way
    assert torch.equal((images[:, :1] > 0.55).float() * clear, masks * clear)


@pytest.mark.parametrize("size", SIZES)
def test_a_seam_brings_its_mask_along_and_is_itself_no_crack(size: tuple[int, int, int]) -> None:
    images, masks = marked(*size)
    # Bands of our own, whose ratio no shade changes, say which image a pixel came from.
    sources = torch.arange(1.0, len(images) + 1).view(-1, 1, 1, 1).expand(-1, 1, *size[1:])
    seamed, found = augment.seam(torch.cat((torch.ones_like(sources), sources), 1), masks, chance=1.0)
    origin = (seamed[:, 1] / seamed[:, 0]).round().long() - 1
    theirs = torch.gather(masks[:, 0], 0, origin)
    assert (found[:, 0] <= theirs).all()
    if len(images) > 1:
        assert (origin != torch.arange(len(images)).view(-1, 1, 1)).any()
        assert found.sum() > theirs.sum() / 4


def test_a_seam_with_no_chance_changes_nothing() -> None:
    images, masks = marked(3, 11, 8)
    seamed, found = augment.seam(images, masks, chance=0.0)
    assert torch.equal(seamed, images)
    assert torch.equal(found, masks)


def test_many_seams_lose_cracks_and_never_invent_them() -> None:
    images, masks = torch.full((64, 3, 20, 20), 0.5), torch.zeros(64, 1, 20, 20)
    seamed, found = augment.seam(images, masks, chance=1.0)
    assert not found.any()
    assert (seamed < 0.3).any()  # dark lines there are


@pytest.mark.parametrize("size", SIZES)
def test_a_shadow_only_darkens_and_leaves_no_pixel_black(size: tuple[int, int, int]) -> None:
    images = torch.rand(size[0], 3, *size[1:]) + 0.1
    shaded = augment.shadow(images, chance=1.0)
    assert (shaded <= images).all()
    assert (shaded >= images * 0.45).all()
    assert torch.equal(augment.shadow(images, chance=0.0), images)


@pytest.mark.parametrize("size", SIZES)
def test_weather_stays_between_black_and_saturation(size: tuple[int, int, int]) -> None:
    for _ in range(8):
        images = augment.weather(torch.rand(size[0], 3, *size[1:]) * 1.5, ceiling=1.25)
        assert images.isfinite().all()
        assert 0 <= images.min() <= images.max() <= 1.25


@pytest.mark.parametrize("size", SIZES)
def test_haze_lightens_what_is_dark_and_no_pixel_passes_the_brightest(size: tuple[int, int, int]) -> None:
    images = torch.rand(size[0], 3, *size[1:])
    hazy = augment.haze(images, chance=1.0)
    assert hazy.std() < images.std()
    assert (hazy[images < 0.1] >= images[images < 0.1]).all()
    assert hazy.max() <= images.max()
    assert torch.equal(augment.haze(images, chance=0.0), images)


@pytest.mark.parametrize("size", SIZES)
def test_a_blur_keeps_what_is_even_and_smooths_the_rest(size: tuple[int, int, int]) -> None:
    images = torch.rand(size[0], 3, *size[1:])
    kept = images.clone()
    soft = augment.blur(images, chance=1.0, side=200)
    assert torch.equal(images, kept)
    assert soft.shape == images.shape
    assert (soft.std((2, 3)) < images.std((2, 3))).all()
    even = torch.full_like(images, 0.4)
    torch.testing.assert_close(augment.blur(even, chance=1.0, side=200), even)
    assert torch.equal(augment.blur(images, chance=0.0, side=200), images)


@pytest.mark.parametrize("size", SIZES)
def test_noise_is_of_mean_nought_and_stays_between_black_and_saturation(size: tuple[int, int, int]) -> None:
    images = torch.full((size[0], 3, *size[1:]), 0.5)
    noisy = augment.noise(images, chance=1.0, most=0.05)
    assert not torch.equal(noisy, images)
    assert abs(float(noisy.mean()) - 0.5) < 0.02
    loud = augment.noise(torch.rand_like(images) * 1.25, chance=1.0, most=5.0, ceiling=1.25)
    assert 0 <= loud.min() <= loud.max() <= 1.25
    assert torch.equal(augment.noise(images, chance=0.0), images)


def test_dropped_patches_are_black_in_every_band_and_the_rest_is_untouched() -> None:
    images = torch.rand(40, 3, 19, 23) + 0.1
    dropped = augment.dropout_patches(images, chance=1.0)
    gone = dropped == 0
    assert gone.any()
    assert torch.equal(gone.all(1), gone.any(1))
    assert torch.equal(dropped[~gone], images[~gone])


@pytest.mark.parametrize(
    "vary",
    [
        lambda images, masks: augment.seam(images, masks)[0],
        lambda images, masks: augment.shadow(images),
        lambda images, masks: augment.weather(images),
        lambda images, masks: augment.zoom(images, masks)[0],
        lambda images, masks: augment.haze(images, 0.5),
        lambda images, masks: augment.blur(images, 0.5, 60),
        lambda images, masks: augment.noise(images, 0.5),
    ],
)
def test_the_same_seed_gives_the_same_variation(vary: Callable[[Tensor, Tensor], Tensor]) -> None:
    images, masks = marked(6, 14, 9)
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(vary(images, masks))
    assert torch.equal(*results)
    assert not torch.equal(vary(images, masks), results[0])
