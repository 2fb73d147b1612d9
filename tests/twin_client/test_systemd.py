"""The unit that is printed: what it allows is enough for the agent, as shown by the agent under its very filter."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import sandbox
from PIL import Image
from tiny_models import ANN, CHIP, write

from benchmarks.loss.line import Line
from twin_client.protocol.tags import Frame
from twin_client.systemd import unit

UNIT = unit("/usr/local/bin/highwall", Path("/etc/highwall/gateway.toml"))
CLOCK = {"adjtimex", "clock_adjtime", "clock_adjtime64"}

# What matters of systemd's sets, for a machine without systemd: @clock is in @privileged, which takes it away.
SETS = {
    "@default": ["execve"],
    "@system-service": ["@default", "@chown", "read", "flock"],
    "@privileged": ["@chown", "@clock", "setuid"],
    "@chown": ["chown", "fchown"],
    "@clock": ["adjtimex", "clock_adjtime", "clock_adjtime64", "clock_settime", "settimeofday"],
}


@pytest.fixture
def confined(ci_or_skip: Callable[[str], NoReturn], tmp_path: Path) -> list[str]:
    """The words before a command that put it under the unit's filter."""
    if shutil.which("systemd-analyze") is None:
        ci_or_skip("systemd-analyze is not installed (Debian: apt install systemd)")
    try:
        sandbox.library()
    except OSError:
        ci_or_skip("libseccomp.so.2 is not installed (Debian: apt install libseccomp2)")
    path = tmp_path / "highwall.service"
    path.write_text(UNIT)
    words = [sys.executable, sandbox.__file__, str(path)]
    tried = subprocess.run([*words, "true"], capture_output=True, text=True, check=False)
    if "seccomp_load" in tried.stderr:
        ci_or_skip(f"this machine lets nobody filter system calls: {tried.stderr.splitlines()[-1]}")
    assert tried.returncode == 0, tried.stderr
    return words


@pytest.mark.parametrize("members", [SETS.__getitem__, sandbox.installed], ids=["the rule", "systemd's own"])
def test_the_clock_may_be_asked_and_nothing_else_privileged_done(members, ci_or_skip) -> None:
    if members is sandbox.installed and shutil.which("systemd-analyze") is None:
        ci_or_skip("systemd-analyze is not installed (Debian: apt install systemd)")
    calls = sandbox.allowed(UNIT, members)
    assert calls >= CLOCK | {"read", "execve", "flock"}
    assert not calls & {"chown", "setuid", "settimeofday", "clock_settime"}


def test_asking_the_clock_is_not_undone_by_another_line() -> None:
    """ProtectClock= is a filter of its own, which answers EPERM: then NTP would never be believed."""
    assert not sandbox.value(UNIT, "ProtectClock")
    assert sandbox.value(UNIT, "CapabilityBoundingSet") == [""]  # by which nobody sets it all the same


def test_a_call_that_is_not_allowed_fails_and_ends_nobody() -> None:
    assert sandbox.value(UNIT, "SystemCallErrorNumber") == ["EPERM"]


def test_libcamera_has_its_devices_and_groups_are_known_before_anything_is_plugged_in() -> None:
    devices = {line.split()[0] for line in sandbox.value(UNIT, "DeviceAllow")}
    assert devices >= {f"char-{name}" for name in ("video4linux", "media", "dma_heap", "ttyUSB", "ttyACM")}
    modules = {f"modprobe@{name}.service" for name in ("usbserial", "cdc_acm", "videodev")}
    (wants,), (after,) = sandbox.value(UNIT, "Wants"), sandbox.value(UNIT, "After")
    assert modules == set(wants.split()) <= set(after.split())


def test_the_kernel_tells_of_its_clock_under_the_filter_what_it_tells_without(confined: list[str], root: Path) -> None:
    code = "from twin_client.clock import ask_the_kernel as ask; print(ask() is not None)"
    free, held = (
        subprocess.run([*words, sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
        for words in ([], confined)
    )
    assert (held.returncode, held.stdout) == (0, free.stdout), held.stderr


def test_what_the_filter_forbids_is_seen_by_these_tests(confined: list[str]) -> None:
    code = "import time; time.clock_settime(time.CLOCK_REALTIME, 0)"
    done = subprocess.run([*confined, sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode < 0


def test_the_agent_lives_under_the_filter_of_its_unit(confined: list[str], root: Path, tmp_path: Path) -> None:
    """It reads a tag, has a command take an image and a model judge it, keeps both, and is stopped in good order."""
    Image.fromarray(np.full(CHIP.shape, 90, np.uint8)).save(tmp_path / "image.png")
    write(tmp_path / "tiny.highwall")
    (tmp_path / "ann.pub").write_text(ANN.public.line + "\n")
    (tmp_path / "data").mkdir()
    with Line() as line:
        (tmp_path / "gateway.toml").write_text(
            f"""gateway = "gw-1"
folder = "data"
destination = {{host = "127.0.0.1", port = 1}}
uplink = {{tls = false, retry = {{first = 0.1, most = 0.5}}}}
tags = {{"tag-1" = {{}}}}
model = "tiny.highwall"
trust = "ann.pub"
health = 1.0
[[serial.ports]]
name = "radio"
url = "{line.port}"
[[cameras]]
name = "east"
command = ["cp", "{tmp_path}/image.png", "{{out}}"]
suffix = ".png"
period = 1.0
"""
        )
        command = [*confined, sys.executable, "-m", "highwall", "gateway", "run", "--config", tmp_path / "gateway.toml"]
        with (tmp_path / "log").open("wb") as log:
            agent = subprocess.Popen(command, cwd=root, stdout=log, stderr=log)
        try:
            assert until(agent, lambda: status(tmp_path)["ports"][0]["open"]), (tmp_path / "log").read_text()
            line.send(Frame("tag-1", 1, 0, {"strain": 1.0}).to_bytes())
            for room, name in (("tags", "tag-1"), ("cameras", "east")):
                seen = until(agent, lambda room=room, name=name: status(tmp_path)[room][name]["seen"] is not None)
                assert seen, (tmp_path / "log").read_text()
            agent.terminate()
            assert agent.wait(20) == 0, (tmp_path / "log").read_text()
        finally:
            agent.kill()
            agent.wait()


def status(folder: Path) -> dict:
    return json.loads((folder / "data/status.json").read_bytes())


def until(agent: subprocess.Popen, true: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Whether it comes true while the agent lives."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and agent.poll() is None:
        try:
            if true():
                return True
        except (OSError, ValueError, LookupError):
            pass
        time.sleep(0.1)
    return False
