"""Predictions for images of any size: tiles cover everything, and the stitched map shows no seams."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from targets.runtime.errors import HighwallError
from targets.runtime.overlay import LEAST, display, draw_overlay, write_overlay
from targets.runtime.predict import Tile, label, predict


def random_image(parts, height, width, seed=0):
    high = 256 if parts.spec.dtype == "uint8" else 10001
    return np.random.RandomState(seed).randint(0, high, (height, width, parts.spec.bands), parts.spec.dtype)


def test_an_image_of_the_models_size_runs_once(classifier):
    image = random_image(classifier, 7, 5)
    found = predict(classifier.session, classifier.manifest, image)
    assert found.probability == classifier.session.run(image)[0]
    assert found.tiles == (Tile(0, 0, 7, 5, found.probability),)
    assert found.map is None


@settings(max_examples=40, deadline=None)
@given(st.integers(7, 40), st.integers(5, 40))
def test_tiles_cover_every_pixel_and_the_highest_counts(classifier, height, width):
    image = random_image(classifier, height, width)
    found = predict(classifier.session, classifier.manifest, image)
    covered = np.zeros((height, width), int)
    for tile in found.tiles:
        piece = image[tile.row : tile.row + 7, tile.col : tile.col + 5]
        covered[tile.row : tile.row + 7, tile.col : tile.col + 5] += 1
        assert tile.probability == pytest.approx(piece.mean() / 255, abs=1e-6)
    assert covered.min() == 1
    assert len(found.tiles) == -(-height // 7) * -(-width // 5)
    assert found.probability == max(tile.probability for tile in found.tiles)


def test_an_image_too_small_to_classify_names_both_sizes(classifier):
    for height, width in ((6, 5), (7, 4), (1, 100)):
        with pytest.raises(HighwallError, match=f"{width} x {height} pixels, smaller than the 5 x 7"):
            predict(classifier.session, classifier.manifest, np.zeros((height, width, 3), np.uint8))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 45), st.integers(1, 45), st.integers(0, 99))
def test_a_map_has_the_images_size_and_each_pixel_its_own_answer(segmenter, height, width, seed):
    # The model's answer for a pixel depends on that pixel alone, so tiling and padding must not show at all.
    image = random_image(segmenter, height, width, seed)
    found = predict(segmenter.session, segmenter.manifest, image)
    assert found.map.dtype == np.float32
    np.testing.assert_allclose(found.map, image.mean(axis=2) / 10000, atol=2e-6)
    assert found.pixels == np.count_nonzero(found.map >= 0.5) == sum(box.area for box in found.boxes)
    assert found.fraction == found.pixels / (height * width)
    assert found.positive == (found.probability >= 0.5) == (found.pixels > 0)


def test_a_model_that_errs_at_its_rim_leaves_no_seam(segmenter):
    class Rim:
        """0.5 inside, 1.0 on the outermost pixels of a tile: what zero padding does to a real network."""

        def run(self, image, sensors=None):
            answer = np.ones(image.shape[:2], np.float32)
            answer[1:-1, 1:-1] = 0.5
            return answer

    spec = replace(segmenter.spec, height=32, width=32)
    manifest = replace(segmenter.manifest, input=spec, output_shape=(32, 32))
    found = predict(Rim(), manifest, np.zeros((80, 104, 2), np.uint16))
    inside = found.map[1:-1, 1:-1]
    assert inside.max() < 0.55
    assert np.abs(np.diff(inside, axis=0)).max() < 0.1


def test_a_small_image_is_padded_with_its_own_edge(segmenter):
    class Whole:
        seen = None

        def run(self, image, sensors=None):
            self.seen = image
            return np.zeros(image.shape[:2], np.float32)

    session, image = Whole(), random_image(segmenter, 4, 3)
    assert predict(session, segmenter.manifest, image).map.shape == (4, 3)
    np.testing.assert_array_equal(session.seen, np.pad(image, ((0, 9), (0, 6), (0, 0)), mode="edge"))


@pytest.mark.parametrize("task", ["classifier", "segmenter"])
def test_the_threshold_itself_is_positive_and_can_be_given(task, request):
    parts = request.getfixturevalue(task)
    image = np.full(parts.spec.shape, 51 if task == "classifier" else 2000, parts.spec.dtype)
    for threshold, positive in ((0.19, True), (0.21, False), (0.0, True), (None, False)):
        assert predict(parts.session, parts.manifest, image, threshold=threshold).positive is positive
    exact = predict(parts.session, parts.manifest, image).probability
    assert predict(parts.session, parts.manifest, image, threshold=exact).positive


def test_an_answer_that_is_no_number_is_refused(classifier, segmenter):
    class Broken:
        def run(self, image, sensors=None):
            return np.full(image.shape[:2], np.nan, np.float32)

    for parts in (classifier, segmenter):
        with pytest.raises(HighwallError, match="not a number"):
            predict(Broken(), parts.manifest, np.zeros(parts.spec.shape, parts.spec.dtype))


def test_labels_say_the_verdict(classifier):
    assert [label(classifier.manifest, positive) for positive in (True, False)] == ["crack", "sound"]
    assert label(replace(classifier.manifest, labels=("crack",)), False) == "no crack"


# --- pictures -------------------------------------------------------------------------------------------


def test_a_chip_is_enlarged_until_it_is_legible_and_pixels_stay_square(classifier):
    image = random_image(classifier, 7, 5)
    picture = draw_overlay(image, predict(classifier.session, classifier.manifest, image), "sound")
    pixels = np.asarray(picture)
    bar = picture.height - 55 * 7
    assert picture.width == 55 * 5
    assert max(picture.height - bar, picture.width) >= LEAST
    np.testing.assert_array_equal(pixels[bar + 27 :: 55, 27::55], image)
    assert pixels[:bar].max() > 200  # the label


def test_a_segmented_crack_is_tinted_outlined_and_boxed(segmenter):
    image = np.zeros((40, 400, 2), np.uint16)
    image[10:20, 30:60] = 9000
    picture = np.asarray(draw_overlay(image, predict(segmenter.session, segmenter.manifest, image), "crack"))
    pixels = picture[picture.shape[0] - 40 :]
    assert pixels.shape == (40, 400, 3)
    red = (pixels == (230, 30, 30)).all(axis=2)
    yellow = (pixels == (255, 220, 0)).all(axis=2)
    assert red[10, 30:60].all()
    assert not red[12:18, 32:58].any()
    assert yellow[9, 29:61].all()
    assert yellow[9:21, 60].all()
    assert pixels[15, 45, 0] > pixels[15, 45, 1]
    assert pixels[30, 200].tolist() == [0, 0, 0]


def test_tiles_are_tinted_by_their_probability(classifier):
    image = np.zeros((7 * 60, 5 * 60, 3), np.uint8)
    image[210:] = 200
    found = predict(classifier.session, classifier.manifest, image)
    pixels = np.asarray(draw_overlay(image, found, "crack")).astype(int)
    redness = pixels[:, :, 0] - pixels[:, :, 1]
    assert redness[-3, 2] > 20
    assert redness[60, 2] == 0


def test_numbers_are_stretched_for_the_eye_and_three_bands_shown():
    ramp = np.arange(1000, 2000, dtype=np.uint16).reshape(25, 40, 1)
    many = np.repeat(ramp, 13, axis=2)
    for image in (ramp, many):
        shown = display(image)
        assert (shown.shape, shown.dtype) == ((25, 40, 3), np.uint8)
        assert (shown.min(), shown.max()) == (0, 255)
        assert shown[12, 20, 0] == pytest.approx(128, abs=6)
    flat = display(np.full((3, 3, 2), 7, np.uint16))
    assert flat.max() == 0


def test_a_picture_is_written_whole(tmp_path, classifier):
    image = random_image(classifier, 20, 20)
    path = tmp_path / "new" / "a.overlay.png"
    write_overlay(path, image, predict(classifier.session, classifier.manifest, image), "sound")
    assert path.read_bytes().endswith(b"IEND\xaeB`\x82")
    assert [found.name for found in path.parent.iterdir()] == ["a.overlay.png"]
