"""The baselines are the published networks, take the sizes they say, and go where CrackNet goes."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from targets.runtime.errors import HighwallError
from toolkit import models
from toolkit.baselines import boxes, make, names, ssd300
from toolkit.cost import measure
from toolkit.export import onnx
from toolkit.models import Foreign
from toolkit.train import loss_of

CLASSIFIERS = ["alexnet", "densenet121", "googlenet", "mobilenetv2", "resnet50", "vgg16", "vgg19"]
PUBLISHED = {
    "alexnet": 61_100_840,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "resnet50": 25_557_032,
    "densenet121": 7_978_856,
    "mobilenetv2": 3_504_872,
    "googlenet": 6_624_904,
}
LEAST = {"alexnet": 3, "vgg16": 8, "vgg19": 8}
NARROW = 0.0625
meta = torch.device("meta")  # shapes without numbers: no memory, no time


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


# --- by name --------------------------------------------------------------------------------------------


def test_every_network_of_the_paper_is_found_by_its_name() -> None:
    assert names() == sorted([*CLASSIFIERS, "rnn", "ssd300", "unet"])


@pytest.mark.parametrize(("typed", "meant"), [("resnet", "resnet50"), ("VGG-16", "vgg16"), ("u-net", "unet")])
def test_an_unknown_name_is_refused_with_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(HighwallError, match=f"did you mean {meant}"):
        make(typed, "classify", 3, 48)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": "segment"}, "cannot segment; choose classify"),
        ({"bands": 0}, "bands of resnet50 must be at least 1"),
        ({"size": 0}, "size"),
        ({"classes": 0}, "classes"),
        ({"width": 0.0}, "width"),
        ({"width": float("nan")}, "width"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(changes: dict, said: str) -> None:
    settings = {"task": "classify", "bands": 3, "size": 48, "classes": 1, "width": 1.0} | changes
    with pytest.raises(HighwallError, match=said):
        make("resnet50", **settings)


# --- as published ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_at_the_original_size_a_classifier_has_the_published_parameters(name: str) -> None:
    with meta:
        network = make(name, "classify", 3, 224, classes=1000)
        assert network(torch.zeros(2, 3, 224, 224)).shape == (2, 1000)
    assert count(network) == PUBLISHED[name]


@pytest.mark.parametrize(
    ("name", "published"),  # GMAC at 224x224, as listed with the weights in common use
    [("alexnet", 0.71), ("vgg16", 15.47), ("vgg19", 19.63), ("resnet50", 4.09), ("googlenet", 1.50)],
)
def test_at_the_original_size_a_classifier_costs_what_is_published(name: str, published: float) -> None:
    with meta:
        cost = measure(make(name, "classify", 3, 224, classes=1000), torch.zeros(1, 3, 224, 224))
    assert round(cost.macs / 1e9, 2) == published


@pytest.mark.parametrize(("classes", "published"), [(1, 31_037_633), (2, 31_037_698)])
def test_unet_has_the_parameters_of_figure_1_with_norms(classes: int, published: int) -> None:
    channels = [64, 128, 256, 512, 1024]

    def level(inputs: int, outputs: int) -> int:  # two 3x3 convolutions, a scale and a shift a channel after each
        return 9 * inputs * outputs + 9 * outputs * outputs + 4 * outputs

    down = sum(level(a, b) for a, b in pairwise([3, *channels]))
    up = sum(4 * b * a + a + level(2 * a, a) for a, b in pairwise(channels))
    with meta:
        network = make("unet", "segment", 3, 448, classes)
    assert count(network) == down + up + 64 * classes + classes == published


def test_ssd300_has_the_parameters_and_boxes_of_figure_2() -> None:
    def convs(*sizes: tuple[int, int, int]) -> int:
        return sum(kernel * kernel * inputs * outputs + outputs for kernel, inputs, outputs in sizes)

    vgg = convs((3, 3, 64), (3, 64, 64), (3, 64, 128), (3, 128, 128), (3, 128, 256), *[(3, 256, 256)] * 2)
    vgg += convs((3, 256, 512), *[(3, 512, 512)] * 5)
    extra = convs((3, 512, 1024), (1, 1024, 1024), (1, 1024, 256), (3, 256, 512), (1, 512, 128), (3, 128, 256))
    extra += 2 * convs((1, 256, 128), (3, 128, 256))
    sources, each, sides = (512, 1024, 512, 256, 256, 256), (4, 6, 6, 6, 4, 4), (38, 19, 10, 5, 3, 1)
    heads = sum(convs((3, source, boxes * (4 + 21))) for source, boxes in zip(sources, each, strict=True))
    with meta:
        network = make("ssd300", "detect", 3, 300, classes=20)
        offsets, scores = network(torch.zeros(1, 3, 300, 300))
    assert count(network) == vgg + 512 + extra + heads == 26_285_486
    defaults = sum(side * side * boxes for side, boxes in zip(sides, each, strict=True))
    assert defaults == 8732
    assert offsets.shape == (1, defaults, 4)
    assert scores.shape == (1, defaults, 21)
    assert network.defaults.shape == (defaults, 4)


def test_the_recurrent_network_has_64_units_over_a_row_in_every_band() -> None:
    with meta:
        network = make("rnn", "classify", 13, 18)
    assert count(network) == 3 * 64 * (13 * 18 + 64 + 2) + 64 + 1


# --- sizes and bands ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [3, 6, 8, 9, 18, 31, 36, 47, 48, 63])
@pytest.mark.parametrize("name", [*CLASSIFIERS, "rnn"])
def test_a_classifier_takes_every_size_from_its_least(name: str, size: int) -> None:
    if size < LEAST.get(name, 1):
        with pytest.raises(HighwallError, match=f"{name} cannot take {size}x{size}.* at least 8x8"):
            make(name, "classify", 3, size)
        return
    network = make(name, "classify", 4, size, width=NARROW).eval()
    with torch.inference_mode():
        assert network(torch.zeros(2, 4, size, size)).shape == (2, 1)


@pytest.mark.parametrize("name", ["alexnet", "vgg16"])
def test_a_linear_head_reads_a_large_map_averaged_to_the_published_one(name: str) -> None:
    with meta:
        for size in (256, 299, 448):
            network = make(name, "classify", 3, size, classes=1000)
            assert network(torch.zeros(1, 3, size, size)).shape == (1, 1000)
            assert count(network) == PUBLISHED[name]


@pytest.mark.parametrize("name", [*CLASSIFIERS, "rnn"])
def test_one_pixel_less_than_the_least_is_refused_and_the_least_is_not(name: str) -> None:
    least = LEAST.get(name, 1)
    with torch.inference_mode():
        make(name, "classify", 1, least, width=NARROW).eval()(torch.zeros(1, 1, least, least))
    with pytest.raises(HighwallError, match=f"{name}.* at least {least}"):
        make(name, "classify", 1, least - 1)


@pytest.mark.parametrize("name", ["densenet121", "googlenet", "mobilenetv2", "resnet50"])
@pytest.mark.parametrize(("size", "side"), [(9, 2), (18, 2), (32, 2), (33, 2), (48, 2)])
def test_a_small_image_still_has_a_map_of_2x2_at_the_end(name: str, size: int, side: int) -> None:
    network = make(name, "classify", 3, size, width=NARROW).eval()
    with torch.inference_mode():
        assert network.features(torch.zeros(1, 3, size, size)).shape[2:] == (side, side)  # type: ignore[operator]


def test_the_stem_changes_strides_only_where_a_mean_follows_it() -> None:
    for name in ("densenet121", "googlenet", "mobilenetv2", "resnet50"):
        with meta:
            assert count(make(name, "classify", 3, 9, classes=1000)) == PUBLISHED[name]


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 5), (16, 16), (17, 33), (47, 33), (1, 1000)])
def test_unet_gives_logits_a_pixel_at_any_size(size: tuple[int, int]) -> None:
    network = make("unet", "segment", 5, 48, classes=2, width=NARROW).eval()
    with torch.inference_mode():
        assert network(torch.zeros(2, 5, *size)).shape == (2, 2, *size)


def test_an_eighth_of_unet_is_the_half_million_parameter_one() -> None:
    with meta:
        assert 0.4e6 < count(make("unet", "segment", 3, 448, width=0.125)) < 0.6e6


def test_rnn_reads_sensor_windows_in_time() -> None:
    torch.manual_seed(0)
    network = make("rnn", "windows", bands=6, size=20, classes=2)
    window = torch.randn(3, 20, 6)
    assert network(window).shape == (3, 2)
    assert not torch.allclose(network(window), network(window.flip(1)))
    assert network(window[:, :7]).shape == (3, 2)


def test_rnn_reads_a_slice_row_by_row() -> None:
    torch.manual_seed(0)
    network = make("rnn", "classify", bands=3, size=6)
    image = torch.randn(2, 3, 6, 6)
    rows = torch.stack([image[:, :, row].flatten(1) for row in range(6)], 1)
    assert torch.equal(network(image), network(rows))


# --- training, cost, export -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*CLASSIFIERS, "rnn", "unet"])
def test_every_weight_learns_from_the_loss_that_cracknet_learns_from(name: str) -> None:
    torch.manual_seed(0)
    task = "segment" if name == "unet" else "classify"
    network = make(name, task, 3, 18, width=NARROW).train()
    logits = network(torch.randn(4, 3, 18, 18))
    loss_of(logits, torch.ones_like(logits), "bce").backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert silent == []
    assert float(torch.sigmoid(logits.detach()).mean()) == pytest.approx(0.5, abs=0.2)


@pytest.mark.parametrize("name", [*CLASSIFIERS, "rnn", "unet"])
def test_the_cost_model_counts_all_that_torch_counts(name: str) -> None:
    network = make(name, "segment" if name == "unet" else "classify", 3, 18, width=NARROW).eval()
    image = torch.zeros(1, 3, 18, 18)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(image)
    assert measure(network, image).macs * 2 == counter.get_total_flops()


FACTORIES = """
import torch
from toolkit.baselines import make

