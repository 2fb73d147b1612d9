"""Golden vectors: frozen inputs, and a model that answers otherwise does not pass."""

import hashlib
import sys
from dataclasses import replace

import numpy as np
import pytest

from targets.runtime import golden
from targets.runtime.artifact import InputSpec
from targets.runtime.engine import open_session
from targets.runtime.errors import HighwallError

BYTES = InputSpec(5, 7, 3, "uint8")
NUMBERS = InputSpec(3, 11, 13, "uint16")


@pytest.mark.parametrize(
    ("spec", "largest", "digest"),
    [
        (BYTES, 255, "6e371b86"),
        (NUMBERS, 10000, "ff7e0a81"),
    ],
)
def test_a_seed_gives_the_same_image_for_ever(spec, largest, digest):
    image = golden.seeded_image(4294967295, spec)
    assert (image.shape, image.dtype) == (spec.shape, np.dtype(spec.dtype))
    assert hashlib.sha256(image.astype(f"<u{image.dtype.itemsize}").tobytes()).hexdigest()[:8] == digest
    many = np.concatenate([golden.seeded_image(seed, spec).ravel() for seed in range(300)])
    assert many.min() <= largest * 0.001
    assert largest * 0.999 <= many.max() <= largest


def test_inputs_are_the_seeded_then_the_real(segmenter):
    images = list(golden.inputs(segmenter.golden, segmenter.spec))
    assert len(images) == 3
    np.testing.assert_array_equal(images[1], golden.seeded_image(2, segmenter.spec))
    np.testing.assert_array_equal(images[2], segmenter.golden.images[0])


def test_expected_outputs_are_the_formula_of_the_model(segmenter, classifier):
    for parts in (segmenter, classifier):
        largest = 255 if parts.spec.dtype == "uint8" else 10000
        axes = (3,) if parts is segmenter else (1, 2, 3)
        images = np.stack(list(golden.inputs(parts.golden, parts.spec))).astype(np.float64)
        wanted = images.mean(axis=axes) / largest
        if parts is segmenter:  # 13 x 9 pixels as means of 2 x 2, those at the far edges of fewer
            blocks = [
                [each[r : r + 2, c : c + 2].mean() for c in range(0, 9, 2)] for each in wanted for r in range(0, 13, 2)
            ]
            wanted = np.array(blocks).reshape(len(wanted), 7, 5)
        else:
            wanted = wanted[:, None]
        np.testing.assert_allclose(parts.golden.expected, wanted, atol=1e-6)


def test_the_model_it_was_made_with_passes_exactly(classifier, segmenter):
    for parts in (classifier, segmenter):
        report = golden.check(parts.artifact(), parts.session)
        assert (report.n, report.max_difference, report.passed) == (3, 0.0, True)


def test_a_model_that_answers_otherwise_fails_by_the_difference(classifier, make_model):
    other = open_session("onnx", make_model(classifier.spec, "classify", gain=1.01))
    report = golden.check(classifier.artifact(), other)
    assert not report.passed
    assert report.max_difference == pytest.approx(0.01 * classifier.golden.expected.max(), rel=1e-3)


def test_the_tolerance_is_the_last_difference_that_passes(classifier, make_model):
    other = open_session("onnx", make_model(classifier.spec, "classify", gain=1.01))
    difference = golden.check(classifier.artifact(), other).max_difference
    for tolerance, passed in ((difference, True), (np.nextafter(difference, 0), False)):
        loose = replace(classifier.golden, tolerance=float(tolerance))
        assert golden.check(classifier.artifact(golden=loose), other).passed is passed


@pytest.mark.parametrize("index", [0, 2])
def test_one_nan_is_a_mismatch_whatever_the_tolerance(segmenter, index):
    class Broken:
        calls = 0

        def run(self, image, sensors=None):
            output = segmenter.session.run(image, sensors).copy()
            if self.calls == index:
                output[4, 2] = np.nan
            self.calls += 1
            return output

    loose = replace(segmenter.golden, tolerance=1e30)
    report = golden.check(segmenter.artifact(golden=loose), Broken())
    assert not report.passed
    assert report.max_difference == np.inf


def test_an_output_of_another_shape_is_refused_not_broadcast(classifier):
    class Scalar:
        def run(self, image, sensors=None):
            return np.zeros((), np.float32)

    with pytest.raises(HighwallError, match="output is"):
        golden.check(classifier.artifact(), Scalar())


@pytest.mark.parametrize("block", [1, 2, 5, 100])
def test_a_map_is_thinned_and_a_row_is_not(block):
    assert golden.sample(np.zeros((13, 9), np.float32), block).shape == (-(-13 // block), -(-9 // block))
    assert golden.sample(np.zeros(9, np.float32), block).shape == (9,)


def test_a_thinned_map_counts_every_pixel_once():
    rng = np.random.default_rng(0)
    output = rng.random((13, 9), np.float32)
    kept = golden.sample(output, 5)
    assert kept.dtype == np.float32
    assert kept[0, 0] == pytest.approx(output[:5, :5].mean())
    assert kept[2, 1] == pytest.approx(output[10:, 5:].mean())
    for row, column in ((0, 0), (12, 8), (7, 3)):
        changed = output.copy()
        changed[row, column] += 1
        assert (golden.sample(changed, 5) != kept).sum() == 1


def test_nothing_to_run_is_refused(classifier):
    with pytest.raises(HighwallError, match="at least one"):
        golden.make(classifier.session, classifier.spec, [], None, block=1, tolerance=0)


def test_seeds_alone_and_images_alone_will_do(classifier):
    seeds = golden.make(classifier.session, classifier.spec, [5], None, block=1, tolerance=0)
    images = golden.make(
        classifier.session,
        classifier.spec,
        [],
        next(golden.inputs(seeds, classifier.spec))[None],
        block=1,
        tolerance=0,
    )
    np.testing.assert_array_equal(seeds.expected, images.expected)


def test_sensor_features_go_with_each_input(make_parts):
    parts = make_parts("classify", InputSpec(3, 3, 1, "uint8", sensors=4))
    report = golden.check(parts.artifact(), parts.session)
    assert report.passed
    felt = golden.sensor_features(0, parts.spec).mean()
    mean = golden.seeded_image(1, parts.spec).mean() / 255
    assert parts.golden.expected[0, 0] == pytest.approx(mean * felt, rel=1e-5)
    with pytest.raises(HighwallError, match="4 sensor features, 0 were given"):
        parts.session.run(golden.seeded_image(1, parts.spec))


def test_an_unknown_engine_names_the_known_ones(classifier):
    for name in ("tensorrt", "artifact", "../onnx", ""):
        with pytest.raises(HighwallError, match="this Highwall has: onnx"):
            open_session(name, classifier.model)


def test_a_missing_engine_package_says_what_to_install(classifier, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(HighwallError, match=r"pip install 'highwall\[ort\]'"):
        open_session("onnx", classifier.model)


def test_a_model_the_engine_cannot_load_is_one_line_and_quiet(classifier, make_model, capfd):
    for model in (b"", b"junk", classifier.model[:-40], make_model(BYTES, "classify", output="other")):
        with pytest.raises(HighwallError) as caught:
            open_session("onnx", model)
        assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_an_image_of_another_kind_is_refused_by_the_engine(classifier):
    for shape, dtype in (((7, 5, 3), np.uint16), ((5, 7, 3), np.uint8), ((7, 5), np.uint8)):
        with pytest.raises(HighwallError, match="the model takes"):
            classifier.session.run(np.zeros(shape, dtype))
