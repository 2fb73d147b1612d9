"""Generated slopes repeat to the byte, and neither the camera nor the sensors alone give the label away."""

import numpy as np
import pytest

from targets.runtime.errors import HighwallError
from toolkit.data.slopes import SENSORS, slopes


def test_the_same_seed_gives_the_same_slopes_and_another_seed_others() -> None:
    assert slopes(23, 17, 3).digest == slopes(23, 17, 3).digest
    assert slopes(23, 17, 3).digest != slopes(23, 17, 4).digest


def test_a_slope_does_not_depend_on_how_many_there_are() -> None:
    few, many = slopes(7, 19, 1), slopes(23, 19, 1)
    assert many.take(range(7)).digest == few.digest


def test_every_fold_holds_every_kind_of_slope_in_its_share() -> None:
    samples = slopes(200, 16, 0)
    assert samples.folds is not None
    assert samples.sensors is not None and samples.sensors.shape == (200, len(SENSORS))
    assert samples.sensor_names == SENSORS
    shares = [samples.labels[samples.folds == fold].mean() for fold in range(5)]
    assert shares == pytest.approx([0.4] * 5)


def test_movement_shows_in_the_sensors_but_is_not_the_label() -> None:
    samples = slopes(400, 16, 2)
    assert samples.sensors is not None
    velocity = samples.sensors[:, SENSORS.index("extensometer_velocity")]
    fast = velocity > np.median(velocity)
    hazardous = samples.labels > 0
    assert hazardous[fast].mean() > 2 * hazardous[~fast].mean()
    assert 0.3 < hazardous[fast].mean() < 0.8  # a third of what moves has no crack


@pytest.mark.parametrize(("count", "size", "seed"), [(1, 32, 0), (9, 15, 0), (9, 32, -1)])
def test_what_cannot_be_generated_is_refused(count: int, size: int, seed: int) -> None:
    with pytest.raises(HighwallError):
        slopes(count, size, seed)
