"""From a checkpoint to an artifact that says the same as torch, and scores that do not flatter."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from short import Short
from torch import nn

import highwall
from targets.runtime import artifact, golden
from targets.runtime.engine import open_session
from targets.runtime.errors import HighwallError
from toolkit import checkpoint
from toolkit.build import build
from toolkit.calibration import Calibration, draw
from toolkit.checkpoint import Model
from toolkit.compiler import Compiler
from toolkit.data.folder import read
from toolkit.data.samples import Samples
from toolkit.data.synthetic import crack_images, mine_chips
from toolkit.data.write import write
from toolkit.evaluate import evaluate
from toolkit.export import onnx as export_onnx
from toolkit.models import Foreign, find
from toolkit.network import CrackNet, NetworkConfig
from toolkit.quantize import onnx as quantize_onnx
from toolkit.quantize.recipes import Recipe, recipe


@pytest.fixture(scope="module")
def samples(chips_folder: Path) -> Samples:
    return read(chips_folder)


@pytest.fixture(scope="module")
def built(run_folder: Path, samples: Samples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "small.highwall"
    model, network = checkpoint.load(run_folder)
    build(
        model,
        network,
        board="rpi4b",
        out=out,
        recipe=recipe("onnx-int8-minmax"),
        data=Calibration.of(samples, model),
        say=lambda _: None,
    )
    return out


@pytest.fixture(scope="module")
def built_in_float(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "float.highwall"
    model, network = checkpoint.load(run_folder)
    build(model, network, board="rpi4b", out=out, recipe=recipe("onnx-fp32"), data=None, say=lambda _: None)
    return out


def test_the_same_inputs_give_the_same_artifact(
    built: Path, run_folder: Path, samples: Samples, tmp_path: Path
) -> None:
    model, network = checkpoint.load(run_folder)
    again = tmp_path / "again.highwall"
    data = Calibration.of(samples, model)
    build(model, network, board="rpi4b", out=again, recipe=recipe("onnx-int8-minmax"), data=data, say=lambda _: None)
    assert again.read_bytes() == built.read_bytes()


def test_an_artifact_holds_no_path_of_the_machine_that_built_it(built: Path) -> None:
    data = built.read_bytes()
    for place in (str(Path.home()), str(Path(__file__).parent.parent.parent), "site-packages"):
        assert place.encode() not in data


def test_the_built_artifact_passes_its_golden_vectors(built: Path) -> None:
    found = artifact.read(built)
    report = golden.check(found, open_session("onnx", found.model))
    assert report.passed
    assert report.n == 8
    assert found.manifest.board == "rpi4b"
    assert found.manifest.recipe["name"] == "onnx-int8-minmax"


def test_the_int8_model_has_integer_convolutions_per_channel(built: Path) -> None:
    graph = onnx.load_from_string(artifact.read(built).model).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("QuantizeLinear") > 20
    weights = [t for t in graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4]
    assert len(weights) > 20
    scales = [
        t for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) == 1 and t.dims[0] > 1
    ]
    assert scales


@pytest.mark.parametrize(  # each two of these three meet once, as an export takes the exporter seconds
    ("task", "bands", "dtype", "ratios"),
    [
        ("classify", 3, "uint8", False),
        ("classify", 13, "uint16", True),
        ("segment", 3, "uint8", True),
        ("segment", 13, "uint16", False),
    ],
)
def test_the_float_export_says_what_torch_says(task: str, bands: int, dtype: str, ratios: bool) -> None:
    torch.manual_seed(0)
    config = NetworkConfig(task, bands, 8, 4, slice_size=26, ratios=ratios)  # type: ignore[arg-type]
    whole = task == "segment" and ratios  # the exporter looks at every layer, so the others have few
    network = (CrackNet if whole else Short)(bands, config.task, 8, 4, ratios=ratios).eval()
    full = 255.0 if dtype == "uint8" else 10000.0
    network.see((full / 3,) * bands, (full / 4,) * bands)
    model = Model("m", config, (full / 3,) * bands, (full / 4,) * bands, dtype)
    assert Compiler(model, network, None).candidate(Recipe("onnx", "fp32")).parity < 1e-5


def test_a_network_with_sensors_exports_with_two_inputs() -> None:
    torch.manual_seed(0)
    config = NetworkConfig("classify", 3, 8, 4, sensors=5, slice_size=18)
    model = Model("m", config, (0.0,) * 3, (255.0,) * 3)
    made = Compiler(model, CrackNet(3, "classify", 8, 4, sensors=5).eval(), None).candidate(Recipe("onnx", "fp32"))
    assert [i.name for i in onnx.load_from_string(made.model).graph.input] == ["image", "sensors"]
    assert made.parity < 1e-5


def test_calibration_and_judgement_never_share_an_image(run_folder: Path, samples: Samples) -> None:
    model, _ = checkpoint.load(run_folder)
    divided = Calibration.of(samples, model)
    assert divided.judged is not None
    fitted = {image.tobytes() for image in divided.images}
    assert not fitted & {image.tobytes() for image in divided.judged.images}
    assert len(divided.images) + len(divided.judged) <= len(samples)


def test_gates_stay_float_and_the_body_does_not(built_in_float: Path) -> None:
    graph = onnx.load_from_string(artifact.read(built_in_float).model).graph
    gates = quantize_onnx.gates(graph)
    nodes = {node.name: node for node in graph.node}
    assert sum(nodes[name].op_type == "Sigmoid" for name in gates) == 9  # 3 SE, 3 CBAMs of two; not the output's
    body = [node for node in graph.node if node.op_type == "Conv" and node.name not in gates]
    assert len(body) > 40


def test_a_checkpoint_and_its_float_artifact_score_the_same(
    run_folder: Path, samples: Samples, built_in_float: Path
) -> None:
    of_torch, of_artifact = evaluate(run_folder, samples, None), evaluate(built_in_float, samples, None)
    assert of_torch.n == of_artifact.n == len(samples)
    assert of_artifact.threshold == of_torch.threshold
    assert of_artifact.auc == pytest.approx(of_torch.auc, abs=0.002)


def test_evaluate_prints_the_promised_keys(built: Path, chips_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert highwall.main(["evaluate", str(built), "--data", str(chips_folder), "--threshold", "0.4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    promised = "precision recall f1 overall_accuracy kappa auc average_precision threshold n ece brier"
    assert set(found) == set(promised.split())
    assert found["threshold"] == 0.4


def test_build_reports_accuracy_before_and_after(built: Path) -> None:
    receipt = artifact.read(built).receipt
    assert set(receipt["accuracy"]) == {"fp32", "int8"}
    assert receipt["model_bytes"] < receipt["float_model_bytes"] * 1.5
    assert receipt["cost"]["macs"] == sum(layer["macs"] for layer in receipt["cost"]["layers"])


def run(*words: object) -> int:
    return highwall.main([str(word) for word in words])


def test_cost_reads_presets_checkpoints_and_artifacts_alike(
    built: Path, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counted = []
    for model in (run_folder, built):
        assert run("cost", model, "--json") == 0
        counted.append(json.loads(capsys.readouterr().out))
    assert counted[0] == counted[1]
    assert run("cost", "mine") == 0
    assert "times fewer MACs" in capsys.readouterr().out


class Foreigner(nn.Module):
    """Somebody else's network: three classes from grey 20x20 images."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16 * 16, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.body(x)
        return found


