"""Tempering a checkpoint that was trained before: a temperature from images it never learned from, the same alarms."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from targets.runtime.errors import HighwallError
from toolkit import checkpoint, lineage
from toolkit.checkpoint import Model
from toolkit.data.samples import Samples
from toolkit.data.split import By, hold_out, inner_validation
from toolkit.evaluate import fitted
from toolkit.reliability import Reliability, of_tally
from toolkit.runs import VALIDATION_FRACTION
from toolkit.temperature import LEAST
from toolkit.train import predict
from toolkit.train import temper as fit


@dataclass(frozen=True)
class Tempered:
    """The checkpoint as it now is, what it was fitted on, and its reliability there."""

    model: Model
    fitted_on: str
    before: Reliability
    after: Reliability

    def as_dict(self) -> dict[str, Any]:
        return {
            "temperature": self.model.temperature,
            "bias": self.model.bias,
            "threshold": self.model.threshold,
            "fitted_on": self.fitted_on,
            **{f"{name}_before": getattr(self.before, name) for name in ("ece", "brier")},
            **{f"{name}_after": getattr(self.after, name) for name in ("ece", "brier")},
        }


def temper(path: Path, samples: Samples, out: Path, held: str | None = None, by: By = "fold") -> Tempered:
    """Fit the checkpoint at `path` on images it did not learn from and write it anew to `out`.

    Those are the fold (or source, or group) `held`; without it, what the run set aside to choose its threshold where
    `samples` are the data it was trained on, and all of `samples` where they are others. The threshold moves with
    the probabilities, so that the same images are called positive as before. Raises HighwallError where the run, or
    one that it goes back to, did learn from them, or too few of either label are left.
    """
    model, network = checkpoint.load(path)
    chosen, what = _unseen(model, samples, held, by)
    chosen = fitted(model, chosen)
    tempering = fit(network, model.normalisation, chosen)
    if not tempering.changes:
        raise HighwallError(f"{what} holds fewer than {LEAST} samples of a label, too few to temper by; add data")
    made = replace(
        model,
        temperature=tempering.value,
        bias=tempering.bias,
        threshold=round(tempering.move(model.threshold, model.tempering), 6),
        provenance=model.provenance | {"tempered": {"data": chosen.digest, "on": what}},
    )
    before, after = (
        of_tally(predict(network, model.normalisation, chosen, tempering=each)) for each in (model.tempering, tempering)
    )
    checkpoint.save(out, made, checkpoint.weights_of(network))
    return Tempered(made, what, before, after)


def _unseen(model: Model, samples: Samples, held: str | None, by: By) -> tuple[Samples, str]:
    """The samples to fit on, and in words which they are."""
    here = lineage.on(model, samples.digest)
    if held is not None:
        name, part = f"{by} {held}", samples.take(hold_out(samples, by, held, 0)[1])
        for step in here:
            if not step.held_the_same(name, part.digest):
                raise HighwallError(
                    f"this run held out {step.told(name)}, so it learned from {name}, where it is surer than "
                    "elsewhere; leave --fold out to fit on what the run set aside"
                )
        return part, name
    if model.provenance.get("all_data") == samples.digest:
        return _set_aside(model, samples), "what training set aside"
    if here:
        raise HighwallError("a run that this one goes back to learned from this data; name samples it never saw")
    return samples, "all of the data"


def _set_aside(model: Model, samples: Samples) -> Samples:
    """The validation part of the run that made `model`, divided again as `toolkit.runs.plan` did."""
    said, own = model.provenance, lineage.of(model)[-1]
    if any(step.learned_from(own) for step in lineage.on(model, own.data)):
        raise HighwallError(
            "this network, or one that it went on from, learned from what its run had set aside; "
            "name samples it never saw with --fold"
        )
    everything = np.arange(len(samples))
    dealt = samples if samples.groups is not None or samples.folds is None else _by_folds(samples)
    seed = int(said["train"]["seed"])
    kept = everything
    if said.get("held_out"):
        by, _, held = said["held_out"].partition(" ")
        kept = hold_out(dealt, by, held, seed)[0]
    part = samples.take(inner_validation(dealt, kept, VALIDATION_FRACTION, seed)[1])
    if part.labels.size != said["validation"]["n"] or own.set_aside not in (None, part.digest):
        raise HighwallError(
            "the run set aside other samples than this version of Highwall would, or groups were changed since; "
            "name unseen ones with --fold"
        )
    return part


def _by_folds(samples: Samples) -> Samples:
    assert samples.folds is not None
    return replace(samples, groups=samples.folds.astype(np.str_))