def made(name, task="classify", size=18):
    def factory():
        torch.manual_seed(1)
        network = make(name, task, 3, size, width=0.0625)
        for _ in range(3):  # gives the batch norms statistics of their own
            network(torch.rand(4, 3, size, size))
        return network
    return factory

alexnet, densenet121, googlenet, mobilenetv2, resnet50, vgg16, rnn = (
    made(name) for name in "alexnet densenet121 googlenet mobilenetv2 resnet50 vgg16 rnn".split()
)
unet = made("unet", "segment", 18)
"""


LONG = [pytest.param(name, marks=pytest.mark.slow) for name in ("densenet121", "googlenet", "mobilenetv2")]


@pytest.mark.parametrize("name", ["alexnet", "resnet50", "vgg16", "rnn", "unet", *LONG])
def test_it_exports_as_a_foreign_network_and_computes_what_torch_does(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "baseline_factories.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    task = "segment" if name == "unet" else "classify"
    model, network = models.find(f"baseline_factories:{name}", Foreign(task, size=18, bands=3))
    session = onnxruntime.InferenceSession(onnx.export(model, network), providers=["CPUExecutionProvider"])
    image = np.random.default_rng(2).integers(0, 256, (18, 18, 3), dtype=np.uint8)
    (probability,) = session.run(None, {"image": image[None]})
    np.testing.assert_allclose(probability[0], onnx.run_torch(model, network, image), atol=1e-5)


# --- boxes ----------------------------------------------------------------------------------------------

DEFAULTS = boxes.default_boxes(ssd300.map_sides(300), ssd300.RATIOS)


def mask_of(*places: tuple[slice, slice], size: tuple[int, int] = (300, 300)) -> np.ndarray:
    mask = np.zeros(size, bool)
    for place in places:
        mask[place] = True
    return mask


def answer(truth: Tensor, sure: float = 9.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Outputs of a network that knows the truth, and the targets it learnt from: a batch of 1."""
    offsets, classes = boxes.match(truth, DEFAULTS)
    scores = nn.functional.one_hot(classes, 2).float() * sure
    return offsets[None], scores[None], offsets[None], classes[None]


