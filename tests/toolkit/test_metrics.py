"""Metrics agree with a case worked by hand and with scikit-learn."""

import numpy as np
import pytest
import sklearn.metrics as reference
from hypothesis import given
from hypothesis import strategies as st

from toolkit.metrics import Tally, evaluate

samples = st.lists(st.tuples(st.booleans(), st.integers(0, 20)), min_size=1, max_size=60)


def test_a_case_worked_by_hand() -> None:
    # TP 3, FN 1, FP 2, TN 4: agreement 0.7; by chance (5 * 4 + 5 * 6) / 100 = 0.5; kappa 0.2 / 0.5.
    labels = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    scores = [0.9, 0.8, 0.7, 0.2, 0.85, 0.6, 0.1, 0.1, 0.1, 0.1]
    found = evaluate(labels, scores, threshold=0.6)
    assert (found.precision, found.recall, found.overall_accuracy) == (0.6, 0.75, 0.7)
    assert found.f1 == pytest.approx(2 / 3)
    assert found.kappa == pytest.approx(0.4)
    # Pairs won by the positives: 6 + 5 + 5 + 4 of 24.
    assert found.auc == pytest.approx(20 / 24)
    assert found.n == 10


@given(samples, st.integers(0, 20))
def test_every_metric_agrees_with_scikit_learn(pairs: list[tuple[bool, int]], cut: int) -> None:
    labels = np.array([label for label, _ in pairs], int)
    scores = np.array([score / 20 for _, score in pairs])
    found = evaluate(labels, scores, cut / 20)
    called = (scores >= cut / 20).astype(int)
    assert found.precision == pytest.approx(reference.precision_score(labels, called, zero_division=0))
    assert found.recall == pytest.approx(reference.recall_score(labels, called, zero_division=0))
    assert found.f1 == pytest.approx(reference.f1_score(labels, called, zero_division=0))
    assert found.overall_accuracy == pytest.approx(reference.accuracy_score(labels, called))
    if len(set(labels)) == 2:
        assert found.auc == pytest.approx(reference.roc_auc_score(labels, scores))
        assert found.average_precision == pytest.approx(reference.average_precision_score(labels, scores))
        if len(set(called)) == 2:
            assert found.kappa == pytest.approx(reference.cohen_kappa_score(labels, called), abs=1e-12)


@given(samples)
def test_counting_pixels_by_level_changes_nothing_that_can_be_seen(pairs: list[tuple[bool, int]]) -> None:
    labels = np.array([label for label, _ in pairs])
    scores = np.array([score / 20 for _, score in pairs], np.float32)
    pixels = Tally()
    for part in np.array_split(np.arange(len(pairs)), 3):
        pixels.add_pixels(labels[part], scores[part])
    by_level, exact = pixels.scores(0.512), evaluate(labels, scores, 0.512)
    assert by_level.n == exact.n
    for name in ("precision", "recall", "f1", "kappa", "auc", "average_precision"):
        assert getattr(by_level, name) == pytest.approx(getattr(exact, name), abs=1e-9)


@given(samples)
def test_the_best_threshold_has_no_better_neighbour(pairs: list[tuple[bool, int]]) -> None:
    tally = Tally()
    tally.add([label for label, _ in pairs], [score / 20 for _, score in pairs])
    best = tally.scores(tally.best_threshold()).f1
    if any(label for label, _ in pairs):
        assert all(tally.scores(cut / 20).f1 <= best + 1e-12 for cut in range(21))


@given(samples)
def test_a_steady_threshold_costs_at_most_a_hundredth_of_the_best(pairs: list[tuple[bool, int]]) -> None:
    tally = Tally()
    tally.add([label for label, _ in pairs], [(score + 1) / 22 for _, score in pairs])
    best, steady = tally.scores(tally.best_threshold()).f1, tally.scores(tally.steady_threshold()).f1
    assert steady >= best * 0.99 - 1e-12


def test_a_steady_threshold_stands_in_the_middle_of_its_plateau() -> None:
    tally = Tally()
    tally.add([1, 1, 0, 0], [0.95, 0.9, 0.1, 0.02])
    assert tally.steady_threshold() == pytest.approx(0.5)
    assert Tally().steady_threshold() == 0.5


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        evaluate([0, 1], [0.5, float("nan")])
    with pytest.raises(ValueError, match="3 labels"):
        evaluate([0, 1, 1], [0.5, 0.5])
