"""Costs are counted twice and agree, and the committed ones are those of today's code."""

import json
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks import cost, field
from benchmarks.suite.field import members
from toolkit.cost import generic_cost, separable_cost


@pytest.mark.parametrize(("name", "task", "size"), [("cracknet", "classify", 18), ("mobilenetv2", "classify", 48)])
def test_our_count_is_torchs_to_the_last_digit(name, task, size):
    entry = cost.entry(name, task, size)
    assert entry["macs"] == entry["torch_macs"] > 0
    rows = [dict(zip(cost.COLUMNS, row, strict=True)) for row in entry["layers"]]
    assert sum(row["macs"] * row["times"] for row in rows) == entry["macs"]
    assert sum(row["generic"] * row["times"] for row in rows) == entry["generic_macs"]


def test_the_committed_costs_are_those_of_the_code_and_of_the_field():
    found = json.loads((cost.RESULTS / "cost.json").read_text(encoding="utf-8"))
    by_name = {(one["network"], one["task"], one["size"]): one for one in found["networks"]}
    assert set(by_name) == set(field.WANTED)
    for one in members()[0]:
        counted = by_name[one.network, one.task, one.size]
        assert (one.macs, one.parameters, one.activation_bytes) == (
            counted["macs"], counted["parameters"], counted["activation_bytes"],
        )  # fmt: skip
    for size in (18, 48):
        again = cost.entry("cracknet", "classify", size)
        assert json.loads(json.dumps(again)) == by_name["cracknet", "classify", size]


def test_torch_and_hooks_agree_on_every_committed_network():
    found = json.loads((cost.RESULTS / "cost.json").read_text(encoding="utf-8"))
    for one in found["networks"]:
        if "macs" in one:
            assert one["torch_macs"] in (one["macs"], None)
            assert (one["torch_macs"] is None) == (one["network"] == "rnn")


def test_published_parameters_are_met_and_gmacs_to_the_published_digits():
    found = json.loads((cost.RESULTS / "cost.json").read_text(encoding="utf-8"))["published"]
    for one in found.values():
        assert one["parameters"] == one["published_parameters"]
        assert one["gmacs"] == pytest.approx(one["published_gmacs"], abs=0.006)


def test_the_saving_is_equation_2_over_equation_3_and_nears_the_kernels_positions():
    rows = cost.saving()
    for row in rows:
        positions, count = int(row["kernel"]) ** 2, int(row["channels"])
        assert row["saving"] == pytest.approx(
            generic_cost(positions, count, count) / separable_cost(positions, count, count), rel=1e-4
        )
        assert row["saving"] < positions
    assert max(row["saving"] for row in rows if row["kernel"] == 3) > 8.8


@pytest.mark.slow
def test_the_committed_field_is_what_our_exporter_writes_today(tmp_path: Path):
    from benchmarks.suite.field import FIELD, filled

    for name, task, size in (
        ("cracknet", "classify", 48),
        ("mobilenetv2", "classify", 48),
        ("cracknet", "segment", 224),
    ):
        made, _ = field.make(name, task, size)
        with zipfile.ZipFile(FIELD) as archive:
            for member, model in made.items():
                committed, today = (onnx.load_from_string(one) for one in (archive.read(f"{member.name}.onnx"), model))
                assert member.precision != "fp32" or committed == today, member.name
                values = _emptied(committed), _emptied(today)
                assert committed == today, member.name
                # Another CPU adds up in another order, so a scale's last bit may differ, and an integer by one step.
                for one, other in zip(*values, strict=True):
                    step = int(np.issubdtype(one.dtype, np.integer))
                    np.testing.assert_allclose(one, other, rtol=1e-5, atol=step, err_msg=member.name)
                assert filled(member)


def _emptied(model: onnx.ModelProto) -> list[np.ndarray]:
    """The values that `model` holds, which loses them; of weights the field keeps only how they are spread."""
    values = []
    for tensor in model.graph.initializer:
        if tensor.raw_data or tensor.float_data:
            values.append(onnx.numpy_helper.to_array(tensor))
        if tensor.doc_string:
            values.append(np.array(list(json.loads(tensor.doc_string).values())))
        for field_of_values in ("raw_data", "float_data", "doc_string"):
            tensor.ClearField(field_of_values)
    return values
