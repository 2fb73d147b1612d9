"""Wheels: whether a file name's tags fit a board, and unpacking them into one folder.

Tags follow the PyPA's binary distribution format and "platform compatibility tags"; a wheel is taken where the
board's own pip would take it.
"""

import math
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Final

from targets.board import Board
from targets.runtime.errors import HighwallError

MOST_BYTES: Final = 2 << 30  # unpacked; the largest wheel a gateway could hold is far below
MOST_FILES: Final = 100_000
_NAME: Final = re.compile(
    r"(?P<name>[^-]+)-(?P<version>[^-]+)(-(?P<build>\d[^-]*))?-(?P<python>[^-]+)-(?P<abi>[^-]+)-(?P<platform>[^-]+)\.whl"
)
_VERSION: Final = re.compile(
    r"v?((?P<epoch>\d+)!)?(?P<release>\d+(\.\d+)*)([-_.]?(?P<stage>alpha|a|beta|b|preview|pre|rc|c)[-_.]?(?P<pre>\d*))?"
    r"([-_.]?(?P<after>post|rev|r)[-_.]?(?P<post>\d*))?([-_.]?(?P<before>dev)[-_.]?(?P<dev>\d*))?([+](?P<local>[\w.-]+))?"
)
_STAGES: Final = {"a": 0, "alpha": 0, "b": 1, "beta": 1, "c": 2, "rc": 2, "pre": 2, "preview": 2}
_LEGACY: Final = {"manylinux2014": (2, 17)}  # the older names have no aarch64


def misfits(name: str, board: Board) -> list[str]:
    """Why the board's pip would not install a wheel of this file name; empty where it would.

    Raises HighwallError where it is no wheel's name.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise HighwallError(
            f"{name} is not named like a wheel, NAME-VERSION-PYTHON-ABI-PLATFORM.whl; keep its own name"
        )
    pythons, abis, platforms = (match[part].split(".") for part in ("python", "abi", "platform"))
    reasons = []
    if not any(_python_fits(python, abi, board) for python in pythons for abi in abis):
        reasons.append(f"is for {match['python']}-{match['abi']}, the board has Python {board.python}")
    if faults := [fault for platform in platforms if (fault := _platform_misfit(platform, board))]:
        reasons += [] if len(faults) < len(platforms) else [faults[0]]
    return reasons


def _python_fits(python: str, abi: str, board: Board) -> bool:
    """Whether CPython `board.python` takes a wheel of one interpreter tag and one ABI tag."""
    match = re.fullmatch(r"(py|cp)(\d)(\d*)", python)
    if match is None:
        return False
    major, _, minor = board.python.partition(".")
    if match[2] != major:
        return False
    older = not match[3] or int(match[3]) <= int(minor)
    if match[1] == "py":
        return abi == "none" and older
    this = match[3] == minor
    return (abi == "abi3" and older) or (this and abi in ("none", f"cp{major}{minor}"))


def _platform_misfit(platform: str, board: Board) -> str:
    """Why the board cannot take a platform tag; empty where it can."""
    if platform == "any":
        return ""
    family, _, machine = platform.partition("_") if platform.startswith("linux_") else _family(platform)
    if not machine:
        return f"is tagged {platform}, which is no Linux"
    if machine != "aarch64":
        return f"is for {machine}, the board is aarch64"
    if family.startswith("musllinux"):
        return f"is tagged {platform}, for musl; the board has glibc {board.glibc}"
    floor = _LEGACY.get(family) or tuple(map(int, re.findall(r"\d+", family)))
    if floor > version(board.glibc):
        return f"is tagged {platform}, which asks for glibc {'.'.join(map(str, floor))}; the board has {board.glibc}"
    return ""


def _family(platform: str) -> tuple[str, str, str]:
    match = re.fullmatch(r"(manylinux_\d{1,4}_\d{1,4}|manylinux\d+|musllinux_\d{1,4}_\d{1,4})_(\w+)", platform)
    return (match[1], "_", match[2]) if match else (platform, "", "")


def version(text: str) -> tuple[int, ...]:
    """`2.41` as (2, 41); empty where the board has no glibc."""
    return tuple(map(int, re.findall(r"\d+", text)))


def newness(text: str) -> tuple[Any, ...]:
    """By which a package's versions sort, oldest first, as PEP 440 orders them.

    As its installers do, it ranks a release before every candidate for one: those are for who asks for them.
    What is no version ranks last.
    """
    match = _VERSION.fullmatch(text.lower())
    if match is None:
        return (-1,)
    numbers = [int(part) for part in match["release"].split(".")]
    while len(numbers) > 1 and not numbers[-1]:
        numbers.pop()  # 2.0 is 2
    stage = _STAGES[match["stage"]] if match["stage"] else -1 if match["before"] and not match["after"] else 3
    post = int(match["post"] or 0) if match["after"] else -1
    dev = int(match["dev"] or 0) if match["before"] else math.inf
    parts = re.split(r"[-_.]", match["local"]) if match["local"] else []
    local = tuple((1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts)
    released = not match["stage"] and not match["before"]
    epoch = int(match["epoch"] or 0)
    return released, epoch, tuple(numbers), stage, int(match["pre"] or 0), post, dev, local


def unpack(path: Path, into: Path) -> list[Path]:
    """Unpack the wheel `path` as pip would lay it out under `into`; returns the files written.

    Raises HighwallError for a damaged or encrypted one, one with a name that leaves the folder, one larger than
    MOST_BYTES unpacked, and where the disk is full.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = list(_members(archive, path))
            return [_extract(archive, member, into / target) for member, target in members]
    except OSError as error:
        raise HighwallError(f"{path} cannot be unpacked: {error.strerror or error}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OverflowError) as error:
        raise HighwallError(f"{path} is damaged or no wheel: {error}; download it again") from error


def _members(archive: zipfile.ZipFile, path: Path) -> Iterator[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """Every file of a wheel with its place; `NAME.data/purelib` and `platlib` belong beside the packages."""
    infos = archive.infolist()
    if len(infos) > MOST_FILES or sum(info.file_size for info in infos) > MOST_BYTES:
        raise HighwallError(f"{path} would unpack to more than {MOST_BYTES >> 30} GiB or {MOST_FILES} files")
    for info in infos:
        parts = PurePosixPath(info.filename).parts
        if info.filename.startswith("/") or "\\" in info.filename or ".." in parts or "\0" in info.filename:
            raise HighwallError(
                f"{path} holds {info.filename[:80]!r}, a name that leaves its folder; do not install it"
            )
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise HighwallError(f"{path}: {info.filename} is packed by a method that no wheel uses; download it again")
        if info.is_dir() or stat.S_ISLNK(info.external_attr >> 16):
            continue
        if len(parts) > 2 and parts[0].endswith(".data") and parts[1] in ("purelib", "platlib"):
            parts = parts[2:]
        if parts:
            yield info, PurePosixPath(*parts)


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as source, target.open("wb") as out:
        while block := source.read(1 << 20):
            out.write(block)
    return target
