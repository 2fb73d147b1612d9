"""Training: binary cross-entropy, a cosine schedule, averaged weights, and runs that resume to the same bits."""

import copy
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn
from tqdm import tqdm

from targets.runtime.errors import HighwallError
from targets.runtime.files import atomic_write, write_text
from toolkit import checkpoint
from toolkit.checkpoint import Model
from toolkit.data.batches import Normalisation, to_tensor, training_batches
from toolkit.data.samples import Samples
from toolkit.metrics import Answer, Tally, tallied
from toolkit.network import CrackNet, NetworkConfig, build_network
from toolkit.optimizers import optimizer_for
from toolkit.quantize.simulate import quantizable, simulated
from toolkit.temperature import UNTEMPERED, LogitCounts, Temperature, fit

QAT_LEARNING = 0.1  # of an optimizer's rate: trained weights need only to settle
LOSSES = ("bce", "bce+dice", "focal")


@dataclass(frozen=True)
class TrainConfig:
    """All that decides a run's weights, beside its data; stored with the run."""

    name: str
    network: NetworkConfig
    epochs: int = 12
    batch: int = 64
    optimizer: str = "adam"
    lr: float = 3e-3
    seed: int = 0
    loss: str = "bce"
    crop: int = 224  # segment: a training crop's side, pixels
    draws: int = 0  # samples an epoch; 0: as many as there are, or four crops an image
    averaging: float = 0.995
    harsh: float = 0.0  # see `training_batches`
    start: str = ""  # sha256 of the weights it began with; empty: fresh ones
    qat: bool = False  # quantization-aware: layers compute as at int8, so weights settle where rounding harms least


def loss_of(logits: Tensor, targets: Tensor, kind: str) -> Tensor:
    """Equation 7, or it with a Dice term (1 - 2|AB| / (|A| + |B|)), or focal (Lin et al. 2017, gamma 2)."""
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    if kind == "bce":
        return entropy.mean()
    probability = torch.sigmoid(logits)
    if kind == "focal":
        missed = torch.where(targets > 0.5, 1 - probability, probability)
        return (entropy * missed**2).mean()
    overlap = 2 * (probability * targets).sum() + 1
    return entropy.mean() + 1 - overlap / (probability.sum() + targets.sum() + 1)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over the first twentieth, then a cosine to nothing."""
    warm = max(1, steps // 20)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


class NoNumber(HighwallError):
    """A network that answers with NaN."""


def inputs_on(device: torch.device, images: Tensor, sensors: Tensor | None) -> tuple[Tensor, ...]:
    """What a network is called with: images, and sensor features where there are any."""
    return tuple(each.to(device) for each in (images, sensors) if each is not None)


def answers(
    network: nn.Module, normalisation: Normalisation, samples: Samples
) -> Iterator[tuple[NDArray[np.uint8], Tensor]]:
    """Labels and the network's logits for them, batch by batch, on the CPU.

    Raises NoNumber where the logits are none.
    """
    network.eval()
    device = next(network.parameters()).device
    batch = 64 if samples.task == "classify" else 4
    for start in range(0, len(samples), batch):
        chosen = slice(start, start + batch)
        with torch.inference_mode():
            images = normalisation.apply(to_tensor(samples.images[chosen]))
            sensors = None if samples.sensors is None else normalisation.of_sensors(samples.sensors[chosen])
            logits = network(*inputs_on(device, images, sensors)).cpu()
        if logits.isnan().any():
            raise NoNumber("the network's answers are no numbers, so its training diverged; try a lower --lr")
        yield samples.labels[chosen], logits


def probabilities(
    network: nn.Module, normalisation: Normalisation, samples: Samples, tempering: Temperature = UNTEMPERED
) -> Iterator[Answer]:
    """Labels and the network's probabilities for them, batch by batch."""
    for labels, logits in answers(network, normalisation, samples):
        yield labels, torch.sigmoid(tempering.apply(logits)).numpy()


def predict(
    network: nn.Module, normalisation: Normalisation, samples: Samples, tempering: Temperature = UNTEMPERED
) -> Tally:
    """The network's probabilities over `samples`, tallied against their labels."""
    return tallied(samples.task, probabilities(network, normalisation, samples, tempering))


