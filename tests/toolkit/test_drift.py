"""What no contract has to ask for: a compiled model that has lost what its network saw is refused."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from short import pictures, short
from torch import nn

from targets.runtime.manifest import InputSpec
from toolkit.cache import Cache
from toolkit.calibration import Calibration
from toolkit.checkpoint import Model
from toolkit.compiler import SEEDS, Candidate, Compiler, patches
from toolkit.models import find
from toolkit.network import NetworkConfig
from toolkit.quantize import onnx
from toolkit.quantize.recipes import RECIPES, recipe

SIDE = 64
RANGES = [name for name in RECIPES if name.startswith("onnx-int8-")]


class Answers:
    """An engine that says the same of every pixel."""

    def __init__(self, value: float) -> None:
        self.value = value

    def run(self, image: NDArray[Any], sensors: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        return np.full(image.shape[:2], self.value, np.float32)


def walls(*cracked: bool) -> NDArray[np.uint8]:
    """Bright walls, some with a dark crack over some 1.5 % of their pixels."""
    rng = np.random.default_rng(0)
    images = rng.integers(170, 200, (len(cracked), SIDE, SIDE, 3), np.uint8)
    for number, image in enumerate(images):
        if cracked[number]:
            image[10 + number : 30 + number, 20:23] = 20
    return images


def crack_finder() -> nn.Module:
    """Sure of dark pixels, and sure of bright ones."""
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(2, 1, 3, padding=1))
    with torch.no_grad():
        network[0].weight.fill_(1 / 3)
        network[0].bias.zero_()
        network[2].weight.fill_(-40 / 18)
        network[2].bias.fill_(12.0)
    return network.eval()


def compiler(images: NDArray[np.uint8] | None) -> Compiler:
    model = Model("walls", NetworkConfig("segment", 3, 0, 0, slice_size=SIDE), (0.0,) * 3, (255.0,) * 3)
    data = None if images is None else Calibration(images, None, "")
    return Compiler(model, crack_finder(), data, Cache(None))


def judged(made: Compiler, answers: Answers) -> Candidate:
    parity, drift = made._compare(answers)  # type: ignore[arg-type]
    return Candidate(recipe("onnx-int8-minmax"), b"", parity, drift, None, task="segment")


@pytest.mark.parametrize("value", [0.0, 0.002, 0.015, 0.5, 1.0])
def test_a_map_that_is_the_same_everywhere_is_refused(value: float) -> None:
    one = judged(compiler(walls(True, True, True, True)), Answers(value))
    assert one.complaint is not None
    assert "of what torch sees is moved or lost" in one.complaint


def test_a_blind_model_has_lost_all_that_torch_sees_wherever_the_cracks_are() -> None:
    late = compiler(walls(*[False] * 6, True, False))
    assert judged(late, Answers(0.0)).drift == 1.0
    assert late._probed is not None
    assert sum(probe.drift for probe in late._probed) == 7  # no further than the first crack
    assert sum(probe.parity for probe in late._probed) == len(SEEDS) + 4  # what parity is over stays as it was


def test_walls_without_a_crack_refuse_nobody_and_are_told_of() -> None:
    said: list[str] = []
    bare = replace(compiler(walls(*[False] * 5)), say=said.append)
    assert judged(bare, Answers(0.0)).complaint is None
    assert "torch sees next to nothing" in said[0]


def test_every_way_to_find_ranges_is_near_torch_and_cut_ranges_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    model, network = short("segment")
    made = Compiler(model, network, Calibration(np.stack(pictures(model, 5)), None, ""), Cache(None))
    for name in ("onnx-int8w", *RANGES):
        one = made.candidate(RECIPES[name])
        assert one.complaint is None, name
        assert one.drift < 0.05, name
    found = onnx.limits
    monkeypatch.setattr(onnx, "limits", lambda seen, how: tuple(0.02 * bound for bound in found(seen, how)))
    made._made.clear()
    one = made.candidate(recipe("onnx-int8-minmax"))
    assert one.complaint is not None


def test_a_candidate_from_the_cache_is_judged_as_it_was() -> None:
    one = judged(compiler(walls(True, True)), Answers(0.0))
    assert Compiler._load(one.recipe, Compiler._members(one)) == one


@pytest.mark.parametrize(("times", "refused"), [(1.0, False), (1.2, True), (3.0, True), (0.3, True)])
def test_weights_alone_are_held_against_torch_without_any_image(
    monkeypatch: pytest.MonkeyPatch, times: float, refused: bool
) -> None:
    """On plain noise the shipped network is sure of itself, so that parity over the golden seeds shows little."""
    made, write = mine(), onnx.numpy_helper.from_array

    def wrong(values: NDArray[Any], name: str | None = None) -> Any:
        return write((values * times).astype(values.dtype) if (name or "").endswith(".scale") else values, name)

    monkeypatch.setattr(onnx.numpy_helper, "from_array", wrong)
    one = made.candidate(recipe("onnx-int8w"))
    assert (one.complaint is not None) == refused
    made._made.clear()


def mine() -> Compiler:
    """The shipped network without data; exported once."""
    if not _MINE:
        _MINE.append(Compiler(*find("mine"), None, Cache(None)))
    return _MINE[0]


_MINE: list[Compiler] = []


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_patches_are_seeded_flat_and_of_the_input_s_kind(dtype: str) -> None:
    spec = InputSpec(SIDE, SIDE, 3, dtype)  # type: ignore[arg-type]
    for seed in SEEDS:
        image = patches(seed, spec)
        assert image.shape == spec.shape
        assert image.dtype == dtype
        assert np.array_equal(image, patches(seed, spec))
        assert (image[:3, :3] == image[0, 0]).all()
