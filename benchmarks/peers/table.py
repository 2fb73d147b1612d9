"""The peers' results as Markdown."""

import json
from pathlib import Path
from typing import Any, Final

from benchmarks.suite.table import number
from targets.runtime.errors import HighwallError

RESULTS: Final = Path(__file__).parents[1] / "results" / "peers"
SHIPPED: Final = "tflite-int8w"  # the recipe that both networks' contracts keep, so what everyone is measured beside
HEAD: Final = (
    "engine",
    "precision",
    "threads",
    "p50 ms",
    "times ours (95 %)",
    "import to first answer ms",
    "MiB",
    "file, kB",
    "AUC",
    "F1",
    "off torch, mean",
    "largest",
)


def table(folder: Path = RESULTS) -> str:
    """A table for each network, fastest first; what could not run says why. Raises HighwallError where nothing is."""
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise HighwallError(f"there are no results in {folder}; write some with python -m benchmarks.peers")
    lines = []
    for path in paths:
        result = read_result(path)
        lines += [f"**{result['network']}, beside the artifact that ships ({SHIPPED})**", ""]
        lines += [_line(HEAD), _line(["---"] * len(HEAD))]
        lines += [_line(row(cell)) for cell in ordered(result) if "p50_ms" in cell]
        gaps = {f"- {cell['title']}: {why}": None for cell in ordered(result) if (why := _why(cell))}
        lines += ["", *gaps, ""]
    return "\n".join(lines).rstrip()


def read_result(path: Path) -> dict[str, Any]:
    """A result that is there; nothing where it is none. Raises HighwallError where it is damaged."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found["cells"], dict) or not isinstance(found["network"], str):
            raise ValueError("no cells")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise HighwallError(f"{path} is no result of `benchmarks.peers`: {error}; move it away") from error
    return dict(found)


def ordered(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Cells by threads, then time."""
    return sorted(result["cells"].values(), key=lambda cell: (cell["threads"], cell.get("p50_ms", float("inf"))))


def row(cell: dict[str, Any]) -> list[str]:
    """One cell in words, by HEAD."""
    low, high = cell["ratio_interval"]
    noisy = " (noisy)" if cell["noise"] else ""
    title = cell["title"].removesuffix(cell["precision"]).strip().removesuffix("-")
    return [
        f"{title} {cell['version']}".strip(),
        cell["precision"],
        str(cell["threads"]),
        f"{number(cell['p50_ms'])}{noisy}",
        f"{cell['ratio']:.3g} ({low:.3g} to {high:.3g})",
        f"{cell['engine_ms'] + cell['load_ms'] + cell['first_ms']:,.0f}",
        "" if cell["peak_mib"] is None else f"{cell['peak_mib']:,.0f}",
        f"{cell['model_bytes'] / 1000:,.0f}",
        f"{cell['auc']:.3f}",
        f"{cell['f1']:.3f}",
        f"{cell['mean_difference']:.1e}",
        f"{cell['largest_difference']:.1e}",
    ]


def _why(cell: dict[str, Any]) -> str:
    if "gap" in cell:
        return f"not measured: {cell['gap']}"
    return f"did not run: {cell['reason']}" if "reason" in cell else ""


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"
