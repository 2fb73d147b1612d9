"""What a file of `engines/` holds, and the environment that its packages live in."""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Final, Protocol, cast

from numpy.typing import NDArray

from benchmarks.peers import engines
from targets.runtime.errors import HighwallError, plain

Answer = Callable[[NDArray[Any]], NDArray[Any]]  # image (H, W, C) uint8 -> probabilities
CONSTRAINTS: Final = Path(__file__).parents[2] / "constraints.txt"
INSTALL_S: Final = 1800.0


class Peer(Protocol):
    """A file of `engines/`. `convert` and `session` run in the peer's own environment.

    PACKAGES: pins beyond those of this project. PRECISIONS: what it can do; GAPS: what it cannot, and why.
    SETTINGS: the documented ones it gets, in a sentence.
    """

    TITLE: str
    PACKAGES: tuple[str, ...]
    SETTINGS: str
    PRECISIONS: tuple[str, ...]
    GAPS: dict[str, str]

    def convert(self, source: Path, precision: str, out: Path) -> None:
        """Write the engine's own model file (or files beside it) at `out`.

        source: a folder with `model.onnx` (float; image (1, H, W, C) uint8 to probability), `model.safetensors` (the
        checkpoint) and `images.npy` (N, H, W, C) uint8 to calibrate with.
        """

    def session(self, model: Path, threads: int) -> Answer:
        """Load what `convert` wrote."""


def names() -> list[str]:
    """The peers there are: the files of `engines/`."""
    return sorted(module.name for module in iter_modules(engines.__path__))


def load(name: str) -> Peer:
    """A peer by its file's name. Raises HighwallError where there is none."""
    if name not in names():
        raise HighwallError(f"no peer is called {name!r}; choose {', '.join(names())}")
    return cast(Peer, import_module(f"benchmarks.peers.engines.{name}"))


def version(packages: tuple[str, ...], title: str) -> str:
    """The first pin's number; for a peer of this project's environment, its package's."""
    if packages:
        return packages[0].partition("==")[2]
    from importlib import metadata

    try:
        return metadata.version(title)
    except metadata.PackageNotFoundError:
        return ""


def environment(name: str, packages: tuple[str, ...], say: Callable[[str], None]) -> Path:
    """The Python that has a peer's packages: this one, or one of its own in the cache, made once.

    An environment of its own sees this one's packages too, so that torch is not there twice. Raises HighwallError
    with pip's last words where they cannot be installed.
    """
    if not packages:
        return Path(sys.executable)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = cache / "highwall" / "peers" / f"{name}-{version(packages, '')}"
    python = folder / "bin" / "python"
    if (folder / "complete").exists():
        return python
    say(f"installing {' '.join(packages)} into an environment of its own, once")
    _run([sys.executable, "-m", "venv", str(folder)], f"cannot make an environment for {name}")
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "workbench.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    # The project's own versions hold here too, torch's above all: pip must fail before it brings another one.
    held = [line for line in CONSTRAINTS.read_text().split() if line.split("==")[0].lower() not in _moved(packages)]
    (folder / "held.txt").write_text("\n".join(held) + "\n", encoding="utf-8")
    install = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", str(folder / "held.txt")]
    _run([*install, *packages], f"cannot install {' '.join(packages)}")
    (folder / "complete").touch()
    return python


def _moved(packages: tuple[str, ...]) -> set[str]:
    return {package.partition("==")[0].lower() for package in packages}


def _run(command: list[str], what: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=INSTALL_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HighwallError(f"{what}: {error}") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"])[-1]
        raise HighwallError(f"{what}: {plain(last)[:300]}")