def threshold_of(tally: Tally) -> float:
    """Where F1 is steady, as a checkpoint holds it: six digits, and never 0 or 1."""
    return min(max(round(tally.steady_threshold(), 6), 1e-6), 1 - 1e-6)


def temper(network: nn.Module, normalisation: Normalisation, samples: Samples) -> Temperature:
    """The temperature that makes the network's probabilities meant on `samples`; it may not have learned from them."""
    counts = LogitCounts()
    for labels, logits in answers(network, normalisation, samples):
        counts.add(labels, logits)
    return fit(counts)


class Trainer:
    """One run: its network, averaged copy, optimizer and epoch, kept in RUN/state.safetensors.

    Without `validation` it must `begin_with` a model, whose threshold and temperature it keeps.
    """

    def __init__(
        self,
        config: TrainConfig,
        train: Samples,
        validation: Samples | None,
        folder: Path,
        provenance: dict[str, Any],
    ) -> None:
        self.config, self.train, self.validation, self.folder = config, train, validation, folder
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device.type == "cuda":  # the same seed must give the same weights; a CPU needs no telling
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
        torch.manual_seed(config.seed)
        network = build_network(config.network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network: nn.Module = network.to(self.device)
        self.normalisation = Normalisation.of(train)
        if isinstance(self.network, CrackNet):
            self.network.see(self.normalisation.mean, self.normalisation.std)
        self.averaged = copy.deepcopy(self.network)
        self.optimizer = optimizer_for(self.network, config.optimizer, config.lr)
        per_image = 1 if config.network.task == "classify" else 4
        self.draws = config.draws or len(train) * per_image
        self.batch = min(config.batch, self.draws)
        self.steps = config.epochs * (self.draws // self.batch)
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.provenance = provenance
        self.start: Model | None = None

    def begin_with(self, model: Model, weights: dict[str, Tensor]) -> None:
        """Start from trained weights, and see pixels as they were trained to."""
        self.network.load_state_dict(weights)
        self.averaged.load_state_dict(weights)
        self.normalisation = model.normalisation
        self.start = model

    @property
    def state_path(self) -> Path:
        return self.folder / "state.safetensors"

    def identity(self) -> dict[str, Any]:
        """What must agree before a run may be resumed."""
        return {
            "config": asdict(self.config),
            "train": self.train.digest,
            "validation": "" if self.validation is None else self.validation.digest,
            "device": self.device.type,
            "threads": torch.get_num_threads(),
        }

    def run(self, say: Callable[[str], None]) -> Model:
        """Train from the last finished epoch to the end; returns what was saved as the checkpoint."""
        for epoch in range(len(self.history), self.config.epochs):
            # Every draw of an epoch follows from the seed and its number, so a resumed run repeats them.
            torch.manual_seed(int(np.random.SeedSequence([self.config.seed, epoch]).generate_state(1)[0]))
            loss = self._epoch(epoch)
            self.history.append({"epoch": epoch + 1, "loss": loss})
            said = f"epoch {epoch + 1}/{self.config.epochs}  loss {loss:.4f}"
            if self.validation is None:  # what the last step spoilt, no loss has shown
                next(answers(self.averaged, self.normalisation, self.train))
            else:
                scores = predict(self.averaged, self.normalisation, self.validation).scores(0.5)
                self.history[-1] |= {"auc": scores.auc, "f1": scores.f1}
                said += f"  validation AUC {scores.auc:.4f}  F1 {scores.f1:.4f}"
            self._save_state()
            say(said)
        return self._finish()

    def _epoch(self, epoch: int) -> float:
        self.network.train()
        count = self.draws // self.batch
        config = self.config
        batches = training_batches(
            self.train, self.normalisation, self.batch, self.draws, config.crop, harsh=config.harsh
        )
        total = 0.0
        title = f"epoch {epoch + 1}/{self.config.epochs}"
        with tqdm(batches, total=count, desc=title, leave=False, disable=None) as bar:
            for done, (images, targets, sensors) in enumerate(bar, 1):
                total += self._train_on(images, targets, sensors)
                if not math.isfinite(total):
                    raise HighwallError(f"the loss is no longer a number in epoch {epoch + 1}; try a lower --lr")
                bar.set_postfix(loss=f"{total / done:.4f}")
        return total / max(1, count)

    def _train_on(self, images: Tensor, targets: Tensor, sensors: Tensor | None) -> float:
        """One step of the optimizer; returns the loss before it."""
        rate = learning_rate(self.step, self.steps, self.config.lr)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with simulated(quantizable(self.network).values() if self.config.qat else ()):
            logits = self.network(*inputs_on(self.device, images, sensors))
        loss = loss_of(logits, targets.to(self.device), self.config.loss)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimizer.step()
        self._average()
        self.step += 1
        return float(loss.detach())

    @torch.no_grad()
    def _average(self) -> None:
        """An exponential average of the weights, short at first so that it forgets where it began."""
        decay = min(self.config.averaging, (1 + self.step) / (10 + self.step))
        pairs = zip(self.averaged.state_dict().values(), self.network.state_dict().values(), strict=True)
        for kept, now in pairs:
            if kept.is_floating_point():
                kept.lerp_(now, 1 - decay)
            else:
                kept.copy_(now)

    def _save_state(self) -> None:
        tensors = {f"network.{k}": v for k, v in checkpoint.weights_of(self.network).items()}
        tensors |= {f"averaged.{k}": v for k, v in checkpoint.weights_of(self.averaged).items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v.detach().cpu().clone() for k, v in values.items()}
        notes = {"identity": self.identity(), "step": self.step, "history": self.history}
        metadata = {"notes": json.dumps(notes, sort_keys=True)}
        with atomic_write(self.state_path) as partial:
            partial.write_bytes(serialize({k: v.contiguous() for k, v in tensors.items()}, metadata))
        lines = "".join(json.dumps(line) + "\n" for line in self.history)
        write_text(self.folder / "history.jsonl", lines)

    def resume_if_begun(self) -> bool:
        """Take up what the folder holds of this run, if anything; whether it did. Raises as `resume` does."""
        begun = self.state_path.exists()
        if begun:
            self.resume()
        return begun

    def resume(self) -> None:
        """Take up RUN/state.safetensors. Raises HighwallError when it belongs to other settings or data."""
        try:
            with safe_open(self.state_path, "pt") as file:
                notes = json.loads((file.metadata() or {})["notes"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, KeyError, ValueError) as error:
            raise HighwallError(f"{self.state_path} is damaged ({error}); begin anew with another --out") from error
        theirs, ours = _flat(notes["identity"]), _flat(json.loads(json.dumps(self.identity())))
        different = [f"{k}: {theirs.get(k)} there, {ours.get(k)} here" for k in ours if theirs.get(k) != ours[k]]
        if different:
            raise HighwallError(
                f"{self.folder} was begun with other settings ({'; '.join(different)}); "
                "repeat them or choose another --out"
            )
        self._restore(self.network, tensors, "network.")
        self._restore(self.averaged, tensors, "averaged.")
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".", 2)
                state.setdefault(int(index), {})[key] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.step, self.history = notes["step"], notes["history"]

    @staticmethod
    def _restore(network: nn.Module, tensors: dict[str, Tensor], prefix: str) -> None:
        network.load_state_dict({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})

    def _finish(self) -> Model:
        if self.validation is None:
            assert self.start is not None
            tempering, threshold = self.start.tempering, self.start.threshold
            validation = self.start.provenance["validation"]
        else:
            tempering = temper(self.averaged, self.normalisation, self.validation)
            tally = predict(self.averaged, self.normalisation, self.validation, tempering=tempering)
            threshold = threshold_of(tally)
            validation = tally.scores(threshold).as_dict()
        model = Model(
            name=self.config.name,
            network=self.config.network,
            mean=self.normalisation.mean,
            std=self.normalisation.std,
            dtype=str(self.train.images.dtype),
            threshold=threshold,
            temperature=tempering.value,
            bias=tempering.bias,
            sensor_mean=self.normalisation.sensor_mean,
            sensor_std=self.normalisation.sensor_std,
            sensor_names=self.train.sensor_names,
            labels=self.train.class_names,
            provenance=self.provenance
            | {"train": asdict(self.config), "data": self.train.digest, "validation": validation},
        )
        checkpoint.save(self.folder / "checkpoint.safetensors", model, checkpoint.weights_of(self.averaged))
        return model


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level of dotted names."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
