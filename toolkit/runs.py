"""Planning a training run: which network, which samples to learn from, and which never to look at."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from targets.runtime.errors import HighwallError
from toolkit import checkpoint, lineage
from toolkit.checkpoint import Model
from toolkit.data.batches import centre_crop
from toolkit.data.samples import Samples
from toolkit.data.split import By, Indices, hold_out, inner_validation
from toolkit.lineage import Step
from toolkit.network import NetworkConfig, preset
from toolkit.optimizers import LEARNING_RATES
from toolkit.train import QAT_LEARNING, TrainConfig, Trainer

PRESET_OF_TASK = {"classify": "mine", "segment": "crack"}
BATCH_OF_TASK = {"classify": 64, "segment": 8}
VALIDATION_FRACTION = 0.1


@dataclass(frozen=True)
class Request:
    """A training run as its user asks for it; None leaves the choice to the preset or the data."""

    task: str
    out: Path
    preset: str | None = None
    architecture: str = "cracknet"
    multiplier: float = 1.0
    slice_size: int | None = None
    width: int | None = None
    growth: int | None = None
    held: str | None = None
    by: By = "fold"
    optimizer: str = "adam"
    loss: str = "bce"
    epochs: int = 12
    batch: int | None = None
    lr: float | None = None
    seed: int = 0
    harsh: float = 0.0  # share of training images in haze and worse, see `training_batches`
    start: Path | None = None
    qat: bool = False
    refit: int = 0  # networks that go on from `start` with all but what is held out, to be averaged (toolkit.refit)
    ratios: bool = True  # log ratios of bands go into the network, where the preset has them
    sensors: bool = True  # readings beside the images go into the network, where it can take them


def plan(samples: Samples, request: Request) -> Trainer:
    """A trainer ready to run or resume. Raises HighwallError where data, preset and options do not fit.

    To refit it sets nothing aside, and goes on from a run that did so in the same data. What it holds out, no run that
    its start goes back to may have learned from.
    """
    if samples.task != request.task:
        raise HighwallError(f"this data is labelled to {samples.task}; use --task {samples.task}")
    _check_numbers(request)
    _check_start(request)
    network = _network(samples, request)
    given, digest = samples, samples.digest
    start = None
    if request.start is not None:
        start = checkpoint.read(request.start)
        network = replace(network, ratios=start[0].network.ratios)
        _check_same(request.start, start[0], network, samples)
    if not network.sensors:
        samples = samples.feeding(network.architecture, 0)
    if samples.task == "classify":
        samples = centre_crop(samples, network.slice_size)
    if samples.groups is None and samples.folds is not None:
        samples = replace(samples, groups=samples.folds.astype(np.str_))  # whoever dealt folds knew the neighbours
    fit, aside, note, step = _divided(given, samples, request, None if start is None else start[0])
    if len(np.unique(samples.labels[fit])) < 2:
        raise HighwallError("what is left to train on holds one class only; hold out less, or add data")
    config = TrainConfig(
        name=request.preset
        or (PRESET_OF_TASK[request.task] if request.architecture == "cracknet" else request.architecture),
        network=network,
        epochs=request.epochs,
        batch=request.batch or BATCH_OF_TASK[request.task],
        optimizer=request.optimizer,
        lr=request.lr or LEARNING_RATES[request.optimizer] * (QAT_LEARNING if request.qat else 1),
        seed=request.seed,
        loss=request.loss,
        harsh=request.harsh,
        crop=min(TrainConfig.crop, network.slice_size),
        start="" if start is None else checkpoint.digest(start[1]),
        qat=request.qat,
    )
    elsewhere = None if start is None else learned_elsewhere(start, digest)
    pretrained = {} if elsewhere is None else {"pretrained": elsewhere}
    known = lineage.going_on(None if start is None else start[0], step)
    provenance = {"all_data": digest, "held_out": step.held_out, "split_note": note, "lineage": known} | pretrained
    trainer = Trainer(
        config, samples.take(fit), aside if aside is None else samples.take(aside), request.out, provenance
    )
    if start is not None:
        trainer.begin_with(*start)
    return trainer


def _divided(
    given: Samples, samples: Samples, request: Request, start: Model | None
) -> tuple[Indices, Indices | None, str, Step]:
    """What to learn from and to set aside, a note, and both for the lineage: digests of samples as `given`, not cut."""
    kept, step = np.arange(len(samples)), Step(given.digest)
    if request.held is not None:
        kept, out = hold_out(samples, request.by, request.held, request.seed)
        step = replace(step, held_out=f"{request.by} {request.held}", held=given.take(out).digest)
    if request.start is not None and start is not None:
        if request.refit:
            _check_refit(request.start, start, step)
        _check_unseen(request.start, start, step)
    if request.refit:
        return kept, None, "", step
    fit, aside, note = inner_validation(samples, kept, VALIDATION_FRACTION, request.seed)
    step = replace(step, set_aside=given.take(aside).digest, seed=request.seed)
    if start is not None and any(before.learned_from(step) for before in lineage.on(start, step.data)):
        flatters = f"{request.start} learned from images that this run sets aside, so scores there flatter"
        note = "; ".join(filter(None, (note, flatters)))
    return fit, aside, note, step


def learned_elsewhere(start: tuple[Model, dict[str, Tensor]], data: str) -> str | None:
    """Digest of the weights from other data that a run on `data` goes back to through its start, if any."""
    model, weights = start
    if model.provenance.get("all_data") != data:
        return checkpoint.digest(weights)
    found: str | None = model.provenance.get("pretrained")
    return found


def _check_same(path: Path, start: Model, here: NetworkConfig, samples: Samples) -> None:
    """Only the slice may differ from the checkpoint that a run goes on from, because the network takes any size.

    It sees pixels and readings as they were scaled for the checkpoint, so they must be of the same kind, in one order.
    """
    there = start.network
    if there.sensors != here.sensors:
        raise HighwallError(
            f"{path} takes {there.sensors} sensor features, this run {here.sensors}; leave --from out, "
            "or choose --no-sensors"
        )
    if replace(there, slice_size=here.slice_size) != here:
        raise HighwallError(f"{path} holds another network ({there}) than this run's ({here})")
    if start.dtype != str(samples.images.dtype):
        raise HighwallError(
            f"{path} takes {start.dtype} pixels, the images are {samples.images.dtype}; give such images, "
            "or leave --from out"
        )
    samples.feeding(str(path), here.sensors, start.sensor_names)


def _check_start(request: Request) -> None:
    if request.start is None and request.qat:
        raise HighwallError("--qat settles trained weights; name them with --from RUN")
    if request.start is None and request.refit:
        raise HighwallError("--refit goes on from a run that chose its threshold; name it with --from RUN")


def _check_refit(path: Path, there: Model, here: Step) -> None:
    """A threshold chosen on other ground, or by weights that saw what is held out, is none to keep."""
    own = lineage.of(there)[-1:]
    if not own or own[0].data != here.data:
        raise HighwallError(f"--refit needs the data that {path} was trained on, and this is other data; give that")
    if not own[0].held_the_same(here.held_out, here.held):
        raise HighwallError(
            f"{path} held out {own[0].told(here.held_out)}, this run {here.held_out or 'nothing'}; "
            "refit it with the same --fold"
        )


def _check_unseen(path: Path, there: Model, here: Step) -> None:
    """Scores on what is held out are worth nothing where the weights learned from it, however many runs ago."""
    for before in lineage.on(there, here.data) if here.held_out is not None else ():
        if not before.held_the_same(here.held_out, here.held):
            raise HighwallError(
                f"{path}, or a run that it goes back to, held out {before.told(here.held_out)}, so it learned from "
                f"{here.held_out}, which this run holds out; go on from one that held out the same, or leave --fold out"
            )


def _check_numbers(request: Request) -> None:
    least = {"epochs": 1, "batch": 2, "seed": 0, "refit": 0, "width": 2, "growth": 1}
    for name, smallest in least.items():
        value = getattr(request, name)
        if value is not None and value < smallest:
            raise HighwallError(f"--{name} must be at least {smallest}, not {value}")
    if request.seed >= 2**63:
        raise HighwallError(f"--seed must be below 2**63, not {request.seed}")
    if request.lr is not None and not 0 < request.lr < float("inf"):
        raise HighwallError(f"--lr must be above 0, not {request.lr}")
    if not 0 <= request.harsh <= 0.5:
        raise HighwallError(f"--harsh must be from 0 to 0.5, not {request.harsh}")


def _network(samples: Samples, request: Request) -> NetworkConfig:
    """The preset with the user's changes, fitted to the data's bands and size."""
    name = request.preset or PRESET_OF_TASK[request.task]
    changes = {"width": request.width, "growth": request.growth}
    network = preset(name, **{key: value for key, value in changes.items() if value is not None})
    if network.task != samples.task:
        raise HighwallError(f"preset {name} is made to {network.task}, this data is labelled to {samples.task}")
    smallest = min(samples.size)
    side = request.slice_size or min(network.slice_size, smallest)
    if side < (3 if samples.task == "classify" else 1):
        raise HighwallError(f"--slice {side} is too small; a slice has at least 3x3 pixels")
    if side > smallest:
        raise HighwallError(f"--slice {side} is larger than the images ({samples.size[0]}x{samples.size[1]})")
    network = replace(
        network, bands=samples.bands, slice_size=side, ratios=network.ratios and request.ratios and samples.bands > 1
    )
    joined = 0 if samples.sensors is None or not request.sensors else samples.sensors.shape[1]
    if request.architecture == "cracknet":
        if request.multiplier != 1:
            raise HighwallError("cracknet takes --width and --growth; --multiplier narrows a baseline")
        return replace(network, sensors=joined)
    if request.width is not None or request.growth is not None:
        raise HighwallError(f"{request.architecture} takes --multiplier; --width and --growth are cracknet's")
    return replace(
        network, width=0, growth=0, ratios=False, architecture=request.architecture, multiplier=request.multiplier
    )