def test_any_torch_module_exports_with_preprocessing_and_softmax_inside(tmp_path: Path) -> None:
    torch.manual_seed(0)
    out = tmp_path / "foreign.onnx"
    assert run("export", f"{__name__}:Foreigner", "--to", out, "--size", 20, "--bands", 1) == 0
    session = open_session("onnx", out.read_bytes())
    answer = session.run(np.random.RandomState(0).randint(0, 256, (20, 20, 1), np.uint8))
    assert answer.shape == (3,)
    assert answer.sum() == pytest.approx(1, abs=1e-5)


def test_a_foreign_module_becomes_an_artifact_too(tmp_path: Path) -> None:
    out = tmp_path / "foreign.highwall"
    words = ("--board", "host", "--out", out, "--precision", "fp32", "--size", 20, "--bands", 1)
    assert run("build", f"{__name__}:Foreigner", *words) == 0
    assert run("verify", out) == 0


@pytest.mark.parametrize(
    ("spec", "size", "message"),
    [
        ("no_such_module_here:x", 20, "No module"),
        (f"{__name__}:Missing", 20, "Missing"),
        (f"{__name__}:json", 20, "not a torch"),
        (f"{__name__}:Foreigner", 31, "31"),
    ],
)
def test_a_factory_that_cannot_work_is_refused_in_one_line(spec: str, size: int, message: str) -> None:
    with pytest.raises(HighwallError, match=message) as caught:
        find(spec, Foreign(size=size, bands=1))
    assert "\n" not in str(caught.value)


