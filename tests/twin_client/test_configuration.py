"""Configuration: whole or not at all, named faults, and that no desired state can lock a gateway out."""

import json
import resource
import subprocess
import sys
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets.runtime.errors import HighwallError
from twin_client.config import Settings, cameras, load, local, sensitivity, serial
from twin_client.protocol.errors import ProtocolError
from twin_client.protocol.orders import MOST_BYTES, Desired, Reported, from_json, pack, to_json, unpack
from twin_client.protocol.records import ClockQuality, Stamp
from twin_client.protocol.site import Destination, Sensitivity, Site, faults
from twin_client.services import folder as disk
from twin_client.services.configuration import Configuration, Local, Trial

LOCAL = Local(frozenset({"radio"}), frozenset({"north", "south"}), dialects=frozenset({"highwall", "thingsboard"}))
GOOD = {
    "windows": [{"begin": "22:00", "end": "04:30", "days": ["mon", "sun"]}],
    "utc_offset": 480,
    "place": {"latitude": 39.7, "longitude": 110.2, "height": None},
    "destination": {"host": "twin.mine.example", "port": 8884, "dialect": "thingsboard"},
    "sensitivity": {"fainting": 45.5, "noise": 3},
    "rules": {"version": 3, "slope": [1, 2]},
    "calibrations": {"tag-7": {}},
    "cameras": {"north": {"period": 60}, "south": {"enabled": False}},
    "ports": {"radio": {"baud": 57600}},
}


def desired(number, gateway="pit-7", **settings):
    return Desired(1, gateway, number, settings or GOOD)


class Agent:
    """What the agent does around the room: one process after another over the same folder, with a clock to turn."""

    def __init__(self, folder, **options):
        self.folder, self.seconds, self.applied, self.breaks = folder, 0.0, [], None
        self.options = {"trial": Trial(limit=600, starts=3), **options}
        self.begin()

    def begin(self):
        self.room = Configuration(self.folder, "pit-7", LOCAL, self.stamp, self.apply, **self.options)
        self.applied.append(self.room.start())

    def stamp(self):
        return Stamp(1_800_000_000_000_000, int(self.seconds * 1e6), "boot", ClockQuality.NETWORK)

    def apply(self, site):
        if self.breaks is not None and site.utc_offset == self.breaks:
            raise HighwallError("no such port\nat all")
        self.applied.append(site)

    def later(self, seconds, step=1.0):
        changed = False
        for _ in range(int(seconds / step)):
            self.seconds += step
            changed |= self.room.tick()
        return changed


@pytest.fixture
def agent(tmp_path):
    return Agent(tmp_path)


# --- the way of a good one ------------------------------------------------------------------------------


def test_a_gateway_that_was_told_nothing_reports_its_defaults(agent):
    report = agent.room.reported()
    assert (report.number, report.trial, report.refused) == (0, False, None)
    assert msgspec.convert(report.settings, Site) == Site()


def test_a_good_state_is_in_force_at_once_and_for_good_once_the_twin_was_reached(agent, tmp_path):
    report = agent.room.desire(desired(4))
    assert (report.number, report.trial, report.refused) == (4, True, None)
    assert agent.applied[-1].destination == Destination("twin.mine.example", 8884, "thingsboard")
    assert not agent.room.confirm(3)
    assert agent.room.confirm(4) and not agent.room.confirm(4)
    assert not agent.later(10_000, 100)
    assert Agent(tmp_path).room.reported().settings == report.settings
    assert not Agent(tmp_path).room.reported().trial


def test_the_same_state_again_changes_nothing(agent):
    agent.room.desire(desired(4))
    before = len(agent.applied)
    assert agent.room.desire(desired(4)).number == 4
    assert len(agent.applied) == before


def test_numbers_only_grow_and_are_used_once(agent):
    agent.room.desire(desired(4))
    agent.room.confirm(4)
    for state, says in (
        (desired(3), "only grow"),
        (desired(4, utc_offset=1), "another state"),
        (desired(5, gateway="pit-8", utc_offset=1), "pit-8"),
    ):
        report = agent.room.desire(state)
        assert says in report.refused.why and report.number == 4
    assert agent.room.desire(desired(5)).refused is None


