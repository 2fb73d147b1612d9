"""Weights that a measured training may begin with: learned elsewhere, so that no score on held-out ground flatters."""

from pathlib import Path

from targets.runtime.errors import HighwallError
from toolkit import checkpoint
from toolkit.data.samples import Samples


def elsewhere(path: Path, samples: Samples) -> str:
    """Which weights lie at `path`, as the digest that results keep. Raises HighwallError where they know `samples`."""
    model, weights = checkpoint.read(path)
    if model.provenance.get("all_data") == samples.digest:
        raise HighwallError(
            f"{path} learned from this data, so every score would flatter; give a run on other data, "
            "or a folder that holds a run a fold"
        )
    return checkpoint.digest(weights)[:12]
