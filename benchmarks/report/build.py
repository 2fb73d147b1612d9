"""The page and the Markdown of all results, and what changed since the last ones."""

import html
import json
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.report import glance
from benchmarks.report.sections import Section, every
from benchmarks.report.tables import inline
from targets.runtime.errors import HighwallError
from targets.runtime.files import write_text

RESULTS: Final = Path(__file__).parents[1] / "results"
TEMPLATE: Final = Path(__file__).parent / "page.html"
EMBEDDED: Final = re.compile(r'<script type="application/json" id="figures">(.*?)</script>', re.DOTALL)
TITLE: Final = "Highwall: benchmarks"
CHANGED: Final = 0.05  # a figure that moved by less is the machine's mood


def build(
    results: Path | None,
    out: Path,
    markdown: Path | None,
    against: Path | None,
    as_json: bool,
    say: Callable[[str], None],
) -> int:
    """Write the page to `out`, tables to `markdown` where one is named; 0.

    against: an earlier folder of results, or a page made earlier; without it, the page that lies at `out`. Raises
    HighwallError where there are no results, one is damaged, or that page holds no figures.
    """
    sections = every(results or RESULTS)
    figures = _figures_in(sections)
    if against is not None and against.is_dir():
        before = _figures_in(every(against))
    else:
        before = _figures_of(against or out, required=against is not None)
    changes = compare(before, figures)
    at_a_glance = glance.rows(results or RESULTS)
    write_text(out, _page(sections, at_a_glance, changes, bool(before), figures))
    say(f"wrote {out}")
    if markdown is not None:
        write_text(markdown, as_markdown(sections, at_a_glance))
        say(f"wrote {markdown}")
    if as_json:
        print(json.dumps({"figures": figures, "changes": changes, "glance": [row.as_dict() for row in at_a_glance]}))
    else:
        for row in at_a_glance:
            print(f"{row.verdict:12} {row.what}: {row.figure}")
    return 0


def compare(before: Mapping[str, float], now: Mapping[str, float]) -> list[dict[str, Any]]:
    """Figures that are new, gone, or moved by more than CHANGED of what they were."""
    found: list[dict[str, Any]] = []
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if old is None or new is None or abs(new - old) > CHANGED * abs(old):
            found.append({"figure": name, "before": old, "now": new})
    return found


def as_markdown(sections: Sequence[Section], at_a_glance: Sequence[glance.Row]) -> str:
    """The document: at a glance, then every section's words, commands and tables."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `highwall bench report --markdown docs/benchmarks.md` from `benchmarks/results/`; the same with",
        "pictures is one page, [benchmarks.html](benchmarks.html). To add a machine: `pip install 'highwall[bench]'`,",
        "`highwall bench suite` on it, and commit the one file that it writes. *Measured* was timed on the machine",
        "named, *emulated* counted in an emulator, *estimated* worked out from other figures, *counted* on paper.",
        "",
        glance.table(at_a_glance).markdown(),
        "",
    ]
    for section in sections:
        lines += [f"## {section.title}", "", section.text, ""]
        if section.machine:
            lines += [f"{section.machine}.", ""]
        lines += [f"    {command}" for command in section.commands] + [""]
        for table in section.tables:
            lines += [table.markdown(), ""]
        lines += [*(f"- {point}" for point in section.points), ""] if section.points else []
    return "\n".join(lines).rstrip() + "\n"


def _page(
    sections: Sequence[Section],
    at_a_glance: Sequence[glance.Row],
    changes: Sequence[Mapping[str, Any]],
    compared: bool,
    figures: Mapping[str, float],
) -> str:
    parts = [
        f"<nav>{' '.join(f'<a href=#{one.name}>{html.escape(one.title)}</a>' for one in sections)}</nav>",
        f"<section id=glance>{glance.cards(at_a_glance)}</section>",
    ]
    for section in sections:
        commands = "".join(f"<pre>{html.escape(command)}</pre>" for command in section.commands)
        machine = f"<p class=machine>{html.escape(section.machine)}</p>" if section.machine else ""
        pictures = "".join(
            f"<figure>{draw()}<figcaption>{html.escape(caption)}</figcaption></figure>"
            for caption, draw in section.pictures
        )
        tables = "".join(table.html() for table in section.tables)
        text = re.sub(r"`(.+?)`", r"<code>\1</code>", html.escape(section.text))
        parts.append(
            f"<section id={section.name}><h2>{html.escape(section.title)}</h2><p>{text}</p>{machine}{commands}"
            f"<div class=pictures>{pictures}</div>{_points(section.points)}"
            f"<details open><summary>Tables</summary>{tables}</details></section>"
        )
    parts.append(_changes(changes, compared))
    embedded = json.dumps(figures, sort_keys=True).replace("</", "<\\/")
    page = TEMPLATE.read_text(encoding="utf-8")
    for name, value in (
        ("title", TITLE),
        ("commit", _commit()),
        ("body", "\n".join(parts)),
        ("figures", embedded),
    ):
        page = page.replace(f"<!-- {name} -->", value)
    return page


def _points(points: Sequence[str]) -> str:
    items = "".join(f"<li>{inline(point)}</li>" for point in points)
    return f"<ul>{items}</ul>" if items else ""


def _changes(changes: Sequence[Mapping[str, Any]], compared: bool) -> str:
    if not compared:
        said = "<p>There was no earlier page to compare with.</p>"
    elif not changes:
        said = f"<p>No figure moved by more than {CHANGED:.0%}.</p>"
    else:
        rows = "".join(
            f"<tr><td>{html.escape(one['figure'])}</td><td class=n>{_shown(one['before'])}</td>"
            f"<td class=n>{_shown(one['now'])}</td></tr>"
            for one in changes
        )
        said = (
            f"<details><summary>{len(changes)} figures are new, gone, or moved by more than {CHANGED:.0%}</summary>"
            f"<table><thead><tr><th>figure</th><th>before</th><th>now</th></tr></thead><tbody>{rows}</tbody></table>"
            "</details>"
        )
    return f"<section id=changes><h2>Since the last report</h2>{said}</section>"


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:,.6g}"


def _figures_in(sections: Sequence[Section]) -> dict[str, float]:
    return {name: value for section in sections for name, value in section.figures.items()}


def _figures_of(page: Path, required: bool) -> dict[str, float]:
    """The figures that a page holds; none where there is no page and none is asked for."""
    try:
        found = EMBEDDED.search(page.read_text(encoding="utf-8"))
        if found is None:
            raise ValueError("it holds no figures")
        figures = json.loads(found[1])
        return {str(name): float(value) for name, value in figures.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        if required or (page.exists() and not isinstance(error, OSError)):
            raise HighwallError(
                f"{page} is no page of `bench report` ({error}); name another with --against or --out"
            ) from error
        return {}


def _commit() -> str:
    """Of the checkout that this file lies in; words where it is none."""
    done = subprocess.run(
        ["git", "-c", "safe.directory=*", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"commit {done.stdout.strip()}" if done.returncode == 0 else "outside a checkout"
