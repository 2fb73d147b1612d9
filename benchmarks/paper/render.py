"""Tables and figures of the paper's experiments in Markdown, from the cells' JSON alone."""

import re
import statistics
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.paper import experiments, figures
from benchmarks.paper.budgets import CHOSEN, OVERLAPS, SLICE, THRESHOLDS
from benchmarks.paper.cells import Cell, Store
from benchmarks.paper.data import Sources
from benchmarks.paper.networks import TITLES
from targets.runtime.errors import HighwallError
from targets.runtime.files import write_text

BEGIN = "<!-- paper: begin; written by `highwall paper --render`, so edit the JSON's makers instead -->"
END = "<!-- paper: end -->"

INTRODUCTION = """\
The paper's own digits cannot be right (its kappa exceeds its accuracy, and an F1 exceeds its own precision and
recall), so its experiments are reproduced here, not its digits.

Every network learns from the same images with the same augmentation and balanced draws, sees as many samples, and gets
its learning rate from the same search, ours included. What it is judged on was held out whole, fold by fold, so that no
neighbour leaks; the rate was chosen on another part, cut from the training folds by whole groups. These are short
trainings on one budget: they say who learns most from so much, not who would win in the end. P, R, OA, F1 and kappa
are at threshold 0.5; 0.7, 0.8 and 0.9 are the paper's thresholds for its map. Time is of one image on the machine at
hand, as a multiple of ours in the same run; the milliseconds are of that machine under that load."""

Result = dict[str, Any]
Column = tuple[str, Callable[[Result], float | None], str]  # heading, value, format


def _score(metric: str, threshold: str = "0.5") -> Callable[[Result], float]:
    return lambda result: float(result["scores"][threshold][metric])


def _ap(overlap: float) -> Callable[[Result], float]:
    return lambda result: float(result["ap"][result["threshold"]][f"{overlap:g}"])


ACCURACY: tuple[Column, ...] = (
    *((name, _score(key), ".3f") for name, key in (("P", "precision"), ("R", "recall"), ("OA", "overall_accuracy"))),
    *((name, _score(key), ".3f") for name, key in (("F1", "f1"), ("kappa", "kappa"), ("AUC", "auc"))),
    *((f"F1 at {value:g}", _score("f1", f"{value:g}"), ".3f") for value in THRESHOLDS[1:]),
)
COST: tuple[Column, ...] = (
    ("parameters, M", lambda result: result["parameters"] / 1e6, ".2f"),
    ("MAC, M", lambda result: result["macs"] / 1e6, ",.1f"),
    ("time, ours = 1", lambda result: result["latency"]["ratio"], ".2f"),
    ("ms", lambda result: result["latency"]["ms"], ",.1f"),
)
BUDGET: tuple[Column, ...] = (
    ("samples seen", lambda result: result["samples"], ",.0f"),
    ("searched", lambda result: result["searched"], ",.0f"),
)
BOXES: tuple[Column, ...] = tuple((f"AP at {overlap:g}", _ap(overlap), ".3f") for overlap in OVERLAPS)


