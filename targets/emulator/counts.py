"""Exact ARM instructions of one inference, counted in the emulator: the same number every time, and no time at all.

They are instructions, not cycles: the emulator has no cache, no memory and no pipeline model.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from subprocess import CompletedProcess
from typing import Final

from targets.board import Board
from targets.emulator.guest import Guest, crash, open_guest
from targets.runtime.errors import HighwallError
from targets.runtime.files import write_text
from targets.runtime.manifest import InputSpec

FORMULA: Final = "instructions / (highest clock x most instructions a cycle that the core decodes, by Arm's manual)"
# Inferences before the one that counts: the first ones fill pools and caches of the engine and of Python. Beside
# the work of a large map that is nothing, and emulating one takes long.
WARM, WARM_LARGE, LARGE_PIXELS = 3, 1, 96 * 96

_compiled: set[tuple[str, str]] = set()  # boards and engines whose Python modules this process has seen compiled


@dataclass(frozen=True)
class Counts:
    """Instructions of one inference on one thread, as the gateway's own code runs it.

    Of `instructions`: `loads` and `stores` (an atomic one is both), `fma` fused multiply-adds (scalar or vector),
    `dot` dot and matrix products of bytes, `widening` vector multiplies into twice the width.
    """

    instructions: int
    loads: int
    stores: int
    fma: int
    dot: int
    widening: int


def count(
    board: Board, runtime: str, model: bytes, spec: InputSpec, say: Callable[[str], None] = lambda _: None
) -> Counts:
    """Count one inference of `model` on the emulated `board`.

    Counted once for the same model, board, packages and counter, and kept. Raises HighwallError where the
    emulator is not set up or the model does not run there.
    """
    guest = open_guest(board)
    guest.layout.check_counter()
    kept = guest.layout.home / "counts" / f"{_identity(guest, runtime, model, spec)}.json"
    if (found := _read(kept)) is None:
        say(f"count the instructions of one inference on an emulated {board.cpu}")
        found = _counted(guest, runtime, model, spec)
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_text(kept, json.dumps(asdict(found)) + "\n")
    return found


def recount(board: Board, runtime: str, model: bytes, spec: InputSpec) -> Counts:
    """The same, counted anew whatever is kept."""
    guest = open_guest(board)
    guest.layout.check_counter()
    return _counted(guest, runtime, model, spec)


def shortest_ms(counts: Counts, board: Board) -> float | None:
    """An estimate, by formula: the least time one core could take, in ms; None where the board's width is unknown.

    instructions / (clock x instructions a cycle), with the widest the core decodes and its highest clock. A real
    run takes longer: it waits for memory, and no code keeps every decoder busy.
    """
    width = board.ceilings.instructions_per_cycle
    return None if width is None else counts.instructions / (board.clock_mhz * 1e3 * width)


def _counted(guest: Guest, runtime: str, model: bytes, spec: InputSpec) -> Counts:
    runs = 1 + (WARM if spec.height * spec.width < LARGE_PIXELS else WARM_LARGE)
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / f"model.{runtime}", Path(folder) / "counts.jsonl"
        path.write_bytes(model)
        # Where Python has compiled a module first, memory lies in another order, which is worth some ten
        # instructions: so once without the counter.
        if (guest.board.name, runtime) not in _compiled:
            _run(guest, runtime, path, spec, inferences=1, out=None)
            _compiled.add((guest.board.name, runtime))
        done = _run(guest, runtime, path, spec, inferences=runs, out=out)
        lines = out.read_text(encoding="ascii").splitlines() if out.exists() else []
    if done.returncode or len(lines) != runs:
        reason = crash(done, guest.board) or (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise HighwallError(f"the {runtime} model could not be counted on {guest.board.name}: {reason}")
    return Counts(**json.loads(lines[-1]))


def _run(
    guest: Guest, runtime: str, path: Path, spec: InputSpec, *, inferences: int, out: Path | None
) -> CompletedProcess[str]:
    plugin = None if out is None else f"{guest.layout.counter},out={str(out).replace(',', ',,')}"
    order = ["-m", "targets.emulator.inside", runtime, str(inferences), spec.dtype]
    order += [str(number) for number in (*spec.shape, spec.sensors)]
    with path.open("rb") as model:  # as its input: a path of another name each time would be hashed otherwise
        return guest.run(order, plugin=plugin, timeout=3600.0, stdin=model)


def _identity(guest: Guest, runtime: str, model: bytes, spec: InputSpec) -> str:
    parts = [guest.board.qemu_cpu, guest.layout.site.name, guest.layout.overlay.name, guest.layout.counter.name]
    parts += [runtime, hashlib.sha256(model).hexdigest(), repr((spec.shape, spec.dtype, spec.sensors)), _code()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


@cache
def _code() -> str:
    """A digest of our own code that runs inside an inference."""
    here = Path(__file__).parent
    files = [here / "inside.py", here / "counts.py", *sorted((here.parent / "runtime").glob("*.py"))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def _read(path: Path) -> Counts | None:
    """What is kept at `path`; None where it is not there or damaged."""
    try:
        return Counts(**json.loads(path.read_text(encoding="ascii")))
    except (OSError, ValueError, TypeError):
        return None
