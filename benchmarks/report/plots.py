"""The page's pictures, as SVG that is the same from the same results."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from benchmarks.suite.table import number

# Measured, emulated, estimated: the same colours as the page's badges. Ours stands out, the others do not.
OURS, OTHERS, EMULATED, ESTIMATED = "#0f766e", "#94a3b8", "#c2410c", "#7c3aed"
SERIES: Final = ("#0f766e", "#1d4ed8", "#c2410c", "#7c3aed", "#a16207", "#be185d")
STYLE: Final[Any] = {  # matplotlib's own type lists four hundred names
    "svg.hashsalt": "highwall",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#64748b",
    "axes.labelcolor": "#334155",
    "xtick.color": "#334155",
    "ytick.color": "#334155",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e2e8f0",
    "legend.frameon": False,
    "svg.fonttype": "none",
}

Label = tuple[float, float, str, str]  # x, y, text, colour
Box = tuple[float, float, float, float]  # left, bottom, right, top


def saving(rows: Sequence[Mapping[str, float]]) -> str:
    """How many times fewer MACs a separable convolution takes, over channels, a line a kernel."""
    with mpl.rc_context(STYLE):
        figure, axes = _axes(5.6, 3.2)
        for colour, side in zip(SERIES, sorted({row["kernel"] for row in rows}), strict=False):
            of = [(row["channels"], row["saving"]) for row in rows if row["kernel"] == side]
            axes.plot(*zip(*of, strict=True), marker="o", markersize=3, color=colour, label=f"{side:g} x {side:g}")
            axes.axhline(side**2, color=colour, linewidth=0.5, linestyle=":")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xlabel("channels in and out")
        axes.set_ylabel("times fewer MACs")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.legend(title="kernel", loc="upper left", ncols=2)
        return _svg(figure)


def bars(rows: Sequence[tuple[str, float, bool]], unit: str, colour: str = OTHERS) -> str:
    """A bar each (name, value, ours), shortest on top, on a logarithmic axis, with its figure."""
    with mpl.rc_context(STYLE):
        figure, axes = _axes(6.4, 0.5 + 0.26 * len(rows))
        ordered = sorted(rows, key=lambda row: -row[1])
        colours = [OURS if ours else colour for _, _, ours in ordered]
        drawn = axes.barh([name for name, _, _ in ordered], [value for _, value, _ in ordered], color=colours)
        axes.bar_label(drawn, [f" {number(value)}" for _, value, _ in ordered])
        axes.set_xscale("log")
        axes.set_xlabel(unit)
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.15)
        return _svg(figure)


def roofline(top: Mapping[str, float], cells: Sequence[Mapping[str, Any]]) -> str:
    """Each network's place under the machine's roof: MACs for each byte of traffic against GMAC a second."""
    with mpl.rc_context(STYLE):
        figure, axes = _axes(7.4, 4.2)
        most = max(cell["intensity"] for cell in cells) * 2
        least = min(cell["intensity"] for cell in cells) / 2
        labels: list[Label] = []
        for precision, colour, peak in (("fp32", SERIES[1], top["fp32_gmacs"]), ("int8", SERIES[2], top["int8_gmacs"])):
            ridge = peak / top["gbytes"]
            line = [(least, least * top["gbytes"]), (ridge, peak), (max(most, ridge), peak)]
            axes.plot(*zip(*line, strict=True), color=colour, linewidth=1.2, label=f"roof, {precision}")
            for cell in cells:
                if cell["precision"] != precision:
                    continue
                speed = cell["macs"] / cell["p50_ms"] / 1e6
                ours = cell["network"] == "cracknet"
                marker = "*" if ours else "o"
                axes.plot(cell["intensity"], speed, marker, color=OURS if ours else colour, markersize=8 if ours else 4)
                name = "ours" if ours else cell["title"]
                labels.append((cell["intensity"], speed, f"{name} {cell['size']}", OURS if ours else "#475569"))
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("MACs for each byte that must cross memory")
        axes.set_ylabel("GMAC a second")
        axes.legend(loc="lower right")
        _beside(figure, axes, labels)
        return _svg(figure)


def sizes(lines: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """Milliseconds against pixels a side, a line a network."""
    with mpl.rc_context(STYLE):
        figure, axes = _axes(5.6, 3.2)
        for colour, (name, points) in zip(SERIES, lines.items(), strict=False):
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, color=colour, label=name)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(sorted({size for points in lines.values() for size, _ in points}))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("pixels a side")
        axes.set_ylabel("ms an image")
        axes.margins(x=0.12)
        axes.legend()
        _beside(figure, axes, [(*points[-1], number(points[-1][1]), "black") for points in lines.values()])
        return _svg(figure)


def ratios(rows: Sequence[tuple[str, float, float, float]]) -> str:
    """Times ours, with its interval: left of the line is faster than ours, right of it slower."""
    with mpl.rc_context(STYLE):
        figure, axes = _axes(6.4, 0.6 + 0.24 * len(rows))
        ordered = sorted(rows, key=lambda row: -row[1])
        for at, (_, middle, low, high) in enumerate(ordered):
            axes.plot((low, high), (at, at), color=OTHERS, linewidth=2)
            axes.plot(middle, at, "o", color=OURS if middle < 1 else SERIES[1], markersize=4)
            axes.annotate(f"{middle:.3g}", (high, at), textcoords="offset points", xytext=(5, -3), fontsize=7)
        axes.set_yticks(range(len(ordered)), [name for name, *_ in ordered])
        axes.axvline(1, color=OURS, linewidth=1)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.set_xlabel("times our artifact's time")
        axes.margins(x=0.12)
        return _svg(figure)


def off(rows: Sequence[tuple[str, float]]) -> str:
    """Per cent taken off, a bar each; below nothing it was added. The paper's ranges are dotted."""
    with mpl.rc_context(STYLE):
        figure, axes = _axes(6.4, 0.6 + 0.26 * len(rows))
        ordered = list(reversed(rows))
        colours = [OURS if percent > 0 else SERIES[2] for _, percent in ordered]
        drawn = axes.barh([name for name, _ in ordered], [percent for _, percent in ordered], color=colours)
        least = max(-120.0, min(0.0, *(percent for _, percent in rows)) - 10)
        for bar, (_, percent) in zip(drawn, ordered, strict=True):
            middle = bar.get_y() + bar.get_height() / 2
            if percent < least:  # a bar that leaves the picture says how far it goes
                axes.text(least + 3, middle, f"{1 - percent / 100:.3g} times as long", va="center", color="white")
            else:
                axes.text(max(percent, 0.0) + 1, middle, f"{percent:.0f}", va="center")
        for percent in (12.8, 16.4, 23.6, 28.1):
            axes.axvline(percent, color=ESTIMATED, linewidth=0.8, linestyle=":")
        axes.set_xlim(least, 100)
        axes.set_xlabel("% of the cloud's time taken off")
        axes.grid(axis="y", visible=False)
        return _svg(figure)


