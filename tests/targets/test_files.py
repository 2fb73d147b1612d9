"""Files appear whole or not at all, also when the disk is full."""

import subprocess
import sys

import pytest

from targets.runtime.errors import HighwallError
from targets.runtime.files import atomic_write, write_text

# A limit on the size of a file fails a write exactly where a full disk would, without root.
FULL = """
import resource, sys
from pathlib import Path
from targets.runtime import artifact
from targets.runtime.errors import HighwallError
found = artifact.read(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700))
try:
    artifact.write(Path(sys.argv[2]), found.manifest, found.model, found.golden, found.receipt)
except HighwallError as error:
    print(error)
    sys.exit(7)
"""


def test_a_full_disk_leaves_nothing_behind_and_keeps_the_old_artifact(tmp_path, classifier, root):
    source = classifier.write(tmp_path / "source.highwall")
    folder = tmp_path / "out"
    folder.mkdir()
    target = folder / "a.highwall"
    for before in (None, b"the artifact of last week"):
        if before:
            target.write_bytes(before)
        command = [sys.executable, "-c", FULL, str(source), str(target)]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        assert done.returncode == 7, done.stderr
        assert done.stdout.startswith(f"cannot write {target}: ")
        assert done.stdout.count("\n") == 1
        assert [path.read_bytes() for path in folder.iterdir()] == ([before] if before else [])


@pytest.mark.parametrize("blow", [KeyboardInterrupt, ValueError, SystemExit])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, blow):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(blow), atomic_write(path) as partial:
        partial.write_text("half")
        raise blow
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("a.txt", "old")]


KILLED = """
import os, signal, sys
from pathlib import Path
from targets.runtime.files import atomic_write
with atomic_write(Path(sys.argv[1])) as partial:
    partial.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("name", ["a.json", "model.highwall", "no-suffix"])
def test_what_a_killed_write_leaves_is_not_taken_for_a_file_of_its_kind(tmp_path, root, name):
    path = tmp_path / name
    write_text(path, "old")
    subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=root, check=False)
    assert path.read_text() == "old"
    (left,) = (found for found in tmp_path.iterdir() if found != path)
    assert left.name.startswith(".")
    assert left.suffix == ".partial"


def test_a_folder_that_cannot_be_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HighwallError, match="cannot write"):
        write_text(tmp_path / "file" / "a.txt", "text")
