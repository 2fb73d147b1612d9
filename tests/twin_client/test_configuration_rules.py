"""Rules in a configuration that this version of the agent takes no more: they go, everything else stays in force."""

import json
from pathlib import Path

import msgspec

from twin_client.judgement import faults_of, without_faulty
from twin_client.protocol.orders import Desired
from twin_client.protocol.records import ClockQuality, Stamp
from twin_client.protocol.rules import rules_of
from twin_client.protocol.site import Site
from twin_client.services.configuration import Configuration, Local

LEVEL = {"kind": "level", "name": "crack", "quantity": "crack_probability", "limits": [0.5], "hysteresis": 0.1}
TREND = LEVEL | {"name": "creep", "quantity": "extensometer"}


def begun(folder: Path) -> tuple[Configuration, Site]:
    def stamp() -> Stamp:
        return Stamp(1_800_000_000_000_000, 1, "boot", ClockQuality.NETWORK)

    room = Configuration(folder, "pit-7", Local(), stamp, lambda site: None, faults_of, None, without_faulty)
    return room, room.start()


def kept_by_an_earlier_version(folder: Path, rules: object) -> None:
    room, _ = begun(folder)
    reported = room.desire(Desired(1, "pit-7", 3, {"utc_offset": 480, "rules": {"version": 5, "rules": [TREND]}}))
    assert reported.refused is None
    assert room.confirm(3)
    path = folder / "configuration.json"
    state = json.loads(path.read_bytes())
    state["kept"]["settings"]["rules"] = rules
    path.write_text(json.dumps(state))


def test_a_rule_that_is_faulty_by_now_is_left_out_and_named_and_the_others_go_on(tmp_path: Path) -> None:
    for_ever = LEVEL | {"hysteresis": 0.5}  # an alarm of it would never end
    kept_by_an_earlier_version(tmp_path, {"version": 5, "rules": [LEVEL, for_ever | {"name": "x"}, TREND]})
    for _ in range(2):  # and again at the next start
        room, site = begun(tmp_path)
        assert site.utc_offset == 480
        assert [rule.name for rule in rules_of(site.rules).rules] == ["crack", "creep"]
        reported = room.reported()
        assert reported.number == 3
        assert reported.refused is not None
        assert "rules[1]" in reported.refused.why
    better = Desired(1, "pit-7", 4, {"utc_offset": 480, "rules": {"version": 6, "rules": [LEVEL, TREND]}})
    assert room.desire(better).refused is None


def test_rules_that_are_none_at_all_are_no_configuration(tmp_path: Path) -> None:
    kept_by_an_earlier_version(tmp_path, "many")
    room, site = begun(tmp_path)
    assert site == Site()
    assert msgspec.to_builtins(room.reported())["refused"]["number"] == 3