def test_bad_words_to_build_are_refused_before_anything_is_written(
    run_folder: Path, chips_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bands13, cracks, empty = tmp_path / "bands13", tmp_path / "cracks", tmp_path / "empty"
    write(mine_chips(12, size=24, bands=13, seed=1), bands13)
    write(crack_images(6, size=32, seed=1), cracks)
    empty.mkdir()
    out = tmp_path / "x.highwall"
    good = ("--board", "rpi4b", "--out", out, "--calibration", chips_folder)
    cases: list[tuple[tuple[object, ...], str]] = [
        (("build", run_folder, "--board", "rpi4c", "--out", out, "--calibration", chips_folder), "rpi4b"),
        (("build", run_folder, "--board", "rpi4b", "--out", tmp_path / "x.zip"), ".highwall"),
        (("build", run_folder, "--board", "rpi4b", "--out", out), "--calibration"),
        (("build", run_folder, *good[:-1], bands13), "13"),
        (("build", run_folder, *good[:-1], cracks), "labelled to segment"),
        (("build", run_folder, *good[:-1], empty), "empty"),
        (("build", run_folder, *good[:-1], tmp_path / "nowhere"), "nowhere"),
        (("build", tmp_path / "no.safetensors", *good), "no.safetensors"),
        (("build", "mine", *good), "48x48"),
        (("evaluate", run_folder, "--data", cracks), "classify"),
        (("evaluate", run_folder, "--data", chips_folder, "--threshold", "1.5"), "probability"),
        (("export", run_folder, "--to", tmp_path / "m.pb"), "FILE.onnx or FILE.tflite"),
    ]
    for words, message in cases:
        assert run(*words) == 1, words
        errors = capsys.readouterr().err
        assert message in errors
        assert errors.count("\n") == 1
    assert not out.exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("file/x.highwall", "file/x.highwall"),
        ("file/deeper/x.highwall", "file/deeper/x.highwall"),
        ("folder/taken.highwall", "taken.highwall/model.highwall"),
        ("new/folder/" + "x" * 250 + ".highwall", "name too long"),
        ("dangling/x.highwall", "dangling/x.highwall"),
        ("folder", ".highwall"),
    ],
)
def test_an_out_that_cannot_be_written_is_refused_before_the_network_is_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str, message: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder" / "taken.highwall").mkdir(parents=True)
    (tmp_path / "dangling").symlink_to("nowhere")
    before = sorted(tmp_path.rglob("*"))
    assert run("build", "no_such_module:here", "--board", "host", "--out", tmp_path / out) == 1
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert "no_such_module" not in printed.err
    assert printed.out == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_of_several_boards_every_out_is_tried_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x-rpi5.highwall").mkdir()
    words = ("--board", "rpi4b", "--board", "rpi5", "--out", tmp_path / "x.highwall")
    assert run("build", "no_such_module:here", *words) == 1
    assert "x-rpi5.highwall: it is a folder" in capsys.readouterr().err


def test_a_missing_folder_is_made_for_an_artifact_and_not_for_a_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "folder" / "x.highwall"
    words = ("--board", "host", "--precision", "fp32", "--size", 9, "--out", out)
    assert run("build", f"{__name__}:Missing", *words) == 1
    assert list(tmp_path.iterdir()) == []
    assert run("build", f"{__name__}:two_logits", *words) == 0
    assert sorted(path.name for path in out.parent.iterdir()) == ["x.highwall", "x.timings.json"]
    capsys.readouterr()


