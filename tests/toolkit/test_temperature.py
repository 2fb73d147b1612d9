"""Temperature: the likeliest is fitted, thresholds keep their meaning, and the exported graph has it for free."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from short import pictures, short
from sklearn.linear_model import LogisticRegression
from torch import nn

import highwall
from targets.runtime import golden
from targets.runtime.engine import open_session
from targets.runtime.errors import HighwallError
from toolkit import checkpoint
from toolkit.checkpoint import Model
from toolkit.compiler import input_spec
from toolkit.data.synthetic import crack_images, mine_chips
from toolkit.data.write import write
from toolkit.evaluate import answered
from toolkit.export import onnx as to_onnx
from toolkit.export import tflite as to_tflite
from toolkit.export.onnx import run_torch
from toolkit.metrics import evaluate
from toolkit.network import NetworkConfig, build_network
from toolkit.reliability import reliability
from toolkit.runs import Request, plan
from toolkit.temper import temper
from toolkit.temperature import HOTTEST, LEAST, LogitCounts, Temperature, fit, fold


def counted(labels: object, logits: object) -> LogitCounts:
    counts = LogitCounts()
    counts.add(labels, logits)  # type: ignore[arg-type]
    return counts


def boastful(n: int = 20_000, heat: float = 3.0, bias: float = -1.5) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from meant probabilities, and the logits of a network `heat` times too sure of them."""
    rng = np.random.default_rng(3)
    meant = rng.normal(0, 2, n)
    labels = rng.random(n) < 1 / (1 + np.exp(-meant))
    return labels, (meant - bias) * heat


# --- fitting --------------------------------------------------------------------------------------------


def test_the_temperature_and_bias_that_spoilt_the_logits_are_found_again() -> None:
    found = fit(counted(*boastful()))
    assert found.value == pytest.approx(3.0, rel=0.05)
    assert found.bias == pytest.approx(-1.5, abs=0.06)
    assert fit(counted(*boastful())) == found


def test_the_fit_is_that_of_logistic_regression() -> None:
    labels, logits = boastful(3000)
    reference = LogisticRegression(C=np.inf, tol=1e-10).fit(logits[:, None], labels)
    found = fit(counted(labels, logits))
    assert 1 / found.value == pytest.approx(float(reference.coef_[0, 0]), rel=5e-3)
    assert found.bias == pytest.approx(float(reference.intercept_[0]), abs=5e-3)


def test_tempered_probabilities_mean_what_they_say_and_rank_as_before() -> None:
    labels, logits = boastful()
    raw, meant = (1 / (1 + np.exp(-t.apply(logits))) for t in (Temperature(), fit(counted(labels, logits))))
    assert reliability(labels, meant).ece < 0.02
    assert reliability(labels, raw).ece > 0.1
    assert reliability(labels, meant).brier < reliability(labels, raw).brier
    assert evaluate(labels, meant).auc == pytest.approx(evaluate(labels, raw).auc, abs=1e-9)


def test_labels_that_logits_separate_keep_the_temperature_finite() -> None:
    labels = np.arange(100) >= 50
    found = fit(counted(labels, np.where(labels, 4.0, -4.0)))
    assert 0.5 < found.value < HOTTEST
    assert abs(found.bias) < 0.1


def test_logits_that_know_nothing_are_cooled_to_the_share_of_positives() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random(5000) < 0.2
    found = fit(counted(labels, rng.normal(0, 5, 5000)))
    assert found.value > HOTTEST / 2
    assert 1 / (1 + np.exp(-found.bias)) == pytest.approx(labels.mean(), abs=0.01)


@pytest.mark.parametrize("positives", [0, 1, LEAST - 1])
def test_too_few_of_a_label_change_nothing(positives: int) -> None:
    labels = np.arange(500) < positives
    assert fit(counted(labels, np.linspace(3, -9, 500))) == Temperature()
    assert fit(counted(~labels, np.linspace(-3, 9, 500))) == Temperature()


def test_counting_in_parts_or_at_once_fits_the_same_and_memory_does_not_grow() -> None:
    labels, logits = boastful(1001)
    parts = LogitCounts()
    for some in np.array_split(np.arange(1001), 7):
        parts.add(labels[some].reshape(-1, 1), logits[some])
    assert fit(parts) == fit(counted(labels, logits))
    with pytest.raises(ValueError, match="NaN"):
        parts.add([1], [np.nan])
    with pytest.raises(ValueError, match="2 labels for 1"):
        parts.add([1, 0], [0.5])
    assert fit(counted([0, 1] * 20, [-1e30, 1e30] * 20)).value > 0


