"""TFLite models say what torch says, byte for byte the same each time, and stay close to it at int8."""

import hashlib
import os
import re
import subprocess
import sys
from functools import lru_cache

import numpy as np
import pytest
import torch
from short import exported, pictures, short
from torch import nn

from targets.runtime import golden
from targets.runtime.errors import HighwallError
from targets.runtime.tflite import Session
from toolkit.checkpoint import Model
from toolkit.compiler import input_spec
from toolkit.export import tflite as exporter
from toolkit.export.flatbuffer import ALIGNMENT, kind, unpack
from toolkit.export.onnx import run_torch
from toolkit.network import NetworkConfig
from toolkit.quantize import tflite
from toolkit.quantize.recipes import RECIPES

TASKS = ("classify", "segment")
INTEGER = sorted(name for name in RECIPES if name.startswith("tflite-int8-"))


def cases(task, count, seed):
    """(image, sensors) pairs."""
    model = short(task)[0]
    spec = input_spec(model)
    return [(image, golden.sensor_features(i, spec)) for i, image in enumerate(pictures(model, count, seed))]


@lru_cache
def observed(task):
    feeds = (
        {"image": image[None]} | ({} if sensors is None else {"sensors": sensors[None]})
        for image, sensors in cases(task, 24, seed=1)
    )
    return tflite.observe(exported(task), feeds)


@lru_cache
def answers(task, name, keep=()):
    """What the engine says of unseen images by the recipe `name`."""
    made = tflite.quantize(exported(task), RECIPES[name], observed(task), keep)
    session = Session(made)
    return made, np.stack([session.run(*case) for case in cases(task, 12, seed=2)])


@lru_cache
def torch_answers(task):
    model, network = short(task)
    return np.stack([run_torch(model, network, *case) for case in cases(task, 12, seed=2)])


# --- float ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_the_float_model_takes_raw_pixels_and_answers_as_torch_does(task):
    model, _ = short(task)
    session = Session(exported(task))
    side, config = model.network.slice_size, model.network
    assert (session.dtype, session.shape) == (np.dtype(model.dtype), (side, side, config.bands))
    assert session.sensors == config.sensors
    wanted = torch_answers(task)
    assert wanted.std() > 0.1  # or agreement would say little
    np.testing.assert_allclose(answers(task, "tflite-fp32")[1], wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size"),
    [(3, 2, 1, (7, 10)), (2, 1, 1, (1, 1)), (5, 3, 2, (9, 4)), ((3, 1), (1, 2), (1, 0), (5, 6)), (3, None, 0, (8, 8))],
)
def test_a_padded_maximum_pool_is_the_same_without_infinity(kernel, stride, padding, size):
    below_zero = torch.randn(2, 3, *size) - 5
    pool = nn.MaxPool2d(kernel, stride, padding, ceil_mode=size == (7, 10))
    with exporter.FinitePools():
        finite = pool(below_zero)
    assert torch.equal(finite, pool(below_zero))


def test_a_network_with_padded_pools_goes_to_int8():
    """Minus infinity, which the converter pads with, has no place in an int8 range."""
    torch.manual_seed(3)
    layers = [nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(4 * 4 * 4, 1)]
    model = Model("pools", NetworkConfig("classify", 3, 0, 0, slice_size=17), (100.0,) * 3, (50.0,) * 3)
    made = exporter.export(model, nn.Sequential(*layers))
    images = np.random.default_rng(1).integers(0, 256, (16, 17, 17, 3), np.uint8)
    ranges = tflite.observe(made, ({"image": image[None]} for image in images))
    plain, rounded = (Session(m) for m in (made, tflite.quantize(made, RECIPES["tflite-int8-minmax"], ranges, ())))
    wanted = np.stack([plain.run(image, None) for image in images])
    assert wanted.std() > 0.01
    np.testing.assert_allclose(np.stack([rounded.run(image, None) for image in images]), wanted, atol=0.05)


