"""The LiteRT engine: a hand-made model gives its formula, and what does not fit is refused in one line."""

import subprocess
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given, settings
from hypothesis import strategies as st

from targets.runtime import tflite
from targets.runtime.engine import open_session
from targets.runtime.errors import HighwallError
from toolkit.export.flatbuffer import pack

FLOAT, INT32, UINT8 = schema.TensorType.FLOAT32, schema.TensorType.INT32, schema.TensorType.UINT8


def brightness(height, width, bands, pixels=UINT8, sensors=0, names=("image", "sensors", "probability")):
    """.tflite bytes: the mean of all pixels, over the largest, times the mean of the sensors."""
    image, felt, probability = names
    tensors, buffers, operators, codes = [], [schema.BufferT()], [], []

    def tensor(name, shape, kind=FLOAT, values=None):
        buffers.append(schema.BufferT(data=None if values is None else np.frombuffer(values.tobytes(), np.uint8)))
        made = schema.TensorT(name=name, shape=shape, type=kind, buffer=0 if values is None else len(buffers) - 1)
        tensors.append(made)
        return len(tensors) - 1

    def operator(kind, inputs, output, option=0, options=None):
        codes.append(schema.OperatorCodeT(builtinCode=kind, deprecatedBuiltinCode=kind, version=1))
        made = schema.OperatorT(opcodeIndex=len(codes) - 1, inputs=inputs, outputs=[output])
        made.builtinOptionsType, made.builtinOptions = option, options
        operators.append(made)

    kinds, options = schema.BuiltinOperator, schema.BuiltinOptions
    reduce, multiply = schema.ReducerOptionsT(keepDims=False), schema.MulOptionsT()
    inputs = [tensor(image, [1, height, width, bands], pixels)]
    real, mean = tensor("real", [1, height, width, bands]), tensor("mean", [1])
    axes = tensor("axes", [3], INT32, np.array([1, 2, 3], np.int32))
    largest = np.float32([1 / 255 if pixels == UINT8 else 1 / 10_000])
    share, scaled = tensor("share", [1], FLOAT, largest), tensor("scaled", [1])
    operator(kinds.CAST, inputs[:1], real)
    operator(kinds.MEAN, [real, axes], mean, options.ReducerOptions, reduce)
    operator(kinds.MUL, [mean, share], scaled, options.MulOptions, multiply)
    if sensors:
        inputs.append(tensor(felt, [1, sensors]))
        one, joined = tensor("one", [1]), tensor("joined", [1])
        over = tensor("over", [1], INT32, np.array([1], np.int32))
        operator(kinds.MEAN, [inputs[1], over], one, options.ReducerOptions, reduce)
        operator(kinds.MUL, [scaled, one], joined, options.MulOptions, multiply)
        scaled = joined
    output = tensor(probability, [1, 1])
    shape = tensor("shape", [2], INT32, np.array([1, 1], np.int32))
    operator(kinds.RESHAPE, [scaled, shape], output)
    graph = schema.SubGraphT(tensors=tensors, inputs=inputs, outputs=[output], operators=operators)
    return pack(schema.ModelT(version=3, operatorCodes=codes, subgraphs=[graph], buffers=buffers))


PIXELS = [(UINT8, np.uint8, 255), (INT32, np.uint16, 10_000)]


@pytest.mark.parametrize(("kind", "dtype", "largest"), PIXELS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 5, 3), (33, 17, 13)])
@pytest.mark.parametrize("sensors", [0, 3])
def test_a_model_gives_its_formula(kind, dtype, largest, shape, sensors):
    session = open_session("tflite", brightness(*shape, kind, sensors))
    assert (session.dtype, session.shape, session.sensors) == (np.dtype(dtype), shape, sensors)
    rng = np.random.default_rng(1)
    image = rng.integers(0, largest, shape, endpoint=True, dtype=dtype)
    felt = rng.uniform(0, 1, sensors).astype(np.float32) if sensors else None
    wanted = image.mean() / largest * (felt.mean() if sensors else 1)
    found = session.run(image, felt)
    assert (found.shape, found.dtype) == ((1,), np.dtype(np.float32))
    np.testing.assert_allclose(found, [wanted], rtol=1e-5)


def test_the_largest_uint16_arrives_whole():
    session = tflite.Session(brightness(3, 5, 2, INT32))
    np.testing.assert_allclose(session.run(np.full((3, 5, 2), 65535, np.uint16)), [6.5535], rtol=1e-6)


def test_the_same_image_gives_the_same_number_whatever_came_before():
    session = tflite.Session(brightness(7, 5, 3), threads=2)
    images = np.random.default_rng(0).integers(0, 256, (4, 7, 5, 3)).astype(np.uint8)
    first = [session.run(image)[0] for image in images]
    assert [session.run(image)[0] for image in images[::-1]] == first[::-1]
    strided = np.repeat(images[0], 2, 1)[:, ::2]
    assert session.run(strided)[0] == first[0]