def test_default_boxes_lie_in_the_image_from_a_tenth_to_nearly_all_of_it() -> None:
    assert DEFAULTS.shape == (8732, 4)
    assert float(DEFAULTS.min()) >= 0
    assert float(DEFAULTS.max()) <= 1
    middle = 4 * (19 * 38 + 19)  # the first box of the cell right of and below the centre
    torch.testing.assert_close(
        DEFAULTS[middle], torch.tensor([19.5, 19.5, 19.5, 19.5]) / 38 + torch.tensor([-0.05, -0.05, 0.05, 0.05])
    )
    ratio = (DEFAULTS[middle + 2, 2] - DEFAULTS[middle + 2, 0]) / (DEFAULTS[middle + 2, 3] - DEFAULTS[middle + 2, 1])
    assert float(ratio) == pytest.approx(2)
    assert float((DEFAULTS[-4, 2:] - DEFAULTS[-4, :2]).min()) == pytest.approx(0.9)


def test_mask_components_become_boxes_in_fractions_of_the_image() -> None:
    mask = mask_of((slice(10, 20), slice(30, 60)), (slice(40, 50), slice(0, 5)), size=(50, 100))
    found = boxes.boxes_of(mask)
    torch.testing.assert_close(found, torch.tensor([[0.3, 0.2, 0.6, 0.4], [0.0, 0.8, 0.05, 1.0]]))
    for least, kept in ((50, 2), (51, 1), (301, 0)):
        assert len(boxes.boxes_of(mask, least)) == kept
    assert boxes.boxes_of(mask_of()).shape == (0, 4)


