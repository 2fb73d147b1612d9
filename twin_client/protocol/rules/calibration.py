"""Sensor calibration: what a tag's raw number means in its quantity's own unit."""

import math
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from twin_client.protocol.errors import ProtocolError
from twin_client.protocol.orders import Name
from twin_client.protocol.records import Measure, Reading
from twin_client.protocol.site import faults


class SensorCalibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A polynomial of the raw number, and where it holds. A new curve has a new version, so that trends begin anew."""

    version: Annotated[int, msgspec.Meta(ge=1, le=2**31)]
    coefficients: Annotated[tuple[float, ...], msgspec.Meta(min_length=1, max_length=8)] = (0.0, 1.0)  # constant first
    low: float | None = None  # raw numbers outside have no value; None: no limit
    high: float | None = None
    unit: Annotated[str, msgspec.Meta(max_length=16)] = ""  # of the value, for people

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, self.coefficients)):
            raise ValueError("coefficients: must be finite numbers")
        if not (-math.inf if self.low is None else self.low) < (math.inf if self.high is None else self.high):
            raise ValueError(f"low: {self.low} must be below high, {self.high}")


Calibrations = dict[Name, dict[Name, SensorCalibration]]  # by tag, then by quantity


def calibrations_of(value: Any) -> Calibrations:
    """Sensor calibrations from what TOML, JSON or a site says. Raises ProtocolError that names every fault."""
    if found := faults(Calibrations, value):
        raise ProtocolError(f"calibrations: {'; '.join(found)}")
    return msgspec.convert(value, Calibrations)


def calibrated(calibrations: Mapping[str, Mapping[str, SensorCalibration]], reading: Reading) -> Reading:
    """`reading` with each value computed anew from its raw number; what has no curve is read as it is, version 0."""
    curves = calibrations.get(reading.tag, {})
    values = {name: _read(curves.get(name), measure) for name, measure in reading.values.items()}
    return msgspec.structs.replace(reading, values=values) if values != reading.values else reading


def value_of(curve: SensorCalibration, raw: float) -> float | None:
    """What `raw` means; None where the curve does not hold, or leads beyond all numbers."""
    if (curve.low is not None and raw < curve.low) or (curve.high is not None and raw > curve.high):
        return None
    value = 0.0
    for coefficient in reversed(curve.coefficients):
        value = value * raw + coefficient
    return value if math.isfinite(value) else None


def _read(curve: SensorCalibration | None, measure: Measure) -> Measure:
    raw = measure.raw
    if curve is None:
        return Measure(raw, raw)
    return Measure(raw, None if raw is None else value_of(curve, raw), curve.version)