# --- faults ---------------------------------------------------------------------------------------------


def test_every_fault_is_named_in_one_line_and_nothing_is_applied(agent):
    before = len(agent.applied)
    wrong = {
        "windows": [{"begin": "24:00", "end": "06:00", "days": ["mon", "caturday"]}],
        "place": {"latitude": 91, "longitude": "east"},
        "destination": {"host": "a b", "port": 0},
        "sensitivity": {"fainting": 0, "noise": float("nan")},
        "cameras": {"north": {"period": 0.5}, "../../etc": {}},
        "ports": {"radio": {"baud": 1.5}},
        "keys": {"path": "x"},
    }
    report = agent.room.desire(Desired(1, "pit-7", 9, wrong))
    assert "\n" not in report.refused.why
    for name in (
        *("windows[0].begin", "windows[0].days[1]", "place.latitude", "place.longitude", "destination.host"),
        *("destination.port", "sensitivity.fainting", "sensitivity.noise", "cameras.north.period"),
        *("cameras.'../../etc'", "ports.radio.baud", "keys: is unknown"),
    ):
        assert name in report.refused.why
    assert (report.number, len(agent.applied)) == (0, before)
    assert agent.room.reported().refused.number == 9


def test_a_refused_state_stays_refused_over_a_restart_and_a_better_one_follows(agent, tmp_path):
    agent.room.desire(desired(9, utc_offset="x"))
    again = Agent(tmp_path)
    assert again.room.desire(desired(9, utc_offset="x")).refused.number == 9
    assert again.room.desire(desired(10)).refused is None


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"ports": {"backdoor": {}}}, "ports.backdoor"),
        ({"cameras": {"bedroom": {}}}, "cameras.bedroom"),
        ({"ports": {"radio": {"device": "/dev/mem"}}}, "ports.radio.device: is unknown"),
        ({"cameras": {"north": {"command": ["rm"]}}}, "cameras.north.command: is unknown"),
        ({"destination": {"host": "a.example", "ca": "PEM"}}, "destination.ca: is unknown"),
        ({"destination": {"host": "a.example", "dialect": "telnet"}}, "destination.dialect"),
        ({"state": "x", "trust": "y"}, "trust: is unknown"),
    ],
)
def test_the_twin_can_not_name_devices_programs_keys_or_hosts_beyond_the_gateway_s_own_file(agent, settings, says):
    report = agent.room.desire(desired(2, **settings))
    assert says in report.refused.why and report.number == 0


def test_hosts_can_be_nailed_down_in_the_gateway_s_own_file(tmp_path):
    agent = Agent(tmp_path)
    agent.room._local = Local(hosts=frozenset({"a.example"}))
    assert "b.example" in agent.room.desire(desired(2, destination={"host": "b.example"})).refused.why
    assert agent.room.desire(desired(3, destination={"host": "a.example"})).refused is None


def test_values_that_no_setting_can_have_are_refused_not_kept(agent):
    for value in (msgspec.msgpack.Ext(5, b"x"), {(1, 2): 3}):
        assert agent.room.desire(desired(2, rules={"a": value})).refused.number == 2
    assert agent.room.desire(desired(2)).refused is None


def test_what_other_rooms_refuse_is_refused(tmp_path):
    agent = Agent(tmp_path, check=lambda site: ["rules.slope: no"] if site.rules else [])
    assert agent.room.desire(desired(2)).refused.why == "rules.slope: no"


def test_a_state_that_cannot_be_applied_gives_way_to_the_one_before(agent):
    agent.room.desire(desired(1, utc_offset=60))
    agent.room.confirm(1)
    agent.breaks = 120
    report = agent.room.desire(desired(2, utc_offset=120))
    assert (report.number, report.settings["utc_offset"], report.trial) == (1, 60, False)
    assert "no such port?at all" in report.refused.why
    assert agent.applied[-1].utc_offset == 60


