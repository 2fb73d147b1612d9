"""Scoring what a user has, a checkpoint or an artifact, on labelled images."""

from pathlib import Path

from targets.runtime import artifact
from targets.runtime.engine import open_session
from targets.runtime.errors import HighwallError
from toolkit import checkpoint
from toolkit.build import check_fits, judge
from toolkit.checkpoint import Model
from toolkit.data.batches import Normalisation, centre_crop
from toolkit.data.samples import Samples
from toolkit.metrics import Scores
from toolkit.network import NetworkConfig
from toolkit.train import predict


def is_artifact(path: Path) -> bool:
    return path.suffix == ".highwall"


def evaluate(path: Path, samples: Samples, threshold: float | None) -> Scores:
    """Metrics of the model at `path` over `samples`, pixel by pixel to segment.

    threshold: None takes the one the model ships with. Chips larger than the model's slice are cut to
    their centre. Raises HighwallError where task, bands, size or dtype do not fit.
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise HighwallError(f"threshold {threshold:g} is no probability; give 0 to 1")
    if is_artifact(path):
        manifest = artifact.read(path).manifest
        config = NetworkConfig(manifest.task, manifest.input.bands, 0, 0, slice_size=manifest.input.height)
        facts = Model(manifest.name, config, (), (), manifest.input.dtype, manifest.threshold)
        samples = centre_crop(samples, config.slice_size)
        check_fits(facts, samples)
        session = open_session(manifest.runtime, artifact.read(path).model)
        return judge(session, samples, facts.threshold if threshold is None else threshold)
    model, network = checkpoint.load(path)
    samples = centre_crop(samples, model.network.slice_size)
    check_fits(model, samples)
    tally = predict(network, Normalisation(model.mean, model.std), samples)
    return tally.scores(model.threshold if threshold is None else threshold)
