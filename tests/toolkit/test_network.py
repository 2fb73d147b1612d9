"""CrackNet keeps the shape its design gives it."""

import pytest
import torch

from targets.runtime.errors import HighwallError
from toolkit.cost import measure
from toolkit.layers import BandRatios, RFBs, SeparableConv
from toolkit.network import PRESETS, CrackNet, DenseStage, Task, build_network, preset


@pytest.mark.parametrize("bands", [3, 13])
@pytest.mark.parametrize("size", [(3, 3), (3, 4), (5, 7), (6, 6), (9, 9), (18, 18), (37, 36), (48, 48)])
def test_classify_takes_every_slice_from_3x3(bands: int, size: tuple[int, int]) -> None:
    network = CrackNet(bands, "classify", width=8, growth=4).eval()
    assert network(torch.randn(2, bands, *size)).shape == (2, 1)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 5), (13, 16), (47, 33), (1, 1000)])
def test_segment_gives_one_logit_a_pixel_at_any_size(size: tuple[int, int]) -> None:
    network = CrackNet(3, "segment", width=8, growth=4).eval()
    assert network(torch.randn(1, 3, *size)).shape == (1, 1, *size)


@pytest.mark.parametrize(("name", "most"), [("mine", 15_000_000), ("crack", 1_000_000_000)])
def test_presets_keep_their_mac_budget(name: str, most: int) -> None:
    config = PRESETS[name]
    image = torch.zeros(1, config.bands, config.slice_size, config.slice_size)
    assert measure(build_network(config), image).macs <= most


def test_dense_block_is_eight_separable_layers_each_fed_all_before_it() -> None:
    width, growth = 10, 6
    network = CrackNet(3, "classify", width, growth)
    stages = [stage for stage in network.stages if isinstance(stage, DenseStage)]
    assert [len(stage.layers) for stage in stages] == [3, 3, 2]
    layers = [layer for stage in stages for layer in stage.layers]
    assert all(isinstance(layer, SeparableConv) for layer in layers)
    assert [layer.depthwise.in_channels for layer in layers] == [width + i * growth for i in range(8)]  # type: ignore
    assert [stage.outputs for stage in stages] == [width + n * growth for n in (3, 6, 8)]


@pytest.mark.parametrize(("task", "expected"), [("classify", [24, 12, 6]), ("segment", [12, 6, 3])])
def test_three_scales_each_half_the_one_before(task: Task, expected: list[int]) -> None:
    network = CrackNet(3, task, 8, 4).eval()
    sizes: list[int] = []
    for stage in network.stages:
        stage.register_forward_hook(lambda _m, _i, out: sizes.append(out.shape[-1]))
    network(torch.randn(1, 3, 48, 48))
    assert sizes == expected


def test_the_bottleneck_of_a_gate_is_as_narrow_as_asked() -> None:
    for squeeze, hidden in ((8, 9), (16, 4)):
        network = CrackNet(3, "segment", 24, 16, squeeze=squeeze)
        assert network.stages[0].attention.reduce.out_channels == hidden  # type: ignore[union-attr]


def test_horizontal_fusion_is_by_rfb_blocks() -> None:
    assert sum(isinstance(m, RFBs) for m in CrackNet(3, "segment", 8, 4).modules()) >= 1


def test_every_weight_learns_from_the_loss() -> None:
    torch.manual_seed(0)
    network = CrackNet(3, "classify", 8, 4, sensors=2).train()
    network(torch.randn(4, 3, 24, 24), torch.randn(4, 2)).sum().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None]
    assert silent == []


def test_sensor_features_change_the_answer_and_are_demanded() -> None:
    torch.manual_seed(0)
    network = CrackNet(3, "classify", 8, 4, sensors=5).eval()
    image = torch.randn(1, 3, 18, 18)
    assert network(image, torch.zeros(1, 5)) != network(image, torch.full((1, 5), 9.0))
    with pytest.raises(ValueError, match="sensors"):
        network(image)


def test_band_ratios_do_not_see_how_much_light_there_is() -> None:
    mean, std = (80.0, 90.0, 60.0), (30.0, 20.0, 25.0)
    ratios = BandRatios(3)
    ratios.see(mean, std)
    shift, scale = torch.tensor(mean).view(1, 3, 1, 1), torch.tensor(std).view(1, 3, 1, 1)
    pixels = torch.rand(2, 3, 7, 5) * 200 + 40
    dim, full = (ratios((light * pixels - shift) / scale) for light in (0.7, 1.0))
    assert torch.equal(full[:, :3], (pixels - shift) / scale)
    assert dim.shape == (2, 5, 7, 5)
    assert (dim[:, 3:] - full[:, 3:]).abs().mean() < 0.1 * full[:, 3:].std()
    green_is_twice = torch.tensor([1.0, 2.0, 1.0]).view(1, 3, 1, 1) * pixels
    assert (ratios((green_is_twice - shift) / scale) - full)[:, 3].min() > 1


def test_band_ratios_are_finite_on_black_and_beyond_it() -> None:
    ratios = BandRatios(4)
    assert ratios(torch.full((1, 4, 3, 3), -50.0)).isfinite().all()


def test_one_band_has_no_ratio() -> None:
    with pytest.raises(ValueError, match="one band"):
        CrackNet(1, "classify", 8, 4, ratios=True)


def test_inference_is_deterministic_and_training_is_not() -> None:
    torch.manual_seed(0)
    network = CrackNet(3, "classify", 8, 4)
    image = torch.randn(3, 3, 18, 18)
    network.train()
    assert not torch.equal(network(image), network(image))
    network.eval()
    assert torch.equal(network(image), network(image))


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(HighwallError, match="crack, mine"):
        preset("quarry")
