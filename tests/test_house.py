"""The house rules: imports point down, every file is linted and typed, versions have one place."""

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from floors import FLOORS, sources, violations

REQUIREMENT_NAME = r"([A-Za-z0-9][A-Za-z0-9._-]*)"

# A path of somebody's machine (not a web address, not a relative path) or a package registry.
MACHINE_PATH = re.compile(rb"(?<![\w.~$}/-])/(?:home|root|tmp|work|Users|opt|mnt)/[\w.]")
REGISTRY = re.compile(rb"(?:extra-)?index-url|find-links|\bpypi\.org|files\.pythonhosted|download\.pytorch", re.I)


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


# --- floors ---------------------------------------------------------------------------------------------


def test_imports_point_down_only(root):
    assert violations(root) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("highwall.py", "import toolkit.commands"),
        ("highwall.py", "import numpy"),
        ("toolkit/layers.py", "from benchmarks import flops"),
        ("toolkit/layers.py", "def late():\n    import twin_client.agent"),
        ("toolkit/scan/tiles.py", "import torch.nn.functional as F"),
        ("targets/board.py", "from toolkit.network import CrackNet"),
        ("targets/board.py", "import torch"),
        ("targets/runtime/onnx.py", "from targets.board import Board"),
        ("targets/runtime/onnx.py", "from .. import board"),
        ("targets/runtime/onnx.py", "from targets import board"),
        ("targets/runtime/onnx.py", "from PIL import Image"),
        ("targets/runtime/onnx.py", "if not TYPE_CHECKING:\n    from PIL import Image"),
        ("targets/runtime/onnx.py", "if TYPE_CHECKING:\n    from toolkit.network import CrackNet"),
        ("targets/runtime/onnx.py", "def late():\n    import serial"),
        ("targets/runtime/onnx.py", "import cryptography"),
        ("targets/runtime/onnx.py", "import ai_edge_litert.interpreter"),
        ("targets/runtime/onnx.py", "import importlib\nimportlib.import_module('toolkit.build')"),
        (
            "targets/runtime/onnx.py",
            "if True:\n    try:\n        import onnx\n    except ImportError:\n        pass",
        ),
        ("twin_client/agent.py", "from targets import remote"),
        ("twin_client/protocol/records.py", "import numpy"),
        ("twin_client/protocol/records.py", "from twin_client import outbox"),
        ("benchmarks/suite/run.py", "from toolkit import cost"),
    ],
)
def test_the_checker_catches_an_import_that_points_up(tmp_path, file, line):
    for name in ("targets/board.py", "targets/remote.py", "twin_client/outbox.py", "toolkit/cost.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    planted = tmp_path / file
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.write_text(line + "\n")
    (found,) = violations(tmp_path)
    assert found.startswith(f"{file}:")


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("highwall.py", "from targets.runtime.errors import HighwallError\nimport argparse"),
        ("toolkit/build.py", "import torch\nfrom targets import board\nfrom . import cost"),
        ("targets/runtime/onnx.py", "import numpy as np\ndef load():\n    from PIL import Image"),
        ("targets/runtime/onnx.py", "if TYPE_CHECKING:\n    from PIL.Image import Image"),
        ("targets/runtime/onnx.py", "def late():\n    from cryptography.exceptions import InvalidSignature"),
        ("targets/runtime/onnx.py", "def late():\n    from tflite_runtime import interpreter"),
        ("targets/runtime/onnx.py", "from targets.runtime import errors\nfrom .errors import HighwallError"),
        ("twin_client/agent.py", "from targets import runtime\nimport twin_client.protocol.records, aiomqtt"),
        ("benchmarks/suite/run.py", "import targets.runtime.onnx"),
    ],
)
def test_the_checker_lets_an_import_that_points_down_pass(tmp_path, file, line):
    (tmp_path / "targets" / "runtime").mkdir(parents=True)
    (tmp_path / "targets" / "board.py").touch()
    planted = tmp_path / file
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.write_text(line + "\n")
    assert violations(tmp_path) == []


def test_every_installed_room_has_a_floor_and_is_read(root, rooms):
    assert set(rooms) <= set(FLOORS)
    read = {path.relative_to(root).parts[0] for path in sources(root)}
    assert read == {"highwall.py", *rooms}


# --- lint and types -------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", [["check"], ["format", "--check"]], ids=["check", "format"])
def test_ruff_has_nothing_to_say(root, check):
    done = run(sys.executable, "-m", "ruff", *check, ".", cwd=root)
    assert done.returncode == 0, done.stdout + done.stderr