class Report:
    """What the store holds, as text. sources: where they are at hand, figure 5 is drawn over its photographs."""

    def __init__(self, store: Store, sources: Sources | None) -> None:
        self.store, self.sources = store, sources

    def results(self, cell: Cell) -> list[Result]:
        """A cell's results over every fold and seed that is done."""
        pattern = self.store.path(cell).name.replace("fold0-seed0", "fold*-seed*")
        found = []
        for path in sorted(self.store.path(cell).parent.glob(pattern)):
            fold, seed = (int(number) for number in re.findall(r"(?:fold|seed)(\d+)", path.stem))
            result = self.store.read(cell.on(fold, seed))
            assert result is not None
            found.append(result)
        return found

    def there(self, name: str) -> bool:
        """Whether any cell of an experiment is done."""
        return any(self.results(cell) for cell in experiments.EXPERIMENTS[name]())

    def section(self, name: str) -> str:
        """One experiment under its own heading: how to repeat it, its tables, what to know of them."""
        lines = [f"### {HEADINGS[name]}", "", self._provenance(name), ""]
        for title, heading, rows, columns in self._tables(name):
            lines += [f"**{title}**", "", *_table(heading, rows, columns), ""]
        return "\n".join([*lines, NOTES[name]])

    def _provenance(self, name: str) -> str:
        cells = experiments.EXPERIMENTS[name]()
        results = [result for cell in cells for result in self.results(cell)]
        folds = sorted({(r["identity"]["cell"]["task"] == "chips", r["identity"]["cell"]["fold"]) for r in results})
        named = {
            kind: ", ".join(str(fold) for chips, fold in folds if chips == flag)
            for kind, flag in (("chips", True), ("photographs", False))
        }
        held = "; ".join(f"fold {numbers} of the {kind}" for kind, numbers in named.items() if numbers)
        budget = self.store.budget
        optimizers = sorted({cell.optimizer for cell in cells})
        grids = "; ".join(f"{one} {', '.join(f'{rate:g}' for rate in budget.rates_of(one))}" for one in optimizers)
        minutes = sum(result["seconds"] for result in results) / 60
        data = "" if budget.name == "smoke" else " --data DIR"
        scale = f" Every network's channels are times {budget.multiplier:g}." if budget.multiplier != 1 else ""
        said = (
            f"`highwall paper {name} --budget {budget.name}{data}`: {len(results)} cells, {minutes:.0f} min of work. "
            f"Held out: {held or 'nothing yet'}. Seeds: {len(budget.seeds)}. Samples seen: {budget.samples:,} slices "
            f"or as many pixels. Learning rates tried, {budget.search:,} slices each: {grids}.{scale}"
        )
        return textwrap.fill(said, 120, break_long_words=False, break_on_hyphens=False)

    def _tables(self, name: str) -> list[tuple[str, str, list[tuple[str, list[Result]]], tuple[Column, ...]]]:
        """Title, what the first column is, rows by label, columns."""
        cells = experiments.EXPERIMENTS[name]()
        rows = [(cell, self.results(cell)) for cell in cells]
        chips = [(cell, found) for cell, found in rows if cell.task == "chips"]
        others = [(cell, found) for cell, found in rows if cell.task != "chips"]
        pairs = (("Satellite chips", chips), ("Crack pixels of photographs", others))
        if name == "table3":
            return [
                (title, "slice", [(f"{c.size} x {c.size}", found) for c, found in part], (*ACCURACY, *BUDGET))
                for title, part in pairs
            ]
        if name == "table5":
            columns = (*ACCURACY, *COST, *BUDGET)
            return [
                (title, "network", [(TITLES[c.network], found) for c, found in part], columns) for title, part in pairs
            ]
        if name == "table4":
            labelled = [(f"{TITLES[c.network]} + {c.optimizer}", found) for c, found in rows]
            return [(f"Crack pixels, {CHOSEN} x {CHOSEN}", "network + optimizer", labelled, (*ACCURACY, *BUDGET))]
        labelled = [(f"{TITLES[c.network]}, {READS[c.task]}", found) for c, found in rows]
        if name == "figure4":
            return [("Boxes around cracks", "network", labelled, (*BOXES, *COST, *BUDGET))]
        ranking: Column = ("average precision", _score("average_precision"), ".3f")
        columns = (*ACCURACY[:2], ACCURACY[3], *ACCURACY[5:], ranking)
        return [("Pixels of the maps shown", "network", labelled, columns)]

    def write(self, document: Path) -> list[Path]:
        """Rewrite the document between its marks, and the pictures beside it; returns what was written."""
        images = document.parent / "images"
        written: list[Path] = []
        sections = []
        for name in experiments.EXPERIMENTS:
            if not self.there(name):
                continue
            picture = images / f"paper-{name}.png"
            if name == "figure4":
                figures.bars([(label, found) for label, found in self._tables(name)[0][2] if found], picture)
                written.append(picture)
            if name == "figure5" and self.sources is not None:
                figures.panel(self.store, experiments.figure5(), self.sources, picture)
                written.append(picture)
            text = self.section(name)
            if picture.is_file():
                text += f"\n\n![{HEADINGS[name]}](images/{picture.name})"
            sections.append(text)
        body = "\n\n".join([BEGIN, INTRODUCTION, *sections, END])
        write_text(document, _between_marks(document, body))
        return [document, *written]