def _beside(figure: Figure, axes: Axes, labels: Sequence[Label]) -> None:
    """Write each label at the first free place beside its point; at the first of all where none is free."""
    size, dpi = 6, figure.dpi / 72
    figure.draw_without_rendering()  # settles the layout, so that points have places
    points = [axes.transData.transform((x, y)) / dpi for x, y, *_ in labels]
    taken = [(x - 3, y - 3, x + 3, y + 3) for x, y in points]
    for (x, y), (at_x, at_y, text, colour) in zip(points, labels, strict=True):
        wide = 0.62 * size * len(text)
        places = [(dx, dy) for dx in (5.0, -5.0 - wide) for dy in (0.0, 8.0, -8.0)]
        boxes = [(x + dx, y + dy - size / 2, x + dx + wide, y + dy + size / 2) for dx, dy in places]
        free = (k for k, box in enumerate(boxes) if not any(_overlap(box, other) for other in taken))
        best = next(free, 0)
        taken.append(boxes[best])
        axes.annotate(
            text, (at_x, at_y), places[best], textcoords="offset points", va="center", fontsize=size, color=colour
        )


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _axes(wide: float, high: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(wide, high), layout="constrained")
    return figure, figure.add_subplot()


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    found = text.getvalue()
    return found[found.index("<svg") :]
