"""The guard around a command: whatever file the system will not give is one line, and any name can be printed."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from targets.runtime.guard import guard


@pytest.mark.parametrize("name", ["locked", b"locked"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.ENAMETOOLONG, errno.EISDIR])
def test_a_file_that_the_system_will_not_give_is_one_line_that_names_it(
    number: int, name: str | bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    def action() -> None:
        raise OSError(number, os.strerror(number), name)

    assert guard("highwall", action) == 1
    said = capsys.readouterr().err
    assert said.startswith("highwall: cannot use ")
    assert "locked" in said
    assert os.strerror(number) in said
    assert said.count("\n") == 1


def test_a_name_too_long_for_the_system_is_one_line(root: Path) -> None:
    for words in (["inspect", "n" * 300], ["evaluate", "mine", "--data", "n" * 300]):
        done = subprocess.run(
            [sys.executable, "-m", "highwall", *words], cwd=root, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert done.stderr.startswith("highwall: ")
        assert done.stderr.count("\n") == 1


def test_an_error_that_names_no_file_stays_a_traceback() -> None:
    def action() -> None:
        raise OSError(errno.EIO, "input/output error")

    with pytest.raises(OSError, match="input/output"):
        guard("highwall", action)


def test_a_file_s_name_that_is_no_text_is_printed_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="utf-8", errors="strict"))
    assert guard("highwall", lambda: print(os.fsdecode(b"bad\xff.png"))) == 0
    assert written.getvalue() == b"bad\\udcff.png\n"


def test_a_closed_output_is_no_bug(root: Path) -> None:
    command = [sys.executable, "-m", "highwall", "--version"]
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *command], cwd=root, stderr=subprocess.PIPE, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