HEADINGS = {
    "table3": "Table 3: slice sizes",
    "table4": "Table 4: optimizers",
    "table5": "Table 5: networks",
    "figure4": "Figure 4: boxes around cracks",
    "figure5": "Figure 5: maps to look at",
}
READS = {"patches": f"{SLICE} x {SLICE} windows", "photographs": "whole photographs"}
NOTES = {
    "table3": """\
A chip is labelled as a whole, so its centre says less of the label the smaller it is cut. A slice of a photograph is
labelled by its centre pixel, as in the paper, half of them cracks in learning and judging alike; all sizes are cut
around the same pixels.""",
    "table4": """\
All three do one task, crack or not at the centre pixel of a slice: the RNN reads its rows, and U-Net, a network of
pixels, gives the logit of its centre pixel and learns from that pixel's label alone.""",
    "table5": """\
SSD's task is boxes, so it cannot classify chips; among crack pixels it is the SSD of figure 4, which learned the
training photographs' boxes, and a pixel scores as the surest box over it. Its cost is of a whole photograph, beside
our network of pixels.""",
    "figure4": """\
True boxes are the components of a mask with 16 pixels or more. A classifier slides over the photograph, a window every
16 pixels; its map, like those of networks that read photographs whole, is cut into components, each with the score of
its surest pixel, at 0.5, 0.7, 0.8 or 0.9, whichever gives the best boxes on validation photographs; the JSON has all
four. SSD gives boxes itself. AP is COCO's. At an overlap of 1.0 a box must be right to
the last pixel on every side, which is degenerate: a number near 0 is what an honest detector has there. Costs are of a
whole photograph. Networks that read photographs whole learn from crops with as many pixels as the slices have, but
from every pixel's label; their samples seen are crops.""",
    "figure5": """\
The first photographs of the held-out fold that have cracks: red where a map says crack, the masks outlined in the first
column. P, R and F1 are of single pixels over all photographs judged, where few in a hundred are crack. AUC and average
precision look at the order of the pixels alone: at this budget a network of pixels ranks them long before it calls
one of them surer than 0.5.""",
}


def _table(heading: str, rows: Sequence[tuple[str, list[Result]]], columns: Sequence[Column]) -> list[str]:
    """Markdown lines; what could not be run or did not stay finite has its row, and below it the reason."""
    heads = [heading, *(title for title, _, _ in columns), "lr"]
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    notes = []
    for label, results in rows:
        done = [result for result in results if result["status"] == "done"]
        failed = [result for result in results if result["status"] != "done"]
        notes += [f"{label}: {result['status']}: {result['reason']}." for result in failed]
        cells = [_spread([value(result) for result in done], form) for _, value, form in columns] if done else []
        if not done:
            said = failed[0]["status"] if failed else "not run yet"
            cells = [said] + ["-"] * (len(columns) - 1)
        rates = ", ".join(dict.fromkeys(f"{result['lr']:g}" for result in done)) or "-"
        lines.append("| " + " | ".join([label, *cells, rates]) + " |")
    return lines + [line for note in dict.fromkeys(notes) for line in ("", note)]


def _spread(values: Sequence[float | None], form: str) -> str:
    """The mean, and the standard deviation where there are several."""
    numbers = [value for value in values if value is not None]
    shown = format(statistics.mean(numbers), form)
    several = len(numbers) > 1 and statistics.stdev(numbers) > 0
    return f"{shown} ± {format(statistics.stdev(numbers), form)}" if several else shown


def _between_marks(document: Path, body: str) -> str:
    """The document with everything between the marks replaced; a new one where there is none."""
    if not document.is_file():
        return f"# Results\n\n{body}\n"
    text = document.read_text(encoding="utf-8")
    if BEGIN not in text and END not in text:
        return f"{text.rstrip()}\n\n{body}\n"
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise HighwallError(f"{document} has one of the two marks around the paper's part only; mend or remove it")
    return before + body + after