@given(st.floats(0.05, 0.95), st.floats(0.2, 8), st.floats(-3, 3), st.floats(0.2, 8), st.floats(-3, 3))
def test_a_moved_threshold_calls_the_same_samples_positive(
    threshold: float, value: float, bias: float, other: float, shift: float
) -> None:
    old, new = Temperature(value, bias), Temperature(other, shift)
    logits = np.random.default_rng(0).normal(0, 3, 200)
    moved = new.move(threshold, old)
    before, after = (1 / (1 + np.exp(-t.apply(logits))) for t in (old, new))
    clear = np.abs(before - threshold) > 1e-6
    inside = (after > 1e-5) & (after < 1 - 1e-5)
    assert np.array_equal((before >= threshold)[clear & inside], (after >= moved)[clear & inside])


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Temperature(value)


# --- reliability ----------------------------------------------------------------------------------------


def test_a_reliability_worked_by_hand() -> None:
    found = reliability([1, 0, 1, 1], [0.1, 0.1, 0.9, 1.0], bins=2)
    assert [(one.count, one.confidence, one.frequency) for one in found.bins] == [(2, 0.1, 0.5), (2, 0.95, 1.0)]
    assert found.ece == pytest.approx((2 * 0.4 + 2 * 0.05) / 4)
    assert found.brier == pytest.approx((0.81 + 0.01 + 0.01 + 0) / 4)


def test_empty_bins_cost_nothing_and_one_falls_into_the_last() -> None:
    found = reliability([1, 1], [1.0, 1.0])
    assert (found.ece, found.brier, len(found.bins), found.bins[-1].count) == (0, 0, 15, 2)


# --- in the graph ---------------------------------------------------------------------------------------

TEMPER = {"temperature": 2.5, "bias": -1.25}


def hot(task: str) -> tuple[Model, nn.Module]:
    model, network = short(task)
    return replace(model, **TEMPER), network


@pytest.mark.parametrize(("runtime", "task"), [("onnx", "classify"), ("onnx", "segment"), ("tflite", "segment")])
def test_an_engine_answers_tempered_probabilities_and_the_graph_has_no_more_nodes(runtime: str, task: str) -> None:
    model, network = hot(task)
    before = checkpoint.weights_of(network)
    backend = to_onnx if runtime == "onnx" else to_tflite
    made = backend.export(model, network)
    session, spec = open_session(runtime, made), input_spec(model)
    moved = 0.0
    for index, image in enumerate(pictures(model, 3, seed=2)):
        features = golden.sensor_features(index, spec)
        plain = run_torch(replace(model, temperature=1.0, bias=0.0), network, image, features).astype(np.float64)
        wanted = 1 / (1 + np.exp(-(np.log(plain / (1 - plain)) / 2.5 - 1.25)))
        np.testing.assert_allclose(session.run(image, features), wanted, atol=1e-4)
        np.testing.assert_allclose(run_torch(model, network, image, features), wanted, atol=1e-4)
        moved = max(moved, float(np.abs(wanted - plain).max()))
    assert moved > 0.1
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    if runtime == "onnx":
        plain_nodes = onnx.load_model_from_string(to_onnx.export(*short(task))).graph.node
        assert len(onnx.load_model_from_string(made).graph.node) == len(plain_nodes)


@pytest.mark.parametrize(
    ("name", "task"), [("mobilenetv2", "classify"), ("rnn", "classify"), ("vgg16", "classify"), ("unet", "segment")]
)
def test_the_temperature_of_a_baseline_moves_into_its_last_layer(name: str, task: str) -> None:
    config = NetworkConfig(task, 3, 0, 0, slice_size=33, architecture=name, multiplier=0.125)  # type: ignore[arg-type]
    network = build_network(config).eval()
    model, folded = fold(Model(name, config, (0.0,) * 3, (1.0,) * 3, **TEMPER), network)  # type: ignore[arg-type]
    assert not model.tempering.changes
    images = torch.randn(2, 3, 33, 33)
    with torch.no_grad():
        torch.testing.assert_close(folded(images), network(images) / 2.5 - 1.25, atol=1e-4, rtol=1e-4)