def test_overlap_is_intersection_over_union() -> None:
    a = torch.tensor([[0.0, 0.0, 0.4, 0.4], [0.5, 0.5, 0.5, 0.9]])
    b = torch.tensor([[0.2, 0.0, 0.6, 0.4], [0.0, 0.0, 0.4, 0.4], [0.8, 0.8, 1.0, 1.0]])
    torch.testing.assert_close(boxes.overlap(a, b), torch.tensor([[1 / 3, 1.0, 0.0], [0.0, 0.0, 0.0]]))


def test_a_box_that_fits_no_default_still_gets_one_and_no_two_share() -> None:
    hair = torch.tensor([[0.1, 0.5, 0.9, 0.504], [0.1, 0.5, 0.9, 0.504]])  # a crack's box: far wider than high
    assert float(boxes.overlap(hair, DEFAULTS).max()) < boxes.MATCH
    offsets, classes = boxes.match(hair, DEFAULTS, labels=torch.tensor([3, 5]))
    assert sorted(classes[classes > 0].tolist()) == [3, 5]
    torch.testing.assert_close(boxes.decode(offsets, DEFAULTS)[classes > 0], hair)


def test_defaults_that_overlap_by_half_are_positive_and_others_are_not() -> None:
    truth = torch.tensor([[0.3, 0.3, 0.7, 0.7]])
    overlaps = boxes.overlap(truth, DEFAULTS)[0]
    _, classes = boxes.match(truth, DEFAULTS)
    assert torch.equal(classes > 0, overlaps >= 0.5)
    assert int(classes.sum()) > 1


def test_an_image_without_objects_is_all_background() -> None:
    offsets, classes = boxes.match(torch.zeros(0, 4), DEFAULTS)
    assert not offsets.any()
    assert not classes.any()


