"""What weights have learned from stays known, run after run: nobody is judged on ground that they know."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save
from small import small_request

from benchmarks.pretrained import pretrained
from targets.runtime.errors import HighwallError
from toolkit import checkpoint
from toolkit.checkpoint import Model
from toolkit.data.samples import Samples
from toolkit.data.slopes import slopes
from toolkit.data.synthetic import mine_chips
from toolkit.runs import Request, plan
from toolkit.temper import temper

FLATTERS = "scores there flatter"
Finish = Callable[..., Path]


@pytest.fixture(scope="module")
def chips() -> Samples:
    return mine_chips(150, size=16, seed=1)


@pytest.fixture(scope="module")
def elsewhere() -> Samples:
    return mine_chips(60, size=16, seed=2)


@pytest.fixture
def finish(tmp_path: Path) -> Finish:
    """Write the checkpoint that a run would, without training; `old` as it was written before lineages were kept."""

    def write(samples: Samples, name: str, old: bool = False, **changes: object) -> Path:
        trainer = plan(samples, request(tmp_path / name, **changes))
        trainer._finish()
        path = tmp_path / name / "checkpoint.safetensors"
        if old:
            model, weights = checkpoint.read(path)
            fields = checkpoint.asdict(model)
            del fields["provenance"]["lineage"]
            path.write_bytes(save(weights, {checkpoint.FORMAT: json.dumps(fields)}))
        return path

    return write


def request(out: Path, **changes: object) -> Request:
    return small_request(out, slice_size=None, **changes)


def said(samples: Samples, **changes: object) -> dict[str, Any]:
    """Provenance of the run planned."""
    return plan(samples, request(Path("never"), **changes)).provenance


@pytest.mark.parametrize("old", [False, True])
def test_a_fold_that_the_start_learned_is_not_held_out_after(chips: Samples, finish: Finish, old: bool) -> None:
    everything = finish(chips, "all", old)
    with pytest.raises(HighwallError, match="held out nothing, so it learned from fold 0, which this run holds out"):
        said(chips, start=everything, held="0")
    one = finish(chips, "one", old, held="1")
    with pytest.raises(HighwallError, match="held out fold 1, so it learned from fold 0"):
        said(chips, start=one, held="0")
    assert said(chips, start=one, held="1")["held_out"] == "fold 1"
    assert said(chips, start=one, held="1", refit=1)["held_out"] == "fold 1"


def test_what_was_learned_stays_known_through_runs_on_other_data(
    chips: Samples, elsewhere: Samples, finish: Finish
) -> None:
    there = finish(elsewhere, "there", start=finish(chips, "all"))
    with pytest.raises(HighwallError, match="a run that it goes back to, held out nothing"):
        said(chips, start=there, held="0")
    for held in ("0", None):
        with pytest.raises(HighwallError, match="would flatter"):
            pretrained(there, chips, held)
    with pytest.raises(HighwallError, match="a run that this one goes back to learned from this data"):
        temper(there, chips, Path("never"))
    with pytest.raises(HighwallError, match="learned from fold 0"):
        temper(there, chips, Path("never"), held="0")
    apart = finish(elsewhere, "apart", start=finish(chips, "zero", held="0"))
    back = finish(chips, "back", start=apart, held="0")
    for path in (apart, back):
        assert pretrained(path, chips, "0")
        with pytest.raises(HighwallError, match="would flatter"):
            pretrained(path, chips, "1")
    steps = checkpoint.read(back)[0].provenance["lineage"]
    assert [(step["data"], step["held_out"]) for step in steps] == [(elsewhere.digest, None), (chips.digest, "fold 0")]


@pytest.mark.parametrize("old", [False, True])
def test_a_note_says_where_the_start_learned_from_what_is_set_aside(chips: Samples, finish: Finish, old: bool) -> None:
    zero = finish(chips, "zero", old, held="0")
    assert FLATTERS not in said(chips, start=zero, held="0")["split_note"]
    assert FLATTERS in said(chips, start=zero, qat=True)["split_note"]
    assert FLATTERS in said(chips, start=zero, held="0", seed=1)["split_note"]
    assert FLATTERS not in said(chips, start=zero, held="0", refit=1)["split_note"], "it sets nothing aside"


def test_what_a_run_further_back_learned_is_not_taken_for_set_aside(
    chips: Samples, finish: Finish, tmp_path: Path
) -> None:
    first = finish(chips, "first")
    again = finish(chips, "again", start=first)
    with pytest.raises(HighwallError, match="what training set aside holds fewer than"):  # too few here, not a leak
        temper(again, chips, tmp_path / "fine.safetensors")
    other = finish(chips, "other", start=finish(chips, "seeded", start=first, seed=1))
    assert FLATTERS in checkpoint.read(other)[0].provenance["split_note"]
    with pytest.raises(HighwallError, match="went on from, learned from what its run had set aside"):
        temper(other, chips, tmp_path / "leak.safetensors")


def test_samples_dealt_to_other_groups_of_the_same_name_are_others(
    chips: Samples, finish: Finish, tmp_path: Path
) -> None:
    assert chips.groups is not None
    held = {"held": str(chips.groups[0]), "by": "source"}
    start = finish(chips, "start", **held)
    dealt = replace(chips, groups=np.roll(chips.groups, 6))
    assert dealt.digest == chips.digest
    assert said(chips, start=start, refit=1, **held)["held_out"] == f"source {held['held']}"
    for refit in (0, 1):
        with pytest.raises(HighwallError, match=f"held out other samples as source {held['held']}"):
            said(dealt, start=start, refit=refit, **held)
    with pytest.raises(HighwallError, match="held out other samples as source"):
        temper(start, dealt, tmp_path / "leak.safetensors", held=held["held"], by="source")
    with pytest.raises(HighwallError, match="groups were changed since"):
        temper(start, dealt, tmp_path / "leak.safetensors")
    assert FLATTERS in said(dealt, start=start)["split_note"]
    assert said(
        replace(chips, groups=np.char.add(chips.groups, "b")), start=start, by="source", held=f"{held['held']}b"
    )
    kept = finish(chips, "kept", old=True, **held)
    assert said(dealt, start=kept, refit=1, **held), "an older checkpoint knows no more than the name"


def test_pixels_of_another_kind_are_not_fed_by_the_old_scaling(chips: Samples, finish: Finish) -> None:
    start = finish(chips, "start")
    with pytest.raises(HighwallError, match="takes uint8 pixels, the images are uint16"):
        said(replace(chips, images=chips.images.astype(np.uint16) * 12), start=start)


def test_readings_must_be_those_of_the_start_in_their_order(finish: Finish) -> None:
    readings = slopes(60, 16, 3)
    start = finish(readings, "start")
    assert said(readings, start=start)
    assert readings.sensors is not None
    turned = replace(readings, sensors=readings.sensors[:, ::-1].copy(), sensor_names=readings.sensor_names[::-1])
    renamed = replace(readings, sensor_names=("x", *readings.sensor_names[1:]))
    for other in (turned, renamed):
        with pytest.raises(HighwallError, match="give those, in that order"):
            said(other, start=start)


def test_the_shipped_weights_are_known_by_the_data_they_learned() -> None:
    from toolkit import lineage
    from toolkit.models import weights

    for name in ("mine", "crack"):
        model = checkpoint.read(weights(name))[0]
        step = lineage.of(model)[-1]
        assert (step.data, step.held_out, step.seed) == (model.provenance["all_data"], None, None)
        assert all(before.held_out is None for before in lineage.on(model, step.data))
    foreign = Model("x", model.network, (0.0,) * 3, (1.0,) * 3)
    assert lineage.of(foreign) == []
