"""Emulated boards: set up once, board-true, through the gateway's own code; counts that repeat to the last digit."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import highwall
import targets.runtime
from targets.board import boards, load_board
from targets.emulator import counts, layout, setup
from targets.emulator.guest import crash, open_guest
from targets.emulator.layout import Layout
from targets.runtime.artifact import InputSpec
from targets.runtime.errors import HighwallError

EMULATED = [board.name for board in boards() if board.name != "host"]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty emulator cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "highwall" / "emulator"


def test_a_board_that_is_not_set_up_is_refused_with_the_command_that_does_it(elsewhere):
    with pytest.raises(HighwallError, match="highwall emulator setup"):
        open_guest(load_board("rpi4b"))
    assert not elsewhere.exists()


def test_the_host_needs_no_emulator():
    with pytest.raises(HighwallError, match="this very machine"):
        open_guest(load_board("host"))


def test_a_board_of_an_unknown_python_is_refused():
    with pytest.raises(HighwallError, match=r"Python 3\.9"):
        Layout.of(replace(load_board("rpi4b"), python="3.9"))


def test_a_cpu_model_that_is_no_core_is_refused():
    with pytest.raises(HighwallError, match="is no core"):
        Layout.of(replace(load_board("rpi4b"), qemu_cpu="max"))


def test_missing_debian_packages_are_named_with_the_line_that_installs_them(monkeypatch):
    monkeypatch.setattr(
        setup.shutil, "which", lambda name: None if name in ("qemu-aarch64", "cc") else f"/usr/bin/{name}"
    )
    with pytest.raises(HighwallError, match=r"sudo apt-get install qemu-user .*gcc libc6-dev"):
        setup.check_machine()


@pytest.mark.parametrize("missing", ["apt-get", "linux"])
def test_a_system_where_it_cannot_work_is_refused(monkeypatch, missing):
    if missing == "linux":
        monkeypatch.setattr(setup.sys, "platform", "darwin")
    monkeypatch.setattr(setup.shutil, "which", lambda name: None if name == missing else f"/usr/bin/{name}")
    with pytest.raises(HighwallError, match="needs Linux" if missing == "linux" else "Debian"):
        setup.check_machine()


def test_a_qemu_that_cannot_count_is_refused(monkeypatch, tmp_path):
    for name in setup.PROGRAMS:
        (tmp_path / name).write_text("#!/bin/sh\necho usage: -L path\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(setup, "KEYRING", tmp_path)
    with pytest.raises(HighwallError, match="no -plugin option"):
        setup.check_machine(compiler=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("deb http://one.example/debian bookworm main\n", ["http://one.example/debian"]),
        ("# deb http://off.example/debian x main\n", []),
        ("deb [arch=amd64 signed-by=/k] http://two.example/debian/ x main\n", ["http://two.example/debian/"]),
        ("Types: deb\nURIs: http://three.example/debian http://four.example/debian\n", None),
    ],
)
def test_the_mirror_is_the_one_this_machines_own_apt_uses(monkeypatch, tmp_path, text, expected):
    expected = ["http://three.example/debian", "http://four.example/debian"] if expected is None else expected
    assert list(setup._uris(text)) == expected
    monkeypatch.setattr(setup, "SOURCES", tmp_path)
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d" / "a.list").write_text("deb http://sec.example/debian-security x main\n")
    (tmp_path / "sources.list.d" / "b.sources").write_text(text)
    if expected:
        assert setup._mirror() == expected[0]
    else:
        with pytest.raises(HighwallError, match="--mirror"):
            setup._mirror()


def test_a_part_that_fails_leaves_nothing_half_made_and_is_made_the_next_time(tmp_path):
    def fail(into: Path) -> None:
        into.mkdir()
        (into / "half").touch()
        raise HighwallError("no network")

    with pytest.raises(HighwallError, match="no network"):
        setup._once(tmp_path / "part", print, "a part", fail)
    assert list(tmp_path.iterdir()) == []
    setup._once(tmp_path / "part", print, "a part", Path.touch)
    assert [path.name for path in tmp_path.iterdir()] == ["part"]


@pytest.mark.parametrize("name", EMULATED)
def test_cpuinfo_claims_no_more_than_the_board_has(name):
    board = load_board(name)
    text = setup.board_files(board)["proc/cpuinfo"]
    features = set(text.split("Features\t: ")[1].splitlines()[0].split())
    assert ("asimddp" in features, "asimdhp" in features, "atomics" in features) == (
        board.features.dot_product,
        board.features.fp16,
        board.features.lse,
    )
    assert text.count("processor\t:") == board.cores
    assert f"CPU part\t: {board.cpu_part}\n" in text


@pytest.mark.arm
@pytest.mark.parametrize("name", ["rpi4b", "rpi5"])
def test_a_program_sees_the_board_and_not_this_machine(arm, name):
    guest = arm(name)
    script = (
        "import json, os, platform, sys; "
        "print(json.dumps([platform.machine(), platform.python_version_tuple()[:2], "
        "open('/proc/device-tree/model').read(), open('/proc/cpuinfo').read(), os.cpu_count(), sys.path, "
        "'PYTHONDONTWRITEBYTECODE' in os.environ, os.environ['QEMU_CPU']]))"
    )
    done = guest.run(["-c", script], environment={})
    assert done.returncode == 0, done.stderr
    machine, python, model, cpuinfo, cores, path, no_bytecode, cpu = json.loads(done.stdout)
    assert (machine, ".".join(python), model) == ("aarch64", guest.board.python, f"{guest.board.device_tree}\0")
    assert cpuinfo == setup.board_files(guest.board)["proc/cpuinfo"]
    assert cores == guest.board.cores
    assert not [place for place in path if "site-packages" in place and sys.prefix in place]
    assert not no_bytecode
    assert cpu == guest.board.qemu_cpu


@pytest.mark.arm
def test_the_emulators_own_set_up_is_idempotent(arm, capsys):
    arm("rpi4b")
    capsys.readouterr()
    assert highwall.main(["emulator", "setup", "--board", "rpi4b"]) == 0
    assert "ready: rpi4b" in capsys.readouterr().out


@pytest.mark.arm
@pytest.mark.parametrize("name", ["rpi4b", "rpi5"])
def test_an_artifact_is_verified_by_the_boards_own_code(arm, name, classifier, tmp_path, capsys):
    arm(name)
    path = classifier.write(tmp_path / "it.highwall")
    assert highwall.main(["verify", str(path), "--board", name, "--emulate", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"]
    assert found["golden"]["n"] == 3
    assert found["emulated"]["board"] == name
    assert "memory" not in json.dumps(found)


@pytest.mark.arm
def test_a_damaged_artifact_is_refused_there_as_here(arm, classifier, tmp_path, capfd):
    arm("rpi4b")
    path = classifier.write(tmp_path / "it.highwall")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert highwall.main(["verify", str(path), "--board", "rpi4b", "--emulate"]) == 1
    assert capfd.readouterr().err.count("\n") == 1


def test_a_board_without_emulate_is_refused(classifier, tmp_path, capsys):
    path = classifier.write(tmp_path / "it.highwall")
    assert highwall.main(["verify", str(path), "--board", "rpi4b"]) == 1
    assert "--emulate" in capsys.readouterr().err


@pytest.mark.arm
def test_counts_repeat_to_the_last_digit(arm, segmenter):
    board = arm("rpi4b").board
    once, twice = (counts.recount(board, "onnx", segmenter.model, segmenter.spec) for _ in range(2))
    assert once == twice
    assert once.instructions > once.loads > once.stores > 0


@pytest.mark.arm
def test_a_count_does_not_depend_on_what_this_machine_compiles_meanwhile(arm, classifier):
    """Python lists folders; a few more files in one move the memory of everything after it."""
    board = arm("rpi4b").board
    before = counts.recount(board, "onnx", classifier.model, classifier.spec)
    beside = Path(targets.runtime.__file__).parent / "__pycache__"
    beside.mkdir(exist_ok=True)
    strangers = [beside / f"stranger{number}.cpython-311.pyc.{number}" for number in range(8)]
    try:
        for path in strangers:
            path.touch()
        assert counts.recount(board, "onnx", classifier.model, classifier.spec) == before
    finally:
        for path in strangers:
            path.unlink(missing_ok=True)


@pytest.mark.arm
def test_a_count_is_kept_and_a_damaged_one_is_counted_again(arm, classifier, monkeypatch):
    guest = arm("rpi4b")
    said: list[str] = []
    name = counts._identity(guest, "onnx", classifier.model, classifier.spec)
    found = counts.count(guest.board, "onnx", classifier.model, classifier.spec, said.append)
    said.clear()
    assert counts.count(guest.board, "onnx", classifier.model, classifier.spec, said.append) == found
    assert said == []
    (guest.layout.home / "counts" / f"{name}.json").write_text("{}")
    assert counts.count(guest.board, "onnx", classifier.model, classifier.spec, said.append) == found
    assert len(said) == 1


@pytest.mark.arm
def test_bench_run_counts_and_calls_its_milliseconds_an_estimate(arm, classifier, tmp_path, capsys):
    arm("rpi4b")
    path = classifier.write(tmp_path / "it.highwall")
    assert highwall.main(["bench", "run", str(path), "--board", "rpi4b", "--emulate"]) == 0
    out = capsys.readouterr().out
    (timed,) = (line for line in out.splitlines() if " ms" in line)
    assert "estimate" in timed
    assert highwall.main(["bench", "run", str(path), "--board", "rpi4b", "--emulate", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert f"{found['instructions']:,}" in out
    assert found["emulated"]
    width, clock = 3, 1800e6
    assert found["estimate"]["at_least_ms"] == pytest.approx(1e3 * found["instructions"] / (clock * width), abs=1e-3)


@pytest.mark.arm
def test_a_model_that_does_not_load_there_cannot_be_counted(arm):
    with pytest.raises(HighwallError, match=r"could not be counted on rpi4b: .*refuses"):
        counts.count(arm("rpi4b").board, "onnx", b"nothing", InputSpec(7, 5, 3, "uint8"))


@pytest.mark.parametrize(
    ("code", "word"), [(-4, "illegal instruction"), (132, "illegal instruction"), (-11, "segmentation")]
)
def test_a_crash_is_told_in_words(code, word):
    assert word in crash(subprocess.CompletedProcess([], code, "", ""), load_board("rpi4b"))


def test_a_program_that_ends_by_itself_did_not_crash():
    assert crash(subprocess.CompletedProcess([], 1, "", ""), load_board("rpi4b")) is None


@pytest.mark.arm
def test_a_guest_that_hangs_is_ended(arm):
    with pytest.raises(HighwallError, match="did not finish within 5 s"):
        arm("rpi4b").run(["-c", "import time; time.sleep(600)"], timeout=5.0)


def test_the_same_versions_of_the_engines_are_on_both_sides():
    assert set(layout.pins()) <= set(layout.PACKAGES)
    assert "onnxruntime" in layout.pins()


def test_importing_an_engine_reports_to_nobody_and_writes_nothing(tmp_path, root):
    """ONNX Runtime 1.29 and newer would write a device id and a database into the home folder."""
    clean = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    for module in ("targets.runtime.onnx", "toolkit.quantize.onnx"):
        script = f"import {module}; from targets.runtime.engine import preload; preload('onnx')"
        environment = {**clean, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=root, env=environment, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--emulate", "--runs", "30"], "--runs is of measured runs"),
        (["--emulate", "--any-board"], "--any-board is of measured runs"),
        (["--wheels", "."], "--wheels says nothing without --ssh"),
        (["--board", "rpi4"], "did you mean rpi4b"),
        (["--board", "host", "--emulate"], "this very machine"),
    ],
)
def test_options_of_bench_run_that_say_nothing_together_are_refused(classifier, tmp_path, capsys, options, told):
    path = classifier.write(tmp_path / "it.highwall")
    assert highwall.main(["bench", "run", str(path), *options]) == 1
    assert told in capsys.readouterr().err


def test_bench_run_refuses_to_time_this_machine_as_the_board(classifier, tmp_path, capsys):
    path = classifier.write(tmp_path / "it.highwall")
    assert highwall.main(["bench", "run", str(path)]) == 1
    assert "--any-board" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["check"], "name a board"),
        (["check", "rpi4b"], "name a board and what to check"),
        (["check", "rpi4b", "none.whl", "--static"], "does not exist"),
        (["--static"], "boards check BOARD"),
    ],
)
def test_a_check_without_its_parts_is_refused(capsys, arguments, told):
    assert highwall.main(["boards", *arguments]) == 1
    assert told in capsys.readouterr().err


def test_a_library_of_another_machine_fails_the_check(capsys):
    native = next(Path(sys.prefix).rglob("*x86_64-linux-gnu.so"), None)
    if native is None:
        pytest.skip("no x86-64 library here to refuse")
    assert highwall.main(["boards", "check", "rpi4b", str(native), "--static", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["ok"]
    assert "x86" in found["findings"][0]["reasons"][0]
