"""One board's emulated machine: programs run on its CPU model with its own Python and a board-true /proc."""

import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import targets
from targets.board import Board
from targets.emulator.layout import FAKETIME, QEMU, Layout
from targets.runtime.errors import HighwallError

ROOMS: Final = ("targets", "twin_client", "highwall.py")  # what a gateway runs; none of it needs torch
HERE: Final = Path(targets.__file__).parent.parent
CRASHES: Final = {
    signal.SIGILL: "an illegal instruction",
    signal.SIGSEGV: "a segmentation fault",
    signal.SIGABRT: "abort()",
}
# What libfaketime holds still in a counted guest. Time, because ONNX Runtime sums up its runs every few seconds, inside
# whichever run it then is (and libfaketime itself would look for another date every 10 s). Chance and the process's
# number, because numpy's generator starts from chance, and where a long number has leading zeros memory differs.
STILL: Final = (
    f"LD_PRELOAD={FAKETIME}",
    "FAKETIME=2026-01-01 00:00:00",
    "FAKETIME_CACHE_DURATION=1000000000",
    "FAKERANDOM_SEED=0x7E57",
    "FAKETIME_FAKEPID=1000",
)


@dataclass(frozen=True)
class Guest:
    """A board that programs can be run on."""

    board: Board
    layout: Layout

    @property
    def root(self) -> Path:
        """The arm64 system as qemu shows it to programs."""
        return self.layout.overlay

    def run(
        self,
        arguments: Sequence[str],
        *,
        timeout: float = 600.0,
        path: Sequence[Path] = (),
        environment: Mapping[str, str] | None = None,
        plugin: str | None = None,
        stdin: IO[bytes] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run the board's Python with `arguments`; `path` comes before the wheels on its PYTHONPATH.

        `plugin`: what qemu takes after -plugin; the run is then pinned to one processor, without time, chance and
        address randomization, so that it repeats to the last instruction. A guest that dies of a signal gives a
        negative returncode. Raises HighwallError where it takes longer than `timeout` seconds.
        """
        command, variables = self.command(arguments, path=path, environment=environment, plugin=plugin)
        try:
            return subprocess.run(
                command,
                env=variables,
                stdin=stdin or subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise HighwallError(f"the emulated {self.board.title} did not finish within {timeout:g} s") from error

    def command(
        self,
        arguments: Sequence[str],
        *,
        path: Sequence[Path] = (),
        environment: Mapping[str, str] | None = None,
        plugin: str | None = None,
    ) -> tuple[list[str], dict[str, str]]:
        """What `run` runs, and its whole environment, for one who looks after the process himself."""
        command = [shutil.which(QEMU) or QEMU, "-seed", "1", "-L", str(self.root)]
        if plugin is not None:
            # One processor, because ONNX Runtime asks which one it is on, and its count depends on the answer.
            command = ["taskset", "-c", str(min(os.sched_getaffinity(0))), "setarch", "-R", *command]
            command += [part for setting in STILL for part in ("-E", setting)]
            command += ["-plugin", plugin]
        command += [str(self.layout.python), "-P", *arguments]
        places = [*map(str, path), str(self.layout.site), str(self._code())]
        variables = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(self.layout.home),
            "LANG": "C.UTF-8",
            "QEMU_CPU": self.board.qemu_cpu,  # always: qemu's own default would be `max`, which is no board
            "PYTHONPATH": os.pathsep.join(places),
            "PYTHONPYCACHEPREFIX": str(self.layout.bytecode),
            "PYTHONHASHSEED": "0",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            **(environment or {}),
        }
        return command, variables

    def _code(self) -> Path:
        """A copy of our own rooms, and nothing beside them.

        Beside the originals lie this machine's packages, which are of another CPU, and its bytecode: a listing of
        a folder is longer by a file that another process just compiled, and a count would depend on that.
        """
        files = {path.relative_to(HERE): path.read_bytes() for path in _sources()}
        digest = hashlib.sha256(
            b"".join(b"%s\0%d\0%s" % (bytes(name), len(data), data) for name, data in files.items())
        )
        folder = self.layout.code(digest.hexdigest())
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".code.", ignore_cleanup_errors=True) as scratch:
                made = Path(scratch) / "made"
                for name, data in files.items():
                    (made / name).parent.mkdir(parents=True, exist_ok=True)
                    (made / name).write_bytes(data)
                try:
                    made.rename(folder)
                except OSError:
                    if not folder.exists():  # or another run was quicker
                        raise
        return folder


def _sources() -> Iterator[Path]:
    for room in ROOMS:
        for path in sorted((HERE / room).rglob("*")) or [HERE / room]:
            if "__pycache__" not in path.parts and path.is_file():
                yield path


def open_guest(board: Board) -> Guest:
    """The emulated `board`. Raises HighwallError where it is not set up, naming the command that does it."""
    layout = Layout.of(board)
    if shutil.which(QEMU) is None or layout.missing():
        what = ", ".join(layout.missing()) or QEMU
        raise HighwallError(f"no emulator for {board.name} yet ({what} missing); run `highwall emulator setup`")
    return Guest(board, layout)


def crash(done: subprocess.CompletedProcess[str], board: Board) -> str | None:
    """How a guest died, in words, or None where it ended by itself."""
    number = -done.returncode if done.returncode < 0 else done.returncode - 128
    word = next((word for known, word in CRASHES.items() if known == number), None)
    if word is None:
        return None if 0 <= done.returncode < 128 else f"it ended with code {done.returncode} on a {board.cpu}"
    hint = f"; `highwall boards check {board.name} WHEEL` names it" if number == signal.SIGILL else ""
    return f"it died of {word} on a {board.cpu}{hint}"
