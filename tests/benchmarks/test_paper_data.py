"""What the paper's experiments learn from: nothing leaks, every slice is labelled by its centre, all sizes agree."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.paper.budgets import BUDGETS, SIZES
from benchmarks.paper.cells import Cell
from benchmarks.paper.data import Sources, centres_of, cut, folds_of, load, parts, thin
from targets.runtime.errors import HighwallError
from toolkit.data.synthetic import crack_images, mine_chips
from toolkit.data.write import write

BUDGET = replace(BUDGETS["smoke"], photographs=0)


@pytest.fixture(scope="module")
def sources():
    return Sources(mine_chips(60, seed=3), crack_images(20, size=101, seed=3))


@pytest.mark.parametrize("size", SIZES)
def test_a_slice_is_labelled_by_the_pixel_it_is_cut_around(sources, size):
    slices = cut(sources.photographs, size, 6, seed=5)
    index = {name: i for i, name in enumerate(sources.photographs.names)}
    assert slices.images.shape[1:] == (size, size, 3)
    for image, label, (name, row, column) in zip(slices.images, slices.labels, centres_of(slices), strict=True):
        photograph = sources.photographs.images[index[name]]
        assert (image[size // 2, size // 2] == photograph[row, column]).all()
        assert label == sources.photographs.labels[index[name], row, column]


def test_half_of_the_slices_are_cracks_and_every_size_is_cut_around_the_same_pixels(sources):
    found = [cut(sources.photographs, size, 7, seed=1) for size in SIZES]
    assert all(one.labels.mean() == 0.5 for one in found)
    assert len({one.names for one in found}) == 1
    assert cut(sources.photographs, 9, 7, seed=2).names != found[0].names


def test_photographs_without_room_or_with_few_cracks_are_met(sources):
    with pytest.raises(HighwallError, match="no room"):
        cut(crack_images(4, size=48, seed=1), 9, 4, seed=0)
    one_pixel = np.zeros_like(sources.photographs.labels[:2])
    one_pixel[0, 50, 50] = 1
    few = replace(sources.photographs.take([0, 1]), labels=one_pixel)
    slices = cut(few, 3, 8, seed=0)
    assert len(slices) == 8
    assert {place for place, label in zip(centres_of(slices), slices.labels, strict=True) if label} == {
        (few.names[0], 50, 50)
    }


@pytest.mark.parametrize("task", ["chips", "slices", "photographs", "patches"])
def test_no_group_is_in_two_parts_and_the_fold_is_never_learned_from(sources, task):
    three = parts(sources, Cell(task, "cracknet", 18, fold=2), BUDGET)
    assert set(three.test.folds) == {2}
    assert 2 not in three.fit.folds
    assert 2 not in three.validation.folds
    groups = [set(part.groups) for part in (three.fit, three.validation, three.test)]
    assert not groups[0] & groups[1]
    assert not groups[1] & groups[2]
    assert not groups[0] & groups[2]
    assert all(len(part) for part in (three.fit, three.validation, three.test))


def test_chips_are_cut_to_their_centre(sources):
    chips = parts(sources, Cell("chips", "cracknet", 9, fold=1), BUDGET).test
    whole = sources.chips.images[sources.chips.folds == 1]
    assert (chips.images == whole[:, 19:28, 19:28]).all()


def test_the_held_fold_is_the_one_nearest_to_a_fifth_of_both_classes(sources):
    labels = np.zeros(100, np.uint8)
    folds = np.repeat([3, 5, 8], [50, 30, 20]).astype(np.int64)
    labels[::4] = 1
    chips = replace(mine_chips(100, size=16), labels=labels, folds=folds)
    assert folds_of(chips, BUDGET) == (8,)
    labels[80:] = 1  # now fold 8 has no negative at all
    assert folds_of(replace(chips, labels=labels), BUDGET) == (5,)
    assert folds_of(sources.chips, replace(BUDGET, folds=(4, 0))) == (4, 0)
    with pytest.raises(HighwallError, match="no fold 9"):
        folds_of(sources.chips, replace(BUDGET, folds=(0, 9)))


def test_thinning_keeps_both_classes_and_draws_the_same_again(sources):
    few = thin(sources.chips, 13)
    assert len(few) == 13
    assert len(set(few.names)) == 13
    assert 0 < few.labels.sum() < 13
    assert few.names == thin(sources.chips, 13).names
    assert thin(sources.chips, 60) is sources.chips


def test_real_data_needs_folds_and_the_right_labels(sources, tmp_path):
    write(replace(sources.chips, folds=None), tmp_path / "mine_chips")
    write(sources.photographs, tmp_path / "cracks")
    with pytest.raises(HighwallError, match=r"mine_chips has no folds\.csv"):
        load(BUDGETS["cpu"], tmp_path)
    write(sources.photographs, tmp_path / "other" / "mine_chips")
    write(sources.photographs, tmp_path / "other" / "cracks")
    with pytest.raises(HighwallError, match="labelled to segment"):
        load(BUDGETS["cpu"], tmp_path / "other")


def test_photographs_are_paid_for_in_pixels():
    cpu = BUDGETS["cpu"]
    for side in (112, 300):
        crops = cpu.in_crops(cpu.samples, side)
        assert crops % cpu.large_batch == 0
        assert crops * side**2 == pytest.approx(cpu.samples * 48**2, rel=0.02)
