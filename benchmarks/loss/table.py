"""The table of what clients lose, from the results of their runs."""

import json
from pathlib import Path
from typing import Any, Final

from benchmarks.loss.scenarios import SCENARIOS
from targets.runtime.errors import HighwallError

RESULTS: Final = Path(__file__).parents[1] / "results" / "loss"


def results(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """What was found, by client and scenario. Raises HighwallError where there is nothing, or it cannot be read."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            found[said["client"], said["scenario"]] = said
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise HighwallError(f"{path} is no result of `bench loss`: {error}") from error
    if not found:
        raise HighwallError(f"there are no results in {folder}; write some with --results {folder}")
    return found


def table(folder: Path = RESULTS) -> str:
    """Markdown: a row for each scenario, and for each client what it lost of what was sent, and what it used."""
    found = results(folder)
    clients = sorted({client for client, _ in found})
    head = ["what happens", "sent"]
    head += [f"{client}: lost{twice}, MiB, threads, % of a core" for client in clients for twice in (" (twice)",)]
    rows = [head, ["---"] * len(head)]
    for name, scenario in SCENARIOS.items():
        said = [found.get((client, name)) for client in clients]
        if not any(said):
            continue
        sent = max(one["sent"] for one in said if one)
        rows.append([scenario.about, f"{sent:,}", *(_cell(one) for one in said)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(said: dict[str, Any] | None) -> str:
    if said is None:
        return "not run"
    lost = f"**{said['lost']:,}**" + (f" ({said['duplicated']:,})" if said["duplicated"] else "")
    owned = f", {said['declared']:,} owned up to" if said["declared"] else ""
    return f"{lost}{owned}, {said['rss_mib']:.0f}, {said['threads']}, {said['cpu_percent']:.1f}"
