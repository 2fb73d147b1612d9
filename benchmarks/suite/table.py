"""A suite's results as text."""

from collections.abc import Iterator
from typing import Any

HEAD = ("network", "MAC, M", "precision", "threads", "p50 ms", "p95 ms", "times ours (95 %)", "MiB", "first answer ms")


def table(result: dict[str, Any]) -> str:
    """Markdown: a table for each task and size, fastest first; noisy rows are marked, absent ones say why."""
    cells = result["cells"].values()
    groups = sorted({(cell["task"], cell["size"]) for cell in cells})
    lines = []
    for task, size in groups:
        lines += [f"**{task}, {size}x{size}**", ""]
        lines += rows(HEAD, (row(cell) for cell in ordered(result, task, size)))
        gaps = [one for one in result["absent"] if (one["task"], one["size"]) == (task, size)]
        lines += ["", *(f"- not run: {one['title']} at {one['precision']}: {one['reason']}" for one in gaps), ""]
    return "\n".join(lines)


def ordered(result: dict[str, Any], task: str, size: int) -> list[dict[str, Any]]:
    """The cells of one task and size: by threads, then precision, then time; what did not run comes last."""
    found = [cell for cell in result["cells"].values() if (cell["task"], cell["size"]) == (task, size)]
    return sorted(found, key=lambda cell: (cell["threads"], cell["precision"], cell.get("p50_ms", float("inf"))))


def row(cell: dict[str, Any]) -> list[str]:
    """One cell in words, by HEAD."""
    start = [cell["title"], f"{cell['macs'] / 1e6:,.1f}", cell["precision"], str(cell["threads"])]
    if "p50_ms" not in cell:
        return [*start, f"did not run: {cell['reason']}", *[""] * (len(HEAD) - len(start) - 1)]
    low, high = cell["ratio_interval"]
    noisy = " (noisy)" if cell["noise"] else ""
    peak = "" if cell["peak_mib"] is None else f"{cell['peak_mib']:,.0f}"
    against = f"{cell['ratio']:.3g} ({low:.3g} to {high:.3g})"
    times = [f"{number(cell['p50_ms'])}{noisy}", number(cell["p95_ms"])]
    return [*start, *times, against, peak, f"{cell['start_ms']:,.0f}"]


def number(value: float) -> str:
    """Four digits, and thousands parted."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def rows(head: tuple[str, ...], body: Iterator[list[str]]) -> list[str]:
    """A Markdown table."""
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *body)]
