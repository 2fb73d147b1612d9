"""Refitting: networks that go on from one run with all that it may see, averaged into one.

A run sets whole groups aside to choose its threshold, and what lies in no other group is never learned. So several
short runs start at its weights, each with a seed of its own, and set nothing aside. They end in one valley of the
loss, whose middle holds better on ground of another kind than any of its slopes (Wortsman et al. 2022, "model
soups"; Rame et al. 2022, "DiWA"), and costs a board nothing.

The run's temperature stays, and a classifier's threshold: it is far surer of what it learned from than of other
ground, and nothing else is left to choose others by. A network of pixels scores both alike, and grows bolder with each
refit, so its threshold is chosen anew on what it learned from (docs/model-log.md has the figures).
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from targets.runtime.errors import HighwallError
from toolkit import checkpoint
from toolkit.checkpoint import Model
from toolkit.data.samples import Samples
from toolkit.runs import Request, plan
from toolkit.train import predict, threshold_of


def folders(out: Path, count: int) -> list[Path]:
    """Where each of the short runs of a refit to `out` lies."""
    return [out / f"refit{k}" for k in range(1, count + 1)]


def keeps_threshold(request: Request) -> bool:
    """Whether the threshold stays that of the run the request goes on from, for the reasons above."""
    return request.task == "classify"


def refit(samples: Samples, request: Request, say: Callable[[str], None]) -> Model:
    """Train `request.refit` networks from `request.start` and write their mean to OUT/checkpoint.safetensors.

    Those that are done are not trained again, and one that was stopped goes on at its last epoch. Raises
    HighwallError where data or held-out part are not those of the run at `request.start`, or OUT holds another run.
    """
    if (request.out / "state.safetensors").exists():
        raise HighwallError(f"{request.out} holds a run that its refit would overwrite; choose another --out")
    if request.refit < 1:
        raise HighwallError("--refit must be at least 1")
    models, weights = [], []
    for k, folder in enumerate(folders(request.out, request.refit), 1):
        trainer = plan(samples, replace(request, out=folder, seed=request.seed + k))
        trainer.resume_if_begun()
        models.append(trainer.run(_named(f"refit {k}/{request.refit}", say)))
        weights.append(checkpoint.weights_of(trainer.averaged))
    parts = [checkpoint.digest(each) for each in weights]
    mean = mean_of(weights)
    model = replace(models[0], provenance=models[0].provenance | {"refit": parts})
    if not keeps_threshold(request):
        trainer.averaged.load_state_dict(mean)
        tally = predict(trainer.averaged, model.normalisation, trainer.train, tempering=model.tempering)
        model = replace(model, threshold=threshold_of(tally))
    checkpoint.save(request.out / "checkpoint.safetensors", model, mean)
    return model


def _named(run: str, say: Callable[[str], None]) -> Callable[[str], None]:
    return lambda line: say(f"{run}: {line}")


def mean_of(weights: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Every tensor's mean over networks of one shape; statistics of norms too, counts as the first has them."""
    return {
        name: torch.stack([each[name] for each in weights]).mean(0) if first.is_floating_point() else first
        for name, first in weights[0].items()
    }
