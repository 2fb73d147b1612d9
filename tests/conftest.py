"""What every room's tests share: the checkout, the wheel built from it, and how to skip honestly."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

if TYPE_CHECKING:
    from targets.emulator.guest import Guest

# Networks this small train fastest on one thread, and threads that wait for each other on a busy machine
# are slower by far; more threads would also change the sums of a float reduction.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts a job in the background has it ignore Ctrl-C, and so would every command under test.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores, because the twin client's tests mostly wait: for brokers, links and limits."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files run side by side, so every room is spread over the run: one that computes beside one that waits.

    The room whose networks train and compile is done a little before the others: a slow file may not be last.
    """
    files = list(dict.fromkeys(item.path for item in items))
    rooms: dict[Path, list[Path]] = {}
    for file in files:
        rooms.setdefault(file.parent, []).append(file)
    place = {file: at / len(room) for room in rooms.values() for at, file in enumerate(room)}
    hurried = {file: at * (0.8 if file.parent.name == "toolkit" else 1.0) for file, at in place.items()}
    items.sort(key=lambda item: hurried[item.path])


@pytest.fixture(scope="session")
def root() -> Path:
    """The top folder of the checkout under test."""
    return ROOT


@pytest.fixture(scope="session")
def project() -> dict:
    """pyproject.toml, parsed."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def rooms(project: dict) -> list[str]:
    """The names of our top-level packages."""
    return [pattern.rstrip("*") for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]]


@pytest.fixture(scope="session")
def ci_or_skip() -> Callable[[str], NoReturn]:
    """Call with a reason when what a test needs is missing: a skip at a desk, a failure where CI=true."""

    def give_up(reason: str) -> NoReturn:
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(f"may not be skipped in CI: {reason}", pytrace=False)
        pytest.skip(reason)

    return give_up


@pytest.fixture(scope="session")
def arm(ci_or_skip: Callable[[str], NoReturn]) -> Callable[[str], "Guest"]:
    """Call with a board's name: the emulated board, set up where it was not yet (some 20 s the first time)."""
    from targets.board import load_board
    from targets.emulator.guest import open_guest
    from targets.emulator.setup import set_up
    from targets.runtime.errors import HighwallError

    def emulated(name: str) -> "Guest":
        try:
            set_up([load_board(name)], print)
        except HighwallError as error:
            ci_or_skip(str(error))
        return open_guest(load_board(name))

    return emulated


@pytest.fixture(scope="module")
def build_lock() -> Iterator[Path]:
    """The folder build/, held by one file of tests at a time: two would reinstall under each other's feet."""
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    with (build / "tests.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield build


@pytest.fixture(scope="session")
def wheel(rooms: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built offline from a copy, so that nothing lands in the working tree."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in rooms:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name in ("highwall.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    command = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", out, source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("highwall-*.whl")
    return built
