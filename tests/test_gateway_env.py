"""The gateway's promise: an artifact runs where only the base install and an engine are, without torch."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")


@dataclass(frozen=True)
class Gateway:
    """An environment that holds the wheel with extra `ort`, and a folder outside the checkout to run in."""

    env: Path
    cwd: Path

    def run(self, *command: str | Path) -> subprocess.CompletedProcess:
        """Run a program of the environment, away from the checkout, with no PYTHON variable of ours."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        program, *arguments = command
        return subprocess.run(
            [self.env / "bin" / program, *arguments],
            cwd=self.cwd,
            env=clean,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )


@pytest.fixture(scope="module")
def gateway_env(root, wheel, build_lock, ci_or_skip):
    """The environment: what the wheel needs is installed once per pyproject.toml, constraints and Python."""
    pinned = [(root / name).read_bytes() for name in ("pyproject.toml", "constraints.txt")]
    key = hashlib.sha256(b"\0".join([*pinned, sys.version.encode()])).hexdigest()[:12]
    env = build_lock / f"gateway-env-{key}"
    complete = env / "complete"
    into = [*PIP, "--python", env, "install"]
    if not complete.exists():
        for old in build_lock.glob("gateway-env-*"):
            shutil.rmtree(old)
        venv.create(env, symlinks=True, with_pip=False)
        command = [*into, "-c", root / "constraints.txt", f"{wheel}[ort]"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            ci_or_skip(f"pip could not install a gateway (the first time it needs a package index): {last}")
        complete.touch()
    command = [*into, "--no-deps", "--no-index", "--force-reinstall", wheel]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return env


@pytest.fixture
def gateway(gateway_env, tmp_path):
    return Gateway(gateway_env, tmp_path)


def brightness_model(height: int, width: int) -> bytes:
    """ONNX bytes: uint8 image (1, H, W, 3) -> probability (1, 1), its mean as a share of full white."""
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels"], ["bands"], axes=[1, 2], keepdims=0),
        helper.make_node("ReduceMean", ["bands"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Div", ["mean", "white"], ["probability"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, [1, height, width, 3])
    probability = helper.make_tensor_value_info("probability", TensorProto.FLOAT, [1, 1])
    white = helper.make_tensor("white", TensorProto.FLOAT, [], [255.0])
    graph = helper.make_graph(nodes, "brightness", [image], [probability], [white])
    opsets = [helper.make_opsetid("", 13)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


@pytest.fixture
def artifact(tmp_path) -> Path:
    """An artifact whose probability is the brightness of a 7 x 5 image."""
    from targets.runtime import golden
    from targets.runtime.artifact import InputSpec, Manifest, write
    from targets.runtime.engine import open_session

    spec = InputSpec(height=7, width=5, bands=3, dtype="uint8", scale=(1 / 255,))
    model = brightness_model(spec.height, spec.width)
    manifest = Manifest(
        name="brightness",
        task="classify",
        model_version=1,
        input=spec,
        output_shape=(1,),
        threshold=0.5,
        labels=("bright",),
        board="host",
        runtime="onnx",
        recipe={},
        provenance={},
    )
    session = open_session("onnx", model)
    vectors = golden.make(session, spec, [1, 2, 3], None, block=1, tolerance=1e-5)
    path = tmp_path / "brightness.highwall"
    write(path, manifest, model, vectors, {})
    return path


def test_the_gateway_has_no_torch_and_runs_the_wheel_not_the_checkout(gateway, root):
    script = (
        "import importlib.util as u, targets, highwall, sys; "
        "print(*[n for n in ('torch', 'onnx', 'scipy', 'sklearn', 'pip') if u.find_spec(n)]); "
        "print(targets.__file__); print(highwall.__file__)"
    )
    done = gateway.run("python", "-c", script)
    assert done.returncode == 0, done.stderr
    workbench, *files = done.stdout.split("\n")[:3]
    assert workbench == ""
    assert all(Path(file).is_relative_to(gateway.env) for file in files), files


def test_the_installed_front_door_names_its_version(gateway, project):
    assert gateway.run("highwall", "--version").stdout == f"highwall {project['project']['version']}\n"


def test_the_gateway_lists_the_boards(gateway):
    done = gateway.run("highwall", "boards", "--json")
    assert done.returncode == 0, done.stderr
    assert "rpi4b" in json.dumps(json.loads(done.stdout))


def test_the_gateway_verifies_an_artifact(gateway, artifact):
    done = gateway.run("highwall", "verify", artifact, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


def test_the_gateway_checks_who_signed(gateway, artifact):
    for name in ("ann", "bob"):
        assert gateway.run("highwall", "keygen", "--out", name).returncode == 0
    assert gateway.run("highwall", "sign", artifact, "--key", "ann.key").returncode == 0
    done = gateway.run("highwall", "verify", artifact, "--trust", "ann.pub", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["signature"] == "trusted"
    done = gateway.run("highwall", "verify", artifact, "--trust", "bob.pub")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "bob.pub does not trust" in done.stderr


def test_the_gateway_refuses_an_artifact_with_one_flipped_bit(gateway, artifact):
    damaged = bytearray(artifact.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    artifact.write_bytes(damaged)
    done = gateway.run("highwall", "verify", artifact)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1


def test_the_gateway_predicts_on_an_image(gateway, artifact):
    np.save(gateway.cwd / "dark.npy", np.full((7, 5, 3), 51, np.uint8))
    done = gateway.run("highwall", "predict", artifact, "dark.npy", "--json")
    assert done.returncode == 0, done.stderr
    assert "0.2" in done.stdout


@pytest.mark.parametrize("verb", ["cost", "train"])
def test_a_workbench_verb_says_which_extra_the_gateway_lacks(gateway, verb):
    arguments = {"cost": ["any.safetensors"], "train": ["--data", ".", "--task", "classify", "--out", "run"]}
    done = gateway.run("highwall", verb, *arguments[verb])
    assert done.returncode == 1
    assert done.stderr.startswith("highwall: ")
    assert done.stderr.endswith("pip install 'highwall[toolkit]'\n")
    assert done.stderr.count("\n") == 1
