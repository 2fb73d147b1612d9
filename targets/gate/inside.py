"""What runs on an emulated board: loads libraries one by one, and names the place of an illegal instruction.

python -m targets.gate.inside STEPS RESULTS SECONDS

STEPS is JSON: `path`, folders to import from before all others, and `steps`, a list of [action, what]: load a library
by its path, import a module, verify an artifact. RESULTS gets a JSON line before every step and one after it, so that
whoever reads it knows in which step the process died. A step that takes longer than SECONDS ends the process.
"""

import contextlib
import ctypes
import faulthandler
import importlib
import io
import json
import os
import runpy
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_SIGINFO = 4  # SA_SIGINFO: the handler is told where
_CODE, _ADDRESS = 8, 16  # offsets of si_code and si_addr in siginfo_t on 64-bit Linux


class _Action(ctypes.Structure):
    """struct sigaction of glibc on aarch64."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_uint64 * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


def watch(report: Callable[[dict[str, Any]], None]) -> object:
    """From here on an illegal instruction is reported, with its word and place, before the process ends.

    The answer must be kept alive. Python's own signal handlers would not do: they run after the instruction,
    which never ends.
    """

    def on_illegal(number: int, info: int, _: int) -> None:
        if ctypes.c_int.from_address(info + _CODE).value <= 0:  # no instruction: somebody sent the signal
            report({"raised": True})
            os._exit(128 + number)
        at = ctypes.c_uint64.from_address(info + _ADDRESS).value
        path, offset = _mapped(at)
        report({"illegal": {"word": ctypes.c_uint32.from_address(at).value, "file": path, "offset": offset}})
        os._exit(128 + number)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(on_illegal)
    action = _Action(ctypes.cast(handler, ctypes.c_void_p).value, (ctypes.c_uint64 * 16)(), _SIGINFO, None)
    if ctypes.CDLL(None).sigaction(int(signal.SIGILL), ctypes.byref(action), None):
        raise OSError("sigaction refused a handler for SIGILL")
    return handler, action


def _maps() -> Iterator[tuple[int, int, int, str]]:
    """Start, end, offset and path of every mapped file."""
    with Path("/proc/self/maps").open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            span, _, offset, _, _, *name = line.split(maxsplit=5)
            if name and name[0].startswith("/"):
                start, end = span.split("-")
                yield int(start, 16), int(end, 16), int(offset, 16), name[0].strip()


def _mapped(address: int) -> tuple[str, int]:
    """The file mapped at `address`, and the offset in it; no file gives an empty name and the address."""
    for start, end, offset, path in _maps():
        if start <= address < end:
            return path, address - start + offset
    return "", address


def load(path: str) -> str | None:
    """Load a library, every symbol now, its initialisers run; why it cannot be, or None."""
    try:
        ctypes.CDLL(path, mode=os.RTLD_NOW)
    except OSError as error:
        return str(error)
    return None


def bring_in(module: str) -> str | None:
    """Import an extension module by name; why it cannot be, or None."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        return f"needs {error.name}"
    except BaseException as error:  # what a stranger's module does at its import is its own affair
        return f"{type(error).__name__}: {error}"
    return None


def verify(file: str) -> str | None:
    """`highwall verify FILE` with whatever engines the path brings; what it says where it fails, or None."""
    said = io.StringIO()
    sys.argv = ["highwall", "verify", "--json", "--", file]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            runpy.run_module("highwall", run_name="__main__", alter_sys=True)
    except SystemExit as error:
        return None if error.code in (0, None) else _error(said.getvalue())
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _error(said: str) -> str:
    try:
        return str(json.loads(said)["error"])
    except (ValueError, KeyError, TypeError):
        return said.strip()[-300:]


ACTIONS: dict[str, Callable[[str], str | None]] = {"load": load, "import": bring_in, "verify": verify}


def main(steps: Path, results: Path, seconds: float) -> None:
    out = os.open(results, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    known: set[str] = set()
    number = 0

    def report(record: dict[str, Any]) -> None:
        os.write(out, json.dumps({"step": number, **record}).encode() + b"\n")

    orders = json.loads(steps.read_text(encoding="utf-8"))
    sys.path[:0] = orders["path"]  # only now: a stranger's folder may hold a json.py of its own
    kept = watch(report)
    for number, (action, what) in enumerate(orders["steps"]):  # noqa: B007
        report({})
        faulthandler.dump_traceback_later(seconds, exit=True)
        reason = ACTIONS[action](what)
        faulthandler.cancel_dump_traceback_later()
        fresh = {path for *_, path in _maps()} - known
        known |= fresh
        report({"done": True, "reason": reason, "mapped": sorted(fresh)})
    del kept
    os._exit(0)  # no destructors: how a library ends is not what is asked


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
