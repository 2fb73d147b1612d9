"""Golden vectors: inputs with the outputs they gave at the workbench, run again where the model lands."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from targets.runtime.artifact import Artifact, Golden, InputSpec
from targets.runtime.engine import Engine
from targets.runtime.errors import HighwallError

_LARGEST = {"uint8": 255, "uint16": 10_000}  # Sentinel-2 reflectance is 0 to 10000


@dataclass(frozen=True)
class GoldenReport:
    """How `n` golden vectors fared; `max_difference` is infinite where an output was not a number."""

    n: int
    max_difference: float
    tolerance: float
    passed: bool


def seeded_image(seed: int, spec: InputSpec) -> NDArray[Any]:
    """An image (H, W, C) of the input dtype that depends on `seed` (0 to 2**32 - 1) alone.

    RandomState, because numpy promises never to change its stream.
    """
    return np.random.RandomState(seed).randint(0, _LARGEST[spec.dtype] + 1, spec.shape, dtype=spec.dtype)


def sensor_features(index: int, spec: InputSpec) -> NDArray[np.float32] | None:
    """The sensor input (m,), 0 to 1, that goes with golden input number `index`; None where there is none."""
    if spec.sensors == 0:
        return None
    return np.random.RandomState(index).random_sample(spec.sensors).astype(np.float32)


def inputs(golden: Golden, spec: InputSpec) -> Iterator[NDArray[Any]]:
    """The golden images (H, W, C): the seeded ones, then the real ones."""
    for seed in golden.seeds:
        yield seeded_image(int(seed), spec)
    yield from golden.images


def sample(output: NDArray[np.float32], block: int) -> NDArray[np.float32]:
    """What is kept of an output: of a map (H, W) the means of `block` x `block` pixels, (K,) unchanged.

    Every pixel counts, and one that a kernel rounds to the other side of an edge moves its mean a little only.
    """
    if output.ndim != 2 or block == 1:
        return output
    rows, columns = (np.arange(0, side, block) for side in output.shape)
    sums = np.add.reduceat(np.add.reduceat(output.astype(np.float64), rows, 0), columns, 1)
    sizes = [np.diff(np.append(starts, side)) for starts, side in zip((rows, columns), output.shape, strict=True)]
    means: NDArray[np.float32] = (sums / np.outer(*sizes)).astype(np.float32)
    return means


def make(
    session: Engine,
    spec: InputSpec,
    seeds: Sequence[int],
    images: NDArray[Any] | None,
    *,
    block: int,
    tolerance: float,
) -> Golden:
    """Run the model on the seeds' images and on `images` (r, H, W, C), or None, and keep what it answers."""
    if images is None:
        images = np.zeros((0, *spec.shape), spec.dtype)
    bare = Golden(np.asarray(seeds, np.uint32), images, np.zeros(0, np.float32), block, tolerance)
    if len(bare.seeds) + len(images) == 0:
        raise HighwallError("golden vectors need at least one seed or image")
    expected = np.stack(list(_outputs(session, inputs(bare, spec), spec, block)))
    return Golden(bare.seeds, images, expected, block, tolerance)


def check(artifact: Artifact, session: Engine) -> GoldenReport:
    """Run every golden vector in `session` and compare; an output of another shape raises HighwallError."""
    golden, spec = artifact.golden, artifact.manifest.input
    largest = 0.0
    outputs = _outputs(session, inputs(golden, spec), spec, golden.block)
    for output, expected in zip(outputs, golden.expected, strict=True):
        if output.shape != expected.shape:
            raise HighwallError(f"the model's output is {output.shape} where the golden vectors hold {expected.shape}")
        difference = np.abs(output.astype(np.float64) - expected)
        largest = max(largest, float(np.where(np.isnan(difference), np.inf, difference).max()))
    return GoldenReport(len(golden.expected), largest, golden.tolerance, largest <= golden.tolerance)


def _outputs(
    session: Engine, images: Iterable[NDArray[Any]], spec: InputSpec, block: int
) -> Iterator[NDArray[np.float32]]:
    for index, image in enumerate(images):
        yield sample(session.run(image, sensor_features(index, spec)), block)
