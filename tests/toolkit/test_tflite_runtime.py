"""A tflite artifact passes its golden vectors in tflite-runtime 2.14 too, in an environment of its own."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from short import exported, pictures, short

from targets.runtime import artifact, golden
from targets.runtime.engine import open_session
from targets.runtime.manifest import Manifest
from toolkit.checkpoint import Model
from toolkit.compiler import input_spec
from toolkit.data.synthetic import mine_chips
from toolkit.models import find
from toolkit.quantize import tflite
from toolkit.quantize.recipes import RECIPES

PYTHON = "3.11"  # the last that tflite-runtime has wheels for
PINS = "constraints-tflite-runtime.txt"
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


def feeds_of(model: Model, images: list) -> list[dict]:
    features = golden.sensor_features(0, input_spec(model))
    return [{"image": image[None]} | ({} if features is None else {"sensors": features[None]}) for image in images]


def write(path: Path, model: Model, source: bytes, name: str, images: list) -> Path:
    """An artifact of the float model `source` by the recipe `name`, its golden vectors made in LiteRT."""
    spec, recipe = input_spec(model), RECIPES[name]
    feeds = feeds_of(model, images)
    made = tflite.quantize(source, recipe, tflite.observe(source, feeds) if recipe.calibrated else None)
    # Kernels of another rounding may stray by their own measure, and no further.
    tolerance = max(1e-4, 2 * tflite.spread(made, feeds))
    vectors = golden.make(
        open_session("tflite", made), spec, [1, 2], np.stack(images[:4]), block=1, tolerance=tolerance
    )
    assert np.ptp(vectors.expected) > 5 * tolerance  # or a constant would pass
    manifest = Manifest(
        name=model.name,
        task=model.network.task,
        model_version=1,
        input=spec,
        output_shape=vectors.expected.shape[1:],
        threshold=0.5,
        labels=model.labels,
        board="rpi4b",
        runtime="tflite",
        recipe=recipe.as_dict(),
        provenance={},
    )
    artifact.write(path, manifest, made, vectors, {})
    return path


def passes(env: Path, path: Path) -> None:
    """`highwall verify` in the old environment says so, and prints nothing else."""
    done = run(env / "bin" / "highwall", "verify", path, "--json", cwd=path.parent)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert json.loads(done.stdout)
    script = (
        "import sys; from pathlib import Path; from targets.runtime import artifact, golden; "
        "from targets.runtime.engine import open_session; a = artifact.read(Path(sys.argv[1])); "
        "r = golden.check(a, open_session('tflite', a.model)); print(r.n, r.passed)"
    )
    done = run(env / "bin" / "python", "-c", script, path, cwd=path.parent)
    assert done.stdout == "6 True\n", done.stderr


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
def test_the_artifact_passes_its_golden_vectors(old_env, tmp_path, task, name):
    model, _ = short(task)
    passes(old_env, write(tmp_path / "it.highwall", model, exported(task), name, pictures(model, 12, seed=1)))


@pytest.mark.slow
def test_the_shipped_classifier_passes_its_golden_vectors(old_env, tmp_path):
    model, network = find("mine")
    source = tflite.export(model, network)
    images = list(mine_chips(60, size=model.network.slice_size, seed=9).images)
    for name in RECIPE_NAMES:
        passes(old_env, write(tmp_path / f"{name}.highwall", model, source, name, images))


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
