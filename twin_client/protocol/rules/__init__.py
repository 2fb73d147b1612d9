"""Rules: what readings and predictions mean, and when they are an alarm, told alike by the gateway and by the twin.

    book = Book(rules_of(site.rules))
    reading = calibrated(calibrations_of(site.calibrations), reading)
    state, alarms = step(book, state, (gateway, epoch, number), reading)

Nothing here looks at a clock: time is what the records' stamps say. So whoever steps the same entries in the same order
with the same rules comes to the same alarms, at once or a week later, and a state goes on from its bytes (`packed`,
or part by part: `changed`) as if there had been no pause. An alarm keeps its id from its onset until its level is 0.

A value passes its rules in this order: validity, spikes, then levels, stuck sensors and trends. Where the rules change,
alarms of a rule that is no more, or that is another one now, end with level 0 and a text that says so; what such a rule
remembered is forgotten. Rules that stay as they were go on undisturbed.
"""

from twin_client.protocol.rules.book import Book
from twin_client.protocol.rules.calibration import (
    Calibrations,
    SensorCalibration,
    calibrated,
    calibrations_of,
)
from twin_client.protocol.rules.settings import (
    ForecastRule,
    LevelRule,
    MissingRule,
    Rule,
    Rules,
    SpikingRule,
    StuckRule,
    ValidityRule,
    VelocityRule,
    rules_of,
    sound,
)
from twin_client.protocol.rules.state import State, changed, packed, recalled, restored
from twin_client.protocol.rules.step import step

__all__ = [
    "Book",
    "Calibrations",
    "ForecastRule",
    "LevelRule",
    "MissingRule",
    "Rule",
    "Rules",
    "SensorCalibration",
    "SpikingRule",
    "State",
    "StuckRule",
    "ValidityRule",
    "VelocityRule",
    "calibrated",
    "calibrations_of",
    "changed",
    "packed",
    "recalled",
    "restored",
    "rules_of",
    "sound",
    "step",
]
