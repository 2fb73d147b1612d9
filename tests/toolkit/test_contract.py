"""What a contract asks is understood whole or refused in one line, and what misses it says by how much."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets.runtime.errors import HighwallError
from toolkit.contract import KEYS, METRICS, Contract, Limit, parse, read

FACTS = {"max_parity_error": "parity_error", "max_size_kib": "size_kib", "max_peak_mib": "peak_mib"}
FACTS |= {"max_macs": "macs", "max_instructions": "instructions", "max_p95_ms": "p95_ms"}


def contract(text: str, tmp_path: Path, board: str = "rpi4b", task: str = "classify") -> Contract:
    path = tmp_path / "contract.toml"
    path.write_text(text, encoding="utf-8")
    return read(path).of(board, task)  # type: ignore[arg-type]


def test_every_key_of_a_contract_is_understood(tmp_path: Path) -> None:
    lines = [f"{key} = 0.5" for key in KEYS]
    found = contract("[rpi4b]\n" + "\n".join(lines), tmp_path)
    assert {limit.fact for limit in found.limits} == {*METRICS, *FACTS.values(), "drop.auc", "drop.recall"}
    assert all(limit.at_most == limit.key.startswith("max_") for limit in found.limits)


@pytest.mark.parametrize(("task", "metric"), [("classify", "auc"), ("segment", "f1")])
def test_one_number_limits_the_drop_of_the_tasks_metric_and_of_recall(tmp_path: Path, task: str, metric: str) -> None:
    found = contract("[rpi4b]\nmax_drop = 0.01", tmp_path, task=task)
    assert found.limits == (
        Limit(f"max_drop.{metric}", f"drop.{metric}", 0.01, True),
        Limit("max_drop.recall", "drop.recall", 0.01, True),
    )


def test_a_drop_can_be_limited_metric_by_metric(tmp_path: Path) -> None:
    found = contract("[rpi4b.max_drop]\nkappa = 0.02\nauc = 0", tmp_path)
    assert [(limit.fact, limit.bound) for limit in found.limits] == [("drop.kappa", 0.02), ("drop.auc", 0.0)]


def test_a_boards_table_overrides_the_default_key_by_key(tmp_path: Path) -> None:
    text = (
        "[default]\nmax_drop = 0.01\nmin_auc = 0.9\n[rpi5]\nmax_drop = {f1 = 0.02}\nmax_macs = 7_000_000\n[rpi3bplus]\n"
    )
    plain, own = contract(text, tmp_path, "rpi4b"), contract(text, tmp_path, "rpi5")
    assert {limit.key: limit.bound for limit in plain.limits} == {
        "max_drop.auc": 0.01,
        "max_drop.recall": 0.01,
        "min_auc": 0.9,
    }
    assert {limit.key: limit.bound for limit in own.limits} == {"max_drop.f1": 0.02, "min_auc": 0.9, "max_macs": 7e6}
    assert contract(text, tmp_path, "rpi3bplus").limits == plain.limits


def test_a_board_without_a_table_is_refused_with_the_tables_there_are(tmp_path: Path) -> None:
    with pytest.raises(HighwallError, match=r"rpi4b.*\[rpi5\], \[host\]"):
        contract("[rpi5]\nmin_f1 = 0.1\n[host]\nmin_f1 = 0.1", tmp_path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[rpi4]\nmin_auc = 0.9", "rpi4b"),
        ("[zzz]\nmin_auc = 0.9", "known are default"),
        ("[rpi4b]\nmin_acu = 0.9", "did you mean min_auc"),
        ("[rpi4b]\nmax_size_kb = 900", "did you mean max_size_kib"),
        ("[rpi4b]\nmax_drop = {recal = 0.1}", "did you mean recall"),
        ("[rpi4b]\nqqqqqq = 1", "known are min_precision"),
        ("[rpi4b]\nmax_instruction = 1_000", "did you mean max_instructions"),
        ("[rpi4b]\nmin_auc = '0.9'", "min_auc must be a number, not text"),
        ("[rpi4b]\nmin_auc = true", "not true or false"),
        ("[rpi4b]\nmax_drop = [0.1]", "max_drop.auc must be a number, not a list"),
        ("[rpi4b]\nmax_drop.auc.x = 1", "not a table"),
        ("[rpi4b]\nmax_macs = 2020-01-01", "not a date"),
        ("[rpi4b]\nmin_auc = nan", "nan"),
        ("[rpi4b]\nmax_macs = inf", "inf"),
        ("[rpi4b]\nmax_macs = " + "9" * 400, "max_macs"),
        ("[rpi4b]\nmax_macs = " + "9" * 5000, "not TOML"),
        ("[rpi4b]\nmax_drop = -0.01", "max_drop.auc must be a finite number from 0"),
        ("[rpi4b]\nmin_auc = 1.01", "min_auc is a fraction of 1"),
        ("[rpi4b]\nmax_drop = 5", "a point is 0.01"),
        ("[rpi4b]\nmax_drop = {}", "max_drop is empty"),
        ("[rpi4b]", r"[rpi4b] is empty"),
        ("[default]\n[rpi4b]\nmin_auc = 0.9", "[default] is empty"),
        ("[default]\n[rpi4b]", "is empty"),
        ("", "is empty"),
        ("min_auc = 0.9", "min_auc stands in no table"),
        ("rpi4b = 3", "rpi4b must be a table"),
        ("[[rpi4b]]\nmin_auc = 0.9", "rpi4b must be a table"),
        ("[rpi4b]\nmin_auc = ", "not TOML"),
        ("[rpi4b]\nmin_auc = 0.9\nmin_auc = 0.8", "not TOML"),
        ("a = " + "[" * 9999, "not TOML"),
        ('[rpi4b]\n"a\\nb" = 1', "a\\nb"),
    ],
)
def test_a_contract_that_cannot_be_meant_is_refused_in_one_line(tmp_path: Path, text: str, told: str) -> None:
    # Even where the fault lies in a table of a board that nobody builds for.
    with pytest.raises(HighwallError) as caught:
        contract(text, tmp_path, "rpi5")
    assert told in str(caught.value)
    assert "contract.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_fault_in_another_boards_table_is_found_before_anything_is_built(tmp_path: Path) -> None:
    with pytest.raises(HighwallError, match="min_acu"):
        contract("[rpi4b]\nmin_auc = 0.5\n[rpi5]\nmin_acu = 0.5", tmp_path)


def test_a_file_that_is_none_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b"[rpi4b]\n# \xe9\nmin_auc = 0.5")
    for name, told in (("nowhere.toml", "No such file"), (".", "directory"), ("latin.toml", "utf-8")):
        with pytest.raises(HighwallError, match=told) as caught:
            read(tmp_path / name)
        assert str(tmp_path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_miss_says_what_was_found_what_was_allowed_and_the_difference(tmp_path: Path) -> None:
    text = "[rpi4b]\nmax_drop = 0.01\nmin_average_precision = 0.95\nmax_macs = 10e6\nmax_size_kib = 400\nmax_p95_ms = 9"
    found = contract(text, tmp_path)
    facts = {"drop.auc": -0.002, "drop.recall": 0.0309, "average_precision": 0.9123, "macs": 11_534_336}
    misses = found.check({**facts, "size_kib": 400.5, "p95_ms": 8.9})
    assert [str(miss) for miss in misses] == [
        "recall falls 0.031, allowed 0.010 (by 0.021)",
        "average precision is 0.912, needed 0.950 (by 0.038)",
        "it takes 11,534,336 MACs, allowed 10,000,000 (by 1,534,336)",
        "the model is 400.5 KiB, allowed 400.0 (by 0.5)",
    ]
    assert misses[0].found == 0.0309
    assert misses[0].by == pytest.approx(0.0209)


def test_a_miss_too_small_for_its_usual_decimals_is_still_seen(tmp_path: Path) -> None:
    (miss,) = contract("[rpi4b]\nmax_drop = {auc = 0.01}", tmp_path).check({"drop.auc": 0.010004})
    assert str(miss) == "auc falls 0.010004, allowed 0.010000 (by 0.000004)"


def test_a_drop_of_just_one_point_keeps_a_limit_of_one_point(tmp_path: Path) -> None:
    found = contract("[rpi4b]\nmax_drop = {recall = 0.01}", tmp_path)
    assert 0.91 - 0.90 > 0.01  # as floats
    assert found.check({"drop.recall": 0.91 - 0.90}) == []
    assert found.check({"drop.recall": 0.0101})


@pytest.mark.parametrize("facts", [{}, {"auc": None, "peak_mib": None}, {"auc": math.nan, "peak_mib": math.nan}])
def test_what_could_not_be_measured_is_a_miss_that_says_what_is_missing(
    tmp_path: Path, facts: dict[str, float | None]
) -> None:
    misses = contract("[rpi4b]\nmin_auc = 0\nmax_peak_mib = 100", tmp_path).check(facts)
    assert [miss.found for miss in misses] == [None, None]
    assert "labels" in str(misses[0])
    assert "memory was not measured" in str(misses[1])


def test_only_what_is_limited_need_be_measured(tmp_path: Path) -> None:
    found = contract("[rpi4b]\nmax_drop = 0.01\nmax_peak_mib = 100", tmp_path)
    assert found.needs("peak_mib")
    assert found.needs("drop.")
    assert not found.needs("p95_ms")
    assert found.needs_labels
    assert not contract("[rpi4b]\nmax_macs = 1", tmp_path).needs_labels


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"board": "rpi4b", "task": "classify", "limits": {}},
        {"board": "rpi4b", "task": "draw", "limits": {"min_auc": 0.5}},
        {"board": 4, "task": "classify", "limits": {"min_auc": 0.5}},
        {"board": "rpi4b", "task": "classify", "limits": ["min_auc"]},
        {"board": "rpi4b", "task": "classify", "limits": {"max_drop": 0.5}},
        {"board": "rpi4b", "task": "classify", "limits": {"max_drop.auc": "0.5"}},
        {"board": "rpi4b", "task": ["classify"], "limits": {"min_auc": 0.5}},
    ],
)
def test_a_record_that_is_no_contract_is_refused(raw: dict[str, object]) -> None:
    with pytest.raises(HighwallError, match="receipt"):
        Contract.from_dict(raw)


FRACTIONS = st.floats(0, 1)
AMOUNTS = st.floats(0, 1e12) | st.integers(0, 10**12)
DROPPED = FRACTIONS | st.dictionaries(st.sampled_from(METRICS), FRACTIONS, min_size=1)
TABLES = st.fixed_dictionaries(
    {}, optional={f"min_{m}": FRACTIONS for m in METRICS} | {"max_drop": DROPPED} | dict.fromkeys(FACTS, AMOUNTS)
).filter(bool)
CONTRACTS = st.builds(
    lambda table, task: parse({"rpi4b": table}, "contract.toml").of("rpi4b", task),
    TABLES,
    st.sampled_from(("classify", "segment")),
)


@given(CONTRACTS)
def test_a_recorded_contract_comes_back_the_same(written: Contract) -> None:
    assert Contract.from_dict(json.loads(json.dumps(written.as_dict()))) == written


@given(CONTRACTS, st.data())
def test_a_contract_that_is_met_stays_met_when_facts_improve(written: Contract, data: st.DataObject) -> None:
    facts = {limit.fact: data.draw(st.floats(0, 1e12)) for limit in written.limits}
    before = {miss.key for miss in written.check(facts)}
    better = {
        limit.fact: facts[limit.fact] + (-1 if limit.at_most else 1) * data.draw(st.floats(0, 1e12))
        for limit in written.limits
    }
    assert {miss.key for miss in written.check(better)} <= before


@given(CONTRACTS, st.data())
def test_a_fact_beyond_its_bound_is_missed_and_at_its_bound_is_kept(written: Contract, data: st.DataObject) -> None:
    beyond = data.draw(st.floats(1e-6, 1e12))
    kept = {limit.fact: limit.bound for limit in written.limits}
    assert written.check(kept) == []
    for limit in written.limits:
        step = beyond * max(1, limit.bound)
        (miss,) = written.check({**kept, limit.fact: limit.bound + (step if limit.at_most else -step)})
        assert miss.key == limit.key
        assert miss.by == pytest.approx(step, rel=1e-3)
        assert "\n" not in str(miss)
        first, second = str(miss).split("(by ")
        assert second.strip("0.,)")
        assert first
