"""What a board says of itself, and whether an artifact can be measured there."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from targets.board import Board
from targets.gate import wheel
from targets.remote.supervisor import MARK
from targets.runtime.errors import plain
from targets.runtime.machine import other_machine

LEAST_PYTHON: Final = (3, 11)
# Runtime -> what its engine imports there (both need numpy and no more): any of these modules -> distribution.
PACKAGES: Final[dict[str, dict[tuple[str, ...], str]]] = {
    "onnx": {("onnxruntime",): "onnxruntime"},
    "tflite": {("ai_edge_litert", "tflite_runtime"): "ai-edge-litert"},
}
# POSIX sh, and a Python of any age; HIGHWALL_SYSROOT as in targets.runtime.machine.
_PROBE: Final = r"""
tell() { printf '\nMARK %s %s\n' "$1" "$2"; }
proc=${HIGHWALL_SYSROOT:-}/proc
tell system "$(uname -s)"
tell machine "$(uname -m)"
tell model "$({ tr -d '\000' <"$proc/device-tree/model"; } 2>/dev/null)"
tell part "$(sed -n 's/^CPU part[[:space:]]*:[[:space:]]*//p' "$proc/cpuinfo" 2>/dev/null | sed 1q)"
tell folder "${TMPDIR:-/tmp}"
tell free "$(df -Pk "${TMPDIR:-/tmp}" 2>/dev/null | tail -n 1 | { read -r _ _ _ free _; echo "$free"; })"
tell python "$(PYTHON 2>/dev/null </dev/null)"
tell end .
"""
_PYTHON_PROBE: Final = (
    "import sys\nsys.path[:] = filter(None, sys.path)\n"  # not what lies in the user's home under a module's name
    "import importlib.util, platform, struct\n"
    "has = [name for name in MODULES if importlib.util.find_spec(name)]\n"
    "print('/'.join(['%d.%d' % sys.version_info[:2], str(8 * struct.calcsize('P')), platform.libc_ver()[1]] + has))"
)


@dataclass(frozen=True)
class Found:
    """What a board says of itself; an empty word is what it does not know. `bits` are those of its Python."""

    system: str
    machine: str
    device_tree: str
    cpu_part: str
    free_kib: int | None
    folder: str
    python: str
    bits: str
    glibc: str
    modules: frozenset[str]


def script(python: str) -> bytes:
    """The questions, for a shell of the board; it answers in frames, and writes nothing there."""
    modules = sorted({"numpy", *(name for wanted in PACKAGES.values() for names in wanted for name in names)})
    asked = _PYTHON_PROBE.replace("MODULES", repr(modules))
    return _PROBE.replace("MARK", MARK).replace("PYTHON", shlex.join([python, "-c", asked])).encode()


def parse(answers: dict[str, str]) -> Found:
    """The answers to `script`, word -> text; what is not as it should be counts as not known."""
    python, bits, glibc, *modules = [*answers.get("python", "").split("/"), "", "", ""][:40]
    free = answers.get("free", "")
    return Found(
        system=answers.get("system", ""),
        machine=answers.get("machine", ""),
        device_tree=answers.get("model", ""),
        cpu_part=answers.get("part", ""),
        free_kib=int(free) if re.fullmatch(r"\d{1,15}", free, re.ASCII) else None,
        folder=plain(answers.get("folder", "")),
        python=python if re.fullmatch(r"\d{1,3}\.\d{1,3}", python, re.ASCII) else "",
        bits=bits,
        glibc=glibc if re.fullmatch(r"\d{1,3}\.\d{1,3}", glibc, re.ASCII) else "",
        modules=frozenset(modules),
    )


def refusal(found: Found, board: Board | None, runtime: str, wheelhouse: Path | None) -> str | None:
    """Why an artifact for `board` (None: any) cannot be measured there, and what to do; None where it can."""
    return _wrong_machine(found, board) or _wrong_python(found, runtime, wheelhouse)


def _wrong_machine(found: Found, board: Board | None) -> str | None:
    if found.system != "Linux":
        return f"it runs {plain(found.system) or 'no system that has uname'}; the engines need Linux"
    if board is None:
        return None
    if board.name == "host":
        return "the artifact was made for the machine it was built on; build it for that board, or add --any-board"
    if found.machine != "aarch64" or found.bits == "32":
        what = plain(found.machine) if found.machine != "aarch64" else "aarch64 with a 32-bit Python"
        return f"it is {what}; the engines need a 64-bit ARM system (of Raspberry Pi OS the 64-bit image)"
    reason = other_machine(found.device_tree, found.cpu_part, board.device_tree, board.cpu_part)
    return reason and f"{reason}; build the artifact for it, or add --any-board"


def _wrong_python(found: Found, runtime: str, wheelhouse: Path | None) -> str | None:
    if not found.python:
        return "it has no python3 that starts; sudo apt install python3 there, or name one with --python"
    if wheel.version(found.python) < LEAST_PYTHON:
        return f"its Python is {found.python}; 3.11 or newer is needed, as in Raspberry Pi OS bookworm"
    missing = " ".join(missing_packages(found, runtime))
    if not missing or wheelhouse is not None:
        return None
    return (
        f"its Python {found.python} lacks {missing}; name one that has them (--python), or lend them from a folder of "
        "wheels (--wheels DIR): pip download --no-deps --only-binary :all: --platform manylinux_2_28_aarch64 "
        f"--platform manylinux_2_27_aarch64 --python-version {found.python} -d DIR {missing}"
    )


def missing_packages(found: Found, runtime: str) -> list[str]:
    """The distributions an engine needs and the board has not."""
    wanted: dict[tuple[str, ...], str] = {("numpy",): "numpy", **PACKAGES.get(runtime, {})}
    return [name for modules, name in wanted.items() if not found.modules.intersection(modules)]