# --- trials ---------------------------------------------------------------------------------------------


def test_a_state_with_which_the_twin_is_not_reached_is_rolled_back_by_itself(agent):
    agent.room.desire(desired(1, utc_offset=60))
    agent.room.confirm(1)
    agent.room.desire(desired(2, utc_offset=120))
    assert not agent.later(599)
    assert agent.applied[-1].utc_offset == 120
    assert agent.later(1)
    assert agent.applied[-1].utc_offset == 60
    report = agent.room.reported()
    assert (report.number, report.trial, report.refused.number) == (1, False, 2)
    assert "600 s" in report.refused.why
    assert agent.room.desire(desired(2, utc_offset=120)).number == 1  # it is not tried twice


def test_a_newer_state_on_top_of_a_trial_falls_back_to_the_last_confirmed(agent):
    agent.room.desire(desired(1, utc_offset=60))
    agent.room.confirm(1)
    agent.room.desire(desired(2, utc_offset=120))
    agent.room.desire(desired(3, utc_offset=180))
    assert not agent.room.confirm(2)
    agent.later(600)
    assert agent.room.number == 1


def test_time_counts_on_over_restarts(agent):
    agent.options["trial"] = Trial(limit=600, starts=100)
    agent.room.desire(desired(2, utc_offset=120))
    for _ in range(9):
        agent.later(61)
        agent.begin()
    assert agent.room.number == 2
    assert agent.later(120)
    assert agent.room.number == 0


def test_an_agent_that_dies_of_a_state_has_the_old_one_after_three_starts(agent):
    agent.room.desire(desired(2, utc_offset=120))
    offsets = []
    for _ in range(5):
        agent.begin()
        offsets.append(agent.applied[-1].utc_offset)
    assert offsets == [120, 120, 120, 0, 0]
    assert "3 times" in agent.room.reported().refused.why


class PowerCut(BaseException):
    pass


def test_the_power_may_go_before_or_after_any_write_of_a_trial(tmp_path, monkeypatch):
    real = disk.save_state
    for limit in range(14):
        for late in (False, True):
            folder = tmp_path / f"{limit}-{late}"
            agent = Agent(folder)
            agent.room.desire(desired(1, utc_offset=60))
            agent.room.confirm(1)
            left = [limit]

            def save(*arguments, left=left, late=late):
                left[0] -= 1
                if left[0] < 0:
                    if late:
                        real(*arguments)
                    raise PowerCut
                real(*arguments)

            monkeypatch.setattr(disk, "save_state", save)
            try:
                agent.room.desire(desired(2, utc_offset=120))
                agent.later(600, step=60)
            except PowerCut:
                pass
            monkeypatch.setattr(disk, "save_state", real)
            agent.begin()
            assert agent.room.number in (1, 2)
            agent.later(600, step=300)
            assert agent.room.number == 1 and agent.applied[-1].utc_offset == 60
            assert agent.room.reported().refused is None or agent.room.reported().refused.number == 2


def test_a_damaged_file_does_not_keep_the_gateway_from_starting(agent, tmp_path):
    agent.room.desire(desired(1))
    (tmp_path / "configuration.json").write_bytes(b'{"seen": 1, "kept"')
    agent.begin()
    assert agent.room.number == 0
    assert (tmp_path / "configuration.json.damaged").exists()


@pytest.mark.parametrize(
    ("local", "lost", "why"),
    [
        ({"ports": frozenset()}, {"ports"}, "ports.radio"),
        ({"cameras": frozenset({"south"})}, {"cameras"}, "cameras.north"),
        ({"hosts": frozenset({"other.example"})}, {"destination"}, "destination.host"),
        ({"dialects": frozenset({"highwall"})}, {"destination"}, "destination.dialect"),
    ],
)
def test_of_a_confirmed_state_only_that_goes_which_the_gateway_s_own_file_no_longer_allows(agent, local, lost, why):
    agent.room.desire(desired(1))
    agent.room.confirm(1)
    before = agent.room.site
    agent.room._local = replace(LOCAL, **local)
    after = agent.room.start()
    assert {name for name in Site.__struct_fields__ if getattr(after, name) != getattr(before, name)} == lost
    assert after.ports.keys() == before.ports.keys() & agent.room._local.ports
    assert after.cameras.keys() == before.cameras.keys() & agent.room._local.cameras
    assert agent.room.number == 1
    assert why in agent.room.reported().refused.why


