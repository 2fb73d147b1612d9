"""Verifying an artifact on an emulated board, through the very code that its gateway runs."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from targets.board import Board
from targets.emulator.guest import crash, open_guest
from targets.runtime.errors import HighwallError

USAGE_OR_REFUSAL = (0, 1, 2)  # what `highwall` itself ends with


def verify(board: Board, file: Path, options: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """What `highwall verify FILE OPTIONS` says on the emulated board.

    Raises HighwallError where the emulator is not set up, or where the engine crashes there.
    """
    done = open_guest(board).run(["-m", "highwall", "verify", *options, "--", str(file)], timeout=3600.0)
    if done.returncode not in USAGE_OR_REFUSAL:
        reason = crash(done, board) or f"it ended with code {done.returncode}"
        raise HighwallError(f"{file} does not run on {board.name}: {reason}")
    return done
