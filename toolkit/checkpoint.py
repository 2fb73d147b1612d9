"""A trained network on disk: one safetensors file whose metadata says how to rebuild and feed it."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from targets.runtime.errors import HighwallError
from targets.runtime.files import atomic_write
from toolkit.data.batches import Normalisation
from toolkit.network import NetworkConfig, build_network
from toolkit.temperature import Temperature

FORMAT = "highwall-checkpoint-1"


@dataclass(frozen=True)
class Model:
    """All that export and evaluation need to know beside the weights.

    mean, std: per band, of raw pixels, in the units of `dtype`; the network sees (pixel - mean) / std.
    temperature, bias: a probability is sigmoid(logit / temperature + bias); see `toolkit.temperature`.
    sensor_mean, sensor_std: per sensor feature, raw, as `Normalisation` uses them; sensor_names: the features', if any.
    """

    name: str
    network: NetworkConfig
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: str = "uint8"
    threshold: float = 0.5
    labels: tuple[str, ...] = ("negative", "positive")
    provenance: dict[str, Any] = field(default_factory=dict)
    temperature: float = 1.0
    bias: float = 0.0
    sensor_mean: tuple[float, ...] = ()
    sensor_std: tuple[float, ...] = ()
    sensor_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _ = self.tempering  # refuses a temperature that is none
        for values in (self.sensor_mean, self.sensor_std, self.sensor_names):
            if len(values) not in (0, self.network.sensors):
                raise ValueError(f"{len(values)} numbers or names for {self.network.sensors} sensor features")

    @property
    def normalisation(self) -> Normalisation:
        """What turns raw pixels and sensor features into the network's inputs."""
        return Normalisation(self.mean, self.std, self.sensor_mean, self.sensor_std)

    @property
    def tempering(self) -> Temperature:
        """What turns the network's logits into those of meant probabilities."""
        return Temperature(self.temperature, self.bias)

    @property
    def classes(self) -> int:
        """How many labels; two of them share one output, the probability of the second."""
        return len(self.labels)


def save(path: Path, model: Model, weights: dict[str, Tensor]) -> None:
    """Write `weights` and what `model` says of them, whole or not at all; the same inputs give the same bytes."""
    # One key only: safetensors writes several in an order that differs from run to run.
    metadata = {FORMAT: json.dumps(asdict(model), sort_keys=True)}
    with atomic_write(path) as partial:
        # Not save_file, which makes a file only its owner may read.
        partial.write_bytes(serialize({name: tensor.contiguous() for name, tensor in weights.items()}, metadata))


def read(path: Path) -> tuple[Model, dict[str, Tensor]]:
    """What `save` wrote. Raises HighwallError for a missing, damaged or foreign file."""
    path = Path(path)
    if path.is_dir() and (path / "checkpoint.safetensors").exists():
        path = path / "checkpoint.safetensors"  # a run's folder stands for its checkpoint
    if not path.is_file():
        raise HighwallError(f"no checkpoint at {path}; `highwall train` writes one to RUN/checkpoint.safetensors")
    try:
        path.open("rb").close()  # safetensors calls a file that may not be read a missing one
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise HighwallError(f"{path} is not a readable checkpoint ({error}); train or copy it again") from error
    if FORMAT not in metadata:
        raise HighwallError(f"{path} holds tensors but not a Highwall checkpoint; expected one from `highwall train`")
    try:
        return _model(json.loads(metadata[FORMAT])), weights
    except (KeyError, TypeError, ValueError) as error:
        raise HighwallError(f"{path} was written by another version of Highwall ({error}); train it again") from error


def _model(fields: dict[str, Any]) -> Model:
    network = NetworkConfig(**fields.pop("network"))
    fields |= {key: tuple(fields[key]) for key in ("mean", "std", "labels")}
    fields |= {key: tuple(fields[key]) for key in ("sensor_mean", "sensor_std", "sensor_names") if key in fields}
    return Model(network=network, **fields)


def digest(weights: dict[str, Tensor]) -> str:
    """Sha256, in hex, of names and values."""
    sha = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        sha.update(name.encode() + tensor.cpu().numpy().tobytes())
    return sha.hexdigest()


def load(path: Path) -> tuple[Model, nn.Module]:
    """The checkpoint's network with its weights, in evaluation mode."""
    model, weights = read(path)
    network = build_network(model.network)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise HighwallError(
            f"the weights in {path} do not fit the network it names; it was written by another version"
        ) from error
    return model, network.eval()


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """A detached copy of the network's tensors on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
