"""Peers: each file holds its promises, answers as torch does, and one that breaks stops nobody else."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers import peer as peers
from benchmarks.peers import run, table
from benchmarks.peers.peer import environment, load, names
from benchmarks.suite.turns import ROOT
from targets.runtime.errors import HighwallError

HERE = ("onnxruntime", "litert", "torch")  # those that need no environment of their own


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> run.Job:
    """`mine` on generated chips."""
    patched = pytest.MonkeyPatch()
    patched.setitem(run.CALIBRATED, "mine", 8)
    patched.setitem(run.JUDGED, "mine", 6)
    yield run.prepare("mine", tmp_path_factory.mktemp("peers"), None, lambda line: None)
    patched.undo()


@pytest.mark.parametrize("name", names())
def test_every_peer_says_what_it_is_what_it_gets_and_what_it_cannot(name):
    one = load(name)
    assert one.TITLE
    assert len(one.SETTINGS) > 20
    assert one.PRECISIONS
    assert not set(one.PRECISIONS) & set(one.GAPS)
    assert {"fp32", "int8"} <= {*one.PRECISIONS, *one.GAPS}
    assert all("==" in package for package in one.PACKAGES)
    assert callable(one.convert)
    assert callable(one.session)


@pytest.mark.parametrize("name", names())
def test_a_peers_file_imports_nothing_of_its_engine_until_it_is_asked(name):
    script = (
        f"import sys, benchmarks.peers.engines.{name}\n"
        "heavy = {'torch', 'onnxruntime', 'openvino', 'ncnn', 'MNN', 'executorch', 'ai_edge_litert', 'toolkit'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", HERE)
def test_a_float_peer_answers_as_torch_does(name, job, tmp_path):
    out = tmp_path / "it.model"
    one = load(name)
    one.convert(job.source, "fp32", out)
    answer = one.session(out, 1)
    for image, wanted in zip(job.images, job.reference, strict=True):
        assert np.abs(np.asarray(answer(image)) - wanted).max() < 1e-4


def test_onnx_runtimes_own_quantizer_stays_near_torch(job, tmp_path):
    one = load("onnxruntime")
    one.convert(job.source, "int8", tmp_path / "it.onnx")
    answers = np.stack([one.session(tmp_path / "it.onnx", 1)(image) for image in job.images])
    assert np.abs(answers - job.reference).mean() < 0.2


class Fake:
    """A peer of a few lines."""

    TITLE = "fake"
    PACKAGES: tuple[str, ...] = ()
    SETTINGS = "whatever its page says that it should get"
    PRECISIONS = ("fp32",)
    GAPS = {"int8": "nobody wrote it"}  # noqa: RUF012 (a module's constant in a real one)


def runner(job: run.Job, results: Path, said: list[str]) -> run._Run:
    return run._Run(job, results, "the command", 0.05, said.append, False)


def test_a_peer_that_breaks_is_a_reason_and_the_others_go_on(job, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "RECIPES", ("onnx-fp32",))
    monkeypatch.setattr(run, "SHIPPED", "onnx-fp32")
    monkeypatch.setattr(run, "load", lambda name: Fake if name == "fake" else load(name))
    said: list[str] = []
    result = runner(job, tmp_path, said)(["fake", "onnxruntime"], [1])
    cells = result["cells"]
    assert "fake cannot convert: ModuleNotFoundError" in cells["fake fp32, 1"]["reason"]
    assert cells["fake int8, 1"]["gap"] == "nobody wrote it"
    assert cells["onnxruntime fp32, 1"]["p50_ms"] > 0
    assert cells["onnxruntime fp32, 1"]["largest_difference"] < 1e-4
    assert cells["highwall onnx-fp32, 1"]["ratio"] == 1
    assert json.loads((tmp_path / "mine.json").read_text()) == json.loads(json.dumps(result))
    text = table.table(tmp_path)
    assert "fake fp32: did not run: fake cannot convert" in text
    assert "fake int8: not measured: nobody wrote it" in text
    # What is there is not measured again, what failed or was noisy is.
    for cell in result["cells"].values():
        cell["noise"] = [] if "noise" in cell else None
    (tmp_path / "mine.json").write_text(json.dumps(result))
    again = runner(job, tmp_path, [])
    tried = []
    monkeypatch.setattr(run._Run, "_ours", lambda self, *rest: tried.append(rest) or {"reason": "x"})
    monkeypatch.setattr(run._Run, "_theirs", lambda self, *rest: tried.append(rest) or {"reason": "x"})
    again(["fake", "onnxruntime"], [1])
    assert [rest[0] for rest in tried if rest[0] != "onnxruntime" or rest[2] == "fp32"] == ["fake"]


def test_results_of_another_model_are_replaced_not_mixed(job, tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps({"network": "mine", "cells": {"x": {}}, "model_sha256": "another"}))
    assert runner(job, tmp_path, []).result["cells"] == {}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"cells": [], "network": "mine"}', "[" * 100_000])
def test_a_file_that_is_no_result_is_one_line(tmp_path, text):
    (tmp_path / "mine.json").write_text(text)
    with pytest.raises(HighwallError, match=r"mine\.json is no result"):
        table.table(tmp_path)


def test_no_results_and_an_unknown_peer_are_one_line(tmp_path):
    with pytest.raises(HighwallError, match="no results"):
        table.table(tmp_path)
    with pytest.raises(HighwallError, match="no peer is called 'tensorrt'; choose"):
        load("tensorrt")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers", "--peer", "tensorrt"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1


def test_a_package_that_cannot_be_installed_is_one_line_and_tried_again_the_next_time(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []

    def refuse(command, **_):
        calls.append(command)
        if "venv" in command:
            (Path(command[-1]) / "lib" / "python3" / "site-packages").mkdir(parents=True, exist_ok=True)
            return subprocess.CompletedProcess(command, 0, "", "")
        return subprocess.CompletedProcess(command, 1, "", "noise\nERROR: No matching distribution")

    monkeypatch.setattr(peers.subprocess, "run", refuse)
    for _ in range(2):
        with pytest.raises(HighwallError, match=r"cannot install nosuch==1\.0: ERROR: No matching distribution"):
            environment("nosuch", ("nosuch==1.0",), lambda line: None)
    assert len(calls) == 4
    held = (tmp_path / "highwall" / "peers" / "nosuch-1.0" / "held.txt").read_text()
    assert "torch==" in held


def test_the_table_marks_noise(tmp_path):
    cell = {"title": "x fp32", "precision": "fp32", "threads": 1, "version": "1", "p50_ms": 1.0, "ratio": 2.0,
            "ratio_interval": [1, 3], "engine_ms": 4.0, "load_ms": 3.0, "first_ms": 2.0,
            "peak_mib": None, "model_bytes": 1000, "auc": 0.5, "f1": 0.5,
            "mean_difference": 0.0, "largest_difference": 0.0, "noise": ["busy"]}  # fmt: skip
    (tmp_path / "mine.json").write_text(json.dumps({"network": "mine", "cells": {"a": cell}}))
    assert "1 (noisy)" in table.table(tmp_path)