@pytest.mark.parametrize("count", [5, 41, 240, 599, 3001])
@pytest.mark.parametrize("order", ["alternating", "sorted", "rare"])
def test_a_draw_has_both_labels_whatever_the_order_of_the_data(count: int, order: str) -> None:
    index = np.arange(count)
    positive = {"alternating": index % 2 == 0, "sorted": index >= count // 2, "rare": index == count - 1}[order]
    chosen = draw(positive, min(200, count // 2))
    assert len(set(chosen)) == len(chosen) <= min(200, count // 2)
    assert positive[chosen].any()
    assert not positive[chosen].all()
    assert np.array_equal(chosen, draw(positive, min(200, count // 2)))


def test_a_draw_is_never_more_than_asked_for_where_both_shares_round_up() -> None:
    for positives, every, most in ((1, 1000, 200), (3, 6, 3), (2, 5, 1)):
        chosen = draw(np.arange(every) < positives, most)
        assert len(chosen) == most
        assert (chosen < positives).any()


def test_a_held_fold_judges_and_is_kept_out_of_calibration(run_folder: Path, samples: Samples) -> None:
    model, _ = checkpoint.load(run_folder)
    assert samples.folds is not None
    divided = Calibration.of(samples, model, held="1")
    assert divided.judged is not None
    assert set(divided.judged.names) == {n for n, f in zip(samples.names, samples.folds, strict=True) if f == 1}
    held = {image.tobytes() for image in samples.images[samples.folds == 1]}
    assert not held & {image.tobytes() for image in divided.images}


def test_the_body_of_an_int8_classifier_is_integer() -> None:
    torch.manual_seed(0)
    model = Model("m", NetworkConfig("classify", 3, 8, 4, slice_size=32), (128.0,) * 3, (60.0,) * 3)
    network = CrackNet(3, "classify", 8, 4).eval()
    images = [np.random.RandomState(i).randint(0, 256, (32, 32, 3), np.uint8) for i in range(4)]
    exported = export_onnx.export(model, network)
    seen = quantize_onnx.observe(exported, ({"image": image[None]} for image in images))
    graph = onnx.load_from_string(quantize_onnx.quantize(exported, recipe("onnx-int8-mse"), seen)).graph
    makers = {output: node.op_type for node in graph.node for output in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    integer = [n for n in convolutions if all(makers.get(x) == "DequantizeLinear" for x in n.input[:2])]
    assert len(integer) >= len(convolutions) - 9  # the nine convolutions of gates on pooled maps may stay float


def test_a_sigmoid_inside_the_body_is_no_gate() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1))
    model = Model("m", NetworkConfig("classify", 3, 0, 0, slice_size=9), (0.0,) * 3, (255.0,) * 3)
    graph = onnx.load_from_string(export_onnx.export(model, network.eval())).graph
    assert quantize_onnx.gates(graph) == set()


class Contrary(nn.Module):
    """Its way depends on what it sees, which no exporter can follow."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((1, 2, 3), keepdim=False).unsqueeze(1) if x.sum() > 0 else x[:, :1, 0, 0]


def test_a_network_that_cannot_be_exported_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", f"{__name__}:Contrary", "--to", tmp_path / "m.onnx", "--size", 9) == 1
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert "cannot export Contrary to onnx" in errors


def test_two_logits_become_an_artifact_as_well_as_one(tmp_path: Path) -> None:
    out = tmp_path / "two.highwall"
    words = ("--board", "host", "--out", out, "--precision", "fp32", "--size", 9, "--bands", 3)
    assert run("build", f"{__name__}:two_logits", *words) == 0
    assert artifact.read(out).manifest.output_shape == (2,)


def two_logits() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(243, 2))


def test_one_class_has_no_score(run_folder: Path, samples: Samples) -> None:
    with pytest.raises(HighwallError, match="one class only"):
        evaluate(run_folder, samples.take(np.flatnonzero(samples.positive)), None)
