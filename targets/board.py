"""Boards as data: one TOML file in `targets/boards/` says what a machine is and can do."""

import difflib
import os
import platform
import tomllib
import typing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from targets.runtime.errors import HighwallError

FOLDER: Final = Path(__file__).parent / "boards"


@dataclass(frozen=True)
class Features:
    """What decides which kernels run: int8 dot product, fp16 arithmetic, LSE atomics."""

    dot_product: bool
    fp16: bool
    lse: bool


@dataclass(frozen=True)
class Ceilings:
    """The most the board was seen to do with all cores; None: it has no such unit, or nobody measured."""

    fp32_gflops: float | None
    int8_gops: float | None
    memory_copy_gbs: float | None
    instructions_per_cycle: float | None  # what one core decodes at most


@dataclass(frozen=True)
class Board:
    """A machine an artifact can be built for.

    `memory_mib` is the least it is sold with; `python`, `glibc` and `wheel_tags` are its current system's;
    `qemu_cpu` the emulator's name for its core; `cpu_part` the core's own number, as /proc/cpuinfo shows it (empty
    on other than Arm); `device_tree` how /proc/device-tree/model begins on it.
    """

    name: str
    title: str
    cpu: str
    qemu_cpu: str
    cpu_part: str
    cores: int
    clock_mhz: int
    memory_mib: int
    python: str
    glibc: str
    wheel_tags: tuple[str, ...]
    device_tree: str
    features: Features
    ceilings: Ceilings

    @property
    def at_hand(self) -> bool:
        """Whether this very machine is one."""
        return self.name == "host" or bool(self.device_tree and _Host().device_tree().startswith(self.device_tree))


def boards(folder: Path = FOLDER) -> tuple[Board, ...]:
    """Every known board, the machine at hand last."""
    found = [load_board(path.stem, folder) for path in sorted(folder.glob("*.toml"))]
    return tuple(sorted(found, key=lambda board: board.name == "host"))


def load_board(name: str, folder: Path = FOLDER) -> Board:
    """The board `name`; raises HighwallError for an unknown one (naming those known) or a faulty file."""
    known = sorted(path.stem for path in folder.glob("*.toml"))
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise HighwallError(f"unknown board {name!r}; known are {', '.join(known)}{hint}")
    path = folder / f"{name}.toml"
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise HighwallError(f"{path} is not TOML: {error}") from error
    except OSError as error:
        raise HighwallError(f"cannot read {path}: {error.strerror or error}") from error
    board: Board = _fill(Board, {"name": name, **raw}, _Host(), str(path), "")
    if board.name != name:
        raise HighwallError(f"{path}: key name is {board.name!r}; it is the file's name, leave it out")
    return board


def _fill(kind: Any, raw: dict[str, Any], host: "_Host", path: str, prefix: str) -> Any:
    """A `kind` from exactly the keys of `raw`; "auto" or 0 is asked of the machine at hand."""
    hints = typing.get_type_hints(kind)
    for key in raw:
        if key not in hints:
            raise HighwallError(f"{path}: unknown key {prefix}{key}; known are {', '.join(hints)}")
    values = {}
    for entry in fields(kind):
        if entry.name not in raw:
            raise HighwallError(f"{path}: key {prefix}{entry.name} is missing")
        value = raw[entry.name]
        if value == "auto" or (value == 0 and type(value) is int):
            value = getattr(host, entry.name)()
        values[entry.name] = _typed(value, hints[entry.name], host, path, prefix + entry.name)
    return kind(**values)


def _typed(value: Any, hint: Any, host: "_Host", path: str, key: str) -> Any:
    if hint in (Features, Ceilings) and isinstance(value, dict):
        return _fill(hint, value, host, path, f"{key}.")
    if hint == tuple[str, ...] and isinstance(value, list | tuple) and all(type(item) is str for item in value):
        return tuple(value)
    if hint == float | None and (value in ("none", None) or (type(value) in (int, float) and value > 0)):
        return float(value) if type(value) in (int, float) else None
    if hint is int and type(value) is int and value > 0:
        return value
    if hint in (str, bool) and type(value) is hint:
        return value
    raise HighwallError(f"{path}: key {key} is {value!r}, which is not what this key holds")


class _Host:
    """What "auto" stands for, by key: the answers of the machine at hand, asked only when wanted."""

    def cpu(self) -> str:
        return _cpuinfo("model name") or platform.processor() or platform.machine() or "unknown"

    def qemu_cpu(self) -> str:
        return "host"

    def cpu_part(self) -> str:
        return _cpuinfo("CPU part")

    def cores(self) -> int:
        return os.cpu_count() or 1

    def clock_mhz(self) -> int:
        """The highest clock the kernel admits to, else the one running now; 1 where it says neither."""
        limit = _first_line(Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq"))
        if limit.isdigit():
            return max(1, int(limit) // 1000)
        return max(1, int(float(_cpuinfo("cpu MHz") or 1)))

    def memory_mib(self) -> int:
        return max(1, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20)

    def python(self) -> str:
        return ".".join(platform.python_version_tuple()[:2])

    def glibc(self) -> str:
        return platform.libc_ver()[1] or "none"

    def wheel_tags(self) -> tuple[str, ...]:
        return (f"{platform.system().lower()}_{platform.machine()}",)

    def device_tree(self) -> str:
        return _first_line(Path("/proc/device-tree/model")).strip("\0")

    def dot_product(self) -> bool:
        return bool(self._flags() & {"asimddp", "avx512_vnni", "avx_vnni"})

    def fp16(self) -> bool:
        return bool(self._flags() & {"asimdhp", "avx512_fp16"})

    def lse(self) -> bool:
        return "atomics" in self._flags()

    def fp32_gflops(self) -> None:
        """Unknown until measured."""

    int8_gops = memory_copy_gbs = instructions_per_cycle = fp32_gflops

    def _flags(self) -> set[str]:
        return set((_cpuinfo("Features") or _cpuinfo("flags")).split())


def _cpuinfo(key: str) -> str:
    """The first value of `key` in /proc/cpuinfo, empty where there is none."""
    for line in _lines(Path("/proc/cpuinfo")):
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def _first_line(path: Path) -> str:
    return (_lines(path) or [""])[0].strip()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
