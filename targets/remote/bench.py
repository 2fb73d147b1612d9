"""Measuring an artifact on a board over ssh, with the user's own ssh: config, keys, agent and known hosts.

One connection does it all, and asks for no password. A shell on the board says what it is; where that will do, a
supervisor in Python makes one temporary folder, takes the runner and the artifact from its standard input, runs it,
and removes the folder whatever happens: at the end, on Ctrl-C here, when the runner dies, and when the link does,
because it stops once nothing was heard for SILENCE_S.
"""

import io
import re
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import IO, Final

import targets
from targets.board import Board
from targets.gate import wheel
from targets.remote.link import Link
from targets.remote.probe import Found, missing_packages, refusal
from targets.remote.ssh import check_host
from targets.remote.supervisor import ARTIFACT
from targets.runtime import bench, container, signing
from targets.runtime.artifact import read
from targets.runtime.errors import HighwallError, plain
from targets.runtime.measurement import Bench
from targets.runtime.timing import Say

RESERVE: Final = 4 << 20  # bytes of disk beside what is copied


def bench_over_ssh(
    host: str,
    path: Path,
    *,
    board: Board,
    sustained_s: float = 0.0,
    runs: int = bench.RUNS,
    threads: int = 1,
    any_board: bool = False,
    wheelhouse: Path | None = None,
    python: str = "python3",
    say: Say = lambda line: None,
) -> Bench:
    """Measure the artifact at `path` on `host`, a name or USER@NAME as the user's ssh knows it.

    A machine that is not a `board` is refused unless `any_board`. `wheelhouse`: a folder of aarch64 wheels, from
    which numpy and the engine are lent to a board without them. `python`: the board's interpreter, if not the one on
    its PATH (that of a virtual environment, say). Raises HighwallError, one line, for whatever stands in the way.
    """
    check_host(host)
    order = bench.options(runs, sustained_s, threads)
    artifact = read(path)
    with Link(host, python, say) as link, tempfile.TemporaryFile() as load:
        found = link.probe()
        if (reason := refusal(found, None if any_board else board, artifact.manifest.runtime, wheelhouse)) is not None:
            raise HighwallError(f"{host}: {reason}")
        missing = missing_packages(found, artifact.manifest.runtime)
        with tempfile.TemporaryDirectory() as folder:
            if wheelhouse is not None:
                for wanted in [_choose(wheelhouse, name, found, board) for name in missing]:
                    say(f"unpacking {wanted.name}")
                    wheel.unpack(wanted, Path(folder))
            _pack(path, Path(folder), load)
        size = load.tell()
        needed = size + RESERVE
        if found.free_kib is not None and found.free_kib * 1024 < needed:
            raise HighwallError(
                f"{host}: {found.free_kib / 1024:.1f} MiB are free in {found.folder}, {needed / 2**20:.1f} are needed; "
                "free some, or set TMPDIR there to a folder on a larger disk"
            )
        code, out, last = link.run(load, size, order)
    measured = bench.result(code, out, last.replace(ARTIFACT, f"{host}: {path}"), host)
    if missing:
        lent = f"{' and '.join(missing)} were lent from {wheelhouse}; the engine's cold figure includes compiling them"
        measured = replace(measured, notes=(*measured.notes, lent))
    return measured


def _choose(wheelhouse: Path, name: str, found: Found, board: Board) -> Path:
    """The newest wheel of `name` that the board's own pip would take, a release before any candidate for one."""
    there = replace(board, python=found.python, glibc=found.glibc or board.glibc)
    fitting = []
    for path in sorted(wheelhouse.glob("*.whl")):
        if re.sub(r"[-_.]+", "-", path.name.partition("-")[0]).lower() == name and not wheel.misfits(path.name, there):
            fitting.append((wheel.newness(path.name.split("-")[1]), path))
    if not fitting:
        raise HighwallError(
            f"{wheelhouse} has no wheel of {name} for Python {plain(found.python)} on aarch64 with glibc {there.glibc}"
        )
    return max(fitting)[1]


def _pack(path: Path, site: Path, load: IO[bytes]) -> None:
    """A tar of the runner, of packages for it, and of the artifact."""
    room = Path(targets.__file__).parent
    with tarfile.open(fileobj=load, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for source in [room / "__init__.py", *sorted((room / "runtime").glob("*.py"))]:
            archive.add(source, f"code/targets/{source.relative_to(room)}")
        archive.add(site, "site")
        # Without its signature, which `read` has checked here: a board would need one package more to do so.
        members = container.unpack(path.read_bytes(), str(path))
        members.pop(signing.MEMBER, None)
        data = container.pack(members)
        entry = tarfile.TarInfo(ARTIFACT)
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
