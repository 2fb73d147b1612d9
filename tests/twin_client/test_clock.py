"""The clock: what it says is never behind what it knew, never said twice, and it says how far it may be believed."""

import json
import subprocess
import threading
import time
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin_client.clock import (
    LANES,
    SECOND,
    Belief,
    Clock,
    Pace,
    Sight,
    ask_the_kernel,
    begin,
    kernel_is_synchronised,
    reckon,
)
from twin_client.protocol.records import ClockQuality

NOW = 1_800_000_000 * SECOND  # the true time when a machine of the tests boots
DAY = 86_400 * SECOND


@dataclass
class Machine:
    """A gateway's hardware and kernel: the truth, and what its clocks make of it."""

    boot: str = "boot-1"
    since: int = 0  # microseconds since this boot
    off: int = 0  # how far the system's clock is from the truth
    synchronised: bool = False
    began: int = NOW

    @property
    def truth(self):
        return self.began + self.since

    def look(self):
        return Sight(self.truth + self.off, self.since, self.synchronised)

    def clock(self, folder, pace=None):
        return Clock(folder, pace, look=self.look, mono=lambda: self.since, boot=self.boot)

    def run(self, seconds):
        self.since += int(seconds * SECOND)

    def power_cut(self, dark, off):
        """Dark for so long (microseconds), and awake again with a system clock that is off by so much."""
        self.began, self.since, self.off = self.truth + dark, 3 * SECOND, off
        self.boot, self.synchronised = self.boot + "+", False


@pytest.fixture
def machine():
    return Machine(since=7 * SECOND)


def wrong(machine, clock):
    """How far a stamp is from the truth, in seconds."""
    return (clock.stamp().wall - machine.truth) / SECOND


# --- how far it may be believed ---------------------------------------------------------------------------------


def test_the_time_is_lost_until_something_sets_it_held_when_that_falls_silent_and_never_lost_again(tmp_path, machine):
    clock = machine.clock(tmp_path)
    assert clock.stamp().clock == ClockQuality.LOST
    machine.run(5)
    machine.synchronised = True
    machine.run(5)
    assert clock.stamp().clock == ClockQuality.NETWORK
    machine.synchronised = False
    machine.run(5)
    assert clock.stamp().clock == ClockQuality.HELD
    assert abs(wrong(machine, clock)) < 0.001


def test_a_restarted_agent_still_knows_what_this_boot_knew_and_a_new_boot_does_not(tmp_path, machine):
    machine.synchronised = True
    clock = machine.clock(tmp_path)
    assert clock.keep()
    machine.synchronised = False
    machine.off = -DAY
    machine.run(30)
    again = machine.clock(tmp_path)
    assert again.stamp().clock == ClockQuality.HELD
    assert abs(wrong(machine, again)) < 0.001
    machine.power_cut(DAY, -14 * DAY)
    assert machine.clock(tmp_path).stamp().clock == ClockQuality.LOST


def test_a_stamp_names_the_boot_and_counts_from_it(tmp_path, machine):
    clock = machine.clock(tmp_path)
    stamp = clock.stamp()
    assert (stamp.boot, stamp.mono) == ("boot-1", 7 * SECOND)


# --- a power cut ------------------------------------------------------------------------------------------------


def test_after_a_power_cut_the_time_is_never_behind_the_last_one_on_disk(tmp_path, machine):
    machine.synchronised = True
    clock = machine.clock(tmp_path)
    clock.keep()
    machine.run(90)
    assert clock.keep()
    before = machine.truth
    machine.power_cut(3600 * SECOND, -14 * DAY)
    clock = machine.clock(tmp_path)
    first = clock.stamp()
    assert before <= first.wall < before + SECOND
    assert first.clock == ClockQuality.LOST
    machine.run(600)
    assert clock.stamp().wall - first.wall == pytest.approx(600 * SECOND, abs=LANES)
    machine.synchronised, machine.off = True, 0
    machine.run(2)
    assert abs(wrong(machine, clock)) < 0.001
    assert clock.stamp().clock == ClockQuality.NETWORK


def test_time_lost_twice_goes_on_from_where_it_was(tmp_path, machine):
    for _ in range(4):
        clock = machine.clock(tmp_path)
        before = clock.stamp().wall
        machine.run(100)
        clock.keep()
        machine.power_cut(60 * SECOND, -300 * DAY)
        after = machine.clock(tmp_path).stamp().wall
        assert before + 100 * SECOND <= after <= machine.truth


def test_the_time_is_written_once_a_minute_at_most_and_whole_or_not_at_all(tmp_path, machine):
    clock = machine.clock(tmp_path)
    saved = 0
    for _ in range(600):
        machine.run(1)
        clock.stamp()
        saved += clock.keep()
    assert saved == 10
    assert clock.keep(now=True)
    assert [path.name for path in tmp_path.iterdir()] == ["clock.json"]
    kept = json.loads((tmp_path / "clock.json").read_text())
    assert abs(kept["wall"] - machine.truth) < SECOND
    assert kept["utc"].startswith("2027-01-15")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"wall": "x"}', b"\xff\xfe", b'{"wall": -5, "mono": 1}', b"null"]
)
def test_a_damaged_file_is_as_good_as_none(tmp_path, machine, content):
    (tmp_path / "clock.json").write_bytes(content)
    clock = machine.clock(tmp_path)
    assert abs(wrong(machine, clock)) < 0.001
    assert clock.keep()


