"""Figure 6 as Markdown: measured and modelled results in tables of their own, beside what the paper reports."""

import json
from pathlib import Path
from statistics import mean, median
from typing import Any, Final

from benchmarks.edge.model import implied_speeds, reduction
from benchmarks.paper.networks import TITLES
from targets.runtime.errors import HighwallError

NAMES: Final = {"ours": TITLES["cracknet"], "unet": TITLES["unet"], "rnn": TITLES["rnn"]}
HEADS: Final = {"predict": "prediction", "train": "training"}
PAPER: Final = {"predict": "23.6 % on average, 28.1 % at most", "train": "12.8 to 16.4 %"}


def results(folder: Path) -> list[dict[str, Any]]:
    """Every full result in `folder`. Raises HighwallError where there is none, or one cannot be read."""
    found = []
    for path in sorted(folder.glob("figure6*.json")):
        try:
            found.append(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise HighwallError(f"{path} is no result of this benchmark: {error}") from error
    if not found:
        raise HighwallError(f"there are no results in {folder}; make some with `python -m benchmarks.edge`")
    return found


def report(found: list[dict[str, Any]]) -> str:
    """A table for each result, and what there is to know about them."""
    return "\n\n".join([*map(table, found), explanation(found)])


def table(result: dict[str, Any]) -> str:
    """Rows by task, link and network; medians of the repeats, with the least and the most per cent taken off.

    Raises HighwallError where a result holds cells of another kind than its own, or is none.
    """
    try:
        return _table(result)
    except (KeyError, TypeError, AttributeError) as error:
        raise HighwallError(f"this is no result of `python -m benchmarks.edge`: {error!r} is missing") from error


def _table(result: dict[str, Any]) -> str:
    kind, cells = result["kind"], result["cells"].values()
    if others := {cell["kind"] for cell in cells} - {kind}:
        raise HighwallError(f"a {kind} result holds {', '.join(sorted(others))} cells; kinds are never mixed, run anew")
    head = ["task", "link", "network", "cloud, s", "edge, s", "taken off", "sent cloud / edge, KB"]
    head += ["KB a detection", "of the quota used, %", "energy cloud / edge, J (estimated)", "equal", "runs (noisy)"]
    rows = [head, ["---"] * len(head)]
    for task in HEADS:
        for link in (link["name"] for link in result["links"]):
            for network in result["plan"]["networks"]:
                wanted = (task, link, network)
                same = [cell for cell in cells if (cell["task"], cell["link"], cell["network"]) == wanted]
                if same:
                    rows.append([HEADS[task], link, NAMES[network], *_row(same, result["plan"]["cores"])])
    body = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"**{kind.capitalize()}** (`{result['command']}`), {result['plan']['cores']:g} cores a host\n\n{body}"


def _row(cells: list[dict[str, Any]], cores: float) -> list[str]:
    off = [reduction(cell["cloud"]["seconds"], cell["edge"]["seconds"]) for cell in cells]
    low, high = _off(min(off)), _off(max(off))
    unit = high.partition(" ")[2]
    spread = f" ({low.removesuffix(f' {unit}')} to {high})" if len(off) > 1 else ""
    sides = {
        key: [median(cell[setting][key] for cell in cells) for setting in ("cloud", "edge")]
        for key in ("seconds", "sent_bytes", "estimated_j")
    }
    # Only ours is trained, so only its detections are any.
    found = cells[0].get("equal", {}).get("detections", 0) if cells[0]["network"] == "ours" else 0
    sent = sides["sent_bytes"]
    measured = cells[0]["kind"] == "measured"
    used = [median(_used(cell, setting, cores) for cell in cells) for setting in ("cloud", "edge")] if measured else []
    return [
        *(f"{value:.3g}" for value in sides["seconds"]),
        f"**{_off(median(off))}**{spread}",
        " / ".join(f"{value / 1e3:,.1f}" for value in sent),
        " / ".join(f"{value / 1e3 / found:.2f}" for value in sent) if found else "",
        " / ".join(f"{value:.0f}" for value in used),
        " / ".join(f"{value:.3g}" for value in sides["estimated_j"]),
        ("yes" if all(cell["equal"]["equal"] for cell in cells) else "**no**") if measured else "not checked",
        f"{len(cells)} ({sum(cell['noisy'] for cell in cells)})" if measured else "none",
    ]


def _off(percent: float) -> str:
    """Per cent taken off; where the edge takes more than twice as long, how many times."""
    return f"{percent:.1f} %" if percent >= -100 else f"{1 - percent / 100:.1f} times as long"


def _used(cell: dict[str, Any], setting: str, cores: float) -> float:
    """Per cent of the time that those who compute were allowed; the rest they waited, for a link or for a core."""
    computing = 1 if setting == "cloud" else len(cell[setting]["cpu_s"]) - (cell["task"] == "predict")
    return float(100 * sum(cell[setting]["cpu_s"]) / (cell[setting]["seconds"] * cores * computing))


def explanation(found: list[dict[str, Any]]) -> str:
    """The paper's figures, why ours differ, and what this machine cannot show."""
    lines = [f"The paper reports, without saying of what: {' off prediction, '.join(PAPER.values())} off training."]
    for result in found:
        for task, head in HEADS.items():
            cells = [cell for cell in result["cells"].values() if cell["task"] == task]
            for link in sorted({cell["link"] for cell in cells}, reverse=True):
                off = [reduction(c["cloud"]["seconds"], c["edge"]["seconds"]) for c in cells if c["link"] == link]
                words = f"{result['kind']}, {link} link: {_off(mean(off))} on average, {_off(max(off))} at best"
                lines.append(f"Off {head}, {words}, over all networks and runs.")
        ratios = sorted(row["modelled_s"] / row["measured_s"] for row in result.get("comparison", ()))
        if ratios:
            words = f"the median is {median(ratios):.2f}, the extremes are {ratios[0]:.2f} and {ratios[-1]:.2f}"
            lines.append(f"The model's seconds over the measured ones, given the cloud's compute times: {words}.")
    predicted = [implied_speeds(percent)[0] for percent in (28.1, 23.6)]
    trained = [implied_speeds(percent)[1] for percent in (16.4, 12.8)]
    lines += [
        "Here cloud and edge compute alike, so free links would take 50 % off prediction (two hosts for one) and "
        "66.7 % off training (three for one). The paper's cloud is several computers: were its links free, its "
        f"prediction would mean a cloud of {predicted[0]:.2f} to {predicted[1]:.2f} edge computers, and its training "
        f"one of {trained[0]:.1f} to {trained[1]:.1f}. One cloud cannot be both, so part of its training time is "
        "something else, of which the paper says nothing.",
        "On the mine's link gradients cross at every step and samples once, so data-parallel training loses; it would "
        "lose more by as many times as training passes over its samples, which here is once.",
        "Two cores cannot show a faster cloud, more edges, or 1 GB/s: a Python process at this quota sends less (see "
        "`probes`). Three quotas share one cache and one memory bus, and others' load is in the runs marked noisy. "
        "Untrained weights (U-Net, RNN) cost the time of trained ones; their detections mean nothing and are not "
        "counted. Training is a few steps: it shows time and equality, not what a network learns.",
        "Energy is an estimate above idle: CPU seconds as if a Pi 4B's core had spent them, bytes as if sent by Wi-Fi.",
    ]
    return "\n".join(f"- {line}" for line in lines)
