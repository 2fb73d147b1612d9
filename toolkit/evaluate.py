"""Scoring what a user has, a checkpoint or an artifact, on labelled images."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from targets.runtime import artifact
from targets.runtime.artifact import Artifact
from targets.runtime.engine import open_session
from targets.runtime.errors import HighwallError
from targets.runtime.predict import predict as run_on
from targets.runtime.predict import sensor_names
from toolkit import checkpoint
from toolkit.calibration import check_fits, check_kind
from toolkit.checkpoint import Model
from toolkit.data.batches import centre_crop
from toolkit.data.samples import Samples
from toolkit.metrics import Answer, Answers, Scores, Tally, tallied
from toolkit.network import NetworkConfig
from toolkit.train import probabilities


def is_artifact(path: Path) -> bool:
    return path.suffix == ".highwall"


def evaluate(path: Path, samples: Samples, threshold: float | None) -> Scores:
    """Metrics of the model at `path` over `samples`, pixel by pixel to segment.

    threshold: None takes the one the model ships with. Chips larger than the model's slice are cut to
    their centre. Raises HighwallError where task, bands, size or dtype do not fit.
    """
    check_threshold(threshold)
    tally, shipped = answered(path, samples)
    return tally.scores(shipped if threshold is None else threshold)


def check_threshold(threshold: float | None) -> None:
    """Refuse a threshold that is no probability."""
    if threshold is not None and not 0 <= threshold <= 1:
        raise HighwallError(f"threshold {threshold:g} is no probability; give 0 to 1")


def answered(path: Path, samples: Samples) -> tuple[Tally, float]:
    """The probabilities of the model at `path` over `samples`, tallied, and the threshold it ships with."""
    answers, threshold = answers_of(path, samples)
    return tallied(samples.task, answers), threshold


def answers_of(path: Path, samples: Samples) -> tuple[Answers, float]:
    """Labels and probabilities of the model at `path` over `samples`, computed as they are read, and its threshold.

    Raises HighwallError as `evaluate` does, before the first of them is read.
    """
    if len(np.unique(samples.labels)) < 2:
        raise HighwallError("these samples hold one class only, which has no AUC; score data with both")
    if is_artifact(path):
        return _of_artifact(artifact.read(path), samples)
    model, network = checkpoint.load(path)
    samples = fitted(model, samples)
    return probabilities(network, model.normalisation, samples, model.tempering), model.threshold


def fitted(model: Model, samples: Samples) -> Samples:
    """Chips cut to the model's slice, with the sensor features it takes; photographs as they are.

    A map has the size of its image, whatever that is.
    """
    check_kind(model, samples)
    samples = samples.feeding(model.name, model.network.sensors, model.sensor_names)
    if samples.task == "classify":
        samples = centre_crop(samples, model.network.slice_size)
        check_fits(model, samples)
    return samples


def _of_artifact(found: Artifact, samples: Samples) -> tuple[Answers, float]:
    """Chips one by one, photographs tiled, in the artifact's own engine."""
    manifest = found.manifest
    if len(manifest.labels) > 2:
        raise HighwallError(f"{manifest.name} tells {len(manifest.labels)} classes apart; only two can be scored")
    spec = manifest.input
    config = NetworkConfig(manifest.task, spec.bands, 0, 0, spec.sensors, slice_size=spec.height)
    names = sensor_names(manifest)
    model = Model(manifest.name, config, (), (), spec.dtype, manifest.threshold, sensor_names=names)
    return _each(found, fitted(model, samples)), manifest.threshold


def _each(found: Artifact, samples: Samples) -> Iterator[Answer]:
    session = open_session(found.manifest.runtime, found.model)
    for index, (image, label) in enumerate(zip(samples.images, samples.labels, strict=True)):
        sensors = None if samples.sensors is None else samples.sensors[index]
        prediction = run_on(session, found.manifest, image, sensors)
        yield label, np.asarray(prediction.probability if prediction.map is None else prediction.map)