def test_from_masks_to_targets_and_from_outputs_back_to_the_same_boxes() -> None:
    truth = boxes.boxes_of(mask_of((slice(30, 120), slice(60, 150)), (slice(200, 230), slice(100, 280))))
    offsets, scores, _, _ = answer(truth)
    (found,) = boxes.detections(offsets, scores, DEFAULTS, threshold=0.5)
    assert len(found.boxes) == 2
    torch.testing.assert_close(found.boxes[found.boxes[:, 1].argsort()], truth)
    assert found.classes.tolist() == [1, 1]
    assert float(found.probabilities.min()) > 0.99


def test_nothing_found_is_an_empty_answer() -> None:
    offsets, scores, _, _ = answer(torch.zeros(0, 4))
    (found,) = boxes.detections(offsets, scores, DEFAULTS)
    assert found.boxes.shape == (0, 4)


def test_suppression_keeps_the_surest_of_those_that_overlap() -> None:
    some = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.5, 0.52], [0.6, 0.6, 1.0, 1.0], [0.0, 0.0, 0.5, 0.25]])
    kept = boxes.suppress(some, torch.tensor([0.6, 0.9, 0.3, 0.8]), most_overlap=0.5, most=9)
    assert kept.tolist() == [1, 3, 2]
    assert boxes.suppress(some, torch.tensor([0.6, 0.9, 0.3, 0.8]), most_overlap=0.5, most=1).tolist() == [1]


def test_the_loss_takes_three_hard_negatives_for_each_positive() -> None:
    defaults = 40
    target_classes = torch.zeros(1, defaults, dtype=torch.int64)
    target_classes[0, :2] = 1
    scores = torch.zeros(1, defaults, 2)
    scores[0, 10:14, 1] = 3.0  # four negatives it is wrong about
    offsets = torch.zeros(1, defaults, 4)
    wrong, unsure = np.log1p(np.exp(3.0)), np.log(2)
    loss = boxes.multibox_loss(offsets, scores, torch.full_like(offsets, 2.0), target_classes)
    place = 2 * 4 * 1.5  # smooth L1 of 2 is 1.5, and only positives have a place
    assert float(loss) == pytest.approx((place + 2 * unsure + 4 * wrong + 2 * unsure) / 2, rel=1e-5)


def test_the_loss_is_nothing_without_objects_and_almost_so_for_the_right_answer() -> None:
    offsets, scores, target_offsets, classes = answer(torch.zeros(0, 4))
    loss = boxes.multibox_loss(offsets.requires_grad_(), scores, target_offsets, classes)
    loss.backward()
    assert float(loss.detach()) == 0
    right = boxes.multibox_loss(*answer(torch.tensor([[0.2, 0.2, 0.5, 0.6]])))
    assert float(right) < 0.01


def test_ssd_takes_a_photograph_from_257_pixels_and_says_so_below() -> None:
    with meta:
        for size in (257, 299, 448):
            network = make("ssd300", "detect", 3, size, width=NARROW)
            offsets, scores = network(torch.zeros(1, 3, size, size))
            assert offsets.shape[1] == scores.shape[1] == len(network.defaults)  # type: ignore[arg-type]
        with pytest.raises(HighwallError, match="at least 257x257"):
            make("ssd300", "detect", 3, 256)


def test_ssd_learns_one_box_in_a_few_steps() -> None:
    torch.manual_seed(0)
    network = make("ssd300", "detect", 1, 257, width=NARROW)
    defaults: Tensor = network.defaults  # type: ignore[assignment]
    mask = mask_of((slice(60, 180), slice(90, 200)), size=(257, 257))
    offsets, classes = boxes.match(boxes.boxes_of(mask), defaults)
    image = torch.from_numpy(mask).float()[None, None]
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    losses = []
    for _ in range(12):
        loss = boxes.multibox_loss(*network(image), offsets[None], classes[None])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.grad is not None for p in network.parameters())
