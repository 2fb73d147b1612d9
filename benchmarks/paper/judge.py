"""What a trained network is worth and costs: scores at the paper's thresholds, size, MACs, time beside ours."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.paper.budgets import THRESHOLDS
from toolkit.cost import measure
from toolkit.metrics import Tally


def scores(tally: Tally) -> dict[str, dict[str, float | int]]:
    """Every metric at every threshold of the paper's map, by threshold."""
    return {f"{threshold:g}": _rounded(tally.scores(threshold).as_dict()) for threshold in THRESHOLDS}


def _rounded(values: dict[str, float | int]) -> dict[str, float | int]:
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in values.items()}


def cost(network: nn.Module, bands: int, size: tuple[int, int]) -> dict[str, int]:
    """Parameters, and MACs of one image of `size`."""
    device = next(network.parameters()).device
    found = measure(network, torch.zeros(1, bands, *size, device=device))
    return {"parameters": found.parameters, "macs": found.macs}


def latency(look: Callable[[], object], ours: Callable[[], object], device: str, runs: int) -> dict[str, float]:
    """Median milliseconds of `look` on one thread, turn by turn with ours, and how many times ours that is.

    On a CPU the process's own time counts, so that a busy machine does not. Machines differ, so the ratio is what may
    be compared; the milliseconds are of this machine only.
    """
    taken: dict[str, list[float]] = {"theirs": [], "ours": []}
    pair = [("theirs", look), ("ours", ours)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for run in range(runs + 1):
            for name, action in pair:
                started = _now_ms(device)
                action()
                if run:  # the first one sets kernels up
                    taken[name].append(_now_ms(device) - started)
            pair.reverse()  # neither may always find the caches as the other left them
    finally:
        torch.set_num_threads(threads)
    theirs, own = (statistics.median(times) for times in taken.values())
    return {"ms": round(theirs, 3), "ours_ms": round(own, 3), "ratio": round(theirs / max(own, 1e-6), 3)}


def _now_ms(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
        return 1000 * time.perf_counter()
    return 1000 * time.process_time()


def forward(network: nn.Module, bands: int, size: tuple[int, int]) -> Callable[[], object]:
    """One inference of an image of `size`, to be timed."""
    device = next(network.parameters()).device
    image = torch.zeros(1, bands, *size, device=device).contiguous(memory_format=torch.channels_last)
    network.eval()

    def run() -> object:
        with torch.inference_mode():
            return network(image)

    return run
