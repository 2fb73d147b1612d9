"""Samples refuse arrays that do not fit, hash what matters, and say what they hold."""

from dataclasses import replace

import numpy as np
import pytest

from targets.runtime.errors import HighwallError
from toolkit.data.samples import Samples, Unlabelled


def chips(count: int = 7) -> Samples:
    rng = np.random.default_rng(0)
    return Samples(
        task="classify",
        images=rng.integers(0, 255, (count, 5, 3, 4), dtype=np.uint8),
        labels=(np.arange(count) % 2).astype(np.uint8),
        names=tuple(f"n{i}" for i in range(count)),
        folds=np.arange(count) % 3,
        groups=np.array([f"g{i // 2}" for i in range(count)]),
        class_names=("no mine", "mine"),
        found="somewhere",
    )


def test_size_is_height_then_width() -> None:
    assert chips().size == (5, 3)
    assert chips().bands == 4
    assert len(chips()) == 7


def test_take_keeps_every_column_in_step() -> None:
    samples = chips()
    taken = samples.take([6, 0, 3])
    assert taken.names == ("n6", "n0", "n3")
    assert np.array_equal(taken.images, samples.images[[6, 0, 3]])
    assert taken.labels.tolist() == [0, 0, 1]
    assert taken.folds is not None and taken.folds.tolist() == [0, 0, 0]
    assert taken.groups is not None and taken.groups.tolist() == ["g3", "g0", "g1"]


def test_taking_nothing_gives_no_samples() -> None:
    empty = chips().take([])
    assert len(empty) == 0
    assert empty.positive.shape == (0,)
    assert len(empty.digest) == 64
    assert "0 images" in empty.describe()


@pytest.mark.parametrize("column", ["images", "labels", "names", "folds"])
def test_the_digest_changes_with_each_thing_it_covers(column: str) -> None:
    samples = chips()
    if column == "names":
        changed = replace(samples, names=("other", *samples.names[1:]))
    else:
        array = getattr(samples, column).copy()
        array.flat[0] ^= 1
        changed = replace(samples, **{column: array})
    assert changed.digest != samples.digest


def test_the_digest_does_not_depend_on_where_the_data_lay() -> None:
    assert replace(chips(), found="elsewhere").digest == chips().digest
    assert chips().take(range(7)).digest == chips().digest


def test_the_digest_tells_a_boundary_between_names() -> None:
    a, b = chips(2), chips(2)
    assert replace(a, names=("ab", "c")).digest != replace(b, names=("a", "bc")).digest


def test_segment_counts_images_with_a_crack_and_its_pixels() -> None:
    masks = np.zeros((3, 4, 5), dtype=np.uint8)
    masks[1, 2, 3] = 1
    images = np.zeros((3, 4, 5, 1), dtype=np.uint16)
    samples = Samples("segment", images, masks, ("a", "b", "c"), None, None, ("no crack", "crack"))
    assert samples.positive.tolist() == [False, True, False]
    text = samples.describe()
    assert "1 of 3 images positive (33.3%), 1.67% of all pixels" in text
    assert "uint16" in text and "1 bands" in text and "folds: none" in text and "groups: none" in text


def test_describe_names_source_classes_folds_and_groups() -> None:
    text = chips().describe()
    for part in ("somewhere", "5x3 px", "4 bands", "uint8", "'mine'", "3 of 7", "0 (3), 1 (2), 2 (2)", "groups: 4"):
        assert part in text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"task": "detect"}, "detect"),
        ({"images": np.zeros((7, 5, 3, 4), dtype=np.float32)}, "float32"),
        ({"images": np.zeros((7, 5, 3), dtype=np.uint8)}, "N,H,W,C"),
        ({"labels": np.zeros(6, dtype=np.uint8)}, "labels"),
        ({"labels": np.zeros(7, dtype=np.int64)}, "int64"),
        ({"labels": np.full(7, 2, dtype=np.uint8)}, "found 2"),
        ({"task": "segment"}, "to segment"),
        ({"names": ("a",)}, "1 names for 7"),
        ({"folds": np.zeros(3, dtype=np.int64)}, "3 folds for 7"),
        ({"groups": np.array(["a"])}, "1 groups for 7"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(change: dict, says: str) -> None:
    with pytest.raises(HighwallError, match=says) as caught:
        replace(chips(), **change)
    assert "\n" not in str(caught.value)


def test_unlabelled_images_have_a_digest_of_their_own() -> None:
    images = np.zeros((2, 3, 3, 1), dtype=np.uint8)
    one, other = Unlabelled(images, ("a", "b")), Unlabelled(images + 1, ("a", "b"))
    assert one.digest != other.digest
    assert len(one) == 2