@pytest.mark.parametrize("kernels", ["built-in", "reference"])
def test_a_float_model_says_the_same_in_other_kernels(kernels):
    image = np.random.default_rng(0).integers(0, 256, (7, 5, 3)).astype(np.uint8)
    wanted = tflite.Session(brightness(7, 5, 3)).run(image)
    np.testing.assert_allclose(tflite.Session(brightness(7, 5, 3), kernels=kernels).run(image), wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("image", "sensors", "reason"),
    [
        (np.zeros((7, 5, 3), np.uint16), [0, 0], "takes uint8 images of"),
        (np.zeros((7, 5, 3), np.int32), [0, 0], "takes uint8 images of"),
        (np.zeros((5, 7, 3), np.uint8), [0, 0], "takes uint8 images of"),
        (np.zeros((1, 7, 5, 3), np.uint8), [0, 0], "takes uint8 images of"),
        (np.zeros((7, 5, 3), np.uint8), None, "takes 2 sensor features, 0 were given"),
        (np.zeros((7, 5, 3), np.uint8), [0, 0, 0], "takes 2 sensor features, 3 were given"),
    ],
)
def test_an_input_that_does_not_fit_is_refused(image, sensors, reason):
    session = tflite.Session(brightness(7, 5, 3, sensors=2))
    with pytest.raises(HighwallError, match=reason):
        session.run(image, None if sensors is None else np.float32(sensors))


def test_sensors_for_a_model_without_any_are_refused():
    with pytest.raises(HighwallError, match="takes 0 sensor features, 1 were given"):
        tflite.Session(brightness(7, 5, 3)).run(np.zeros((7, 5, 3), np.uint8), np.zeros(1, np.float32))


@pytest.mark.parametrize(
    ("names", "kind", "reason"),
    [
        (("picture", "", "probability"), UINT8, "maps picture to probability"),
        (("image", "", "logit"), UINT8, "maps image to logit"),
        (("image", "", "probability"), FLOAT, "image is float32"),
    ],
)
def test_a_model_of_other_ends_is_refused(names, kind, reason):
    with pytest.raises(HighwallError, match=reason):
        tflite.Session(brightness(7, 5, 3, kind, names=names))


# --- damage: tflite-runtime would end the process on these, so they must not reach an engine -------------


@pytest.fixture
def no_engine(monkeypatch):
    """An engine that must not be asked."""
    engine = ModuleType("interpreter")
    engine.OpResolverType = SimpleNamespace(AUTO=0, BUILTIN_WITHOUT_DEFAULT_DELEGATES=3)
    engine.Interpreter = lambda **_: pytest.fail("the engine was given a damaged file")
    monkeypatch.setattr(tflite, "load", lambda: engine)


WHOLE = brightness(7, 5, 3, sensors=2)


@pytest.mark.parametrize(
    "model",
    [
        b"",
        b"TFL3",
        WHOLE[:7],
        b"\x1c\0\0\0TFL3",
        b"\x1c\0\0\0TFL4" + WHOLE[8:],
        bytes(4) + b"TFL3" + bytes(500),
        b"\xff" * 4 + b"TFL3" + b"\xff" * 500,
        b"PK\x03\x04" + bytes(900),
    ],
)
def test_a_file_that_is_none_is_refused(no_engine, model):
    with pytest.raises(HighwallError, match="refuses the model") as refusal:
        tflite.Session(model)
    assert "\n" not in str(refusal.value)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.integers(0, len(WHOLE) - 1))
def test_no_bytes_make_the_check_itself_fail(noise, place):
    assert tflite.is_whole(noise) in (True, False)
    assert tflite.is_whole(b"\x1c\0\0\0TFL3" + noise) in (True, False)
    assert tflite.is_whole(WHOLE[:place] + noise + WHOLE[place:]) in (True, False)


def test_most_of_a_file_is_not_a_file():
    # What is cut from the end of a flatbuffer is what it was begun with: in ours, a constant.
    large = brightness(3, 3, 40)
    refused = [length for length in range(len(large) - 200) if not tflite.is_whole(large[:length])]
    assert len(refused) > 0.9 * (len(large) - 200)
    assert tflite.is_whole(large)


# --- the package ----------------------------------------------------------------------------------------


def test_tflite_runtime_serves_where_it_is_alone(monkeypatch):
    from ai_edge_litert import interpreter

    predecessor = ModuleType("tflite_runtime")
    predecessor.interpreter = interpreter
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    monkeypatch.setitem(sys.modules, "tflite_runtime", predecessor)
    assert tflite.load() is interpreter


def test_without_either_package_it_says_what_to_install(monkeypatch):
    for name in ("ai_edge_litert", "tflite_runtime"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(HighwallError, match=r"pip install 'highwall\[litert\]'"):
        tflite.Session(WHOLE)


def test_loading_a_model_prints_nothing(root, tmp_path):
    (tmp_path / "model.tflite").write_bytes(WHOLE)
    script = (
        f"import sys; sys.path.insert(0, {str(root)!r}); from pathlib import Path; "
        "from targets.runtime.tflite import Session; Session(Path('model.tflite').read_bytes())"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
