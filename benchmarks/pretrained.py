"""Which weights from other data a measured training begins with, and none that know the ground it is scored on."""

from pathlib import Path

from targets.runtime.errors import HighwallError
from toolkit import checkpoint, lineage
from toolkit.data.samples import Samples
from toolkit.runs import learned_elsewhere


def pretrained(start: Path | None, samples: Samples, held: str | None = None) -> str | None:
    """The weights that a training from `start` goes back to, as the digest that results keep; None: fresh ones.

    held: the fold that scores it, where a run on these `samples` that held it out may be the start, as of a refit.
    Raises HighwallError where the start, or a run that it goes back to, knows what it would be scored on.
    """
    if start is None:
        return None
    model, weights = checkpoint.read(start)
    if any(held is None or step.held_out != f"fold {held}" for step in lineage.on(model, samples.digest)):
        raise HighwallError(
            f"{start}, or a run that it goes back to, learned from this data, so every score would flatter; "
            "give a run on other data, or a folder that holds a run a fold"
        )
    found = learned_elsewhere((model, weights), samples.digest)
    return found and found[:12]
