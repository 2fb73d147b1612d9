"""Windows of readings are cut in time order, and no part of a split sees another."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from targets.runtime.errors import HighwallError
from toolkit.data.windows import Series, cut, read_series, split


def series(rows: int, columns: int = 3) -> Series:
    """Each value says its row, so that a window can be asked where it came from."""
    values = np.repeat(np.arange(rows, dtype=np.float32)[:, None], columns, 1)
    return Series(values, (np.arange(rows) % 2).astype(np.uint8), tuple("abc"[:columns]))


def table(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(("steps", "ahead"), [(1, 0), (1, 1), (5, 1), (7, 3), (13, 0)])
def test_a_window_holds_the_last_rows_and_the_label_of_a_later_one(steps: int, ahead: int) -> None:
    windows = cut(series(29), steps, ahead)
    assert windows.values.shape == (29 - steps - ahead + 1, steps, 3)
    for values, label, row in zip(windows.values, windows.labels, windows.rows, strict=True):
        assert values[:, 0].tolist() == list(range(row - ahead - steps + 1, row - ahead + 1))
        assert label == row % 2


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(20, 200),
    steps=st.integers(1, 12),
    ahead=st.integers(0, 4),
    more=st.integers(0, 5),
    shares=st.tuples(st.floats(0.1, 0.6), st.floats(0.61, 0.95)),
)
def test_no_window_reaches_from_one_part_into_another(
    rows: int, steps: int, ahead: int, more: int, shares: tuple[float, float]
) -> None:
    assume(rows >= steps + ahead)
    windows = cut(series(rows), steps, ahead)
    bounds = [int(share * rows) for share in shares]
    try:
        parts = split(windows, bounds, windows.reach + more)
    except HighwallError as error:
        assert "not both labels" in str(error)  # a part too short for the gap
        return
    assert len(parts) == 3
    for earlier, later in pairwise(parts):
        told = int(earlier.rows[-1]) + 1  # a label may tell of the row after its own
        assert later.values.min() > told
        assert later.rows[0] > earlier.rows[-1]


def test_windows_of_any_length_are_judged_on_the_same_rows() -> None:
    judged = [split(cut(series(100), steps), [60, 80], gap=17)[2].rows.tolist() for steps in (1, 4, 16)]
    assert judged[0] == judged[1] == judged[2]
    assert judged[0][0] == 97
    with pytest.raises(HighwallError, match="gap of 16 rows is shorter"):
        split(cut(series(100), 16), [60, 80], gap=16)


@pytest.mark.parametrize(
    ("bounds", "says"), [([80, 60], "rising"), ([60, 60], "rising"), ([2, 50], "rows 0 to 1 hold"), ([99], "not both")]
)
def test_bounds_that_leave_nothing_to_judge_are_refused(bounds: list[int], says: str) -> None:
    with pytest.raises(HighwallError, match=says) as caught:
        split(cut(series(100), 4), bounds)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("steps", "ahead"), [(0, 1), (3, -1), (10, 1), (11, 0)])
def test_windows_that_cannot_be_cut_are_refused(steps: int, ahead: int) -> None:
    with pytest.raises(HighwallError, match="windows of"):
        cut(series(10), steps, ahead)


def test_the_digest_covers_values_labels_and_rows() -> None:
    windows = cut(series(29), 5)
    assert cut(series(29), 5).digest == windows.digest
    assert windows.take(np.arange(len(windows) - 1)).digest != windows.digest
    assert cut(series(29), 5, 2).digest != windows.digest


def test_a_table_is_read_with_its_words_as_numbers_from_low_to_high(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", "when, tilt ,risk,y", "mon,0.5,a,0", "tue,-2e3,c,1", "wed,3,b,0", "", "")
    found = read_series(path, "y", drop=["when"], scales={"risk": "abc"})
    assert found.names == ("tilt", "risk")
    assert found.values.tolist() == [[0.5, 0], [-2000, 2], [3, 1]]
    assert found.labels.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([""], "no rows"),
        (["a,y"], "no rows"),
        (["a,y", "1,0", "", "2,1"], "line 3 has 0 cells"),
        (["a,y", "1,0", "2"], "line 3 has 1 cells"),
        (["a,a,y", "1,2,0"], "two columns of one name"),
        (["a,b", "1,0"], "no column 'y'"),
        (["y", "0", "1"], "no readings beside y"),
        (["a,y", "1,0", "x,1"], "line 3: a is 'x'"),
        (["a,y", "1,0", ",1"], "line 3: a is ''"),
        (["a,y", "nan,0"], "line 2: a is 'nan'"),
        (["a,y", "-inf,0"], "line 2: a is '-inf'"),
        (["a,y", "1e39,0"], "line 2: a is '1e39'"),
        (["a,y", "1,2"], "line 2: y is '2'"),
        (["a,y", "1,"], "line 2: y is ''"),
        (["a,risk,y", "1,d,0"], "line 2: risk is 'd'; expected a, b"),
        (["a,y", '"1,0'], "cannot read"),
    ],
)
def test_a_table_that_is_wrong_is_refused_naming_the_line(tmp_path: Path, lines: list[str], says: str) -> None:
    path = table(tmp_path / "t.csv", *lines)
    scales = {"risk": "ab"} if "risk" in lines[0] else None
    with pytest.raises(HighwallError, match=says) as caught:
        read_series(path, "y", scales=scales)
    assert "t.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_table_and_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HighwallError, match="no file"):
        read_series(tmp_path / "gone.csv", "y")
    (tmp_path / "t.csv").write_bytes(b"a,y\n\xff\xfe,0\n")
    with pytest.raises(HighwallError, match="UTF-8"):
        read_series(tmp_path / "t.csv", "y")


@settings(max_examples=150, deadline=None)
@given(text=st.text(st.sampled_from("ay01.,-e\n\"' nif\t;"), max_size=60))
def test_any_text_is_read_or_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_text("a,y\n" + text, encoding="utf-8")
    try:
        found = read_series(path, "y")
    except HighwallError as error:
        assert "\n" not in str(error)
    else:
        assert np.isfinite(found.values).all()
        assert set(found.labels.tolist()) <= {0, 1}
