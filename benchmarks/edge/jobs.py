"""What the networks of figure 6 see and say: scenes as camera files, slices to train on, answers and learners."""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from benchmarks.paper.networks import Centre
from targets.runtime.components import components
from targets.runtime.errors import HighwallError
from toolkit import baselines, models
from toolkit.data.synthetic import crack_images, mine_chips
from toolkit.network import CrackNet, build_network, preset

NETWORKS: Final = ("ours", "unet", "rnn")
JPEG_QUALITY: Final = 90
SLICE: Final = 48  # pixels a side of what is trained on, and of the RNN's tiles in a scene
HELD_OUT: Final = 48  # slices that nobody trains on
# Of the U-Net that trains, 0.12 M parameters; the one that predicts is the published one of 31 M, whose gradient would
# take a mine's link ten minutes.
UNET_WIDTH: Final = 0.0625
SURE: Final = 0.99  # an untrained network marks its highest hundredth of pixels, as many as cracks have
BOXES: Final = 20  # an answer names the largest
RATE, MOMENTUM = 0.01, 0.9

Pixels = NDArray[np.uint8]
Answerer = Callable[[bytes], dict[str, Any]]


@dataclass(frozen=True)
class Job:
    """One thing for all hosts to do. units: scenes a site, training steps, or bytes of a probe.

    side: pixels a side of a scene; batch: slices of each host's share of a step; weights: the file for the cloud's
    trained weights.
    """

    task: Literal["predict", "train", "probe"]
    network: str
    setting: Literal["cloud", "edge"]
    units: int
    side: int = 448
    batch: int = 8
    hosts: int = 3
    weights: str = ""


@cache
def scene_files(units: int, side: int, edge: int) -> tuple[bytes, ...]:
    """The JPEG files that the camera of `edge` (from 1) captures; no two edges see the same scene."""
    images = crack_images(max(2, edge * units), side).images[(edge - 1) * units : edge * units]
    return tuple(_file(image, "JPEG", quality=JPEG_QUALITY) for image in images)


def decoded(file: bytes) -> Pixels:
    """A camera's or a site's file as pixels. Raises HighwallError where it is no picture."""
    try:
        with Image.open(io.BytesIO(file)) as picture:
            return np.asarray(picture)
    except OSError as error:
        raise HighwallError(f"a scene's file is no picture: {error}") from error


@cache
def answerer(network: str, side: int) -> Answerer:
    """What turns a scene's file into an answer: up to 20 boxes, largest first, and the digest of the whole mask.

    Ours has its shipped weights. The others have fresh ones of a fixed seed, which cost the same time. Called once
    already, because the first call is a slow one.
    """
    torch.manual_seed(0)
    if network == "ours":
        model, ours = models.find("crack")
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (model.mean, model.std))

        def mask_of(image: Tensor) -> Pixels:
            probability = torch.sigmoid(ours((image - mean) / std)[0, 0] / model.temperature + model.bias)
            return (probability >= model.threshold).numpy().astype(np.uint8)
    elif network == "unet":
        unet = baselines.make("unet", "segment", 3, side).eval()

        def mask_of(image: Tensor) -> Pixels:
            return _highest(unet(_normalised(image))[0, 0])
    else:
        rnn = baselines.make("rnn", "classify", 3, SLICE).eval()

        def mask_of(image: Tensor) -> Pixels:
            return _highest(_tiled(rnn, _normalised(image)))

    def answer(file: bytes) -> dict[str, Any]:
        image = torch.from_numpy(decoded(file).copy()).permute(2, 0, 1)[None].float()
        with torch.inference_mode():
            mask = mask_of(image)
        found = sorted(components(mask.astype(np.bool_)), key=lambda box: -box.area)[:BOXES]
        boxes = [[box.row, box.col, box.height, box.width, box.area] for box in found]
        return {"boxes": boxes, "mask": hashlib.sha256(mask.tobytes()).hexdigest()}

    answer(_file(np.zeros((side, side, 3), np.uint8), "JPEG", quality=JPEG_QUALITY))
    return answer


