"""What this machine can do at most: multiply-accumulates a second in one engine, and bytes a second to memory.

The peak is that of the engine's own matrix product, the best it could reach with any network; the bandwidth is of
copies far larger than any cache (McCalpin's STREAM copy: bytes read and bytes written).
"""

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from targets.runtime.errors import HighwallError
from targets.runtime.timing import seconds_of

SIDES: Final = (256, 512, 1024)  # of the matrices: small ones stay in a cache, large ones hide what a call costs
COPIED: Final = 1 << 27  # bytes of each thread's array


@dataclass(frozen=True)
class Roof:
    """The best of several tries, by threads: GMAC/s at fp32 and int8, and GB/s of copies (read and written)."""

    threads: int
    fp32_gmacs: float
    int8_gmacs: float
    gbytes: float


def roof(threads: int, seconds: float) -> Roof:
    """Measure with so many threads, each of seven things for so many seconds.

    Raises HighwallError where a package of the suite is missing.
    """
    fp32, int8 = (max(_product(threads, side, whole, seconds) for side in SIDES) for whole in (False, True))
    return Roof(threads, _digits(fp32), _digits(int8), _digits(_copy(threads, seconds)))


def place(macs: int, traffic: int, peak_gmacs: float, gbytes: float) -> float:
    """The least milliseconds that the roof allows: the longer of its arithmetic and its traffic (Williams 2009)."""
    return max(macs / peak_gmacs, traffic / gbytes) / 1e6


def _product(threads: int, side: int, whole: bool, seconds: float) -> float:
    """GMAC/s of a product of two square matrices."""
    try:
        import onnxruntime
        from onnx import TensorProto, helper, numpy_helper
    except ModuleNotFoundError as error:
        raise HighwallError("the suite needs onnxruntime and onnx; pip install 'highwall[bench]'") from error
    random = np.random.RandomState(0)
    weights: Any = random.randint(-127, 128, (side, side)).astype(np.int8 if whole else np.float32)
    # The left side is unsigned: of the integer kernels that is the fastest kind on every machine.
    left = TensorProto.UINT8 if whole else TensorProto.FLOAT
    node = helper.make_node("MatMulInteger" if whole else "MatMul", ["a", "b"], ["c"])
    out = TensorProto.INT32 if whole else TensorProto.FLOAT
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("a", left, [side, side])],
        [helper.make_tensor_value_info("c", out, [side, side])],
        [numpy_helper.from_array(weights, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {"a": random.randint(0, 255, (side, side)).astype(np.uint8 if whole else np.float32)}
    return side**3 / _best(lambda: session.run(None, feed), seconds) / 1e9


def _copy(threads: int, seconds: float) -> float:
    """GB/s; every thread copies arrays of its own, all at the same time."""
    count = min(COPIED, _spare_bytes() // (8 * threads)) // 8
    pairs = [(np.ones(count), np.zeros(count)) for _ in range(threads)]

    def work() -> None:
        jobs = [threading.Thread(target=np.copyto, args=(target, source)) for source, target in pairs]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()

    return 2 * 8 * count * threads / _best(work, seconds) / 1e9


def _best(work: Callable[[], object], tried: float) -> float:
    """Seconds of the quickest try: where other guests share the machine, a peak is seldom seen."""
    until = time.monotonic() + tried
    best = seconds_of(work)
    while time.monotonic() < until:
        best = min(best, seconds_of(work))
    return best


def _spare_bytes() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _digits(value: float) -> float:
    return float(f"{value:.3g}")