class Crooked(nn.Module):
    """A network that does not end in its last layer, without a bias in it."""

    def __init__(self, tail: str) -> None:
        super().__init__()
        self.tail, self.layer = tail, nn.Linear(3 * 9, 1, bias=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layer(image.flatten(1))
        return torch.tanh(logits) * 3 if self.tail == "tanh" else logits


@pytest.mark.parametrize(("tail", "folds"), [("none", True), ("tanh", False)])
def test_what_cannot_be_folded_is_multiplied_in_the_graph(tail: str, folds: bool) -> None:
    torch.manual_seed(0)
    network = Crooked(tail).eval()
    config = NetworkConfig("classify", 3, 0, 0, slice_size=3)
    model = Model("crooked", config, (100.0,) * 3, (50.0,) * 3, **TEMPER)  # type: ignore[arg-type]
    assert (fold(model, network)[1] is not network) is folds
    image = np.random.default_rng(1).integers(0, 256, (3, 3, 3), np.uint8)
    found = open_session("onnx", to_onnx.export(model, network)).run(image)
    plain = run_torch(replace(model, temperature=1.0, bias=0.0), network, image)
    wanted = 1 / (1 + np.exp(-(np.log(plain / (1 - plain)) / 2.5 - 1.25)))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


# --- checkpoints and the command ------------------------------------------------------------------------


def test_a_checkpoint_without_a_temperature_loads_with_none(run_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import save

    model, weights = checkpoint.read(run_folder)
    fields = checkpoint.asdict(model)
    del fields["temperature"], fields["bias"]
    old = tmp_path / "old.safetensors"
    old.write_bytes(save(weights, {checkpoint.FORMAT: json.dumps(fields)}))
    assert checkpoint.read(old)[0].tempering == Temperature()
    fields["temperature"] = -2
    old.write_bytes(save(weights, {checkpoint.FORMAT: json.dumps(fields)}))
    with pytest.raises(HighwallError, match="temperature -2"):
        checkpoint.read(old)


def test_training_tempers_before_it_chooses_the_threshold(tmp_path: Path) -> None:
    samples = crack_images(12, size=64, seed=3)
    request = Request("segment", tmp_path / "run", width=8, growth=4, epochs=2, batch=4)
    trainer = plan(samples, request)
    model = trainer.run(lambda _: None)
    assert model.tempering.changes
    assert model.bias < 0  # crops around cracks made the network expect too many
    tally, threshold = answered(tmp_path / "run", trainer.validation)
    assert threshold == pytest.approx(tally.steady_threshold(), abs=1e-4)
    assert model.provenance["validation"]["threshold"] == threshold


def test_tempering_a_run_fits_what_training_set_aside_and_calls_the_same_positive(tmp_path: Path) -> None:
    samples = crack_images(14, size=64, seed=3)
    request = Request("segment", tmp_path / "run", width=8, growth=4, epochs=2, batch=4, held="1")
    model = plan(samples, request).run(lambda _: None)
    # A checkpoint of before there were temperatures.
    raw = replace(model, temperature=1.0, bias=0.0, threshold=Temperature().move(model.threshold, model.tempering))
    checkpoint.save(tmp_path / "raw.safetensors", raw, checkpoint.read(tmp_path / "run")[1])
    out = tmp_path / "tempered.safetensors"
    found = temper(tmp_path / "raw.safetensors", samples, out)
    assert found.fitted_on == "what training set aside"
    assert (found.model.temperature, found.model.bias) == (model.temperature, model.bias)
    assert found.model.threshold == pytest.approx(model.threshold, abs=2e-6)
    assert found.after.brier <= found.before.brier
    again = temper(out, samples, tmp_path / "twice.safetensors")
    assert (again.model.tempering, again.before) == (found.model.tempering, found.after)
    assert temper(out, samples, tmp_path / "held.safetensors", held="1").fitted_on == "fold 1"
    with pytest.raises(HighwallError, match="held out fold 1, so it learned from fold 0"):
        temper(out, samples, tmp_path / "leak.safetensors", held="0")
    assert not (tmp_path / "leak.safetensors").exists()
    other = temper(out, crack_images(6, size=64, seed=9), tmp_path / "other.safetensors")
    assert other.fitted_on == "all of the data"


def test_too_few_samples_are_refused(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(HighwallError, match="too few to temper by"):
        temper(run_folder, mine_chips(12, size=24, seed=8), tmp_path / "out.safetensors")


def test_the_command_writes_a_checkpoint_and_evaluate_draws_its_reliability(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out, drawn = tmp_path / "data", tmp_path / "out.safetensors", tmp_path / "seen.png"
    write(mine_chips(60, size=24, seed=8), data)
    assert highwall.main(["temper", str(run_folder), "--data", str(data), "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["brier_after"] < said["brier_before"]
    assert checkpoint.read(out)[0].temperature == said["temperature"] != 1
    words = ["evaluate", str(out), "--data", str(data), "--json", "--reliability", str(drawn)]
    assert highwall.main(words) == 0
    scores = json.loads(capsys.readouterr().out)
    assert (scores["ece"], scores["brier"]) == (said["ece_after"], said["brier_after"])
    with Image.open(drawn) as picture:
        assert len(picture.getcolors(1 << 20) or []) > 5
    assert highwall.main(["temper", str(run_folder), "--data", str(data), "--out", str(out)]) == 0
    assert "calls the same images positive as before" in capsys.readouterr().out
