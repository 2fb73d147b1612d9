"""The newcomer's promise: a fresh clone's `make demo` sets itself up, resumes, and repeats offline."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

SECONDS_UNTIL_CTRL_C = 12
SECONDS_THE_SECOND_TIME = 120  # a whole build, verify and predict on a busy machine; no set-up fits in it


@pytest.fixture
def clone(root, tmp_path) -> Path:
    """A copy of what git would hand a newcomer, in a folder whose name has a space."""
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    folder = tmp_path / "open pit"
    for name in filter(None, listed.stdout.split("\0")):
        if (root / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, folder / name)
    return folder


@pytest.mark.slow
def test_a_fresh_clone_demos_after_an_interrupted_set_up_and_again_offline(clone):
    interrupted = subprocess.Popen(["make", "demo"], cwd=clone, start_new_session=True)
    time.sleep(SECONDS_UNTIL_CTRL_C)
    os.killpg(interrupted.pid, signal.SIGINT)
    assert interrupted.wait(timeout=60) != 0
    assert not (clone / ".venv" / ".demo").exists()

    subprocess.run(["make", "demo"], cwd=clone, check=True)
    assert list((clone / "demo").glob("*.highwall"))

    offline = os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(clone / "nothing")}
    start = time.monotonic()
    again = subprocess.run(["make", "demo"], cwd=clone, env=offline, capture_output=True, text=True, check=True)
    assert time.monotonic() - start < SECONDS_THE_SECOND_TIME
    assert "installing" not in again.stdout
