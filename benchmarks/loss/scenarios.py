"""What happens to a client while readings come in, as data."""

from dataclasses import dataclass
from typing import Literal

Act = Literal["stall", "flow", "cut", "kill-broker", "start-broker", "forget-broker", "kill-client", "start-client"]


@dataclass(frozen=True)
class Scenario:
    """`rate` readings a second for `seconds`; `events` are (seconds since the first reading, what is done)."""

    name: str
    about: str
    rate: float
    seconds: float
    events: tuple[tuple[float, Act], ...] = ()
    settle: float = 120.0  # seconds allowed after the last reading for what was kept to arrive

    @property
    def count(self) -> int:
        """How many readings are sent."""
        return round(self.rate * self.seconds)


STALL: tuple[tuple[float, Act], ...] = ((30, "stall"), (90, "flow"))
DEAD: tuple[tuple[float, Act], ...] = ((30, "stall"), (90, "cut"), (90, "flow"))

SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("healthy-10", "a healthy link, 10 readings a second", 10, 60),
        Scenario("healthy-200", "a healthy link, 200 readings a second", 200, 40),
        Scenario("healthy-2000", "a healthy link, 2,000 readings a second", 2000, 30),
        Scenario("soak", "half an hour at 200 readings a second", 200, 1800),
        Scenario("stalled", "a link that passes nothing for 60 s, and then all that waited", 10, 130, STALL),
        Scenario("dead", "a link dead for 60 s, which then knows its connections no more", 10, 130, DEAD),
        Scenario(
            "cuts",
            "a connection reset every 5 s",
            50,
            60,
            tuple((float(at), "cut") for at in range(5, 60, 5)),
        ),
        Scenario("broker-restart", "a broker killed for 20 s", 10, 90, ((30, "kill-broker"), (50, "start-broker"))),
        Scenario(
            "broker-forgets",
            "a broker killed for 20 s that lost its state",
            10,
            90,
            ((30, "kill-broker"), (31, "forget-broker"), (50, "start-broker")),
        ),
        Scenario(
            "killed",
            "a client killed five times, started again after 2 s, the link stalled before the third",
            10,
            120,
            (
                (20.3, "kill-client"),
                (22.3, "start-client"),
                (40.7, "kill-client"),
                (42.7, "start-client"),
                (55.0, "stall"),
                (60.1, "kill-client"),
                (62.1, "start-client"),
                (75.0, "flow"),
                (85.6, "kill-client"),
                (87.6, "start-client"),
                (100.9, "kill-client"),
                (102.9, "start-client"),
            ),
        ),
    )
}
