"""What running a model takes on this machine: peak memory and time per inference, in a process of its own.

python -m targets.runtime.footprint RUNTIME MODEL [RUNS]     prints one line of JSON
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from targets.runtime import golden
from targets.runtime.engine import open_session, preload
from targets.runtime.errors import HighwallError
from targets.runtime.manifest import InputSpec

RUNS: Final = 100
STATUS: Final = Path("/proc/self/status")


@dataclass(frozen=True)
class Footprint:
    """peak_mib: VmHWM after running, less the same process's before it loaded the model; None off Linux.

    p50_ms, p95_ms: of one inference on one thread, after some that do not count.
    """

    peak_mib: float | None
    p50_ms: float
    p95_ms: float


def measure(runtime: str, model: bytes, spec: InputSpec, runs: int = RUNS, seconds: float | None = None) -> Footprint:
    """Run `model` in a fresh process on seeded images. Raises HighwallError where it does not, within `seconds`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model.{runtime}"
        path.write_bytes(model)
        shape = [str(n) for n in (*spec.shape, spec.sensors)]
        command = [sys.executable, "-P", "-m", __name__, runtime, str(path), str(runs), spec.dtype, *shape]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
        except subprocess.TimeoutExpired as error:
            raise HighwallError(f"the {runtime} model does not end within {seconds:g} s when it runs") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise HighwallError(f"the {runtime} model does not run in a process of its own: {reason}")
    return Footprint(**json.loads(done.stdout))


def peak_kib() -> int | None:
    """VmHWM of this process, the most memory it ever held; None where the system does not say."""
    try:
        lines = STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)


def _main(runtime: str, path: str, runs: int, spec: InputSpec) -> Footprint:
    image, sensors = golden.seeded_image(1, spec), golden.sensor_features(0, spec)
    preload(runtime)  # the engine's own code is there whatever the model
    before = peak_kib()
    session = open_session(runtime, Path(path).read_bytes())
    seconds = []
    warm = min(3, runs)
    for _ in range(warm + runs):
        started = time.perf_counter()
        session.run(image, sensors)
        seconds.append(time.perf_counter() - started)
    after = peak_kib()
    peak = None if before is None or after is None else round((after - before) / 1024, 2)
    p50, p95 = np.percentile(seconds[warm:], (50, 95)) * 1000
    return Footprint(peak, round(float(p50), 3), round(float(p95), 3))


if __name__ == "__main__":
    runtime, path, runs, dtype, *numbers = sys.argv[1:]
    height, width, bands, sensors = map(int, numbers)
    spec = InputSpec(height, width, bands, dtype, sensors=sensors)  # type: ignore[arg-type]
    print(json.dumps(_main(runtime, path, int(runs), spec).__dict__))
