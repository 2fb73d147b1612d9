"""What this machine can do at most: multiply-accumulates a second in one engine, and bytes a second to memory.

The peak is that of the engine's own matrix product, the best it could reach with any network; the bandwidth is of
copies far larger than any cache (McCalpin's STREAM copy: bytes read and bytes written).
"""

import os
import threading
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from targets.runtime.errors import HighwallError
from targets.runtime.timing import seconds_of

SIDE: Final = 1024  # of the matrices
COPIED: Final = 1 << 27  # bytes of each thread's array
TRIES: Final = 7


@dataclass(frozen=True)
class Roof:
    """The best of several tries, by threads: GMAC/s at fp32 and int8, and GB/s of copies (read and written)."""

    threads: int
    fp32_gmacs: float
    int8_gmacs: float
    gbytes: float


def roof(threads: int) -> Roof:
    """Measure with so many threads. Raises HighwallError where a package of the suite is missing."""
    return Roof(threads, _digits(_product(threads, False)), _digits(_product(threads, True)), _digits(_copy(threads)))


def place(macs: int, traffic: int, peak_gmacs: float, gbytes: float) -> float:
    """The least milliseconds that the roof allows: the longer of its arithmetic and its traffic (Williams 2009)."""
    return max(macs / peak_gmacs, traffic / gbytes) / 1e6


def _product(threads: int, whole: bool) -> float:
    """GMAC/s of a product of two square matrices."""
    try:
        import onnxruntime
        from onnx import TensorProto, helper, numpy_helper
    except ModuleNotFoundError as error:
        raise HighwallError("the suite needs onnxruntime and onnx; pip install 'highwall[bench]'") from error
    random = np.random.RandomState(0)
    weights: Any = random.randint(-127, 128, (SIDE, SIDE)).astype(np.int8 if whole else np.float32)
    # The left side is unsigned: of the integer kernels that is the fastest kind on every machine.
    left = TensorProto.UINT8 if whole else TensorProto.FLOAT
    node = helper.make_node("MatMulInteger" if whole else "MatMul", ["a", "b"], ["c"])
    out = TensorProto.INT32 if whole else TensorProto.FLOAT
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("a", left, [SIDE, SIDE])],
        [helper.make_tensor_value_info("c", out, [SIDE, SIDE])],
        [numpy_helper.from_array(weights, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {"a": random.randint(0, 255, (SIDE, SIDE)).astype(np.uint8 if whole else np.float32)}
    return SIDE**3 / min(seconds_of(lambda: session.run(None, feed)) for _ in range(TRIES)) / 1e9


def _copy(threads: int) -> float:
    """GB/s; every thread copies arrays of its own, all at the same time."""
    count = min(COPIED, _spare_bytes() // (8 * threads)) // 8
    pairs = [(np.ones(count), np.zeros(count)) for _ in range(threads)]

    def work() -> None:
        jobs = [threading.Thread(target=np.copyto, args=(target, source)) for source, target in pairs]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()

    best = min(seconds_of(work) for _ in range(TRIES))
    return 2 * 8 * count * threads / best / 1e9


def _spare_bytes() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _digits(value: float) -> float:
    return float(f"{value:.3g}")
