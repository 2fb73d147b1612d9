"""A pixel counts as right within a distance, and no farther; beside it plain precision and recall."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

import highwall
from targets.runtime.errors import HighwallError
from toolkit.data.synthetic import crack_images
from toolkit.data.write import write
from toolkit.margins import Margins
from toolkit.metrics import evaluate
from toolkit.runs import Request, plan

sides = st.tuples(st.integers(1, 3), st.integers(1, 17), st.integers(1, 13))


def scored(labels: np.ndarray, scores: np.ndarray, *distances: float, threshold: float = 0.5) -> list[dict[str, float]]:
    near = Margins(threshold, distances)
    near.add(labels, scores)
    return near.scores()


def test_a_crack_drawn_one_pixel_aside_is_found_within_one_pixel_and_not_within_none() -> None:
    mask = np.zeros((9, 9), np.uint8)
    mask[4] = 1
    exact, near = scored(mask, np.roll(mask, 1, axis=0), 0, 1)
    assert exact == {"within": 0, "precision": 0, "recall": 0, "f1": 0}
    assert near == {"within": 1, "precision": 1, "recall": 1, "f1": 1}


def test_a_diagonal_neighbour_lies_farther_than_one_pixel() -> None:
    mask = np.zeros((5, 5), np.uint8)
    mask[2, 2] = 1
    assert [one["f1"] for one in scored(mask, np.roll(mask, (1, 1), (0, 1)), 1, 1.4, 1.5)] == [0, 0, 1]


@settings(max_examples=60)
@given(st.data(), sides, st.floats(0, 8))
def test_it_agrees_with_distance_transforms(data: st.DataObject, shape: tuple[int, int, int], distance: float) -> None:
    labels = data.draw(arrays(np.uint8, shape, elements=st.integers(0, 1)))
    called = data.draw(arrays(np.uint8, shape, elements=st.integers(0, 1))) > 0

    def hits(of: np.ndarray, to: np.ndarray) -> float:
        far = [ndimage.distance_transform_edt(~one) if one.any() else np.full(one.shape, np.inf) for one in to]
        return float((of & (np.stack(far) <= distance)).sum() / max(of.sum(), 1))

    (found,) = scored(labels, called.astype(np.float32)[:, None], distance)
    assert found["precision"] == pytest.approx(hits(called, labels > 0))
    assert found["recall"] == pytest.approx(hits(labels > 0, called))


@given(arrays(np.float32, (2, 6, 7), elements=st.floats(0, 1, width=32)), st.floats(0, 1))
def test_within_nothing_it_is_plain_f1_whatever_the_batches(scores: np.ndarray, threshold: float) -> None:
    labels = (np.arange(84).reshape(2, 6, 7) % 5 == 0).astype(np.uint8)
    near = Margins(threshold, (0,))
    pairs = [(labels[:1], scores[:1]), (labels[1:], scores[1:])]
    assert list(near.counting(pairs)) == pairs
    plain = evaluate(labels, scores, threshold)
    (found,) = near.scores()
    assert (found["precision"], found["recall"], found["f1"]) == pytest.approx(
        (plain.precision, plain.recall, plain.f1)
    )


@pytest.mark.parametrize("distance", [-1, 51, float("nan"), float("inf")])
def test_a_distance_that_is_none_is_refused(distance: float) -> None:
    with pytest.raises(HighwallError, match="give 0 to 50"):
        Margins(0.5, (distance,))


def test_evaluate_says_how_much_lies_within_the_distance_of_a_checkpoint_and_of_its_artifact(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(crack_images(12, size=48, seed=3), tmp_path / "data")
    data, run, built = str(tmp_path / "data"), str(tmp_path / "run"), str(tmp_path / "x.highwall")
    request = Request("segment", tmp_path / "run", slice_size=48, epochs=1, width=8, growth=8)
    plan(crack_images(12, size=48, seed=3), request).run(lambda _: None)
    build = ["build", run, "--board", "rpi4b", "--out", built, "--recipe", "onnx-fp32", "--calibration", data]
    assert highwall.main(build) == 0
    capsys.readouterr()
    found = []
    for model in (run, built):
        assert highwall.main(["evaluate", model, "--data", data, "--within", "2", "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
        assert found[-1]["within"] == 2
        assert found[-1]["f1_within"] >= found[-1]["f1"]
    assert found[0]["f1_within"] == pytest.approx(found[1]["f1_within"], abs=0.02)
    assert highwall.main(["evaluate", run, "--data", data, "--json"]) == 0
    assert "within" not in json.loads(capsys.readouterr().out)
    assert highwall.main(["evaluate", run, "--data", data, "--within", "-1"]) == 1
    assert "give 0 to 50" in capsys.readouterr().err


def test_chips_have_no_mask_to_be_near(
    chips_folder: Path, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert highwall.main(["evaluate", str(run_folder), "--data", str(chips_folder), "--within", "2"]) == 1
    error = capsys.readouterr().err
    assert "masks" in error
    assert error.count("\n") == 1
