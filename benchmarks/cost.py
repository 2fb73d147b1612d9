"""What every network of the field costs, counted twice: by our hooks and by torch's FlopCounterMode.

    python -m benchmarks.cost [--results DIR]       writes cost.json there

A MAC is a multiply-accumulate of a convolution, linear or recurrent layer; FlopCounterMode counts two operations each.
"""

import argparse
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.field import BANDS, WANTED, network_of
from benchmarks.paper.networks import TITLES
from benchmarks.script import script
from benchmarks.suite.field import Member
from targets.runtime.errors import HighwallError
from targets.runtime.files import write_text
from toolkit import baselines
from toolkit.cost import Cost, generic_cost, measure, separable_cost

RESULTS: Final = Path(__file__).parent / "results" / "cost"
# Parameters and GMAC at 224x224 and 1000 classes as torchvision's documentation lists them ("GFLOPS" there are MACs).
PUBLISHED: Final = {
    "alexnet": (61_100_840, 0.71),
    "vgg16": (138_357_544, 15.47),
    "vgg19": (143_667_240, 19.63),
    "googlenet": (6_624_904, 1.50),
    "resnet50": (25_557_032, 4.09),
    "densenet121": (7_978_856, 2.83),
    "mobilenetv2": (3_504_872, 0.30),
}
COLUMNS: Final = ("kind", "kernel", "inputs", "outputs", "positions", "macs", "generic", "separable", "times")
KERNELS: Final = (3, 5, 7, 9, 11)
CHANNELS: Final = (8, 16, 32, 64, 128, 256, 512)


def torch_macs(network: nn.Module, size: int) -> int | None:
    """Half of what FlopCounterMode counts; None for recurrent layers, which it does not know."""
    if any(isinstance(part, nn.GRU) for part in network.modules()):
        return None
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        network.eval()(torch.zeros(1, BANDS, size, size))
    return int(counter.get_total_flops()) // 2


def layers(cost: Cost) -> list[list[Any]]:
    """Layers of one shape as one row of COLUMNS: what is, and equations 2 and 3 for the same work."""
    rows = Counter(
        (one.kind, one.kernel, one.inputs, one.outputs, one.positions, one.macs, one.generic, one.separable)
        for one in cost.layers
    )
    return [[*row, times] for row, times in rows.items()]


def entry(name: str, task: str, size: int) -> dict[str, Any]:
    """One network at one size, or why there is none."""
    facts: dict[str, Any] = {"network": name, "title": TITLES[name], "task": task, "size": size}
    try:
        _, network = network_of(name, task, size)
    except HighwallError as error:
        return facts | {"reason": str(error)}
    cost = measure(network, torch.zeros(1, BANDS, size, size))
    counts = (cost.macs, cost.parameters, cost.activation_bytes)
    by_precision = {
        precision: Member(name, TITLES[name], task, size, BANDS, precision, *counts) for precision in ("fp32", "int8")
    }
    return facts | {
        "parameters": cost.parameters,
        "macs": cost.macs,
        "torch_macs": torch_macs(network, size),
        "generic_macs": sum(layer.generic for layer in cost.layers),
        "separable_macs": sum(layer.separable for layer in cost.layers),
        "activation_bytes": cost.activation_bytes,
        "intensity": {key: round(one.intensity, 3) for key, one in by_precision.items()},
        "layers": layers(cost),
    }


def published() -> dict[str, dict[str, Any]]:
    """The classifiers as published, counted here."""
    found = {}
    for name, (parameters, gmacs) in PUBLISHED.items():
        network = baselines.make(name, "classify", 3, 224, classes=1000)
        cost = measure(network, torch.zeros(1, 3, 224, 224))
        found[name] = {
            "title": TITLES[name],
            "parameters": cost.parameters,
            "published_parameters": parameters,
            "gmacs": round(cost.macs / 1e9, 4),
            "published_gmacs": gmacs,
        }
    return found


def saving() -> list[dict[str, float]]:
    """By equations 2 and 3: how many times fewer MACs, by side of the kernel and channels in and out."""
    return [
        {
            "kernel": side,
            "channels": count,
            "saving": round(generic_cost(side**2, count, count) / separable_cost(side**2, count, count), 4),
        }
        for side in KERNELS
        for count in CHANNELS
    ]


def main() -> None:
    """Count everything."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    entries = []
    for name, task, size in WANTED:
        entries.append(entry(name, task, size))
        said = entries[-1]
        print(f"- {name} {task} {size}: {said.get('reason') or format(said['macs'], ',') + ' MAC'}", flush=True)
    result = {
        "command": "python -m benchmarks.cost",
        "torch": torch.__version__.partition("+")[0],
        "published": published(),
        "saving": saving(),
        "layer_columns": COLUMNS,
        "networks": entries,
    }
    text = json.dumps(result, indent=1)
    flat = re.sub(r"\[\s+[^][{}]*?\s+\]", lambda found: "[" + " ".join(found[0][1:-1].split()) + "]", text)
    write_text(args.results / "cost.json", flat + "\n")  # a row a line


if __name__ == "__main__":
    script(main)
