"""Figure 4: windows look where they say, maps become boxes, and AP is what a hand computes."""

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.paper.boxes import (
    STRIDE,
    Boxes,
    average_precision,
    best_threshold,
    every_threshold,
    map_boxes,
    slide,
    spread,
    surest_at,
    truth_boxes,
)
from benchmarks.paper.networks import Centre, Detector
from toolkit import baselines
from toolkit.data.batches import Normalisation

PLAIN = Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
SIZE = (100, 100)
TRUTH = [[(10.0, 10.0, 20.0, 20.0, 1.0)], [(0.0, 0.0, 10.0, 10.0, 1.0)]]


class Brightness(nn.Module):
    """Says how bright the centre pixel's first band is."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.05))

    def forward(self, image):
        half = image.shape[-1] // 2
        return image[:, :1, half, half] * self.scale


@pytest.mark.parametrize("shape", [(101, 67), (48, 48), (64, 160)])
@pytest.mark.parametrize("size", [7, 18, 48])
def test_a_window_is_centred_on_the_pixels_its_answer_stands_for(shape, size):
    image = np.random.default_rng(1).integers(0, 255, (*shape, 3), dtype=np.uint8)
    heat = slide(Brightness(), PLAIN, image, size)
    assert heat.shape == (-(-shape[0] // STRIDE), -(-shape[1] // STRIDE))
    inside = image[STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE, 0]
    seen = 1 / (1 + np.exp(-0.05 * inside.astype(np.float64)))
    assert np.allclose(heat[: inside.shape[0], : inside.shape[1]], seen, atol=1e-5)


def test_a_map_of_windows_has_the_size_of_its_photograph_and_its_values_at_the_middles():
    heat = np.array([[0.0, 1.0], [0.5, 0.25]], np.float32)
    whole = spread(heat, (29, 31))
    assert whole.shape == (29, 31)
    assert whole[:8, :8].max() == 0
    assert whole[-1, -1] == pytest.approx(0.25, abs=0.05)


def test_boxes_are_those_of_components_and_specks_are_left_out():
    mask = np.zeros((40, 50), bool)
    mask[5:9, 10:20] = True
    mask[30, 30] = True
    assert truth_boxes(mask) == [(10, 5, 10, 4, 1.0)]
    probability = np.where(mask, 0.6, 0.1).astype(np.float32)
    probability[6, 12] = 0.95
    assert map_boxes(probability, 0.5) == [(10, 5, 10, 4, pytest.approx(0.95))]
    assert map_boxes(probability, 0.97) == []


def test_ap_is_what_a_hand_computes():
    # Sure false, then two true ones: precision 1/2 and 2/3 at recall 1/2 and 1, interpolated to 2/3 everywhere.
    found = [[(10, 10, 20, 20, 0.8), (60, 60, 9, 9, 0.9)], [(0, 0, 10, 10, 0.7)]]
    expected = pytest.approx(2 / 3, abs=1e-5)
    assert average_precision(TRUTH, found, SIZE) == {"0.25": expected, "0.5": expected, "0.75": expected, "1": expected}


def test_ap_falls_with_the_overlap_asked_for_and_at_one_only_exact_boxes_count():
    # The second box overlaps by 60 of 100: it counts at 0.25 and 0.5, and never at 0.75 or 1.
    found = [[(10, 10, 20, 20, 0.9)], [(0, 0, 6, 10, 0.8)]]
    ap = average_precision(TRUTH, found, SIZE)
    assert ap["0.25"] == ap["0.5"] == 1.0
    # Recall 1/2 at precision 1: 51 of COCO's 101 recalls.
    assert ap["0.75"] == ap["1"] == pytest.approx(51 / 101, abs=1e-5)
    off_by_one = [[(10, 10, 20, 20, 0.9)], [(0, 0, 10, 10.01, 0.8)]]
    assert average_precision(TRUTH, off_by_one, SIZE)["1"] == pytest.approx(51 / 101, abs=1e-5)
    assert average_precision(TRUTH, TRUTH, SIZE)["1"] == 1.0


@pytest.mark.parametrize(("truth", "found"), [(TRUTH, [[], []]), ([[], []], TRUTH), ([[], []], [[], []])])
def test_ap_of_nothing_is_nought(truth, found):
    assert set(average_precision(truth, found, SIZE).values()) == {0.0}


def test_the_threshold_is_the_one_with_the_best_boxes_whatever_happens_at_overlap_one():
    probability = np.full((60, 60), 0.75, np.float32)  # below 0.8 everything is one box
    probability[10:30, 20:50] = 0.85
    truth = [[(20.0, 10.0, 30.0, 20.0, 1.0)]]
    by_threshold = every_threshold(truth, [probability], (60, 60))
    assert best_threshold(by_threshold) == "0.8"
    assert best_threshold({"0.5": by_threshold["0.9"], "0.9": by_threshold["0.9"]}) == "0.5"
    zero = {"0.25": 0.0, "0.5": 0.0, "0.75": 0.0}
    assert best_threshold({"0.5": zero | {"1": 0.0}, "0.7": zero | {"1": 1.0}}) == "0.5"


def test_a_pixel_scores_as_the_surest_box_over_it():
    boxes = [(10.0, 20.0, 5.0, 5.0, 0.4), (12.0, 18.0, 9.0, 9.0, 0.7)]
    assert surest_at(boxes, row=20, column=10) == 0.4
    assert surest_at(boxes, row=21, column=13) == 0.7
    assert surest_at(boxes, row=10, column=10) == 0.0
    assert surest_at([], 0, 0) == 0.0


def test_a_network_of_pixels_judges_a_slice_by_its_centre():
    torch.manual_seed(0)
    unet = baselines.make("unet", "segment", 3, 18, width=1 / 16).eval()
    image = torch.rand(2, 3, 18, 18)
    with torch.inference_mode():
        assert torch.equal(Centre(unet)(image), unet(image)[:, :, 9, 9])


def test_ssd_learns_boxes_from_masks_and_from_masks_without_any():
    torch.manual_seed(0)
    ssd = Detector(baselines.make("ssd300", "detect", 3, 300, width=1 / 32))
    masks = torch.zeros(2, 1, 70, 90)
    masks[0, 0, 20:50, 30:60] = 1
    images = torch.rand(2, 3, 70, 90)
    loss = Boxes().loss(ssd, images, masks)
    loss.backward()
    assert float(loss.detach()) > 0
    assert all(torch.isfinite(p.grad).all() for p in ssd.parameters() if p.grad is not None)
    assert float(Boxes().loss(ssd, images, torch.zeros_like(masks)).detach()) == 0
