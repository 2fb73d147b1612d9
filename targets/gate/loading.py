"""Having an emulated board load libraries, and what became of each, on the side of the machine at hand."""

import json
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from targets.emulator.guest import CRASHES, Guest
from targets.gate.a64 import name_of
from targets.gate.elf import read_elf
from targets.runtime.errors import HighwallError, plain

SECONDS: Final = 120.0  # for one library; the slowest seen, an engine's first import, takes a few
ALONE: Final = "does not load by itself: "  # how such a reason begins
# Scratch folders get no place in the guest's store of compiled Python: it is kept by path, and theirs never return.
_NO_BYTECODE: Final = {"PYTHONDONTWRITEBYTECODE": "1"}


@dataclass(frozen=True)
class Item:
    """One thing to be done on the board: load a library and perhaps import it as `module`; or verify an artifact."""

    path: Path
    module: str | None = None
    artifact: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of one item.

    `imported`: its module was. `ran`: that, or it was loaded, or the artifact verified. `fault`: why the board
    cannot have it (the process died). `reasons`: why something did not succeed though the process lived.
    """

    imported: bool = False
    ran: bool = False
    fault: str = ""
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Step:
    item: int
    action: str
    what: str


def load_all(
    guest: Guest, items: Sequence[Item], path: Sequence[Path], seconds: float = SECONDS
) -> tuple[list[Outcome], set[Path]]:
    """Do every item on `guest`, with `path` before its own packages; a death costs one item, not the rest.

    Modules are imported before anything is loaded by its path; the set answered has the files in memory by then:
    what is not in it is only loaded by those who ask for it. Raises HighwallError where the board's Python itself
    does not start.
    """
    outcomes, used = [Outcome() for _ in items], set[Path]()
    steps = [_Step(at, "verify", str(item.path)) for at, item in enumerate(items) if item.artifact]
    steps += [_Step(at, "import", item.module) for at, item in enumerate(items) if item.module is not None]
    steps += [_Step(at, "load", str(item.path)) for at, item in enumerate(items) if not item.artifact]
    while steps:
        records, done = _go(guest, steps, path, seconds)
        for record in records:
            step = steps[record["step"]]
            outcomes[step.item] = _after(outcomes[step.item], step, record)
            if step.action != "load":
                used |= {Path(name) for name in record.get("mapped", ())}
        if records and records[-1].get("done") and records[-1]["step"] == len(steps) - 1:
            break
        if not records:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise HighwallError(f"the emulated {guest.board.name} does not start: {last}")
        at = records[-1]["step"]
        item = steps[at].item
        outcomes[item] = replace(outcomes[item], fault=_fault(records[-1], steps[at], done, guest, seconds))
        steps = [step for step in steps[at + 1 :] if not outcomes[step.item].fault]
    return outcomes, used


def _go(
    guest: Guest, steps: Sequence[_Step], path: Sequence[Path], seconds: float
) -> tuple[list[dict[str, Any]], subprocess.CompletedProcess[str]]:
    """One process that takes the steps in turn; what it wrote down, and how it ended."""
    with tempfile.TemporaryDirectory(prefix="highwall-gate-") as scratch:
        orders, results = Path(scratch) / "steps.json", Path(scratch) / "results"
        wanted = {"path": [str(folder) for folder in path], "steps": [(step.action, step.what) for step in steps]}
        orders.write_text(json.dumps(wanted), encoding="utf-8")
        results.touch()
        words = ["-m", "targets.gate.inside", str(orders), str(results), str(seconds)]
        done = guest.run(words, timeout=seconds * len(steps) + 60, environment=_NO_BYTECODE)
        lines = results.read_text(encoding="utf-8", errors="replace").splitlines()
    return [json.loads(line) for line in lines], done


def _after(outcome: Outcome, step: _Step, record: dict[str, Any]) -> Outcome:
    """`outcome` with one finished step more."""
    if not record.get("done"):
        return outcome
    if record["reason"] is None:
        return replace(outcome, ran=True, imported=outcome.imported or step.action == "import")
    title = {"load": ALONE, "import": "not imported: ", "verify": ""}[step.action]
    return replace(outcome, reasons=(*outcome.reasons, title + _line(record["reason"])))


def _fault(
    record: dict[str, Any], step: _Step, done: subprocess.CompletedProcess[str], guest: Guest, seconds: float
) -> str:
    """Why the process died in `step`, in words; `record` is the last it wrote."""
    doing = {"load": "while loading", "import": "at its import", "verify": "while verifying"}[step.action]
    number = -done.returncode if done.returncode < 0 else done.returncode - 128
    lines = [line.strip("\0 ") for line in done.stderr.splitlines()]
    said = [line for line in lines if line and not line.startswith("qemu:")]
    if "illegal" in record:
        found = record["illegal"]
        return f"illegal instruction {name_of(found['word'])} {doing}, in {_place(found['file'], found['offset'])}"
    if "raised" in record:
        return f"stops itself {doing}, as for an illegal instruction: {_line(said[-1]) if said else 'it says no more'}"
    if number == signal.SIGILL:
        return f"illegal instruction {doing}, at a place that is not known"
    if any(line.startswith("Timeout (") for line in said):
        return f"hangs {doing}: nothing in {seconds:g} s"
    word = next((word for known, word in CRASHES.items() if known == number), None)
    return f"dies of {word} {doing}" if word else f"ends the process {doing}, with code {done.returncode}"


def _line(text: str) -> str:
    """On one short line, without what a terminal would obey."""
    return plain(" ".join(text.split()), most=300)


def _place(file: str, offset: int) -> str:
    """`libx.so+0x1a2b0 (function)`."""
    if not file:
        return f"code made at run time, at 0x{offset:x}"
    try:
        return f"{Path(file).name}{read_elf(Path(file).read_bytes()).place(offset)}"
    except (HighwallError, OSError):
        return f"{Path(file).name}, byte 0x{offset:x} of the file"
