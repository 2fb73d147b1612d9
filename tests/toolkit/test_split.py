"""No group, and no sample, is ever on both sides of a split, and the same seed splits the same way."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from targets.runtime.errors import HighwallError
from toolkit.data.samples import Samples
from toolkit.data.split import hold_out, inner_validation


def samples(labels: list[int], groups: list[str] | None = None, folds: list[int] | None = None) -> Samples:
    count = len(labels)
    return Samples(
        task="classify",
        images=np.zeros((count, 1, 1, 1), dtype=np.uint8),
        labels=np.array(labels, dtype=np.uint8),
        names=tuple(str(i) for i in range(count)),
        folds=None if folds is None else np.array(folds),
        groups=None if groups is None else np.array(groups),
        class_names=("no mine", "mine"),
    )


def sides(labels: list[int], part: np.ndarray) -> set[int]:
    return {labels[i] for i in part}


grouped = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 8)), min_size=2, max_size=60)


@settings(max_examples=40, deadline=None)
@given(grouped, st.integers(0, 2**32))
def test_dealing_groups_is_complete_disjoint_whole_and_repeatable(rows: list, seed: int) -> None:
    groups = [f"g{g}" for _, g in rows]
    assume(len(set(groups)) > 1)
    data = samples([label for label, _ in rows], groups)
    train, test = hold_out(data, "group", None, seed)
    assert sorted([*train, *test]) == list(range(len(rows)))
    assert len(train) and len(test)
    assert not {groups[i] for i in train} & {groups[i] for i in test}
    again = hold_out(data, "source", None, seed)
    assert np.array_equal(again[0], train) and np.array_equal(again[1], test)


@settings(max_examples=40, deadline=None)
@given(grouped, st.floats(0.05, 0.9), st.integers(0, 2**32), st.booleans())
def test_inner_validation_keeps_groups_whole_unless_it_says_otherwise(
    rows: list, fraction: float, seed: int, with_groups: bool
) -> None:
    labels, groups = [label for label, _ in rows], [f"g{g}" for _, g in rows]
    data = samples(labels, groups if with_groups else None)
    train = np.arange(0, len(rows), 2) if len(rows) > 4 else np.arange(len(rows))
    fit, validation, note = inner_validation(data, train, fraction, seed)
    assert sorted([*fit, *validation]) == train.tolist()
    assert len(fit) and len(validation)
    if not note:
        assert not {groups[i] for i in fit} & {groups[i] for i in validation}
    for label in (0, 1):
        if sum(labels[i] == label for i in train) > 1:
            assert label in sides(labels, fit) and label in sides(labels, validation)
    again = inner_validation(data, train, fraction, seed)
    assert np.array_equal(again[0], fit) and np.array_equal(again[1], validation) and again[2] == note


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 2**32), st.data())
def test_groups_of_one_label_each_are_dealt_so_that_both_labels_are_on_both_sides(
    negatives: int, positives: int, seed: int, data: st.DataObject
) -> None:
    labels: list[int] = []
    groups: list[str] = []
    for group in range(negatives + positives):
        size = data.draw(st.integers(1, 30))
        labels += [int(group >= negatives)] * size
        groups += [f"s{group}"] * size
    made = samples(labels, groups)
    for first, second in (
        hold_out(made, "source", None, seed),
        inner_validation(made, np.arange(len(labels)), 0.15, seed)[:2],
    ):
        assert sides(labels, first) == sides(labels, second) == {0, 1}
        assert not {groups[i] for i in first} & {groups[i] for i in second}


def test_about_a_fifth_of_each_class_is_held_out() -> None:
    labels = [0] * 700 + [1] * 300
    groups = [f"g{i // 10}" for i in range(1000)]
    _, test = hold_out(samples(labels, groups), "group", None, 5)
    assert 120 <= sum(labels[i] == 0 for i in test) <= 160
    assert 50 <= sum(labels[i] == 1 for i in test) <= 70


def test_another_seed_deals_other_groups() -> None:
    data = samples([0, 1] * 50, [f"g{i // 4}" for i in range(100)])
    deals = {tuple(hold_out(data, "group", None, seed)[1]) for seed in range(5)}
    assert len(deals) > 1


def test_a_fold_is_held_out_by_number_or_by_its_name() -> None:
    data = samples([0, 1, 0, 1, 1], folds=[2, 7, 2, 7, 3])
    for held in (7, "7"):
        train, test = hold_out(data, "fold", held, 0)
        assert test.tolist() == [1, 3] and train.tolist() == [0, 2, 4]
    assert hold_out(data, "fold", None, 0)[1].tolist() == [0, 2]


def test_a_source_is_held_out_by_name() -> None:
    data = samples([0, 1, 0], ["north pit", "b", "north pit"])
    assert hold_out(data, "source", "north pit", 0)[1].tolist() == [0, 2]


def test_without_groups_samples_are_dealt_at_random_and_the_note_says_so() -> None:
    _, validation, note = inner_validation(samples([0, 1] * 20), np.arange(40), 0.25, 1)
    assert len(validation) == 10
    assert "no groups" in note and "mine" in note


def test_one_group_of_a_label_is_dealt_within_and_the_note_names_the_label() -> None:
    labels, groups = [0] * 20 + [1] * 10, ["a"] * 10 + ["b"] * 10 + ["only"] * 10
    _, validation, note = inner_validation(samples(labels, groups), np.arange(30), 0.2, 1)
    assert "'mine'" in note and "'no mine'" not in note
    assert sum(labels[i] for i in validation) == 2
    assert len({groups[i] for i in validation if labels[i] == 0}) == 1


@pytest.mark.parametrize(
    ("by", "held", "says"),
    [("fold", None, "no folds"), ("source", None, "no sources"), ("group", "x", "no groups")],
)
def test_splitting_by_what_is_not_there_is_refused(by: str, held: str | None, says: str) -> None:
    with pytest.raises(HighwallError, match=says):
        hold_out(samples([0, 1]), by, held, 0)


def test_an_unknown_name_is_refused_with_those_that_are_known() -> None:
    data = samples([0, 1, 1], ["a", "b", "c"], [0, 1, 1])
    with pytest.raises(HighwallError, match="a, b, c"):
        hold_out(data, "group", "d", 0)
    with pytest.raises(HighwallError, match="0, 1"):
        hold_out(data, "fold", 9, 0)


def test_holding_out_everything_is_refused() -> None:
    with pytest.raises(HighwallError, match="nothing is left"):
        hold_out(samples([0, 1], ["a", "a"], [1, 1]), "fold", 1, 0)
    with pytest.raises(HighwallError, match="nothing is left"):
        hold_out(samples([0, 1], ["a", "a"]), "group", None, 0)


def test_hopeless_validation_is_refused() -> None:
    with pytest.raises(HighwallError, match="fraction"):
        inner_validation(samples([0, 1]), np.arange(2), 1.0, 0)
    with pytest.raises(HighwallError, match="1 training samples"):
        inner_validation(samples([0, 1]), np.arange(1), 0.5, 0)
