"""A cell is one network trained and judged once, kept as a small JSON file that nothing foreign may stand in for."""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.paper.budgets import Budget
from targets.runtime.errors import HighwallError
from targets.runtime.files import write_text

CODE = 1  # raise it when a cell's numbers come about in another way, so that old ones are not mixed with new
POLL_S = 0.5  # between two looks at what another process is doing

Task = Literal["chips", "slices", "photographs", "patches"]


@dataclass(frozen=True)
class Cell:
    """One training, judged on the fold it never saw.

    task: `chips` and `slices` are classified; `photographs` are segmented, or searched for boxes; in `patches` the
    classifier that `slices` trained slides over photographs. size: pixels a side of what the network learns from.
    """

    task: Task
    network: str
    size: int
    optimizer: str = "adam"
    fold: int = 0
    seed: int = 0

    @property
    def name(self) -> str:
        """Its file's, below the budget's folder and without .json."""
        return f"{self.task}/{self.network}-{self.size}-{self.optimizer}-fold{self.fold}-seed{self.seed}"

    def on(self, fold: int, seed: int) -> "Cell":
        """The same, with another fold held out and another seed."""
        return replace(self, fold=fold, seed=seed)

    @property
    def needs(self) -> "Cell | None":
        """The cell that must be done first: patches slide what slices trained."""
        return replace(self, task="slices") if self.task == "patches" else None


class Store:
    """The results of one budget over one data set, in FOLDER/BUDGET/TASK/NAME.json.

    data: what the photographs and the chips hash to, by task; None where there is only something to be read, as when
    tables are rendered: then the files must agree among themselves.
    """

    def __init__(self, folder: Path, budget: Budget, data: Mapping[str, str] | None) -> None:
        self.folder, self.budget = folder / budget.name, budget
        self._data: dict[str, str] = dict(data or {})
        self._origin = "the data given"

    def path(self, cell: Cell) -> Path:
        """Where a cell's result lies, or will."""
        return self.folder / f"{cell.name}.json"

    def read(self, cell: Cell) -> dict[str, Any] | None:
        """What was found, or None where the cell is not done. Raises HighwallError for a foreign or damaged file."""
        path = self.path(cell)
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            there = found["identity"]
            theirs = {key: there[key] for key in ("cell", "budget", "code")}
            data = str(there["data"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise HighwallError(f"{path} is damaged ({error}); remove it and it is run again") from error
        source = _source(cell.task)
        here = {"cell": asdict(cell), "budget": self.budget.plain, "code": CODE}
        for what, value in here.items():
            if theirs[what] != value:
                raise HighwallError(f"{path} is of another {_difference(what, theirs[what], value)}; {_MEND}")
        if data != self._data.setdefault(source, data):
            raise HighwallError(
                f"{path} was learned from other data ({data[:8]}, not {self._data[source][:8]}); {_MEND}"
            )
        return found

    def write(self, cell: Cell, result: Mapping[str, Any]) -> None:
        """Keep a finished cell."""
        identity = {
            "cell": asdict(cell),
            "budget": self.budget.plain,
            "data": self._data[_source(cell.task)],
            "code": CODE,
        }
        write_text(self.path(cell), json.dumps({"identity": identity, **result}, indent=1) + "\n")

    @contextmanager
    def claim(self, cell: Cell) -> Iterator[bool]:
        """Whether this process may run the cell now; no other one gets it meanwhile.

        The claim is a lock that the system drops with the process, so one that was killed leaves none behind.
        """
        path = self.path(cell).with_suffix(".claim")
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = _locked(path)
        try:
            yield handle is not None
        finally:
            if handle is not None:
                path.unlink(missing_ok=True)  # first this, then the lock: nobody can hold a file that is gone
                os.close(handle)


_MEND = "move it away, or choose another --out"


def _source(task: Task) -> str:
    return "chips" if task == "chips" else "photographs"


def _difference(what: str, theirs: Any, ours: Any) -> str:
    """The first setting that differs, for a person to see what was mixed up."""
    if not (isinstance(theirs, dict) and isinstance(ours, dict)):
        return f"version of this {what} ({theirs}, now {ours})"
    key = next(key for key in [*ours, *theirs] if theirs.get(key) != ours.get(key))
    return f"{what} ({key} {theirs.get(key)}, here {ours.get(key)})"


def _locked(path: Path) -> int | None:
    """An open, locked file at `path`; None where another process has it."""
    while True:
        handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            return None
        try:
            if path.stat().st_ino == os.fstat(handle).st_ino:
                return handle
        except FileNotFoundError:
            pass
        os.close(handle)  # its owner finished between our two looks; the file that is there now decides


def work(
    cells: Sequence[Cell], store: Store, run: Callable[[Cell], Mapping[str, Any]], say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """The results of all cells, in their order; those not there are run, by this process or another beside it.

    A cell whose `needs` are not done waits for them. One line is said of each cell that is run here.
    """
    started = time.perf_counter()
    done: dict[Cell, dict[str, Any]] = {}
    for cell in cells:  # before any work, so that a foreign file is named at once
        if (found := store.read(cell)) is not None:
            done[cell] = found
    if done:
        say(f"{len(done)} of {len(cells)} cells are done already")
    while len(done) < len(cells):
        before = len(done)
        for cell in cells:
            if cell in done or (cell.needs is not None and store.read(cell.needs) is None):
                continue
            with store.claim(cell) as mine:
                if mine and store.read(cell) is None:
                    result = run(cell)
                    store.write(cell, result)
                    minutes = (time.perf_counter() - started) / 60
                    left = len(cells) - len(done) - 1
                    say(f"{cell.name}: {summary(result)}; {left} left, {minutes:.1f} min so far")
            if (found := store.read(cell)) is not None:
                done[cell] = found
        if len(done) == before:
            time.sleep(POLL_S)
    return [done[cell] for cell in cells]


def summary(result: Mapping[str, Any]) -> str:
    """A finished cell in a few words."""
    if result["status"] != "done":
        return f"{result['status']} ({result['reason']})"
    scores = result.get("scores")
    shown = f"F1 {scores['0.5']['f1']:.3f}, AUC {scores['0.5']['auc']:.3f}" if scores else "boxes"
    if "ap" in result:
        shown = f"AP at 0.5 {result['ap'][result['threshold']]['0.5']:.3f}"
    return f"{shown}, {result['seconds']:.0f} s"
