"""A benchmark ends as a verb does: one line for what its user can mend, and silence when its reader left."""

import subprocess
import sys
from pathlib import Path

import pytest

PIPED = """
import sys
from benchmarks.script import script
def main():
    for _ in range(100_000):
        print("a line that nobody reads")
script(main)
"""


def run(*command: str, root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=root, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("module", "options"),
    [
        ("folds", ["--task", "classify", "--data", "nowhere"]),
        ("recipes", ["--model", "mine", "--data", "nowhere"]),
        ("robustness", ["mine", "--data", "nowhere"]),
        ("peers", ["--peer", "nobody"]),
    ],
)
def test_what_a_user_can_mend_is_one_line(root: Path, module: str, options: list[str]) -> None:
    done = run("-m", f"benchmarks.{module}", *options, root=root)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"python -m benchmarks.{module}: "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def test_a_reader_who_leaves_is_no_error(root: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PIPED], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        assert writer.stderr is not None
        writer.stdout.readline()
        writer.stdout.close()
        assert (writer.stderr.read(), writer.wait()) == ("", 141)
