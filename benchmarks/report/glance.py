"""The page's head: what was promised of the networks and the client, and what came of it."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any, Final

from benchmarks.edge.model import reduction
from benchmarks.report.sections import load, outdated
from benchmarks.report.tables import Table
from benchmarks.suite.run import read as read_suite

CNNS: Final = ("alexnet", "vgg16", "vgg19", "googlenet", "resnet50", "ssd300", "densenet121", "mobilenetv2")


@dataclass(frozen=True)
class Row:
    """verdict: reached, missed, or unknown, where nobody measured it or most runs were noisy."""

    what: str
    aim: str
    figure: str
    verdict: str
    kind: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def rows(folder: Path) -> list[Row]:
    """Every promise, of what this folder holds; those nobody measured say so."""
    path = folder / "suite" / "host.json"
    suite: dict[str, Any] = read_suite(path) if path.exists() else {}
    counted = {
        engine: load(folder / "instructions" / name)
        for engine, name in (("ONNX Runtime", "rpi4b.json"), ("LiteRT", "rpi4b-tflite.json"))
    }
    cells = suite.get("cells", {})
    timed = [
        *(_against_unet(cells, precision) for precision in ("fp32", "int8")),
        *(_against_cnns(cells, precision) for precision in ("fp32", "int8")),
        _against_rnn(cells, folder),
        _first_answer(cells),
    ]
    return [
        _macs(load(folder / "cost" / "cost.json")),
        *(_of_age(row, suite) for row in timed),
        *(_of_age(_instructions(found, engine), found) for engine, found in counted.items()),
        *_edge(folder),
        _loss(folder),
    ]


def table(found: Sequence[Row]) -> Table:
    """The same as Markdown or HTML can have it."""
    body = tuple((row.what, row.aim, row.figure, row.verdict, row.kind) for row in found)
    return Table("At a glance", "measured", ("", "aim", "found", "verdict", "kind"), body)


def cards(found: Sequence[Row]) -> str:
    """For the page."""
    made = "".join(
        f"<div class='card {row.verdict}'><small>{html.escape(row.what)}</small><b>{html.escape(row.figure)}</b>"
        f"<small>aim: {html.escape(row.aim)}; {row.verdict} <span class='kind {row.kind}'>{row.kind}</span></small>"
        "</div>"
        for row in found
    )
    return f"<div class=cards>{made}</div>"


def _of_age(row: Row, result: Mapping[str, Any] | None) -> Row:
    """A figure of networks that have changed since it was found is shown, and judges nothing."""
    if not result or row.verdict == "unknown" or not outdated(result):
        return row
    return replace(row, figure=f"{row.figure}; of an earlier network", verdict="unknown")


def _judged(what: str, aim: str, figure: str, reached: bool, kind: str) -> Row:
    return Row(what, aim, figure, "reached" if reached else "missed", kind)


def _unknown(what: str, aim: str, kind: str) -> Row:
    return Row(what, aim, "not measured", "unknown", kind)


def _macs(cost: dict[str, Any] | None) -> Row:
    what, aim = "crack at 448 x 448 beside the 31 M U-Net: MACs", "100 times fewer"
    counted = {
        (one["network"], one["task"], one["size"]): one["macs"]
        for one in (cost or {}).get("networks", [])
        if "macs" in one
    }
    ours, theirs = counted.get(("cracknet", "segment", 448)), counted.get(("unet", "segment", 448))
    if not ours or not theirs:
        return _unknown(what, aim, "counted")
    return _judged(
        what, aim, f"{theirs / ours:.0f} times fewer ({theirs / 1e9:.0f} GMAC)", theirs >= 100 * ours, "counted"
    )


def _cell(cells: dict[str, Any], name: str) -> dict[str, Any] | None:
    cell = cells.get(f"{name}-1")
    return cell if cell is not None and "p50_ms" in cell else None


def _quoted(row: Row, noisy: Sequence[bool]) -> Row:
    """A figure of noisy runs says how many they are; where most are, it is shown and judges nothing."""
    if not any(noisy):
        return row
    said = "noisy" if len(noisy) == 1 else f"{sum(noisy)} of {len(noisy)} runs noisy"
    verdict = "unknown" if 2 * sum(noisy) > len(noisy) else row.verdict
    return replace(row, figure=f"{row.figure}, {said}", verdict=verdict)


def _against_unet(cells: dict[str, Any], precision: str) -> Row:
    what, aim = f"crack at 448 x 448 beside the 31 M U-Net, {precision}: time", "20 times faster"
    cell = _cell(cells, f"unet-segment-448-{precision}")
    if cell is None:
        return _unknown(what, aim, "measured")
    low, high = cell["ratio_interval"]
    figure = f"{cell['ratio']:.3g} times ({low:.3g} to {high:.3g})"
    return _quoted(_judged(what, aim, figure, low >= 20, "measured"), [bool(cell["noise"])])


def _against_cnns(cells: dict[str, Any], precision: str) -> Row:
    what, aim = f"mine at 48 x 48 beside the eight CNNs, {precision}: time", "faster than each"
    names = {name: ("detect-300" if name == "ssd300" else "classify-48") for name in CNNS}
    beside = (_cell(cells, f"{name}-{kind}-{precision}") for name, kind in names.items())
    found = [cell for cell in beside if cell is not None]
    ratios = {cell["title"]: cell["ratio"] for cell in found}
    if len(ratios) < len(CNNS):
        return _unknown(what, aim, "measured")
    faster = [title for title, ratio in ratios.items() if ratio > 1]
    slower = ", ".join(f"{title} takes {ratio:.2g} of our time" for title, ratio in ratios.items() if ratio <= 1)
    figure = f"faster than {len(faster)} of 8" + (f"; {slower}" if slower else "")
    return _quoted(_judged(what, aim, figure, not slower, "measured"), [bool(cell["noise"]) for cell in found])


def _against_rnn(cells: dict[str, Any], folder: Path) -> Row:
    """Time at the shipped size, and AUC where both learned one task from the same samples (the paper's table 4)."""
    what, aim = "mine at 48 x 48 beside the RNN: time, and AUC of both on crack pixels", "never both slower and worse"
    cell = _cell(cells, "rnn-classify-48-fp32")
    scored = [
        load(folder / "paper" / "cpu" / "slices" / f"{name}-18-adam-fold0-seed0.json") for name in ("cracknet", "rnn")
    ]
    aucs = [one["scores"]["0.5"]["auc"] for one in scored if one is not None and one.get("status") == "done"]
    if cell is None or len(aucs) < 2:
        return _unknown(what, aim, "measured")
    figure = f"the RNN takes {cell['ratio']:.2g} of our time; AUC {aucs[0]:.3f} against its {aucs[1]:.3f}"
    row = _judged(what, aim, figure, cell["ratio"] > 1 or aucs[0] > aucs[1], "measured")
    return _quoted(row, [bool(cell["noise"])])


def _instructions(found: dict[str, Any] | None, engine: str) -> Row:
    what = f"mine at 48 x 48 on an emulated Pi 4B beside seven CNNs, {engine}, fp32: instructions"
    aim = "fewer than each"
    cells = {
        cell["network"]: cell
        for cell in (found or {}).get("cells", {}).values()
        if (cell.get("size"), cell.get("precision"), cell.get("task")) == (48, "fp32", "classify")
        and "instructions" in cell
    }
    others = [cell for name, cell in cells.items() if name in CNNS]
    if "cracknet" not in cells or len(others) < len(CNNS) - 1:
        return _unknown(what, aim, "emulated")
    ours = cells["cracknet"]["instructions"]
    best = min(others, key=lambda cell: int(cell["instructions"]))
    figure = f"{ours / 1e6:.1f} M; the least of the others, {best['title']}, {best['instructions'] / 1e6:.1f} M"
    return _judged(what, aim, figure, ours < best["instructions"], "emulated")


def _first_answer(cells: dict[str, Any]) -> Row:
    what, aim = "from the start of the process to the first answer", "under 1 s"
    found = [
        (name, cell)
        for name, key in (("mine", "cracknet-classify-48"), ("crack", "cracknet-segment-448"))
        for cell in [_cell(cells, f"{key}-fp32")]
        if cell is not None
    ]
    if not found:
        return _unknown(what, aim, "measured")
    figure = ", ".join(f"{name} {cell['start_ms']:,.0f} ms" for name, cell in found)
    row = _judged(what, aim, figure, all(cell["start_ms"] < 1000 for _, cell in found), "measured")
    return _quoted(row, [bool(cell["noise"]) for _, cell in found])


def _edge(folder: Path) -> list[Row]:
    """The paper's own figure beside ours, over its own link."""
    what, aim = "edge beside cloud, the paper's link: time off prediction", "the paper: 23.6 % on average"
    found = load(folder / "edge" / "figure6.json")
    cells = [
        cell
        for cell in (found or {}).get("cells", {}).values()
        if (cell["task"], cell["link"], cell["kind"]) == ("predict", "paper", "measured")
    ]
    if not cells:
        return [_unknown(what, aim, "measured")]
    off = mean(reduction(cell["cloud"]["seconds"], cell["edge"]["seconds"]) for cell in cells)
    row = _judged(what, aim, f"{off:.0f} % on average", off >= 23.6, "measured")
    return [_of_age(_quoted(row, [bool(cell.get("noisy")) for cell in cells]), found)]


def _loss(folder: Path) -> Row:
    what, aim = "readings lost by our client in every scenario", "none that is not owned up to"
    found = [load(path) for path in sorted((folder / "loss").glob("highwall-*.json"))]
    said = [one for one in found if one is not None]
    if not said:
        return _unknown(what, aim, "measured")
    lost, sent = (sum(one[key] for one in said) for key in ("lost", "sent"))
    return _judged(what, aim, f"{lost} of {sent:,}", lost == 0, "measured")