def test_another_process_gives_the_same_bytes(root):
    script = "import sys, hashlib; from short import exported; print(hashlib.sha256(exported('classify')).hexdigest())"
    here = os.pathsep.join([str(root), str(root / "tests" / "toolkit")])
    environment = os.environ | {"PYTHONPATH": here, "PYTHONHASHSEED": "77"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd="/", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [hashlib.sha256(exported("classify")).hexdigest()]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", ["tflite-fp32", "tflite-int8-minmax"])
def test_the_file_holds_no_path_no_class_and_no_note_of_the_converter(task, name):
    made, _ = answers(task, name)
    for trace in (rb"\.py\b", rb"/work|/home|/root|/tmp", rb"torch|toolkit|CrackNet", rb"MLIR|min_runtime_version"):
        assert not re.search(trace, made), trace


@pytest.mark.parametrize("name", ["tflite-fp32", "tflite-int8-minmax"])
def test_constants_lie_where_every_kernel_can_read_them(name):
    made, _ = answers("classify", name)
    constants = [buffer.data for buffer in unpack(made).buffers if buffer.data is not None]
    start = np.frombuffer(made, np.uint8).ctypes.data
    places = {(np.asarray(data).ctypes.data - start) % ALIGNMENT for data in constants}
    assert len(constants) > 50
    assert places == {0}


@pytest.mark.parametrize("task", TASKS)
def test_layers_are_known_by_their_path_in_torch(task):
    network = short(task)[1]
    paths = {path for path, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    found = tflite.layers(exported(task))
    assert len(set(found)) == len(found) > 20
    # A layer without bias or batch norm may be split or joined on the way; nearly all keep their name.
    assert set(found) <= paths
    assert "stem.0.0" in found


def test_converting_prints_nothing(capfd):
    exporter.export(*tiny(nn.Flatten(), nn.Linear(3 * 5 * 5, 1)))
    assert capfd.readouterr() == ("", "")


def tiny(*modules):
    torch.manual_seed(0)
    config = NetworkConfig("classify", bands=3, width=0, growth=0, slice_size=5)
    return Model("tiny", config, (0.0,) * 3, (255.0,) * 3), nn.Sequential(*modules).eval()


def test_a_network_the_converter_does_not_know_is_refused_in_one_line():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.linalg.eigvals(x[:, :, :3, :3]).real.sum((1, 2)).unsqueeze(1)

    with pytest.raises(HighwallError, match="LiteRT converter cannot convert tiny") as refusal:
        exporter.export(*tiny(Odd()))
    assert "\n" not in str(refusal.value)


# --- int8 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", [*INTEGER, "tflite-int8w"])
def test_int8_is_close_to_torch_smaller_and_takes_the_same_inputs(task, name):
    made, found = answers(task, name)
    wanted = torch_answers(task)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).mean() < 0.03
    assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.98
    assert not np.array_equal(found, answers(task, "tflite-fp32")[1])
    assert (Session(made).dtype, Session(made).shape) == (
        Session(exported(task)).dtype,
        Session(exported(task)).shape,
    )
    assert stored(made) < 0.8 * stored(exported(task))


def stored(made):
    """Bytes of all constants."""
    return sum(len(buffer.data) for buffer in unpack(made).buffers if buffer.data is not None)


def test_static_int8_computes_layers_at_int8_and_gates_in_float():
    made, _ = answers("classify", "tflite-int8-minmax")
    types = layer_inputs(made)
    # 9: the schema's number for INT8, 0: for FLOAT32. Gates and the last linear layer are the float ones.
    assert types.count(9) == len(tflite.layers(exported("classify")))
    assert types.count(0) > 4


def test_weights_only_leaves_every_value_in_float():
    assert set(layer_inputs(answers("classify", "tflite-int8w")[0])) == {0}


def test_layers_kept_in_float_stay_so():
    kept = tflite.layers(exported("segment"))[:3]
    before = layer_inputs(answers("segment", "tflite-int8-minmax")[0])
    after = layer_inputs(answers("segment", "tflite-int8-minmax", kept)[0])
    assert after.count(0) == before.count(0) + 3


def test_the_way_ranges_are_found_decides_the_file():
    files = [answers("segment", name)[0] for name in INTEGER]
    assert len(set(files)) == len(INTEGER) == 4


def test_kernels_differ_by_rounding_at_static_int8_alone():
    feeds = [{"image": image[None]} for image, _ in cases("segment", 4, seed=2)]
    spreads = {
        name: tflite.spread(answers("segment", f"tflite-{name}")[0], feeds) for name in ("fp32", "int8w", "int8-mse")
    }
    assert max(spreads["fp32"], spreads["int8w"]) < 1e-5 < spreads["int8-mse"] < 0.1


def test_quantizing_again_gives_the_same_bytes():
    recipe = RECIPES["tflite-int8-minmax"]
    assert tflite.quantize(exported("segment"), recipe, observed("segment")) == answers("segment", recipe.name)[0]


def test_ranges_are_those_of_the_images():
    seen = observed("segment")
    assert seen["probability"].low >= 0
    assert seen["probability"].high <= 1
    wanted = np.stack([run_torch(*short("segment"), *case) for case in cases("segment", 24, seed=1)])
    assert seen["probability"].high == pytest.approx(wanted.max(), abs=1e-5)


def layer_inputs(made):
    """The element type each layer with weights reads."""
    proto = unpack(made)
    graph = proto.subgraphs[0]
    return [graph.tensors[op.inputs[0]].type for op in graph.operators if kind(proto, op) in exporter.WEIGHTED]
