"""Readings beside the images: from the data through training, build and verify to a prediction."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from short import Short

import highwall
from targets.runtime.admit import examine
from targets.runtime.engine import open_session
from targets.runtime.errors import HighwallError
from toolkit import checkpoint
from toolkit.build import build
from toolkit.calibration import Calibration
from toolkit.checkpoint import Model
from toolkit.compiler import Compiler
from toolkit.data import folder
from toolkit.data.batches import SENSOR_LIMIT, Normalisation, centre_crop
from toolkit.data.samples import Samples, Unlabelled
from toolkit.data.slopes import SENSORS, slopes
from toolkit.data.synthetic import crack_images
from toolkit.data.write import write
from toolkit.evaluate import evaluate
from toolkit.export.onnx import export, run_torch
from toolkit.network import NetworkConfig
from toolkit.quantize.recipes import plain
from toolkit.runs import Request, plan

SIDE = 17


@pytest.fixture(scope="module")
def samples() -> Samples:
    return slopes(60, SIDE, seed=4)


@pytest.fixture(scope="module")
def data(samples: Samples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slopes") / "data"
    write(samples, path)
    return path


@pytest.fixture(scope="module")
def run(samples: Samples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "joined"
    plan(samples, request(out)).run(lambda _: None)
    return out


def request(out: Path, **changes: object) -> Request:
    settings: dict[str, object] = {"width": 8, "growth": 4, "slice_size": SIDE, "epochs": 1, "batch": 16, "held": "0"}
    return Request("classify", out, **(settings | changes))  # type: ignore[arg-type]


def one_line(error: pytest.ExceptionInfo[HighwallError]) -> bool:
    return "\n" not in str(error.value)


# --- data ---------------------------------------------------------------------------------------------------------


def test_what_was_written_is_read_back_with_its_sensors(samples: Samples, data: Path) -> None:
    found = folder.read(data)
    assert found.digest == samples.digest
    assert found.sensor_names == SENSORS
    assert "sensors: 5 features" in found.describe() and "tilt_rate" in found.describe()


def test_sensors_go_with_their_images_through_take_and_crop(samples: Samples) -> None:
    assert samples.sensors is not None
    taken = centre_crop(samples.take([5, 0, 9]), 9)
    assert taken.sensors is not None
    assert np.array_equal(taken.sensors, samples.sensors[[5, 0, 9]])
    assert taken.sensor_names == SENSORS


def test_the_digest_covers_sensors_and_is_as_ever_without_them(samples: Samples) -> None:
    assert samples.sensors is not None
    changed = samples.sensors.copy()
    changed[3, 1] += 0.5
    renamed = ("a", *SENSORS[1:])
    digests = {
        one.digest for one in (samples, replace(samples, sensors=changed), replace(samples, sensor_names=renamed))
    }
    assert len(digests) == 3
    bare = Samples(
        "classify", np.zeros((2, 1, 1, 1), np.uint8), np.array([0, 1], np.uint8), ("a", "b"), None, None, ("n", "p")
    )
    assert bare.digest == "c6de983ab43c8beb27b2188fecea350647f97c1525be8358d36e1c7837adaf22"


@pytest.mark.parametrize(
    ("sensors", "says"),
    [
        (np.zeros((60, 5)), "float64"),
        (np.zeros((59, 5), np.float32), r"float32\[59, 5\]"),
        (np.zeros(60, np.float32), "shape 60,m"),
        (np.zeros((60, 0), np.float32), "m from 1"),
        (np.full((60, 5), np.nan, np.float32), "300 sensor features are NaN"),
        (np.zeros((60, 4), np.float32), "for 4 features"),
        (None, "without sensor features"),
    ],
)
def test_sensors_that_do_not_fit_are_refused(samples: Samples, sensors: np.ndarray, says: str) -> None:
    with pytest.raises(HighwallError, match=says) as caught:
        replace(samples, sensors=sensors)
    assert one_line(caught)


def test_sensors_beside_photographs_to_segment_are_refused(tmp_path: Path) -> None:
    photographs = crack_images(2, 16, 0)
    with pytest.raises(HighwallError, match="to classify"):
        replace(photographs, sensors=np.zeros((2, 1), np.float32))
    write(crack_images(6, 32, 0), tmp_path / "data")
    (tmp_path / "data" / "sensors.csv").write_text("name,tilt\n")
    with pytest.raises(HighwallError, match=r"sensors\.csv"):
        folder.read(tmp_path / "data")


def chips(path: Path, **more: np.ndarray) -> Path:
    x = np.zeros((4, 5, 3, 3), np.uint8)
    np.savez(path / "chips.npz", x=x, y=np.array([0, 1, 0, 1], np.uint8), **more)
    return path


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"sensors": np.zeros((3, 2))}, r"shape \[3, 2\] for 4 chips"),
        ({"sensors": np.zeros(4)}, r"expected \[4, m\]"),
        ({"sensors": np.zeros((4, 0))}, r"shape \[4, 0\]"),
        ({"sensors": np.array([["a", "b"]] * 4)}, "expected numbers"),
        ({"sensors": np.full((4, 2), np.inf)}, "8 sensor features are NaN or infinite"),
        ({"sensors": np.full((4, 2), 1e300)}, "infinite"),
        ({"sensors": np.zeros((4, 2)), "sensor_names": np.array(["a"])}, "for 2 features"),
        ({"sensors": np.zeros((4, 2)), "sensor_names": np.array([1, 2])}, "one text each"),
        ({"sensors": np.zeros((4, 2)), "sensor_names": np.array(["a", "a"])}, "name of its own"),
    ],
)
def test_sensors_in_chips_that_are_wrong_are_refused(tmp_path: Path, arrays: dict, says: str) -> None:
    with pytest.raises(HighwallError, match=says) as caught:
        folder.read(chips(tmp_path, **arrays))
    assert one_line(caught)


def test_whole_numbers_are_sensors_too_and_names_may_be_missing(tmp_path: Path) -> None:
    found = folder.read(chips(tmp_path, sensors=np.arange(8, dtype=np.int64).reshape(4, 2)))
    assert found.sensors is not None and found.sensors.dtype == np.float32
    assert found.sensors[3].tolist() == [6, 7]
    assert found.sensor_names == ()


def classes(path: Path, *rows: str) -> Path:
    for label in ("crack", "sound"):
        (path / label).mkdir(parents=True)
        for name in "ab":
            Image.fromarray(np.zeros((5, 3, 3), np.uint8)).save(path / label / f"{name}.png")
    (path / "sensors.csv").write_text("\n".join(rows) + "\n")
    return path


GOOD = ("crack/a.png,1,2", "sound/b.png,7,8", "crack/b.png,3,4", "sound/a.png,5,-6e1")


def test_a_table_beside_class_folders_is_matched_by_name(tmp_path: Path) -> None:
    found = folder.read(classes(tmp_path, "name,tilt,rain", *GOOD))
    assert found.sensors is not None
    assert dict(zip(found.names, found.sensors.tolist(), strict=True))["sound/a.png"] == [5, -60]
    assert found.sensor_names == ("tilt", "rain")
    assert "sensors.csv" in found.describe()


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (("name,tilt,rain", *GOOD[:3]), "1 samples without a row"),
        (("name,tilt,rain", *GOOD, GOOD[0]), "1 doubled"),
        (("name,tilt,rain", *GOOD[:3], "sound/a.png,5,wet"), "row sound/a.png: rain is 'wet'"),
        (("name,tilt,rain", *GOOD[:3], "sound/a.png,5"), "rain is ''"),
        (("name,tilt,rain", *GOOD[:3], "sound/a.png,nan,5"), "tilt is 'nan'"),
        (("name,tilt", *GOOD), "head of each column"),
        (("name", *(row.partition(",")[0] for row in GOOD)), "a feature beside 'name'"),
        (("image,tilt,rain", *GOOD), "no column 'name'"),
    ],
)
def test_a_table_of_sensors_that_is_wrong_is_refused(tmp_path: Path, rows: tuple[str, ...], says: str) -> None:
    with pytest.raises(HighwallError, match=says) as caught:
        folder.read(classes(tmp_path, *rows))
    assert "sensors.csv" in str(caught.value)
    assert one_line(caught)


def test_sensors_in_two_places_are_refused_and_unlabelled_images_keep_theirs(tmp_path: Path) -> None:
    np.savez(tmp_path / "chips.npz", x=np.zeros((2, 3, 3, 1), np.uint8), sensors=np.ones((2, 3)))
    found = folder.read_any(tmp_path)
    assert isinstance(found, Unlabelled)
    assert found.sensors is not None and found.sensors.shape == (2, 3)
    assert found.digest != Unlabelled(found.images, found.names).digest
    (tmp_path / "sensors.csv").write_text("name,a\n0,1\n1,2\n")
    with pytest.raises(HighwallError, match="keep one"):
        folder.read_any(tmp_path)


# --- training -----------------------------------------------------------------------------------------------------


def test_data_with_sensors_trains_a_network_that_takes_them(samples: Samples, run: Path) -> None:
    model, _ = checkpoint.load(run)
    assert model.network.sensors == 5
    assert model.sensor_names == SENSORS
    trainer = plan(samples, request(run))
    assert trainer.train.sensors is not None
    assert model.sensor_mean == pytest.approx(trainer.train.sensors.mean(0), rel=1e-4)
    assert model.sensor_std == pytest.approx(trainer.train.sensors.std(0), rel=1e-4)


def test_train_says_what_becomes_of_the_sensors(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["train", "--data", str(data), "--task", "classify", "--slice", "9", "--epochs", "1", "--batch", "16"]
    narrow = ["--width", "8", "--growth", "4"]
    assert highwall.main([*common, *narrow, "--out", str(tmp_path / "joined")]) == 0
    assert "joining 5 sensor features" in capsys.readouterr().out
    assert highwall.main([*common, *narrow, "--no-sensors", "--out", str(tmp_path / "image")]) == 0
    assert "from the images alone" in capsys.readouterr().out
    assert checkpoint.read(tmp_path / "image")[0].network.sensors == 0
    assert highwall.main([*common, "--network", "rnn", "--out", str(tmp_path / "rnn")]) == 0
    assert "note: rnn learns from the images alone" in capsys.readouterr().out


def test_a_run_with_sensors_resumes_to_the_same_bytes(samples: Samples, tmp_path: Path) -> None:
    plan(samples, request(tmp_path / "whole", epochs=2)).run(lambda _: None)

    def stop(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plan(samples, request(tmp_path / "parts", epochs=2)).run(stop)
    again = plan(samples, request(tmp_path / "parts", epochs=2))
    again.resume()
    again.run(lambda _: None)
    bytes_of = [(tmp_path / name / "checkpoint.safetensors").read_bytes() for name in ("whole", "parts")]
    assert bytes_of[0] == bytes_of[1]


def test_other_readings_do_not_resume_a_run(samples: Samples, run: Path) -> None:
    assert samples.sensors is not None
    with pytest.raises(HighwallError, match="other settings"):
        plan(replace(samples, sensors=samples.sensors + np.float32(1)), request(run)).resume()


def test_weights_without_sensors_do_not_begin_a_run_with_them(samples: Samples, run: Path, tmp_path: Path) -> None:
    with pytest.raises(HighwallError, match="5 sensor features, this run 0") as caught:
        plan(samples, request(tmp_path, sensors=False, start=run / "checkpoint.safetensors"))
    assert one_line(caught)


def test_a_checkpoint_from_before_there_were_sensors_still_loads(run: Path, tmp_path: Path) -> None:
    with safe_open(run / "checkpoint.safetensors", "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        fields = json.loads(file.metadata()[checkpoint.FORMAT])
    for key in ("sensor_mean", "sensor_std", "sensor_names"):
        del fields[key]
    old = tmp_path / "old.safetensors"
    save_file(weights, old, {checkpoint.FORMAT: json.dumps(fields)})
    assert checkpoint.load(old)[0].sensor_mean == ()
    fields["sensor_mean"] = [1.0]
    save_file(weights, old, {checkpoint.FORMAT: json.dumps(fields)})
    with pytest.raises(HighwallError, match="5 sensor features"):
        checkpoint.load(old)


def test_a_feature_that_never_changes_is_no_division_by_nothing(samples: Samples) -> None:
    assert samples.sensors is not None
    for value in (0.0, 7.3, -1e6, 1e30):
        still = samples.sensors.copy()
        still[:, 2] = value
        seen = Normalisation.of(replace(samples, sensors=still)).of_sensors(still)
        assert seen is not None
        assert seen[:, 2].abs().max() < 1


# --- the graph ----------------------------------------------------------------------------------------------------


MEAN, STD = (2.5e5, -0.004, 12.0), (7.0e4, 0.001, 8.0)  # joules, degrees, millimetres


@pytest.fixture(scope="module")
def short() -> tuple[Model, Short]:
    """An untrained network that listens to its sensors."""
    torch.manual_seed(0)
    config = NetworkConfig("classify", 3, 8, 4, sensors=3, slice_size=SIDE)
    network = Short(3, "classify", 8, 4, sensors=3).eval()
    assert network.head.sensor_features is not None
    with torch.no_grad():
        network.head.logit.weight.mul_(8)
    return Model("m", config, (100.0,) * 3, (50.0,) * 3, sensor_mean=MEAN, sensor_std=STD), network


def raw(z: Sequence[float]) -> np.ndarray:
    """Readings that many standard deviations from their means."""
    return (np.array(MEAN) + np.array(STD) * np.array(z)).astype(np.float32)


def test_scaling_is_inside_the_graph_in_any_unit_and_stops_at_the_limit(short: tuple[Model, Short]) -> None:
    model, network = short
    session = onnxruntime.InferenceSession(export(model, network), providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)

    def answer(z: list[float]) -> float:
        found = session.run(None, {"image": image[None], "sensors": raw(z)[None]})[0].item()
        assert found == pytest.approx(run_torch(model, network, image, raw(z)).item(), abs=1e-5)
        pixels = (torch.from_numpy(image).float().permute(2, 0, 1)[None] - 100) / 50
        inside = torch.tensor([z]).float().clamp(-SENSOR_LIMIT, SENSOR_LIMIT)
        with torch.inference_mode():
            assert found == pytest.approx(torch.sigmoid(network(pixels, inside)).item(), abs=1e-4)
        return float(found)

    assert answer([0.3, -1.2, 2.0]) != answer([0.3, -1.2, -2.0])
    assert answer([1e4, -900.0, 50.0]) == pytest.approx(answer([4.0, -4.0, 4.0]), abs=1e-6)


@pytest.mark.parametrize("runtime", ["onnx", "tflite"])
def test_int8_keeps_apart_sensors_of_very_different_units(
    runtime: str, short: tuple[Model, Short], samples: Samples
) -> None:
    if runtime == "tflite":
        pytest.importorskip("litert_torch")
    model, network = short
    made = Compiler(model, network, Calibration(samples.images, None, "")).candidate(plain(runtime, "int8"))
    session = open_session(runtime, made.model)
    rng = np.random.default_rng(1)
    for sensor in range(3):
        off, reach = [], []
        for image in samples.images[:12]:
            low, high = rng.uniform(-1, 1, (2, 3))
            high[:] = low
            low[sensor], high[sensor] = -3, 3  # only this one differs
            wanted = [run_torch(model, network, image, raw(z)).item() for z in (low, high)]
            got = [session.run(image, raw(z)).item() for z in (low, high)]
            reach.append(abs(wanted[1] - wanted[0]))
            off.append(abs((got[1] - got[0]) - (wanted[1] - wanted[0])))
        assert np.mean(reach) > 0.02, sensor  # its reading does say something
        assert np.mean(off) < 0.3 * np.mean(reach), sensor


# --- build, verify, predict ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(samples: Samples, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, network = checkpoint.load(run)
    out = tmp_path_factory.mktemp("built") / "joined.highwall"
    data = Calibration.of(samples, model, "0")
    receipt = build(model, network, "rpi4b", out, plain("onnx", "int8"), data, lambda _: None)
    assert receipt["accuracy"]["int8"]["n"] == 12
    return out


def test_the_artifact_is_judged_with_its_sensors_and_verifies(samples: Samples, run: Path, built: Path) -> None:
    held = samples.take(np.flatnonzero(samples.folds == 0))
    found = examine(built, None)
    assert found.refusal is None
    assert found.golden is not None and found.golden.passed and found.golden.n == 8
    assert found.artifact is not None
    assert found.artifact.manifest.input.sensors == 5
    assert found.artifact.manifest.provenance["sensors"]["names"] == list(SENSORS)
    scored = evaluate(built, held, None)
    assert found.artifact.receipt["accuracy"]["int8"]["auc"] == pytest.approx(scored.auc, abs=1e-6)
    assert scored.auc == pytest.approx(evaluate(run, held, None).auc, abs=0.1)


@pytest.mark.parametrize("what", ["run", "built"])
def test_data_without_the_right_sensors_is_refused(what: str, samples: Samples, run: Path, built: Path) -> None:
    path = run if what == "run" else built
    assert samples.sensors is not None
    bad = {
        "this data has none": replace(samples, sensors=None, sensor_names=()),
        "this data has 4": replace(samples, sensors=samples.sensors[:, :4].copy(), sensor_names=()),
        "in that order": replace(samples, sensor_names=SENSORS[::-1]),
    }
    for says, others in bad.items():
        with pytest.raises(HighwallError, match=says) as caught:
            evaluate(path, others, None)
        assert one_line(caught)


def test_a_build_on_data_without_sensors_is_refused_before_anything_slow(samples: Samples, run: Path) -> None:
    model, network = checkpoint.load(run)
    bare = Calibration.of(replace(samples, sensors=None, sensor_names=()), model)
    with pytest.raises(HighwallError, match="this data has none"):
        Compiler(model, network, bare)


def test_a_network_without_sensors_is_scored_on_data_with_them(samples: Samples, tmp_path: Path) -> None:
    plan(samples, request(tmp_path / "image", sensors=False)).run(lambda _: None)
    bare = replace(samples, sensors=None, sensor_names=())
    both = [asdict(evaluate(tmp_path / "image", data, None)) for data in (samples, bare)]
    assert both[0] == both[1]


def test_generate_train_build_verify_predict_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run, out = tmp_path / "data", tmp_path / "run", tmp_path / "m.highwall"
    for line in (
        f"generate --task classify --sensors --count 40 --size {SIDE} --out {data}",
        f"train --data {data} --task classify --width 8 --growth 4 --epochs 1 --batch 8 --fold 0 --out {run}",
        f"evaluate {run} --data {data} --fold 0",
        f"build {run} --board rpi4b --data {data} --fold 0 --no-cache --out {out}",
        f"verify {out}",
        f"evaluate {out} --data {data} --fold 0",
    ):
        assert highwall.main(line.split()) == 0, (line, capsys.readouterr().err)
    assert "and 5 sensor features" in _said(["inspect", str(out)], capsys)
    samples = folder.read(data)
    assert samples.sensors is not None
    image = tmp_path / "slope.png"
    Image.fromarray(samples.images[0]).save(image)
    given = ",".join(map(str, samples.sensors[0].tolist()))
    one = json.loads(_said(["predict", str(out), str(image), f"--sensors={given}", "--json"], capsys))
    table = tmp_path / "now.csv"
    table.write_text(",".join(SENSORS) + "\n" + given + "\n")
    other = json.loads(_said(["predict", str(out), str(image), "--sensors", str(table), "--json"], capsys))
    assert one == other
    assert highwall.main(["predict", str(out), str(image)]) == 1
    said = capsys.readouterr().err
    assert "tilt_rate" in said and "--sensors" in said and said.count("\n") == 1


def _said(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert highwall.main(words) == 0
    return capsys.readouterr().out
