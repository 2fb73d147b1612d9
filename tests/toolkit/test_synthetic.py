"""Generated data is the same for the same seed, looks like its real counterpart, and its masks are exact."""

from pathlib import Path

import numpy as np
import pytest

from targets.runtime.errors import HighwallError
from toolkit.data import folder, noise, synthetic
from toolkit.data.samples import Samples


@pytest.fixture(scope="module")
def mines() -> Samples:
    return synthetic.mine_chips(64, seed=1)


@pytest.fixture(scope="module")
def cracks() -> Samples:
    return synthetic.crack_images(20, size=224, seed=1)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(mines: Samples) -> None:
    assert synthetic.mine_chips(64, seed=1).digest == mines.digest
    assert synthetic.mine_chips(64, seed=2).digest != mines.digest


def test_a_sample_does_not_depend_on_how_many_are_made(mines: Samples) -> None:
    assert np.array_equal(synthetic.mine_chips(5, seed=1).images, mines.images[:5])


@pytest.mark.parametrize("size", [16, 17, 65])
def test_any_size_from_16_up_can_be_made(size: int) -> None:
    chips = synthetic.mine_chips(6, size=size)
    assert chips.images.shape == (6, size, size, 3)
    photographs = synthetic.crack_images(10, size=size)
    assert photographs.labels.shape == (10, size, size)
    assert photographs.labels.any() and not photographs.labels.all()


def test_half_of_the_chips_are_mines_and_no_two_are_alike(mines: Samples) -> None:
    assert mines.labels.mean() == 0.5
    assert len({chip.tobytes() for chip in mines.images}) == len(mines)


def test_chips_have_the_brightness_of_real_ones(mines: Samples) -> None:
    # Real chips: median 50, 75, 82 in red, green, blue; the middle half of red within 39 to 91.
    median = np.median(mines.images.reshape(-1, 3), axis=0)
    assert (median > (35, 60, 65)).all() and (median < (100, 115, 115)).all()
    assert mines.images.std(axis=(0, 1, 2)).min() > 10


def test_brightness_alone_does_not_tell_a_mine(mines: Samples) -> None:
    pixels = mines.images.reshape(len(mines), -1).astype(float)
    for measure in (pixels.max(axis=1), pixels.mean(axis=1), pixels.std(axis=1)):
        mine, other = measure[mines.labels == 1][:, None], measure[mines.labels == 0]
        auc = (mine > other).mean() + (mine == other).mean() / 2
        assert 0.15 < auc < 0.85  # 0.4 to 0.6 on real chips


def test_thirteen_bands_are_reflectance_times_ten_thousand() -> None:
    chips = synthetic.mine_chips(16, bands=13, seed=3)
    assert chips.images.dtype == np.uint16 and chips.bands == 13
    mean = chips.images.mean(axis=(0, 1, 2))
    assert 300 < mean[3] < 3000  # red
    assert mean[7] > mean[3]  # plants: near infrared above red
    assert mean[10] < 400  # cirrus band: almost nothing reaches the ground


def test_groups_lie_within_folds_and_all_five_folds_are_dealt(mines: Samples) -> None:
    assert mines.groups is not None and mines.folds is not None
    assert set(mines.folds.tolist()) == set(range(5))
    for group in np.unique(mines.groups):
        assert len(np.unique(mines.folds[mines.groups == group])) == 1
        assert set(mines.labels[mines.groups == group]) == {0, 1}


def test_cracks_are_rare_and_some_photographs_have_none(cracks: Samples) -> None:
    assert 0.004 < cracks.labels.mean() < 0.03
    assert (~cracks.positive).sum() == 4


def test_crack_pixels_are_darker_than_their_surroundings(cracks: Samples) -> None:
    for image, mask in zip(cracks.images, cracks.labels.astype(bool), strict=True):
        if not mask.any():
            continue
        near = np.zeros_like(mask)
        for shift in (-6, 6):
            for axis in (0, 1):
                near |= np.roll(mask, shift, axis)
        grey = image.mean(axis=2)
        assert grey[mask].mean() < 0.85 * grey[near & ~mask].mean()


def test_photographs_repeat_with_the_seed(cracks: Samples) -> None:
    again = synthetic.crack_images(3, size=224, seed=1)
    assert np.array_equal(again.images, cracks.images[:3])
    assert np.array_equal(again.labels, cracks.labels[:3])


def test_a_stroke_is_exactly_the_pixels_within_its_half_width() -> None:
    field = np.full((21, 31), noise.FAR, dtype=np.float32)
    noise.stroke(field, np.array([[5.0, 10.0], [25.0, 10.0]]), np.array([2.0, 2.0]), 3.0)
    rows, columns = np.nonzero(field <= 0)
    outside = np.clip(np.maximum(5 - columns, columns - 25), 0, None)
    assert (np.hypot(outside, rows - 10) <= 2).all()
    assert len(rows) == 21 * 5 + 2 * 4  # the body, and two half discs without their shared column
    assert field[10, 15] == pytest.approx(-2)
    assert field[14, 15] == pytest.approx(2)


def test_a_stroke_that_leaves_the_picture_or_has_no_length_is_harmless() -> None:
    field = np.full((9, 7), noise.FAR, dtype=np.float32)
    noise.stroke(field, np.array([[-50.0, 4.0], [50.0, 4.0], [50.0, 4.0]]), np.full(3, 0.5), 1.0)
    assert (field[4] <= 0).all() and (field[0] > 0).all()


@pytest.mark.parametrize(
    "made",
    [
        lambda: synthetic.mine_chips(11, size=19, seed=4),
        lambda: synthetic.mine_chips(6, size=16, bands=13, seed=4),
        lambda: synthetic.crack_images(9, size=33, seed=4),
    ],
)
def test_what_is_written_is_read_back_the_same(made, tmp_path: Path) -> None:
    samples = made()
    synthetic.write(samples, tmp_path / "new" / "data")
    back = folder.read(tmp_path / "new" / "data")
    assert back.digest == samples.digest
    assert back.task == samples.task and back.class_names == samples.class_names
    assert back.groups is not None and samples.groups is not None
    assert back.groups.tolist() == samples.groups.tolist()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["data"]


def test_writing_the_same_samples_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        synthetic.write(synthetic.mine_chips(4, size=16), tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_folder_with_something_in_it_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(HighwallError, match="not empty"):
        synthetic.write(synthetic.mine_chips(4, size=16), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_failure_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(HighwallError, match="No space left"):
        synthetic.write(synthetic.mine_chips(4, size=16), tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: synthetic.mine_chips(1), "1 samples"),
        (lambda: synthetic.mine_chips(4, size=15), "size 15"),
        (lambda: synthetic.mine_chips(4, bands=4), "4 bands"),
        (lambda: synthetic.crack_images(4, seed=-1), "seed -1"),
    ],
)
def test_what_cannot_be_generated_is_refused(call, says: str) -> None:
    with pytest.raises(HighwallError, match=says):
        call()
