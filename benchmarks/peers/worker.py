"""A peer's process, in its own environment.

    python -m benchmarks.peers.worker convert PEER SOURCE PRECISION OUT
    python -m benchmarks.peers.worker serve   PEER MODEL THREADS IMAGES
    python -m benchmarks.peers.worker answer  PEER MODEL THREADS IMAGES ANSWERS

IMAGES is an .npy file (N, H, W, C); serve takes its first one.
"""

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.suite.serve import Once, serve


def main(action: str, peer: str, *rest: str) -> None:
    """Do it."""
    engine: Any = import_module(f"benchmarks.peers.engines.{peer}")
    if action == "convert":
        source, precision, out = rest
        engine.convert(Path(source), precision, Path(out))
        return
    model, threads, images = Path(rest[0]), int(rest[1]), np.load(rest[2])
    if threads == 1 and hasattr(os, "sched_setaffinity"):  # some engines take as many threads as they see cores
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    if action == "answer":
        answer = engine.session(model, threads)
        np.save(rest[3], np.stack([np.asarray(answer(image), np.float32) for image in images]))
        return

    def load() -> Once:
        answer = engine.session(model, threads)
        return lambda: answer(images[0])

    serve(getattr(engine, "preload", lambda: None), load)


if __name__ == "__main__":
    main(*sys.argv[1:])
