"""What the gate found, library by library, as text and as JSON."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from targets.board import Board


@dataclass(frozen=True)
class Finding:
    """What was found of one library, or (with no `library`) of the wheel or artifact itself.

    `faults`: why the board cannot run it. `doubts`: what stands in the way of saying that it can. `notes`: what is
    worth knowing. `instructions`: how many it has of what the board lacks, by feature. `ran`: it was loaded, or
    verified, on the emulated board. `optional`: its package was imported there without it, and no other library
    needs it, so that its faults are its own.
    """

    source: str
    library: str = ""
    faults: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    instructions: dict[str, int] = field(default_factory=dict)
    ran: bool = False
    optional: bool = False

    @property
    def passes(self) -> bool:
        """Whether it is no reason to keep the whole off the board."""
        return self.verdict == "fits" or self.optional

    @property
    def verdict(self) -> str:
        """`fits`, `does not fit` or `not proven`."""
        return "does not fit" if self.faults else "not proven" if self.doubts else "fits"


@dataclass(frozen=True)
class Report:
    """Every finding, in the order of the paths asked about; `emulated`: libraries were loaded, not only read."""

    board: Board
    findings: tuple[Finding, ...]
    emulated: bool

    @property
    def ok(self) -> bool:
        """Whether everything fits but what is optional; the exit code says so."""
        return all(finding.passes for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON has it."""
        rows = [
            {
                **{"source": row.source, "library": row.library, "verdict": row.verdict},
                **{"optional": row.optional, "ran": row.ran},
                **{"reasons": [*row.faults, *row.doubts], "notes": list(row.notes), "instructions": row.instructions},
            }
            for row in self.findings
        ]
        return {"board": self.board.name, "ok": self.ok, "emulated": self.emulated, "findings": rows}

    def lines(self) -> list[str]:
        """The report for people: a line for every source, and below it what there is to say of its libraries."""
        result = []
        for source, group in itertools.groupby(self.findings, key=lambda row: row.source):
            rows = list(group)
            failed = {row.verdict for row in rows if not row.passes}
            worst = next((word for word in ("does not fit", "not proven") if word in failed), "fits")
            result.append(f"{source}: {worst}{_tally(rows)}")
            for row in rows:
                name = f"{row.library}: " if len(rows) > 1 and row.library else ""
                own = "cannot be used there, but its package can without it: " if row.optional else ""
                result += [f"  {name}{own}{text}" for text in (*row.faults, *row.doubts)]
                result += [f"  {name}{text}" for text in row.notes]
        bad = sum(not row.passes for row in self.findings)
        libraries = [row for row in self.findings if row.library]
        ran = sum(row.ran for row in libraries)
        loaded = "loaded" if ran == len(libraries) else f"{ran} of {len(libraries)} libraries loaded"
        how = f"{loaded} on an emulated {self.board.cpu}" if self.emulated else "only read: there is no emulator"
        what = f"{bad} of {len(self.findings)} checks failed" if bad else "everything fits"
        return [*result, f"{self.board.name}: {what} ({how})"]


def _tally(rows: Sequence[Finding]) -> str:
    """`, 3 of 4 libraries loaded`, or nothing where there is no library."""
    libraries = [row for row in rows if row.library]
    if not libraries:
        return "" if any(row.ran or row.faults for row in rows) else ", no native library"
    ran, every = sum(row.ran for row in libraries), len(libraries)
    many = "library" if every == 1 else "libraries"
    return f", {ran} of {every} {many} loaded" if ran else f", {every} {many} read"
