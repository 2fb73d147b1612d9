"""Where the emulator keeps what it unpacked, and the names of its parts."""

import hashlib
import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from targets.board import Board
from targets.runtime.errors import HighwallError

# The Debian release whose Python is the board's: Raspberry Pi OS is built on it.
SUITES: Final = {"3.11": "bookworm", "3.13": "trixie"}
# What a gateway has beside Highwall: numpy, both engines, and the twin client's needs.
PACKAGES: Final = (
    *("numpy", "onnxruntime", "ai-edge-litert"),
    *("msgspec", "cryptography", "pillow", "pyserial", "aiomqtt"),
)
SYSTEM: Final = ("python3", "libstdc++6", "libgomp1", "libfaketime")  # Debian's, with what they depend on
FAKETIME: Final = "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1"
QEMU: Final = "qemu-aarch64"
COUNTER_SOURCES: Final = tuple(Path(__file__).parent / name for name in ("counter.c", "classes.h"))


def cache_home() -> Path:
    """$XDG_CACHE_HOME/highwall/emulator, or the same under ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "highwall" / "emulator"


def pins() -> dict[str, str]:
    """Versions installed here of what the guest will have: the same engines on both sides."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True)
class Layout:
    """The folders of one board's guest. Each is whole or absent: it is made beside its place and renamed."""

    board: Board
    home: Path

    @staticmethod
    def of(board: Board) -> "Layout":
        """Raises HighwallError for a board that cannot be emulated."""
        if board.name == "host":
            raise HighwallError(
                "host is this very machine, which needs no emulator; name a board, see `highwall boards`"
            )
        if board.python not in SUITES:
            raise HighwallError(
                f"{board.name} has Python {board.python}; the emulator knows {', '.join(SUITES)}, by Debian release"
            )
        if board.qemu_cpu in ("max", "host"):
            raise HighwallError(f"{board.name}: qemu_cpu is {board.qemu_cpu}, which is no core; see `{QEMU} -cpu help`")
        return Layout(board, cache_home())

    @property
    def suite(self) -> str:
        return SUITES[self.board.python]

    @property
    def root(self) -> Path:
        """The unpacked arm64 system, shared by every board of one Debian release."""
        return self.home / f"root-{self.suite}-{_short(repr(SYSTEM).encode())}"

    @property
    def packages(self) -> Path:
        """apt's own state and the .deb files of `root`: what a set-up cut short goes on from."""
        return self.home / f"apt-{self.suite}"

    @property
    def site(self) -> Path:
        """The aarch64 wheels, unpacked; another set of versions is another folder."""
        wanted = repr((sorted(pins().items()), self.board.python, self.board.wheel_tags))
        return self.home / f"site-{self.board.python}-{_short(wanted.encode())}"

    @property
    def overlay(self) -> Path:
        """`root` as this board shows it: its own /proc/cpuinfo, device tree and CPU topology."""
        return self.home / "boards" / f"{self.board.name}-{_short(repr((self.board, self.root)).encode())}"

    @property
    def python(self) -> Path:
        return self.overlay / "usr" / "bin" / f"python{self.board.python}"

    @property
    def counter(self) -> Path:
        """The compiled plugin."""
        return self.home / f"counter-{_short(b''.join(path.read_bytes() for path in COUNTER_SOURCES))}.so"

    def code(self, digest: str) -> Path:
        """A copy of Highwall's own torch-free rooms, by the digest of what is in them."""
        return self.home / f"code-{digest[:12]}"

    @property
    def bytecode(self) -> Path:
        """Where the guest's Python keeps what it compiled, so that the checkout stays clean."""
        return self.home / f"bytecode-{self.board.python}"

    def missing(self) -> list[str]:
        """Which parts are not there yet, in the order they are made."""
        parts = {"arm64 system": self.root, "aarch64 wheels": self.site, "board files": self.overlay}
        return [name for name, path in parts.items() if not path.exists()]

    def check_counter(self) -> None:
        """Raise HighwallError where there is no compiled counter of this version."""
        if not self.counter.exists():
            raise HighwallError("the instruction counter is not compiled yet; run `highwall emulator setup`")


def _short(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:12]
