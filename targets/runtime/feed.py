"""What a model is fed: an image and perhaps sensor features, held against what it takes."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from targets.runtime.errors import HighwallError


class Takes(Protocol):
    """What an engine's session knows of its model's inputs."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]  # height, width, bands
    sensors: int  # how many features, 0 for none


def feed(takes: Takes, image: NDArray[Any], sensors: NDArray[np.float32] | None) -> dict[str, NDArray[Any]]:
    """Image (H, W, C) and sensors (m,) -> `image` (1, H, W, C) and, where the model has them, `sensors` (1, m) float32.

    Raises HighwallError when one does not fit the model.
    """
    if image.dtype != takes.dtype or image.shape != takes.shape:
        raise HighwallError(
            f"the model takes {takes.dtype} images of {takes.shape}, not {image.dtype} of {image.shape}"
        )
    given = 0 if sensors is None else sensors.size
    if given != takes.sensors:
        raise HighwallError(f"the model takes {takes.sensors} sensor features, {given} were given")
    fed: dict[str, NDArray[Any]] = {"image": np.ascontiguousarray(image)[None]}
    if sensors is not None and takes.sensors:
        fed["sensors"] = np.asarray(sensors, np.float32).reshape(1, -1)
    return fed
