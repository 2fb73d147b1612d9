"""Whether wheels and shared libraries run on a board: by their tags, their headers, and by being loaded there."""

import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from targets.board import Board
from targets.emulator.guest import Guest
from targets.gate import a64, wheel
from targets.gate.elf import MAGIC, Elf, read_elf
from targets.gate.loading import ALONE, Item, Outcome, load_all
from targets.gate.report import Finding, Report
from targets.runtime.errors import HighwallError

# What Debian's python3, libstdc++6 and libgomp1 bring, where no unpacked system of the board can be asked.
BASE: Final = frozenset(
    "libc.so.6 libm.so.6 libdl.so.2 libpthread.so.0 librt.so.1 libutil.so.1 ld-linux-aarch64.so.1 libresolv.so.2 "
    "libstdc++.so.6 libgcc_s.so.1 libgomp.so.1 libz.so.1 libexpat.so.1".split()
)


@dataclass(frozen=True)
class _Library:
    """One native library on its way through the gate."""

    finding: Finding
    path: Path
    elf: Elf | None = None
    module: str | None = None
    asks: bool = False


def check(
    board: Board,
    paths: Sequence[Path],
    guest: Guest | None = None,
    say: Callable[[str], None] = lambda _: None,
    artifact: Path | None = None,
) -> Report:
    """Judge wheels, shared libraries, folders of wheels and folders of unpacked packages for `board`.

    All wheels are unpacked into one folder, so that they see each other; the packages of `guest` come after them.
    Without a `guest` they are only read, and one that holds instructions the board lacks is not proven. With an
    `artifact` (and a guest) its golden vectors are run through the engine found that way.

    Raises HighwallError for a path that is nothing of the kind, an empty folder and a damaged wheel.
    """
    if board.name == "host":
        raise HighwallError("host is this very machine: import the library here; name a board, see `highwall boards`")
    if artifact is not None and guest is None:
        raise HighwallError(f"{artifact} can only be verified on an emulated board; run `highwall emulator setup`")
    with tempfile.TemporaryDirectory(prefix="highwall-gate-") as scratch:
        findings, libraries, path = _gather(_sources(paths), Path(scratch).resolve(), board, say)
        libraries = _needs(libraries, guest)
        if guest is None:
            findings += [_unrun(library, board) for library in libraries]
        else:
            findings += _run(guest, libraries, path, say)
            if artifact is not None:
                say(f"verify {artifact} on an emulated {board.cpu}")
                (outcome,), _ = load_all(guest, [Item(artifact.resolve(), artifact=True)], path)
                findings.append(_artifact_finding(artifact, outcome))
    order = {source: place for place, source in enumerate(dict.fromkeys(row.source for row in findings))}
    return Report(board, tuple(sorted(findings, key=lambda row: order[row.source])), guest is not None)


def _gather(
    sources: Iterable[Path], site: Path, board: Board, say: Callable[[str], None]
) -> tuple[list[Finding], list[_Library], list[Path]]:
    """Findings of the wheels themselves, every library read, and the folders to import from; wheels go to `site`."""
    findings: list[Finding] = []
    libraries: list[_Library] = []
    path = [site]
    for source in sources:
        say(f"read {source.name}")
        if source.suffix == ".whl":
            findings.append(Finding(source.name, faults=tuple(wheel.misfits(source.name, board))))
            files = [file for file in wheel.unpack(source, site) if _is_elf(file)]
            libraries += [_read(file, file.relative_to(site), source.name, board) for file in files]
        elif source.is_dir():
            folder = source.resolve()
            root = _site(folder)
            path.append(root)
            files = sorted(file for file in folder.rglob("*") if not file.is_symlink() and _is_elf(file))
            libraries += [_read(file, file.relative_to(root), str(source), board) for file in files]
        else:  # no module: the folder around it may hold anything, and would be imported from
            file = source.resolve()
            libraries.append(replace(_read(file, Path(source.name), str(source), board), module=None))
    return findings, libraries, path


