"""What runs on an emulated board to be counted: inferences between the markers that the counter looks for.

python -m targets.emulator.inside RUNTIME RUNS DTYPE HEIGHT WIDTH BANDS SENSORS <MODEL
"""

import gc
import os
import sys

from targets.runtime import golden
from targets.runtime.engine import open_session
from targets.runtime.manifest import InputSpec

BEGIN, END = 0x7E570001, 0x7E570002  # file descriptors that nobody has; counter.c watches close()


def mark(which: int) -> None:
    """Tell the counter; the kernel only says that there is no such file."""
    try:
        os.close(which)
    except OSError:
        return


def main(runtime: str, model: bytes, runs: int, spec: InputSpec) -> None:
    """Run `runs` inferences of one seeded image, each between a pair of markers."""
    image, sensors = golden.seeded_image(1, spec), golden.sensor_features(0, spec)
    session = open_session(runtime, model)
    gc.collect()
    gc.disable()  # or a collection would fall into one inference and not into another
    for _ in range(runs):
        mark(BEGIN)
        session.run(image, sensors)
        mark(END)


if __name__ == "__main__":
    _, name, count, dtype, *numbers = sys.argv
    height, width, bands, features = map(int, numbers)
    spec = InputSpec(height, width, bands, dtype, sensors=features)  # type: ignore[arg-type]
    main(name, sys.stdin.buffer.read(), int(count), spec)
