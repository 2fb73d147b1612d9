"""Write benchmarks/suite/field.zip: every network of the field at every size, exported and quantized by our toolkit.

    python -m benchmarks.field [--only NETWORK ...]

Weights are fresh, since only time and memory are measured of them; int8 ranges are those of two seeded images.
"""

import argparse
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.paper.networks import SSD_SIDE, TITLES, ours
from benchmarks.script import script
from benchmarks.suite.field import FIELD, OURS, Absent, Member, members, skeleton, write
from targets.runtime.errors import HighwallError
from toolkit import baselines
from toolkit.checkpoint import Model
from toolkit.cost import measure
from toolkit.export.onnx import export
from toolkit.network import NetworkConfig, Task, build_network
from toolkit.quantize.onnx import observe, quantize
from toolkit.quantize.recipes import plain

BANDS: Final = 3
SLICES: Final = (18, 48, 224)
SCENES: Final = (224, 448, 1024)
CLASSIFIERS: Final = tuple(name for name in TITLES if name not in ("unet", "ssd300"))
# What each could be asked for: a classifier of slices, a network of pixels, or boxes at the size it was published for.
WANTED: Final = (
    *((name, "classify", size) for size in SLICES for name in CLASSIFIERS),
    *((name, "segment", size) for size in SCENES for name in (OURS, "unet")),
    ("ssd300", "detect", SSD_SIDE),
)


class Flat(nn.Module):
    """SSD's boxes and scores as one row, because an artifact has one output; suppression of neighbours is not in it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        boxes, scores = self.network(image)
        return torch.cat((boxes.flatten(1), scores.flatten(1)), 1)


def network_of(name: str, task: str, size: int) -> tuple[Model, nn.Module]:
    """A network with fresh weights, and how to feed it. Raises HighwallError where it cannot take the size."""
    torch.manual_seed(0)
    kind: Task = "segment" if task == "segment" else "classify"
    if name == OURS:
        config = ours(kind, BANDS, size)
        network = build_network(config)
    elif task == "detect":
        config = NetworkConfig(kind, BANDS, 0, 0, slice_size=size, architecture=name)
        network = Flat(baselines.make(name, "detect", BANDS, size))
    else:
        config = NetworkConfig(kind, BANDS, 0, 0, slice_size=size, architecture=name)
        network = build_network(config)
    return Model(name, config, (127.5,) * BANDS, (127.5,) * BANDS, "uint8"), network.eval()


def feeds(size: int) -> list[dict[str, NDArray[np.uint8]]]:
    """Two seeded images, whose ranges int8 takes."""
    random = np.random.RandomState(0)
    return [{"image": random.randint(0, 256, (1, size, size, BANDS)).astype(np.uint8)} for _ in range(2)]


def make(name: str, task: str, size: int) -> tuple[dict[Member, bytes], list[Absent]]:
    """One network's skeletons at fp32 and int8, and why it has none."""

    def absent(precision: str, error: Exception) -> Absent:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        return Absent(name, TITLES[name], task, size, precision, reason)

    try:
        model, network = network_of(name, task, size)
    except HighwallError as error:
        return {}, [absent(precision, error) for precision in ("fp32", "int8")]
    cost = measure(network, torch.zeros(1, BANDS, size, size))
    facts = (cost.macs, cost.parameters, cost.activation_bytes)
    one = Member(name, TITLES[name], task, size, BANDS, "fp32", *facts)
    whole = export(model, network)
    found = {one: skeleton(whole)}
    if name == "rnn":
        return found, [absent("int8", HighwallError("ONNX Runtime has no integer kernel of a recurrent layer"))]
    small = quantize(whole, plain("onnx", "int8"), observe(whole, feeds(size)))
    found[Member(name, TITLES[name], task, size, BANDS, "int8", *facts)] = skeleton(small)
    return found, []


def main() -> None:
    """Write the whole field, or some networks anew."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.field", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=TITLES, default=list(TITLES), metavar="NETWORK")
    parser.add_argument("--out", type=Path, default=FIELD)
    args = parser.parse_args()
    models: dict[Member, bytes] = {}
    missing: list[Absent] = []
    if args.out.exists():
        import zipfile

        kept, gaps = members(args.out)
        with zipfile.ZipFile(args.out) as archive:
            models = {one: archive.read(f"{one.name}.onnx") for one in kept if one.network not in args.only}
        missing = [gap for gap in gaps if gap.network not in args.only]
    for name, task, size in WANTED:
        if name in args.only:
            found, gaps = make(name, task, size)
            models |= found
            missing += gaps
            print(f"- {name} {task} {size}: {', '.join(one.precision for one in found) or gaps[0].reason}", flush=True)
    write(args.out, models, missing)
    print(f"{args.out.name}: {len(models)} models, {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    script(main)