def _site(folder: Path) -> Path:
    """The folder from which what lies in `folder` is imported: the first above that is no package itself."""
    while (folder / "__init__.py").exists():
        folder = folder.parent
    return folder


def _sources(paths: Sequence[Path]) -> Iterator[Path]:
    """Wheels, libraries and unpacked folders, a folder of wheels taken apart; each only once."""
    seen = set()
    for path in paths:
        inner = sorted(path.glob("*.whl")) if path.is_dir() else []
        if path.is_dir() and not inner and not any(_is_elf(file) for file in path.rglob("*")):
            raise HighwallError(f"{path} holds neither wheels nor libraries; give a folder of .whl files")
        for source in inner or [path]:
            if not source.exists():
                raise HighwallError(f"{source} does not exist")
            if not source.is_dir() and source.suffix != ".whl" and not _is_library(source):
                raise HighwallError(f"{source} is neither a wheel (.whl), a shared library (.so) nor a folder of them")
            if source.resolve() not in seen:
                seen.add(source.resolve())
                yield source


def _is_library(path: Path) -> bool:
    return _is_elf(path) or ".so" in path.suffixes


def _is_elf(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with path.open("rb") as handle:
            return handle.read(4) == MAGIC
    except OSError as error:
        raise HighwallError(f"cannot read {path}: {error.strerror or error}") from error


def _read(path: Path, shown: Path, source: str, board: Board) -> _Library:
    finding = Finding(source, str(shown))
    try:
        elf = read_elf(path.read_bytes())
    except HighwallError as error:
        return _Library(replace(finding, faults=(str(error),)), path)
    faults = []
    if elf.glibc > wheel.version(board.glibc):
        faults.append(f"uses glibc {'.'.join(map(str, elf.glibc))}, the board has {board.glibc}")
    counts: dict[tuple[str, str], int] = {}
    for at, size in elf.code:
        for key, number in a64.scan(memoryview(elf.data)[at : at + size]).items():
            counts[key] = counts.get(key, 0) + number
    lacked = a64.lacking(board)
    open_counts = {key: number for key, number in counts.items() if key[0] in lacked and key[1] != "guarded"}
    instructions: dict[str, int] = {}
    for (feature, _), number in open_counts.items():
        instructions[feature] = instructions.get(feature, 0) + number
    notes = []
    if (guarded := counts.get(("lse", "guarded"), 0)) and "lse" in lacked:
        notes.append(f"{guarded} LSE atomics in helpers that ask for them at run time")
    finding = replace(finding, faults=tuple(faults), notes=tuple(notes), instructions=instructions)
    module, asks = _module(shown, elf, board), elf.asks_for_features()
    return _Library(finding, path, replace(elf, data=b""), module, asks)  # all of them would fill the memory


def _module(shown: Path, elf: Elf, board: Board) -> str | None:
    """The dotted name by which the board's Python imports this file, or None where it is no extension module."""
    stem, _, suffix = shown.name.partition(".")
    parts = (*shown.parent.parts, stem)
    ours = {f"cpython-{board.python.replace('.', '')}-aarch64-linux-gnu.so", "abi3.so", "so"}
    if suffix not in ours or not all(part.isidentifier() for part in parts):
        return None
    return ".".join(parts) if f"\0PyInit_{stem}\0".encode() in elf.data else None


def _needs(libraries: Sequence[_Library], guest: Guest | None) -> list[_Library]:
    """The same, with a note for every needed library that neither they nor the board's system have."""
    there = set(BASE)
    if guest is not None:
        for folder in ("usr/lib", "usr/lib/aarch64-linux-gnu"):
            there |= {entry.name for entry in (guest.root / folder).glob("*.so*")}
    for library in libraries:
        there |= {library.path.name, library.elf.soname if library.elf else ""}
    result = []
    for library in libraries:
        missing = [name for name in (library.elf.needed if library.elf else ()) if name not in there]
        notes = (
            [f"needs {', '.join(missing)}, which neither these files nor the board's base system have"]
            if missing
            else []
        )
        finding = library.finding
        result.append(replace(library, finding=replace(finding, notes=(*finding.notes, *notes))))
    return result


def _unrun(library: _Library, board: Board, why: str = "there is no emulator") -> Finding:
    """A finding of a library that was not loaded: what it holds that the board lacks makes it a doubt."""
    finding = library.finding
    if not finding.instructions or finding.faults:
        return finding
    hint = "it does ask for its CPU's features" if library.asks else "nothing shows that it asks for its CPU's features"
    text = f"contains {_counted(finding.instructions)}, which a {board.cpu} lacks, and was not run: {why}; {hint}"
    return replace(finding, doubts=(text,))


def _run(
    guest: Guest, libraries: Sequence[_Library], path: Sequence[Path], say: Callable[[str], None]
) -> list[Finding]:
    """Findings after every library that can be was loaded, source by source so that there is progress to see."""
    result = []
    needed = {name for one in libraries if one.elf for name in one.elf.needed}
    for source, group in itertools.groupby(libraries, key=lambda library: library.finding.source):
        mine = list(group)
        todo = [one for one in mine if one.elf is not None and not one.elf.program and not one.finding.faults]
        if todo:
            say(f"load {source}: {len(todo)} {'library' if len(todo) == 1 else 'libraries'} on {guest.board.name}")
        outcomes, used = load_all(guest, [Item(one.path, one.module) for one in todo], path)
        by_path = dict(zip((one.path for one in todo), outcomes, strict=True))
        imported = {_package(one) for one in todo if by_path[one.path].imported}
        for one in mine:
            finding = _judge(one, by_path.get(one.path), guest.board)
            asked = one.path in used or not {one.path.name, one.elf.soname if one.elf else ""}.isdisjoint(needed)
            alone = not asked and one.module is None and _package(one) in imported
            result.append(replace(finding, optional=alone and finding.verdict != "fits"))
    return result


def _package(library: _Library) -> str:
    """The folder or file at the top that a library came in."""
    return Path(library.finding.library).parts[0]


def _judge(library: _Library, outcome: Outcome | None, board: Board) -> Finding:
    """The finding of one library after its run."""
    finding = library.finding
    if outcome is None:
        return _unrun(library, board, "it is a program, not a library")
    if outcome.fault:
        return replace(finding, faults=(outcome.fault,), notes=(*finding.notes, *outcome.reasons))
    if not outcome.ran:
        held = _unrun(library, board, "it did not load")
        # An import may fail for want of somebody else's wheel; that the library cannot load is its own matter.
        alone = [reason for reason in outcome.reasons if reason.startswith(ALONE)]
        told = "; ".join(reason.removeprefix(ALONE).replace(str(library.path), library.path.name) for reason in alone)
        notes = (*finding.notes, *(reason for reason in outcome.reasons if reason not in alone))
        return replace(held, doubts=(f"did not load: {told}", *held.doubts), notes=notes)
    checked = {key: number for key, number in finding.instructions.items() if key not in a64.ALWAYS_EMULATED}
    unseen = {key: number for key, number in finding.instructions.items() if key in a64.ALWAYS_EMULATED}
    notes = (*finding.notes, *outcome.reasons)
    if checked:
        notes += (f"contains {_counted(checked)}, behind a run-time check that loading did not trip",)
    if unseen:
        notes += (f"contains {_counted(unseen)}, which the emulator has though the board may not: not tried",)
    return replace(finding, notes=notes, ran=True)


def _artifact_finding(artifact: Path, outcome: Outcome) -> Finding:
    """What became of an artifact's golden vectors, through the engine under test."""
    faults = [outcome.fault] if outcome.fault else list(outcome.reasons)
    notes = [] if faults else ["its golden vectors pass through these libraries"]
    return Finding(str(artifact), faults=tuple(faults), notes=tuple(notes), ran=outcome.ran)


def _counted(instructions: dict[str, int]) -> str:
    return ", ".join(f"{number} {a64.FEATURES[feature]}" for feature, number in instructions.items())
