"""Training of one cell: a short search for the learning rate, then exactly the samples that the budget grants."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from targets.runtime.errors import HighwallError
from toolkit.data.batches import Normalisation, training_batches
from toolkit.data.samples import Samples
from toolkit.network import CrackNet
from toolkit.optimizers import optimizer_for
from toolkit.train import NoNumber, learning_rate, loss_of, predict

CLIP = 5.0  # length of the gradient, as in `highwall train`


class Diverged(Exception):
    """The loss, or an answer, is no longer a number."""


class Lesson(Protocol):
    """What a kind of network is taught: its loss, and by which number, higher is better, rates are compared."""

    def loss(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor: ...

    def score(self, network: nn.Module, normalisation: Normalisation, samples: Samples) -> float: ...


class Labels:
    """Slices: cross-entropy of the label, compared by AUC."""

    def loss(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return loss_of(network(images), targets, "bce")

    def score(self, network: nn.Module, normalisation: Normalisation, samples: Samples) -> float:
        return predict(network, normalisation, samples).scores(0.5).auc


class Masks(Labels):
    """Photographs: cross-entropy of every pixel, compared by average precision of pixels, for cracks are rare."""

    def score(self, network: nn.Module, normalisation: Normalisation, samples: Samples) -> float:
        return predict(network, normalisation, samples).scores(0.5).average_precision


@dataclass(frozen=True)
class Course:
    """How a cell learns. samples and search in images, both whole batches; crop: pixels a side, of photographs."""

    optimizer: str
    rates: tuple[float, ...]
    samples: int
    search: int
    batch: int
    crop: int
    seed: int


@dataclass(frozen=True, eq=False)
class Learned:
    """A trained network, how it wants its pixels, what the search found, and how it does on the same samples now."""

    network: nn.Module
    normalisation: Normalisation
    rate: float
    tried: list[dict[str, Any]]
    score: float


def learn(make: Callable[[], nn.Module], lesson: Lesson, fit: Samples, validation: Samples, course: Course) -> Learned:
    """Try every rate on `search` samples, judge each on `validation`, and train a fresh network with the best.

    Raises Diverged where no rate of the grid, or the training itself, stays finite; HighwallError where a batch does
    not fit in memory.
    """
    normalisation = Normalisation.of(fit)
    tried: list[dict[str, Any]] = []
    for rate in course.rates:
        network = seeded(make, course.seed)
        try:
            _train(network, lesson, fit, normalisation, course, course.search, rate)
            tried.append({"lr": rate, "score": _score(lesson, network, normalisation, validation)})
        except Diverged:
            tried.append({"lr": rate, "score": None})
    alive = [one for one in tried if one["score"] is not None]
    if not alive:
        raise Diverged(f"every learning rate of {', '.join(f'{rate:g}' for rate in course.rates)} diverged")
    rate = max(alive, key=lambda one: one["score"])["lr"]
    try:
        network = train(make, lesson, fit, normalisation, course, rate)
        score = _score(lesson, network, normalisation, validation)
    except Diverged as error:
        raise Diverged(f"{error} at learning rate {rate:g}, which had won the search") from error
    return Learned(network, normalisation, rate, tried, score)


def train(
    make: Callable[[], nn.Module],
    lesson: Lesson,
    fit: Samples,
    normalisation: Normalisation,
    course: Course,
    rate: float,
) -> nn.Module:
    """A fresh network after `course.samples` samples; the same course gives the same weights."""
    network = seeded(make, course.seed)
    _train(network, lesson, fit, normalisation, course, course.samples, rate)
    return network


def _score(lesson: Lesson, network: nn.Module, normalisation: Normalisation, samples: Samples) -> float:
    try:
        score = lesson.score(network, normalisation, samples)
    except (ValueError, NoNumber) as error:  # a tally takes no answer that is not a number
        raise Diverged(str(error)) from error
    if not math.isfinite(score):
        raise Diverged("the score is not a number")
    return round(score, 5)


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A network whose first weights, and whatever is drawn after it, follow from the seed."""
    torch.manual_seed(int(np.random.SeedSequence([seed, 2023]).generate_state(1)[0]))
    return make().to("cuda" if torch.cuda.is_available() else "cpu")


def _train(
    network: nn.Module,
    lesson: Lesson,
    fit: Samples,
    normalisation: Normalisation,
    course: Course,
    samples: int,
    rate: float,
) -> None:
    optimizer = optimizer_for(network, course.optimizer, rate)
    steps = samples // course.batch
    if isinstance(network, CrackNet):
        network.see(normalisation.mean, normalisation.std)
    network.train()
    batches = _batches(fit, normalisation, course, steps)
    title = f"{samples} samples at {rate:g}"
    for step, (images, targets) in enumerate(tqdm(batches, title, steps, leave=False, delay=2, disable=None)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, rate)
        try:
            _step(network, lesson, optimizer, images, targets)
        except (RuntimeError, MemoryError) as error:
            if not _is_memory(error):
                raise
            raise HighwallError(_too_large(network, lesson, optimizer, images, targets)) from error


def _batches(fit: Samples, normalisation: Normalisation, course: Course, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Augmented, balanced batches, the house's own, on the machine's fastest device."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    made = training_batches(fit, normalisation, course.batch, steps * course.batch, course.crop)
    return ((images.to(device), targets.to(device)) for images, targets, *_ in made)


def _step(
    network: nn.Module, lesson: Lesson, optimizer: torch.optim.Optimizer, images: Tensor, targets: Tensor
) -> None:
    loss = lesson.loss(network, images, targets)
    if not math.isfinite(float(loss.detach())):
        raise Diverged("the loss is no longer a number")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
    optimizer.step()


def _is_memory(error: Exception) -> bool:
    """Whether torch, which has no one error for it, or Python ran out of memory."""
    said = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in said


def _too_large(
    network: nn.Module, lesson: Lesson, optimizer: torch.optim.Optimizer, images: Tensor, targets: Tensor
) -> str:
    """What to do about a batch that does not fit: halved until a step succeeds."""
    batch = len(images)
    shape = "x".join(str(side) for side in images.shape[1:])
    while batch > 2:
        batch //= 2
        optimizer.zero_grad(set_to_none=True)
        try:
            _step(network, lesson, optimizer, images[:batch], targets[:batch])
        except Diverged:
            pass  # it fitted, and that is all that is asked here
        except (RuntimeError, MemoryError) as error:
            if not _is_memory(error):
                raise
            continue
        return f"a batch of {len(images)} images of {shape} does not fit in memory; {batch} fit, so lower --batch"
    return f"not even a batch of 2 images of {shape} fits in memory; take a machine with more, or end other programs"
