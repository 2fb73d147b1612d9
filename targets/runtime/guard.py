"""How a command ends: what its user can mend is one line and an exit code, a bug stays a traceback."""

import errno
import io
import os
import sys
from collections.abc import Callable

from targets.runtime.errors import HighwallError

USAGE_ERROR = 2
INTERRUPTED = 130  # what a shell reports for a process ended by SIGINT
BROKEN_PIPE = 141  # and by SIGPIPE


def guard(program: str, action: Callable[[], int | None]) -> int:
    """Run `action` and return its exit code, 0 for None; `program` begins the line where there is one.

    A file that the system will not give is its user's to mend, whichever call met it; any other OSError is a bug.
    """
    _print_any_name()
    try:
        code = action() or 0
        if sys.stdout is not None:  # None: the shell closed it
            sys.stdout.flush()  # here, so that a reader who left is noticed while it can still be handled
        return code
    except HighwallError as error:
        return complain(program, str(error), 1)
    except KeyboardInterrupt as stop:
        return complain(program, str(stop) or "interrupted", INTERRUPTED)
    except BrokenPipeError:
        _drop_output()
        return BROKEN_PIPE
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not full and error.filename is None:
            raise
        if full:
            _drop_output()
            where = error.filename or "the output"
            return complain(program, f"cannot write {where}: {error.strerror}; free some space", 1)
        what = f"cannot use {error.filename}: {error.strerror}"
        return complain(program, f"{what}; check its name and permissions, or choose another", 1)


def complain(program: str, message: str, code: int) -> int:
    """Say what is wrong, in one line, and return `code`."""
    print(f"{program}: {' '.join(message.splitlines())}", file=sys.stderr)
    return code


def _print_any_name() -> None:
    """Let stdout escape what it cannot write, as stderr does: a file's name need not be text in any encoding."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """Point stdout at nothing, or the interpreter would fail again while flushing it on the way out."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
