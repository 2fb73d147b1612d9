"""Boards are data: one TOML file each, and a faulty one is named with its key."""

import os
import re
import shutil
import sys
from dataclasses import FrozenInstanceError

import pytest

from targets.board import FOLDER, boards, load_board
from targets.runtime.errors import HighwallError

PIS = ("rpizero2w", "rpi3bplus", "rpi4b", "rpi5")


@pytest.fixture
def folder(tmp_path):
    """A copy of the boards, to break."""
    return shutil.copytree(FOLDER, tmp_path / "boards")


def test_the_boards_of_the_house_are_known_the_host_last():
    names = [board.name for board in boards()]
    assert sorted(names) == sorted([*PIS, "host"])
    assert names[-1] == "host"


@pytest.mark.parametrize("name", PIS)
def test_a_pi_is_an_arm_board_with_measured_ceilings(name):
    board = load_board(name)
    assert board.title.startswith("Raspberry Pi")
    assert board.device_tree.startswith("Raspberry Pi")
    assert board.qemu_cpu == board.cpu.lower()
    assert all(tag.endswith("_aarch64") for tag in board.wheel_tags)
    assert re.fullmatch(r"2\.\d\d", board.glibc)
    for tag in board.wheel_tags:
        if found := re.fullmatch(r"manylinux_2_(\d+)_aarch64", tag):
            assert int(found[1]) <= int(board.glibc.partition(".")[2]), "a wheel its glibc cannot load"
    assert board.ceilings.fp32_gflops > 0
    # 4 cores x 2 vector units x 4 lanes x 2 at most: a ceiling above this is a slip of the pen.
    assert board.ceilings.fp32_gflops <= board.cores * board.clock_mhz * 1e-3 * 16
    assert (board.ceilings.int8_gops is not None) == board.features.dot_product


def test_only_the_pi_5_has_the_newer_instructions():
    for board in boards()[:-1]:
        features = board.features
        assert {features.dot_product, features.fp16, features.lse} == {board.name == "rpi5"}


def test_the_host_is_the_machine_at_hand():
    host = load_board("host")
    assert host.cores == os.cpu_count()
    assert host.python == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert host.memory_mib > 100
    assert host.clock_mhz > 0
    assert host.cpu
    assert host.ceilings.fp32_gflops is None


def test_a_board_is_frozen():
    with pytest.raises(FrozenInstanceError):
        load_board("rpi4b").cores = 8


def test_an_unknown_board_names_the_known_and_the_nearest():
    with pytest.raises(HighwallError) as caught:
        load_board("rpi4")
    for name in (*PIS, "host"):
        assert name in str(caught.value)
    assert "did you mean rpi4b?" in str(caught.value)
    for name in ("zzz", "", "../boards/rpi4b"):
        with pytest.raises(HighwallError, match="unknown board"):
            load_board(name)


def test_a_new_board_is_one_new_file(folder):
    shutil.copy(folder / "rpi4b.toml", folder / "rpi400.toml")
    assert load_board("rpi400", folder).cpu == "Cortex-A72"
    assert "rpi400" in [board.name for board in boards(folder)]


@pytest.mark.parametrize("key", ["title", "cores", "wheel_tags", "dot_product", "fp32_gflops"])
def test_a_missing_key_names_the_file_and_the_key(folder, key):
    path = folder / "rpi5.toml"
    path.write_text(re.sub(rf"(?m)^{key} = .*$", "", path.read_text()))
    with pytest.raises(HighwallError, match=rf"rpi5\.toml: key (features\.|ceilings\.)?{key} is missing"):
        load_board("rpi5", folder)


@pytest.mark.parametrize(("line", "key"), [("coers = 4\n", "coers"), ("[npu]\ntops = 13\n", "npu")])
def test_an_unknown_key_names_the_file_and_the_key(folder, line, key):
    path = folder / "rpi5.toml"
    text = path.read_text()
    path.write_text(line + text if "[" not in line else text + line)
    with pytest.raises(HighwallError, match=rf"rpi5\.toml: unknown key {key}"):
        load_board("rpi5", folder)
    path.write_text(text + line.replace("[npu]\n", ""))
    with pytest.raises(HighwallError, match=r"rpi5\.toml: unknown key ceilings\."):
        load_board("rpi5", folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cores", '"four"'),
        ("cores", "-1"),
        ("cores", "true"),
        ("title", "3"),
        ("wheel_tags", '["a", 3]'),
        ("dot_product", '"yes"'),
        ("fp32_gflops", "-1.5"),
        ("int8_gops", "true"),
    ],
)
def test_a_value_of_the_wrong_kind_names_the_file_and_the_key(folder, key, value):
    path = folder / "rpi5.toml"
    path.write_text(re.sub(rf"(?m)^{key} = .*$", f"{key} = {value}", path.read_text()))
    with pytest.raises(HighwallError, match=rf"rpi5\.toml: key (features\.|ceilings\.)?{key} is "):
        load_board("rpi5", folder)


def test_a_file_that_is_no_toml_is_named(folder):
    for text in (b"cores = = 4", b"\xff\xfe"):
        (folder / "rpi5.toml").write_bytes(text)
        with pytest.raises(HighwallError, match=r"rpi5\.toml is not TOML"):
            load_board("rpi5", folder)
