"""What `highwall build --runtime tflite` makes passes in tflite-runtime 2.14 too, in an environment of its own."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from short import Short, exported, pictures, short
from torch import nn

import highwall
from targets.runtime import artifact, golden
from toolkit import checkpoint
from toolkit.checkpoint import Model
from toolkit.data.synthetic import mine_chips
from toolkit.network import CrackNet
from toolkit.quantize import tflite

PYTHON = "3.11"  # the last that tflite-runtime has wheels for
PINS = "constraints-tflite-runtime.txt"
GROUPS = CrackNet.groups
RECIPE_NAMES = ("tflite-fp32", "tflite-int8w", "tflite-int8-mse")


def run(*command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def old_env(root, wheel, build_lock, ci_or_skip):
    """Python 3.11 with tflite-runtime, numpy 1 and this checkout's wheel; installed once per pin file."""
    python = sys.executable if sys.version_info[:2] == (3, 11) else shutil.which(f"python{PYTHON}")
    if python is None:
        ci_or_skip(f"tflite-runtime has wheels for Python {PYTHON} only, and there is no python{PYTHON} here")
    key = hashlib.sha256((root / PINS).read_bytes() + str(python).encode()).hexdigest()[:12]
    env = build_lock / f"tflite-runtime-env-{key}"
    complete = env / "complete"
    into = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--python", env, "install")
    if not complete.exists():
        for old in build_lock.glob("tflite-runtime-env-*"):
            shutil.rmtree(old)
        made = run(python, "-m", "venv", "--without-pip", env)
        assert made.returncode == 0, made.stderr
        done = run(*into, "-r", root / PINS)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            ci_or_skip(f"pip could not install tflite-runtime (the first time it needs a package index): {last}")
        complete.touch()
    done = run(*into, "--no-deps", "--no-index", "--force-reinstall", wheel)
    assert done.returncode == 0, done.stderr
    return env


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Builds `model` by `highwall build --runtime tflite`; only the slow converter's result may be remembered."""
    convert, source = tflite.export, {}

    def once(model: Model, network: nn.Module) -> bytes:
        key = checkpoint.digest(network.state_dict())
        if key not in source:
            known, same = short(model.network.task)
            of_short = model == known and key == checkpoint.digest(same.state_dict())
            source[key] = exported(model.network.task) if of_short else convert(model, network)
        return source[key]

    def built(model: str | Path, name: str, images: np.ndarray, *options: str) -> Path:
        folder = tmp_path_factory.mktemp("built")
        np.savez(folder / "chips.npz", x=images)
        out = folder / "it.highwall"
        words = ("--board", "rpi4b", "--runtime", "tflite", "--recipe", name, "--data", folder, "--out", out, *options)
        assert highwall.main([str(word) for word in ("build", model, *words)]) == 0
        return out

    with pytest.MonkeyPatch.context() as here:
        here.setattr(tflite, "export", once)
        here.setattr(CrackNet, "groups", Short.groups)  # so that a checkpoint of `short` loads
        here.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield built


# Runs a model on every image, with its sensor features where it has any, in every kind of kernels.
ANSWER = """
import sys
from pathlib import Path
import numpy as np
from targets.runtime import artifact
from targets.runtime.tflite import Session
model, given, said = artifact.read(Path(sys.argv[1])).model, np.load(sys.argv[2]), {}
for kernels in ("fastest", "built-in", "reference"):
    session, cases = Session(model, kernels=kernels), zip(given["images"], given["features"])
    said[kernels] = [session.run(image, features if features.size else None) for image, features in cases]
np.savez(sys.argv[3], **said)
"""


def answers(python: str | Path, path: Path, given: Path) -> dict[str, np.ndarray]:
    """What the engine of one environment says by kernels, whole, where golden maps keep means of blocks."""
    out = path.with_suffix(".said.npz")
    done = run(python, "-c", ANSWER, path, given, out, cwd=path.parent)
    assert (done.returncode, done.stderr) == (0, "")
    with np.load(out) as said:
        return dict(said)


def passes(env: Path, path: Path) -> None:
    """`highwall verify` in the old environment says so, and its engine strays no further than LiteRT's own kernels.

    Strays from the reference kernels, which say in both what the file means: how fast ones round hangs on the CPU.
    What they say is the same but where a last bit in float, of a log ratio say, turns an integer by one step.
    """
    found = artifact.read(path)
    done = run(env / "bin" / "highwall", "verify", path, "--json", cwd=path.parent)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    report = json.loads(done.stdout)["golden"]
    assert (report["n"], report["passed"]) == (len(found.golden.expected), True)

    spec = found.manifest.input
    images = [golden.seeded_image(1, spec), *found.golden.images]
    features = [golden.sensor_features(index, spec) for index in range(len(images))]
    given = path.with_suffix(".npz")
    np.savez(given, images=images, features=[() if one is None else one for one in features])
    here, there = answers(sys.executable, path, given), answers(env / "bin" / "python", path, given)
    meant = here["reference"]
    apart = {kernels: np.abs(there[kernels] - meant) for kernels in there}
    assert np.median(apart["reference"]) <= 1e-6
    strays = {kernels: np.abs(here[kernels] - meant).max() for kernels in ("fastest", "built-in")}
    most = max(1e-4, 2 * max(strays.values()))
    assert np.ptp(meant) > 5 * most  # or a constant would pass
    assert max(apart["reference"].max(), apart["fastest"].max()) <= most, (apart, strays)


def test_the_environment_holds_the_old_runtime_and_no_other_engine(old_env, tmp_path):
    script = (
        "import importlib.util as u, importlib.metadata as m; "
        "print(*[n for n in ('ai_edge_litert', 'onnxruntime', 'torch', 'PIL') if u.find_spec(n)]); "
        "print(m.version('tflite-runtime')); import targets; print(targets.__file__)"
    )
    done = run(old_env / "bin" / "python", "-c", script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    engines, version, ours = done.stdout.rstrip("\n").split("\n")
    assert (engines, version) == ("", "2.14.0")
    assert Path(ours).is_relative_to(old_env)


@pytest.mark.parametrize("task", ["classify", "segment"])
@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_a_built_artifact_passes_its_golden_vectors(old_env, build, tmp_path, task, name):
    model, network = short(task)
    checkpoint.save(tmp_path / "short.safetensors", model, checkpoint.weights_of(network))
    passes(old_env, build(tmp_path / "short.safetensors", name, np.stack(pictures(model, 12, seed=1))))


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_the_shipped_classifier_passes_its_golden_vectors(old_env, build, monkeypatch, name):
    monkeypatch.setattr(CrackNet, "groups", GROUPS)
    passes(old_env, build("mine", name, mine_chips(60, size=48, seed=9).images))


def test_a_cut_model_is_refused_where_the_old_runtime_would_crash(old_env, tmp_path):
    made = exported("segment")
    (tmp_path / "cut.tflite").write_bytes(made[: len(made) * 4 // 5])
    script = (
        "from pathlib import Path; from targets.runtime.tflite import Session; from targets.runtime.errors import *\n"
        "try:\n    Session(Path('cut.tflite').read_bytes())\nexcept HighwallError as e:\n    print(e)"
    )
    done = run(old_env / "bin" / "python", "-c", script, cwd=tmp_path)
    assert (done.returncode, done.stdout.count("\n")) == (0, 1), done.stderr
    assert "refuses the model" in done.stdout