def test_a_confirmed_state_that_this_version_cannot_read_gives_way_to_the_defaults(agent, tmp_path):
    agent.room.desire(desired(1))
    agent.room.confirm(1)
    file = tmp_path / "configuration.json"
    file.write_text(file.read_text().replace("utc_offset", "of_an_older_version"))
    agent.begin()
    assert agent.applied[-1] == Site()
    assert "of_an_older_version" in agent.room.reported().refused.why


def test_a_full_disk_refuses_a_state_and_keeps_what_is_in_force(tmp_path, root):
    """In a child whose files may not grow past a few bytes, which is what a full disk looks like to a writer."""
    script = f"""
import resource, signal, sys
sys.path[:0] = [{str(root / "tests" / "twin_client")!r}]
from pathlib import Path
from test_configuration import Agent, desired
agent = Agent(Path({str(tmp_path)!r}))
agent.room.desire(desired(1, utc_offset=60)); agent.room.confirm(1)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (16, 16))
report = agent.room.desire(desired(2, utc_offset=120))
print(report.number, report.refused.why)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("1 the disk takes no more"), done.stderr
    assert Agent(tmp_path).room.number == 1
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 16


# --- the wire -------------------------------------------------------------------------------------------


def test_states_come_back_from_both_codings_and_junk_is_refused(agent):
    state, report = desired(4), agent.room.reported()
    assert unpack(Desired, pack(state)) == from_json(Desired, to_json(state)) == state
    back = unpack(Reported, pack(report))
    assert back == from_json(Reported, to_json(report))
    assert msgspec.convert(back.settings, Site) == agent.room.site
    newer = msgspec.structs.replace(state, version=2)
    zero = json.dumps({"version": 1, "gateway": "pit-7", "number": 0, "settings": {}}).encode()
    for data in (
        b"",
        b"\xc1",
        pack(newer),
        pack(report)[:-1],
        pack(state) + b"\0",
        b"[" * 100_000,
        b"0" * MOST_BYTES * 2,
    ):
        with pytest.raises(ProtocolError):
            unpack(Desired, data)
    with pytest.raises(ProtocolError):
        from_json(Desired, zero)


def nested(inner):
    return st.lists(inner) | st.dictionaries(st.sampled_from([*GOOD, "begin", "latitude", "north", "x"]), inner)


LEAVES = st.none() | st.booleans() | st.floats() | st.text() | st.integers()


@given(st.recursive(LEAVES, nested, max_leaves=12))
def test_faults_says_nothing_exactly_where_msgspec_takes_it(value):
    found = faults(Site, value)
    assert all("\n" not in fault for fault in found)
    try:
        msgspec.convert(value, Site)
        taken = True
    except msgspec.ValidationError:
        taken = False
    assert taken == (not found)


# --- the gateway's own file -----------------------------------------------------------------------------


def test_the_gateway_s_own_file_is_read_whole_and_its_paths_are_its_own(tmp_path):
    path = tmp_path / "gateway.toml"
    path.write_text(
        'gateway = "pit-7"\nfolder = "state"\nhosts = ["twin.example"]\n'
        "[services.trial]\nlimit = 60\n[services.link]\nreserve = 5\n"
        '[[serial.ports]]\nname = "radio"\nurl = "/dev/ttyUSB0"\n'
        '[[folders]]\nname = "tiles"\nfolder = "in"\n'
        '[[cameras]]\nname = "east"\ncommand = ["take", "{out}"]\n'
    )
    settings = load(path)
    assert settings.folder == str(tmp_path / "state") and settings.trust == str(tmp_path / "trust.toml")
    assert settings.services.trial == Trial(limit=60, starts=3)
    assert settings.folders[0].folder == str(tmp_path / "in")
    allowed = local(settings)
    assert allowed.hosts == {"twin.example"} and allowed.ports == {"radio"} and allowed.cameras == {"east", "tiles"}


def test_what_the_twin_sets_of_ports_and_cameras_is_laid_over_the_gateway_s_own():
    own = msgspec.convert(
        {
            "gateway": "pit-7",
            "serial": {"ports": [{"name": "a", "url": "/dev/a"}, {"name": "b", "url": "/dev/b"}]},
            "cameras": [{"name": "east", "command": ["take", "{out}"], "period": 60}],
            "folders": [{"name": "tiles", "folder": "in"}],
        },
        Settings,
    )
    wanted = {
        "ports": {"a": {"baud": 9600}, "b": {"enabled": False}},
        "cameras": {"east": {"period": 5, "threshold": 0.25, "thumbnail": 0}, "tiles": {"enabled": False}},
        "windows": [{"begin": "06:00", "end": "18:00"}],
        "utc_offset": 120,
    }
    site = msgspec.convert(wanted, Site)
    ports = serial(own, site).ports
    assert [(port.baud, port.enabled) for port in ports] == [(9600, True), (115_200, False)]
    ((east, judging),) = cameras(own, site).values()
    assert (east.period, judging.threshold, judging.thumbnail) == (5, 0.25, 0)
    assert (east.hours.windows, east.hours.utc_offset) == (site.windows, 120)
    assert [judging for _, judging in cameras(own, Site()).values()] == [own.judging] * 2


@pytest.mark.parametrize(
    "content",
    [
        '[[cameras]]\nname = "x"\ncommand = ["a", "{out}"]\n[[folders]]\nname = "x"\nfolder = "in"\n',
        '[joined]\nnowhere = "tag-1"\n',
        '[[cameras]]\nname = "x"\ncommand = ["a"]\n',
    ],
)
def test_names_that_do_not_fit_together_are_refused(tmp_path, content):
    path = tmp_path / "gateway.toml"
    path.write_text(f'gateway = "pit-7"\n{content}')
    with pytest.raises(HighwallError, match=r"gateway\.toml"):
        load(path)


def test_the_twin_sets_the_fainting_limit_and_the_environmental_noise_and_nothing_else_of_them():
    own = Settings("pit-7")
    assert sensitivity(own, Site()) == (own.motion, own.place)
    motion, place = sensitivity(own, Site(sensitivity=Sensitivity(fainting=12, noise=8)))
    assert (motion.faint_limit, motion.fall_faint_limit, place.noise) == (12, 12, 8)
    assert msgspec.structs.replace(place, noise=own.place.noise) == own.place
    for limit in (0.1, 3600):  # whatever a site may say, the rooms take
        motion, place = sensitivity(own, Site(sensitivity=Sensitivity(fainting=limit, noise=20)))
        assert faults(type(motion), msgspec.to_builtins(motion)) == []
        assert faults(type(place), msgspec.to_builtins(place)) == []


def test_every_fault_of_the_gateway_s_own_file_is_named_at_once(tmp_path):
    path = tmp_path / "gateway.toml"
    path.write_text('gateway = "a b"\nfoldre = "x"\n[services.trial]\nstarts = 0\n[services.shadow]\nmean = 2\n')
    with pytest.raises(HighwallError) as caught:
        load(path)
    for name in (str(path), "gateway: ", "foldre: is unknown", "services.trial.starts", "services.shadow.mean"):
        assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"gateway = ", b"\xff", b"#" * 2_000_000, None])
def test_a_file_that_is_none_is_one_line(tmp_path, content):
    path = tmp_path / "gateway.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(HighwallError, match=r"gateway\.toml"):
        load(path)
