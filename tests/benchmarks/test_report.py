"""The report: every figure from JSON, three kinds kept apart, what changed since the last, and hostile results."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import highwall
from benchmarks.report import build, glance, plots, sections
from benchmarks.report.tables import KINDS, Table, parse
from benchmarks.suite.field import fingerprint
from targets.runtime.errors import HighwallError

RESULTS = build.RESULTS


class Page(HTMLParser):
    """Reads a page and notes what is asked for from elsewhere, and tags that are not closed."""

    VOID = ("meta", "br", "img", "link", "hr", "input", "path", "use", "rect", "circle")

    def __init__(self) -> None:
        super().__init__()
        self.outside: list[str] = []
        self.open: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href"):
                (self.links if (value or "").startswith("#") else self.outside).append(value or "")

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("report") / "page.html"
    assert build.build(RESULTS, out, None, None, True, lambda line: None) == 0
    return out.read_text(encoding="utf-8")


def test_the_page_is_whole_and_asks_for_nothing_from_elsewhere(page):
    reader = Page()
    reader.feed(page)
    assert reader.open == []
    assert reader.outside == []
    assert {link[1:] for link in reader.links if not link.startswith("#m") or link[1:] in reader.ids} <= set(reader.ids)
    assert "<svg" in page
    assert "<script src" not in page
    assert "url(http" not in page


def test_the_page_is_the_same_from_the_same_results(page, tmp_path):
    out = tmp_path / "again.html"
    build.build(RESULTS, out, None, None, True, lambda line: None)
    assert out.read_text(encoding="utf-8") == page


def test_the_committed_document_is_that_of_the_committed_results(root):
    text = build.as_markdown(sections.every(RESULTS), glance.rows(RESULTS))
    assert (root / "docs" / "benchmarks.md").read_text(encoding="utf-8") == text


def test_the_committed_page_holds_the_figures_of_the_committed_results(root):
    figures = {name: value for section in sections.every(RESULTS) for name, value in section.figures.items()}
    assert build._figures_of(root / "docs" / "benchmarks.html", required=True) == figures


def test_every_result_that_is_committed_names_its_command():
    for path in RESULTS.glob("*/*.json"):
        if path.parent.name in ("cost", "suite", "instructions", "loss", "peers", "edge"):
            assert json.loads(path.read_text(encoding="utf-8"))["command"], path


def test_figures_that_moved_are_told_and_those_that_did_not_are_not():
    changes = build.compare({"a": 1.0, "b": 2.0, "gone": 3.0}, {"a": 1.04, "b": 2.2, "new": 4.0})
    assert [(one["figure"], one["before"], one["now"]) for one in changes] == [
        ("b", 2.0, 2.2),
        ("gone", 3.0, None),
        ("new", None, 4.0),
    ]


def test_the_next_page_tells_the_difference_from_the_one_before(tmp_path, page):
    out = tmp_path / "page.html"
    out.write_text(re.sub(r'("[^"]*lost": )0', r"\g<1>7", page), encoding="utf-8")
    build.build(RESULTS, out, None, None, True, lambda line: None)
    assert "figures are new, gone, or moved" in out.read_text(encoding="utf-8")
    build.build(RESULTS, out, None, None, True, lambda line: None)
    assert "No figure moved" in out.read_text(encoding="utf-8")


def test_a_folder_of_earlier_results_is_compared_with(tmp_path, capsys):
    earlier = tmp_path / "earlier"
    shutil.copytree(RESULTS / "loss", earlier / "loss")
    for path in (earlier / "loss").glob("*.json"):
        said = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(said | {"lost": said["lost"] + 1_000_000}), encoding="utf-8")
    words = ["bench", "report", "--out", str(tmp_path / "p.html"), "--against", str(earlier), "--json"]
    assert highwall.main(words) == 0
    moved = [one for one in json.loads(capsys.readouterr().out)["changes"] if one["figure"].endswith(": lost")]
    assert moved
    assert {one["before"] - one["now"] for one in moved} == {1_000_000}
    empty = tmp_path / "empty"
    empty.mkdir()
    assert highwall.main([*words[:-2], str(empty)]) == 1
    assert "holds no results" in capsys.readouterr().err


def test_a_page_that_is_none_is_not_overwritten(tmp_path, capsys):
    out = tmp_path / "letter.html"
    out.write_text("my own page")
    assert highwall.main(["bench", "report", "--out", str(out)]) == 1
    assert "no page of `bench report`" in capsys.readouterr().err
    assert out.read_text() == "my own page"


def test_no_results_and_damaged_ones_are_one_line(tmp_path):
    with pytest.raises(HighwallError, match="holds no results"):
        sections.every(tmp_path)
    (tmp_path / "cost").mkdir()
    for text in ("", "[]", "{", "[" * 100_000):
        (tmp_path / "cost" / "cost.json").write_text(text)
        with pytest.raises(HighwallError, match=r"cost\.json is no result"):
            sections.every(tmp_path)


def test_a_promise_that_nobody_measured_is_unknown_not_reached(tmp_path):
    assert {row.verdict for row in glance.rows(tmp_path)} == {"unknown"}


def suite(tmp_path: Path, field: int | None = None, **ratios: float) -> Path:
    """A folder with a suite of so many made-up cells, of the field that is here, or of another."""
    cells = {}
    for name, ratio in ratios.items():
        network, task, size = name.rsplit("_", 2)
        cells[f"{network}-{task}-{size}-fp32-1"] = {
            "title": network, "ratio": ratio, "ratio_interval": [ratio * 0.98, ratio * 1.02], "p50_ms": 1.0,
            "start_ms": 500.0, "noise": [], "network": network,
        }  # fmt: skip
    (tmp_path / "suite").mkdir()
    (tmp_path / "suite" / "host.json").write_text(
        json.dumps({"schema": 1, "field": field or fingerprint(), "cells": cells})
    )
    return tmp_path


@pytest.mark.parametrize(("ratio", "verdict"), [(26.0, "reached"), (20.1, "missed"), (3.0, "missed")])
def test_twenty_times_means_the_whole_interval(tmp_path, ratio, verdict):
    found = {row.what: row for row in glance.rows(suite(tmp_path, unet_segment_448=ratio))}
    row = next(row for what, row in found.items() if "U-Net, fp32: time" in what)
    assert row.verdict == verdict


def test_a_figure_of_noisy_runs_says_so_and_of_mostly_noisy_ones_judges_nothing():
    row = glance.Row("what", "aim", "44 %", "reached", "measured")
    assert glance._quoted(row, [False, False]) == row
    few = glance._quoted(row, [True, False, False])
    assert (few.figure, few.verdict) == ("44 %, 1 of 3 runs noisy", "reached")
    many = glance._quoted(row, [True, True, False])
    assert (many.figure, many.verdict) == ("44 %, 2 of 3 runs noisy", "unknown")
    assert glance._quoted(row, [True]).figure == "44 %, noisy"


@pytest.mark.parametrize(("noisy", "said", "verdict"), [(3, ", 3 of 4 runs noisy", "unknown"), (0, "", "reached")])
def test_noisy_runs_over_the_paper_s_link_are_owned_up_to(tmp_path, noisy, said, verdict):
    cell = {"task": "predict", "link": "paper", "kind": "measured", "cloud": {"seconds": 2}, "edge": {"seconds": 1}}
    cells = {str(at): cell | {"noisy": at < noisy} for at in range(4)}
    (tmp_path / "edge").mkdir()
    (tmp_path / "edge" / "figure6.json").write_text(json.dumps({"cells": cells}))
    row = next(row for row in glance.rows(tmp_path) if row.what.startswith("edge beside cloud"))
    assert (row.figure, row.verdict) == (f"50 % on average{said}", verdict)


def test_figures_of_networks_that_have_changed_judge_nothing(tmp_path):
    rows = glance.rows(suite(tmp_path, field=1, unet_segment_448=26.0))
    row = next(row for row in rows if "U-Net, fp32: time" in row.what)
    assert (row.verdict, row.kind) == ("unknown", "measured")
    assert "26" in row.figure
    assert "of an earlier network" in row.figure


def test_a_result_that_somebody_superseded_says_why_first(tmp_path):
    shutil.copytree(RESULTS / "peers", tmp_path / "peers")
    for path in (tmp_path / "peers").glob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"superseded": "A new engine."}))
    section = sections.peers(tmp_path)
    assert section is not None
    assert section.text.startswith("A new engine. Each engine")


def test_one_cnn_that_is_faster_is_named(tmp_path):
    others = {f"{name}_classify_48": 3.0 for name in glance.CNNS if name != "ssd300"}
    folder = suite(tmp_path, **(others | {"mobilenetv2_classify_48": 0.8, "ssd300_detect_300": 99.0}))
    row = next(row for row in glance.rows(folder) if "eight CNNs, fp32" in row.what)
    assert row.verdict == "missed"
    assert "faster than 7 of 8" in row.figure
    assert "mobilenetv2 takes 0.8" in row.figure


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_a_word_and_a_colour(kind, page):
    assert f".{kind} {{ background:" in page


CELL = st.text(st.characters(exclude_characters="|\n\r`*", exclude_categories=["C", "Z"]), min_size=1)


@given(st.lists(st.lists(CELL, min_size=2, max_size=4), min_size=1, max_size=5))
def test_a_table_survives_markdown_and_hides_no_html(rows):
    width = min(map(len, rows))
    table = Table("what", "measured", tuple(rows[0][:width]), tuple(tuple(row[:width]) for row in rows))
    (again,) = parse(table.markdown(), "measured", "")
    assert again.rows == table.rows
    assert not re.search(r"<(?!/?(h3|span|div|table|thead|tbody|tr|th|td|p|b|code)\b)", table.html())


def test_plots_of_one_point_and_of_extremes_are_drawn():
    assert plots.bars([("a", 1e-3, True)], "ms").startswith("<svg")
    assert plots.ratios([("a", 1.0, 1.0, 1.0), ("b", 1e3, 1e2, 1e4)]).startswith("<svg")
    assert plots.sizes({"ours": [(18, 1.0)]}).startswith("<svg")


def test_labels_of_points_that_lie_together_stand_apart():
    picture = plots.sizes({name: [(18, 1.0), (36, 2.0)] for name in ("one", "two", "three")})
    places = re.findall(r"<text[^>]*>2</text>", picture)
    assert len(places) == 3 == len(set(places))


def test_a_bar_that_leaves_the_picture_says_how_far_it_goes():
    picture = plots.off([("within", 47.0), ("a little slower", -20.0), ("far beyond", -1100.0)])
    said = re.findall(r"<text[^>]*>([^<]*)</text>", picture)
    assert {"47", "-20", "12 times as long"} <= set(said)


@pytest.mark.parametrize("line", ["**Measured** (`it`), 0.3 cores", "### Measured (`it`), 0.3 cores"])
def test_a_table_is_named_by_the_line_above_it_without_its_marks(line):
    (table,) = parse(f"{line}\n\n| a |\n| --- |\n| 1 |", "measured", "none")
    assert table.title == "Measured (`it`), 0.3 cores"


def test_the_command_writes_page_and_document_and_prints_verdicts(tmp_path, capsys):
    out, document = tmp_path / "p.html", tmp_path / "d.md"
    assert highwall.main(["bench", "report", "--out", str(out), "--markdown", str(document)]) == 0
    said = capsys.readouterr().out
    assert "reached" in said
    assert document.read_text().startswith("# Benchmarks")
    assert out.exists()


def test_instructions_are_judged_in_each_engine_by_itself(tmp_path):
    def counts(ours: int) -> str:
        least = dict.fromkeys(glance.CNNS, 9) | {"cracknet": ours}
        cells = {
            name: {
                "network": name,
                "task": "classify",
                "size": 48,
                "precision": "fp32",
                "instructions": count,
                "title": name,
            }
            for name, count in least.items()
            if name != "ssd300"
        }
        return json.dumps({"field": fingerprint(), "cells": cells})

    (tmp_path / "instructions").mkdir()
    (tmp_path / "instructions" / "rpi4b.json").write_text(counts(8))
    (tmp_path / "instructions" / "rpi4b-tflite.json").write_text(counts(10))
    verdicts = {row.what.split(", ")[1]: row.verdict for row in glance.rows(tmp_path) if "instructions" in row.what}
    assert verdicts == {"ONNX Runtime": "reached", "LiteRT": "missed"}