def test_mypy_is_strict_passes_and_reads_every_file(root, project, tmp_path):
    assert project["tool"]["mypy"]["strict"] is True
    done = run(sys.executable, "-m", "mypy", "--linecoverage-report", tmp_path, cwd=root)
    assert done.returncode == 0, done.stdout + done.stderr
    read = {root / name for name in json.loads((tmp_path / "coverage.json").read_bytes())["lines"]}
    assert set(sources(root)) == read


def test_no_file_talks_its_way_out_of_mypy(root, project):
    for override in project["tool"]["mypy"].get("overrides", []):
        assert set(override) <= {"module", "ignore_missing_imports"}, override
    bare = re.compile(r"#\s*mypy:|#\s*type:\s*ignore(?!\[)")
    assert [str(path) for path in sources(root) if bare.search(path.read_text(encoding="utf-8"))] == []


# --- versions -------------------------------------------------------------------------------------------


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_is_pinned_in_constraints_and_nowhere_else(root, project):
    lines = (root / "constraints.txt").read_text(encoding="utf-8").split()
    pins = dict(line.split("==") for line in lines)
    assert len(pins) == len(lines)
    assert not [version for version in pins.values() if not re.fullmatch(r"[0-9][0-9a-z.]*", version)]
    table = project["project"]
    named = [*table["dependencies"], *project["build-system"]["requires"]]
    named += [name for extra in table["optional-dependencies"].values() for name in extra]
    names = {canonical(re.match(REQUIREMENT_NAME, requirement).group()) for requirement in named}
    assert names <= {canonical(name) for name in pins}
    for elsewhere in ("pyproject.toml", "Makefile", ".ci/run", "tools/pins.sh"):
        assert not re.search(r"==\s*[0-9]", (root / elsewhere).read_text(encoding="utf-8")), elsewhere


def test_the_extra_that_readme_benchmarks_with_brings_what_pytest_s_own_options_need(project):
    options = project["tool"]["pytest"]["ini_options"]["addopts"]
    extra = project["project"]["optional-dependencies"]["bench"]
    assert "pytest-benchmark" in extra
    assert ("-n auto" in options) <= ("pytest-xdist" in extra)


# --- what is tracked and what is shipped ----------------------------------------------------------------


def tracked(root: Path) -> list[Path]:
    """Every file git knows or would add; skips where there is no git checkout."""
    anyone = ("-c", "safe.directory=*")  # a checkout that another user owns, as CI machines make them, counts too
    listing = run("git", *anyone, "ls-files", "-co", "--exclude-standard", "-z", cwd=root)
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [root / name for name in filter(None, listing.stdout.split("\0")) if (root / name).is_file()]


def test_no_file_names_a_machine_path_or_a_registry(root):
    found = [
        f"{path.relative_to(root)}: {match.group().decode()}"
        for path in tracked(root)
        for pattern in (MACHINE_PATH, REGISTRY)
        for match in [pattern.search(path.read_bytes())]
        if match and path != Path(__file__).resolve()
    ]
    assert found == []


@pytest.mark.parametrize("leak", ["home/ann/pit", "tmp/x", "root/.cache", "work/main"])
def test_the_path_checker_catches_a_leak_and_spares_addresses(leak):
    assert MACHINE_PATH.search(f'DATA = "/{leak}"'.encode())
    assert not MACHINE_PATH.search(f"see https://example.org/{leak} or data/{leak} or ../{leak}".encode())


def test_the_wheel_holds_every_file_of_our_rooms_and_no_test(root, rooms, wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    ours = {str(path.relative_to(root)) for path in tracked(root)}
    shipped = {name for name in ours if name.partition("/")[0] in rooms and not Path(name).name.startswith(".")}
    shipped = {name for name in shipped if not name.startswith("benchmarks/results/")}  # for reading, not for running
    assert shipped | {"highwall.py"} <= names, sorted(shipped - names)
    assert not [name for name in names if name.startswith(("tests/", "tools/", "docs/"))]
    assert [name for name in names if name.endswith("/LICENSE")]


def test_the_licence_is_apache_2_word_for_word(root):
    text = (root / "LICENSE").read_text(encoding="ascii")
    assert text.split()[:4] == ["Apache", "License", "Version", "2.0,"]
    assert "APPENDIX: How to apply the Apache License to your work." in text
    assert text.rstrip().endswith("limitations under the License.")
    assert len(text.split()) == 1581