def test_a_time_that_cannot_be_written_costs_nothing_else(tmp_path, machine):
    (tmp_path / "file").write_text("")
    clock = machine.clock(tmp_path / "file")
    assert not clock.keep()
    assert clock.stamp().wall


# --- steps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("off", [-DAY, DAY, -3 * SECOND, 3 * SECOND])
def test_a_hand_that_turns_a_clock_that_was_set_is_not_believed(tmp_path, machine, off):
    """The kernel forgets that NTP held its clock when somebody sets it."""
    machine.synchronised = True
    clock = machine.clock(tmp_path)
    clock.stamp()
    machine.synchronised, machine.off = False, off
    for _ in range(100):
        machine.run(0.7)
        assert abs(wrong(machine, clock)) < 0.001
    machine.synchronised, machine.off = True, 0
    machine.run(2)
    assert abs(wrong(machine, clock)) < 0.001


@pytest.mark.parametrize("off", [-DAY, DAY])
def test_while_the_time_is_lost_a_hand_may_turn_the_clock_forward_only(tmp_path, machine, off):
    clock = machine.clock(tmp_path)
    before = clock.stamp().wall
    machine.run(10)
    machine.off = off
    machine.run(10)
    after = clock.stamp()
    assert after.clock == ClockQuality.LOST
    assert after.wall - before == pytest.approx(20 * SECOND + max(0, off), abs=LANES)


@pytest.mark.parametrize("step", [-DAY, DAY, -SECOND, SECOND])
def test_ntp_is_followed_by_a_day_forward_and_a_day_back_and_no_microsecond_is_given_twice(tmp_path, machine, step):
    machine.off = -step  # the system's clock was wrong, and nothing had set it
    clock = machine.clock(tmp_path)
    stamps = [clock.stamp() for _ in range(500)]
    machine.run(3)
    machine.synchronised, machine.off = True, 0
    for _ in range(40):
        machine.run(0.25)
        stamps += [clock.stamp() for _ in range(50)]
    assert abs(wrong(machine, clock)) < 0.05
    walls = [stamp.wall for stamp in stamps]
    assert len(set(walls)) == len(walls)
    back = [after - before for before, after in pairwise(walls) if after <= before]
    assert len(back) == (step == -DAY)


def test_stamps_of_one_instant_and_of_several_threads_all_differ_and_rise(tmp_path):
    clock = Clock(tmp_path)
    walls = {}

    def take(name):
        walls[name] = [clock.stamp().wall for _ in range(3000)]

    threads = [threading.Thread(target=take, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(taken == sorted(taken) for taken in walls.values())
    assert len({wall for taken in walls.values() for wall in taken}) == 12_000


def test_a_guess_kept_on_disk_does_not_lock_out_the_truth(tmp_path, machine):
    """Somebody once set the clock of a gateway without a network years ahead."""
    machine.off = 900 * DAY
    machine.clock(tmp_path).keep()
    machine.power_cut(DAY, -DAY)
    clock = machine.clock(tmp_path)
    assert wrong(machine, clock) > 800 * 86_400
    machine.off, machine.synchronised = 0, True
    machine.run(2)
    assert abs(wrong(machine, clock)) < 0.001


# --- the pure core ----------------------------------------------------------------------------------------------

times = st.integers(0, 4 * 10**15)


@given(wall=times, mono=st.integers(0, 10**14), floor=times)
def test_a_boot_begins_at_the_system_clock_but_never_behind_the_floor(wall, mono, floor):
    belief = begin(Sight(wall, mono, False), floor)
    assert belief.base + mono == max(wall, floor)
    assert belief.quality == ClockQuality.LOST


@given(
    base=st.integers(-(10**15), 10**15),
    quality=st.sampled_from([ClockQuality.HELD, ClockQuality.NETWORK]),
    wall=times,
    mono=st.integers(0, 10**14),
)
def test_once_set_only_an_authority_moves_the_base(base, quality, wall, mono):
    after = reckon(Belief(base, quality), Sight(wall, mono, False))
    assert after == Belief(base, ClockQuality.HELD)
    followed = reckon(Belief(base, quality), Sight(wall, mono, True))
    assert followed == Belief(wall - mono, ClockQuality.NETWORK)


# --- this machine -----------------------------------------------------------------------------------------------


def test_on_this_machine_a_stamp_is_about_now(tmp_path):
    stamp = Clock(tmp_path, Pace(look=0.001)).stamp()
    assert abs(stamp.wall / 1e6 - time.time()) < 1
    assert len(stamp.boot) == 36


def test_what_the_kernel_says_is_read_from_the_right_places():
    """Its tolerance is a constant of the kernel, 500 in a million in units of 2**-16; its status lies before that."""
    timex = ask_the_kernel()
    assert timex is not None
    assert timex.tolerance == 500 << 16
    assert timex.maxerror >= 0


def test_the_kernel_is_asked_as_timedatectl_asks_it():
    try:
        done = subprocess.run(
            ["timedatectl", "show", "--property=NTPSynchronized", "--value"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        pytest.skip("no timedatectl answers here")
    assert kernel_is_synchronised() == (done.stdout.strip() == "yes")
