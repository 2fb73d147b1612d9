"""What trained weights know: every run that they go back to, what each learned from and what each left out."""

from dataclasses import asdict, dataclass
from typing import Any

from toolkit.checkpoint import Model


@dataclass(frozen=True)
class Step:
    """One run on the data of digest `data`: what it held out, by name and by digest, and what it set aside.

    Digests are those of the samples alone, because groups may be dealt anew under the same names. None: there are no
    such samples, or the checkpoint is of before there were digests. `seed` dealt what it set aside; None: nothing.
    """

    data: str
    held_out: str | None = None
    held: str | None = None
    set_aside: str | None = None
    seed: int | None = None

    def held_the_same(self, held_out: str | None, held: str | None) -> bool:
        """Whether it held out the samples of digest `held`; by their name, where either digest is not known."""
        if self.held is None or held is None:
            return self.held_out == held_out
        return self.held == held

    def learned_from(self, other: "Step") -> bool:
        """Whether it may have learned from what `other`, on the same data, sets aside."""
        if self.seed is None:
            return True
        if self.set_aside is None or other.set_aside is None:
            return (self.held_out, self.seed) != (other.held_out, other.seed)
        return self.set_aside != other.set_aside

    def told(self, held_out: str | None) -> str:
        """What it held out, in words, to somebody who holds out others of that name."""
        return f"other samples as {held_out}" if held_out and held_out == self.held_out else self.held_out or "nothing"


def of(model: Model) -> list[Step]:
    """The runs that the model's weights go back to on any data, its own last; a foreign network's are not known.

    A checkpoint of before these were kept knows of its own alone.
    """
    said = model.provenance
    if "lineage" in said:
        return [Step(**step) for step in said["lineage"]]
    if "all_data" not in said:
        return []
    seed = None if "refit" in said else said.get("train", {}).get("seed")  # a refit sets nothing aside
    return [Step(said["all_data"], said.get("held_out"), seed=seed)]


def on(model: Model, data: str) -> list[Step]:
    """Those runs of them that learned from the data of digest `data`."""
    return [step for step in of(model) if step.data == data]


def going_on(start: Model | None, step: Step) -> list[dict[str, Any]]:
    """The lineage of a run `step` that goes on from `start`, as provenance keeps it."""
    before = [] if start is None else of(start)
    return [asdict(one) for one in (*before, step) if one is step or one != step]
