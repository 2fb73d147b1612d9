"""What systemd makes of a unit's SystemCallFilter= lines, and a command run under it: sandbox.py UNIT COMMAND..."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path

ALLOW, KILL, EPERM = 0x7FFF0000, 0x80000000, 0x00050001  # libseccomp's SCMP_ACT_ALLOW, _KILL_PROCESS, _ERRNO(EPERM)

# SQLite gives its journal to the database's owner when it runs as root, and goes on where that fails.
EXPECTED = ("fchown", "fchown32") if os.geteuid() == 0 else ()


def value(unit: str, key: str) -> list[str]:
    """What the lines `key` of a unit say, in order."""
    return [line.partition("=")[2] for line in unit.splitlines() if line.startswith(f"{key}=")]


def allowed(unit: str, members: Callable[[str], Collection[str]]) -> set[str]:
    """The system calls that a unit allows; `members` of a set such as @clock may be sets themselves.

    As systemd.exec(5) has it: the first line makes it a list of what is allowed, each later one adds or, after a ~,
    removes.
    """

    def calls(name: str) -> set[str]:
        return set().union(*map(calls, members(name))) if name.startswith("@") else {name}

    lines = value(unit, "SystemCallFilter")
    assert lines and not lines[0].startswith("~")
    found = calls("@default")
    for line in lines:
        named = set().union(*map(calls, line.removeprefix("~").split()))
        found = found - named if line.startswith("~") else found | named
    return found


def installed(name: str) -> list[str]:
    """The members of a set as the installed systemd has it."""
    done = subprocess.run(["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True)
    lines = map(str.strip, done.stdout.splitlines()[1:])
    return [line for line in lines if line and not line.startswith("#")]


def library() -> ctypes.CDLL:
    """libseccomp. Raises OSError where there is none."""
    found = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    found.seccomp_init.restype = ctypes.c_void_p
    found.seccomp_init.argtypes = [ctypes.c_uint32]
    found.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.c_void_p,
    ]
    found.seccomp_load.argtypes = [ctypes.c_void_p]
    return found


def enter(calls: Collection[str]) -> None:
    """Allow this process and its children these calls alone; another one is its end, so that no fault is hidden."""
    seccomp = library()
    rules = seccomp.seccomp_init(KILL)
    for action, names in ((ALLOW, calls), (EPERM, set(EXPECTED) - set(calls))):
        for name in names:
            number = seccomp.seccomp_syscall_resolve_name(name.encode())
            if number >= 0:  # those below are of other machines
                assert seccomp.seccomp_rule_add_array(rules, action, number, 0, None) == 0
    if failed := seccomp.seccomp_load(rules):
        raise OSError(-failed, f"seccomp_load: {os.strerror(-failed)}")


if __name__ == "__main__":
    enter(allowed(Path(sys.argv[1]).read_text(), installed))
    os.execvp(sys.argv[2], sys.argv[2:])
