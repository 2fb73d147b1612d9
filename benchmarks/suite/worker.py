"""One model in one of our engines, served: `python -m benchmarks.suite.worker RUNTIME MODEL THREADS H,W,C,DTYPE`."""

import sys
from pathlib import Path

from benchmarks.suite.serve import Once, serve
from targets.runtime import golden
from targets.runtime.engine import open_session, preload
from targets.runtime.manifest import InputSpec


def main(runtime: str, model: str, threads: str, shape: str) -> None:
    """Serve until the input ends."""
    height, width, bands, dtype = shape.split(",")
    spec = InputSpec(int(height), int(width), int(bands), dtype)  # type: ignore[arg-type]
    image = golden.seeded_image(1, spec)

    def load() -> Once:
        session = open_session(runtime, Path(model).read_bytes(), int(threads))
        return lambda: session.run(image)

    serve(lambda: preload(runtime), load)


if __name__ == "__main__":
    main(*sys.argv[1:])