@cache
def slices(steps: int, batch: int, hosts: int) -> tuple[Pixels, Pixels]:
    """Every step's slices (steps, hosts, batch, 48, 48, 3) and labels (steps, hosts, batch), mine or no mine."""
    found = mine_chips(steps * hosts * batch, SLICE)
    shape = (steps, hosts, batch)
    return found.images.reshape(*shape, SLICE, SLICE, 3).astype(np.uint8), found.labels.reshape(shape)


def packed(images: Pixels, labels: Pixels) -> list[bytes]:
    """A site's slices as it sends them: a byte of label, then a lossless PNG."""
    return [bytes([label]) + _file(image, "PNG") for image, label in zip(images, labels, strict=True)]


def unpacked(files: list[bytes]) -> tuple[Pixels, Pixels]:
    """The slices and labels of `packed` files."""
    return np.stack([decoded(file[1:]) for file in files]), np.array([file[0] for file in files], np.uint8)


def learner(network: str) -> nn.Module:
    """A network of slices with the same fresh weights on every host, in evaluation mode.

    So batch norm keeps its initial statistics and nothing is dropped, and the mean of the hosts' gradients is exactly
    the gradient of the whole batch; in training mode each host would normalise by its own share.
    """
    torch.manual_seed(0)
    if network == "ours":
        made = build_network(preset("mine", slice_size=SLICE))
        assert isinstance(made, CrackNet)
        made.see((127.5,) * 3, (64.0,) * 3)
        return made.eval()
    if network == "unet":
        return Centre(baselines.make("unet", "segment", 3, SLICE, width=UNET_WIDTH)).eval()
    return baselines.make("rnn", "classify", 3, SLICE).eval()


class Learning:
    """One training of `network`, a step at a time; wrapped by DistributedDataParallel, it is one of several hosts'."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._optimizer = torch.optim.SGD(network.parameters(), lr=RATE, momentum=MOMENTUM)

    def step(self, images: Pixels, labels: Pixels) -> None:
        """One step of SGD on slices (N, 48, 48, 3) and labels (N,)."""
        self._optimizer.zero_grad()
        _loss(self._network, images, labels).backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()


def judged(network: nn.Module) -> dict[str, float]:
    """Mean loss and share of right answers on the held-out slices."""
    images, labels = _held_out()
    with torch.inference_mode():
        loss = float(_loss(network, images, labels))
        right = (network(_batch(images))[:, 0] > 0).numpy() == labels.astype(np.bool_)
    return {"loss": loss, "accuracy": float(right.mean())}


@cache
def _held_out() -> tuple[Pixels, Pixels]:
    found = mine_chips(HELD_OUT, SLICE, seed=1)
    return found.images.astype(np.uint8), found.labels.astype(np.uint8)


def weights_of(network: nn.Module) -> NDArray[np.float32]:
    """All parameters in one row."""
    row: NDArray[np.float32] = nn.utils.parameters_to_vector(network.parameters()).detach().numpy()
    return row


def _loss(network: nn.Module, images: Pixels, labels: Pixels) -> Tensor:
    return F.binary_cross_entropy_with_logits(network(_batch(images))[:, 0], torch.from_numpy(labels).float())


def _batch(images: Pixels) -> Tensor:
    return _normalised(torch.from_numpy(images).permute(0, 3, 1, 2).float())


def _normalised(pixels: Tensor) -> Tensor:
    return (pixels - 127.5) / 64


def _tiled(network: nn.Module, image: Tensor) -> Tensor:
    """The logit of every 48x48 tile of (1, 3, H, W), spread over its pixels (H, W); those at an edge are filled up."""
    height, width = image.shape[-2:]
    padded = F.pad(image, (0, -width % SLICE, 0, -height % SLICE))
    rows, cols = padded.shape[-2] // SLICE, padded.shape[-1] // SLICE
    tiles = padded.view(3, rows, SLICE, cols, SLICE).permute(1, 3, 0, 2, 4).reshape(-1, 3, SLICE, SLICE)
    logits: Tensor = network(tiles).view(rows, cols)
    return logits.repeat_interleave(SLICE, 0).repeat_interleave(SLICE, 1)[:height, :width]


def _highest(logits: Tensor) -> Pixels:
    values: NDArray[np.float32] = logits.numpy()
    return np.asarray(values >= np.quantile(values, SURE), np.uint8)


def _file(image: Pixels, kind: str, **options: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, kind, **options)
    return out.getvalue()
