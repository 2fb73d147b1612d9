"""One cell run from data to result: train, judge on the fold held out, count what it costs."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import nn

from benchmarks.paper import networks
from benchmarks.paper.boxes import (
    Box,
    Boxes,
    average_precision,
    best_threshold,
    detector_boxes,
    every_threshold,
    slide,
    spread,
    surest_at,
    truth_boxes,
)
from benchmarks.paper.budgets import SLICE, Budget
from benchmarks.paper.cells import Cell, Store
from benchmarks.paper.data import Parts, Sources, centres_of, parts
from benchmarks.paper.experiments import CROP
from benchmarks.paper.fit import Course, Diverged, Labels, Lesson, Masks, learn, train
from benchmarks.paper.judge import cost, forward, latency, scores
from targets.runtime.errors import HighwallError
from targets.runtime.files import atomic_write
from toolkit import checkpoint
from toolkit.compiler import packages
from toolkit.data.batches import Normalisation, to_tensor
from toolkit.data.samples import Samples
from toolkit.metrics import Tally
from toolkit.train import predict

SHOWN = 3  # photographs whose maps are kept for figure 5
FEW = 5  # inferences behind the latency of a whole photograph
ALL = "all"  # the threshold of boxes that were made without one
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

Map = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Bench:
    """What every cell is run with. weights: a folder for networks that another cell will slide; it may be emptied."""

    sources: Sources
    budget: Budget
    store: Store
    weights: Path
    command: str

    def run(self, cell: Cell) -> dict[str, Any]:
        """The cell's result: status `done`, `cannot` (no such network at that size) or `diverged`, and why."""
        started = time.perf_counter()
        try:
            networks.make(cell, self.sources.of(cell.task).bands, self.budget)
        except HighwallError as error:
            found: dict[str, Any] = {"status": "cannot", "reason": str(error)}
        else:
            try:
                found = self._slid(cell) if cell.task == "patches" else self._trained(cell)
            except Diverged as error:
                found = {"status": "diverged", "reason": str(error)}
        return found | {
            "seconds": round(time.perf_counter() - started, 1),
            "command": self.command,
            "threads": torch.get_num_threads(),
            "device": DEVICE,
            "packages": {"torch": packages()["torch"]},
        }

    def timed(self, cell: Cell, found: dict[str, Any]) -> dict[str, Any]:
        """A finished result with its time measured anew, as ours or the machine may be another by now.

        Nothing is learned: fresh weights take as long as trained ones.
        """
        network = self._make(cell.needs or cell).to(DEVICE)
        return found | {"latency": self._latency(cell, network), "timed": self.command}

    def _trained(self, cell: Cell) -> dict[str, Any]:
        cut, course = parts(self.sources, cell, self.budget), self._course(cell)
        learned = learn(lambda: self._make(cell), _lesson(cell), cut.fit, cut.validation, course)
        found: dict[str, Any] = {
            "status": "done",
            "lr": learned.rate,
            "tried": learned.tried,
            "validated": learned.score,
            "samples": course.samples,
            "batch": course.batch,
            "searched": course.search * len(course.rates),
            "images": {"fit": len(cut.fit), "validation": len(cut.validation), "test": len(cut.test)},
            "note": cut.note,
            "mean": learned.normalisation.mean,
            "std": learned.normalisation.std,
        }
        if cell.task == "photographs":
            return found | self._photographs(cell, cut, learned.network, learned.normalisation)
        if cell.task == "slices" and cell.size == SLICE:
            found["weights"] = self._keep(cell, learned.network)
        side = (cell.size, cell.size)
        bands = cut.test.bands
        return (
            found
            | {"scores": scores(predict(learned.network, learned.normalisation, cut.test))}
            | cost(learned.network, bands, side)
            | {"latency": self._latency(cell, learned.network)}
        )

    def _photographs(self, cell: Cell, cut: Parts, network: nn.Module, normalisation: Normalisation) -> dict[str, Any]:
        """What a network that reads photographs whole finds in them."""
        bands, size = cut.test.bands, cut.test.size
        found: dict[str, Any] = cost(network, bands, size)
        found["latency"] = self._latency(cell, network)
        if cell.network == "ssd300":
            boxes = [detector_boxes(network, normalisation, image) for image in cut.test.images]
            found["ap"] = {ALL: average_precision(_boxed(cut.test), boxes, size)}  # its boxes are of no map
            return found | {"threshold": ALL, "scores": scores(self._pixels_by_boxes(cell, network, normalisation))}
        maps, watched = (
            [_map(network, normalisation, image) for image in part.images] for part in (cut.test, cut.validation)
        )
        return found | self._judged(cell, cut, maps, watched, maps)

    def _pixels_by_boxes(self, cell: Cell, network: nn.Module, normalisation: Normalisation) -> Tally:
        """SSD among the classifiers of table 5: a pixel's score is that of the surest box over it."""
        asked = parts(self.sources, replace(cell, task="slices", size=SLICE), self.budget).test
        index = {name: i for i, name in enumerate(self.sources.photographs.names)}
        boxes: dict[str, list[Box]] = {}
        tally = Tally()
        for label, (name, row, column) in zip(asked.labels, centres_of(asked), strict=True):
            if name not in boxes:
                boxes[name] = detector_boxes(network, normalisation, self.sources.photographs.images[index[name]])
            tally.add(label, surest_at(boxes[name], row, column))
        return tally

    def _slid(self, cell: Cell) -> dict[str, Any]:
        """What the classifier that `slices` trained finds where it slides over photographs."""
        assert cell.needs is not None
        base = self.store.read(cell.needs)
        assert base is not None
        if base["status"] != "done":
            return {"status": base["status"], "reason": base["reason"]}
        network, normalisation = self._network_of(cell.needs, base)
        cut = parts(self.sources, cell, self.budget)
        size = cut.test.size
        counted = cost(network, cut.test.bands, (cell.size, cell.size))
        heats, watched = (
            [slide(network, normalisation, image, cell.size) for image in part.images]
            for part in (cut.test, cut.validation)
        )
        found: dict[str, Any] = {
            "status": "done",
            "lr": base["lr"],
            "samples": base["samples"],
            "searched": base["searched"],
            "windows": heats[0].size,
            "parameters": counted["parameters"],
            "macs": counted["macs"] * heats[0].size,
            "latency": self._latency(cell, network),
        }
        whole, around = ([spread(heat, size) for heat in part] for part in (heats, watched))
        found |= self._judged(cell, cut, whole, around, heats)
        self._weights(cell.needs).unlink(missing_ok=True)  # nobody else wants them
        return found

    def _judged(
        self, cell: Cell, cut: Parts, maps: list[Map], watched: list[Map], kept: Sequence[Map]
    ) -> dict[str, Any]:
        """Boxes and pixels of maps (H, W) against the masks; what figure 5 shows of `kept` goes beside the result.

        The threshold at which a map is made boxes is chosen by the validation photographs' maps, `watched`.
        """
        tally = Tally()
        for mask, probability in zip(cut.test.labels, maps, strict=True):
            tally.add_pixels(mask, probability)
        pictures: dict[str, Any] = {cut.test.names[i]: np.rint(kept[i] * 255).astype(np.uint8) for i in shown(cut.test)}
        with atomic_write(self.store.path(cell).with_suffix(".npz")) as partial, partial.open("wb") as file:
            np.savez_compressed(file, **pictures)
        size = cut.test.size
        return {
            "threshold": best_threshold(every_threshold(_boxed(cut.validation), watched, size)),
            "ap": every_threshold(_boxed(cut.test), maps, size),
            "scores": scores(tally),
        }

    def _latency(self, cell: Cell, network: nn.Module) -> dict[str, float]:
        """Beside ours for the same images: of photographs, our network of pixels."""
        samples, asked, size, runs = self.sources.of(cell.task), cell, (cell.size, cell.size), self.budget.timed
        if cell.task in ("photographs", "patches"):
            asked, size, runs = replace(cell, task="photographs", size=CROP), samples.size, min(FEW, runs)
        look = forward(network, samples.bands, size)
        if cell.task == "patches":
            normalisation, first, runs = Normalisation.of(samples), samples.images[0], 1
            look = lambda: slide(network, normalisation, first, cell.size)  # noqa: E731 (a name of its own would say less)
        ours = self._make(replace(asked, network="cracknet")).to(DEVICE)
        return latency(look, forward(ours, samples.bands, size), DEVICE, runs)

    def _make(self, cell: Cell) -> nn.Module:
        return networks.make(cell, self.sources.of(cell.task).bands, self.budget)

    def _course(self, cell: Cell) -> Course:
        budget, batch, crop = self.budget, self.budget.batch, cell.size
        samples, search = (count // batch * batch for count in (budget.samples, budget.search))
        if cell.task == "photographs":
            samples, search, batch = (
                *(budget.in_crops(count, crop) for count in (budget.samples, budget.search)),
                budget.large_batch,
            )
            if cell.network == "ssd300":
                crop = max(self.sources.photographs.size)  # it sees them whole, scaled to its 300x300
        return Course(cell.optimizer, budget.rates_of(cell.optimizer), samples, search, batch, crop, cell.seed)

    def _weights(self, cell: Cell) -> Path:
        return self.weights / self.budget.name / f"{cell.name}.safetensors"

    def _keep(self, cell: Cell, network: nn.Module) -> str:
        """Write weights for the cell that will slide them; returns what tells them from others."""
        weights = checkpoint.weights_of(network)
        with atomic_write(self._weights(cell)) as partial:
            partial.write_bytes(serialize({name: tensor.contiguous() for name, tensor in weights.items()}))
        return checkpoint.digest(weights)

    def _network_of(self, cell: Cell, result: dict[str, Any]) -> tuple[nn.Module, Normalisation]:
        """A finished cell's network: its weights where they still lie here, else trained again at the rate found."""
        normalisation = Normalisation(tuple(result["mean"]), tuple(result["std"]))
        try:
            weights = load_file(self._weights(cell))
        except (OSError, SafetensorError):
            weights = {}
        if weights and checkpoint.digest(weights) == result["weights"]:
            network = self._make(cell)
            network.load_state_dict(weights)
            return network.to(DEVICE), normalisation
        fit = parts(self.sources, cell, self.budget).fit
        made = train(lambda: self._make(cell), _lesson(cell), fit, normalisation, self._course(cell), result["lr"])
        return made, normalisation


def shown(test: Samples) -> list[int]:
    """Which of the judged photographs figure 5 shows: the first with cracks."""
    return [int(i) for i in np.flatnonzero(test.positive)[:SHOWN]]


def _lesson(cell: Cell) -> Lesson:
    if cell.task != "photographs":
        return Labels()
    return Boxes() if cell.network == "ssd300" else Masks()


def _map(network: nn.Module, normalisation: Normalisation, image: NDArray[Any]) -> Map:
    """Probability a pixel (H, W) of one photograph."""
    network.eval()
    device = next(network.parameters()).device
    with torch.inference_mode():
        logits = network(normalisation.apply(to_tensor(image[None])).to(device))
    return np.asarray(torch.sigmoid(logits[0, 0]).cpu().numpy(), np.float32)


def _boxed(test: Samples) -> list[list[Box]]:
    return [truth_boxes(mask > 0) for mask in test.labels]
