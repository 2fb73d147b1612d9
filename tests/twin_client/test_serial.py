"""Serial ports over real ptys and sockets: unplugged, garbled, flooded, refused; and every number heard or in a gap."""

import errno
import os
import queue
import random
import socket
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
import serial as pyserial
from hypothesis import given
from hypothesis import strategies as st
from serial import rfc2217

from twin_client.protocol.lines import Text
from twin_client.protocol.ranges import covers
from twin_client.protocol.records import Gap, Lost, Reading, Record, Stamp
from twin_client.protocol.tags import Frame
from twin_client.sources import serial as source_module
from twin_client.sources.heard import WINDOW, Heard
from twin_client.sources.port import PortSettings
from twin_client.sources.serial import SerialSettings, SerialSource


def stamp() -> Stamp:
    return Stamp(time.time_ns() // 1000, time.monotonic_ns() // 1000, "boot")


def frame(seq: int, tag: str = "A", boot: int = 1) -> Frame:
    return Frame(tag, boot, seq, {"strain": float(seq)})


def data(*seqs: int, tag: str = "A", boot: int = 1) -> bytes:
    return b"".join(frame(seq, tag, boot).to_bytes() for seq in seqs)


def until(promise: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait for it; fail when it does not come."""
    end = time.monotonic() + seconds
    while not promise():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


class Line:
    """A pty under a name that stays: `plug` and `unplug` it as one does with a USB adapter."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "tty"
        self.ends: tuple[int, int] | None = None

    def plug(self) -> "Line":
        master, slave = os.openpty()
        tty.setraw(slave)
        os.set_blocking(master, False)
        fresh = self.path.with_name("new")
        fresh.symlink_to(os.ttyname(slave))
        fresh.replace(self.path)
        self.ends = master, slave
        return self

    def unplug(self) -> None:
        if self.ends is not None:
            self.path.unlink()
            for end in self.ends:
                os.close(end)
            self.ends = None

    def write(self, content: bytes) -> None:
        assert self.ends is not None
        while content:
            try:
                content = content[os.write(self.ends[0], content) :]
            except OSError as error:
                assert error.errno == errno.EAGAIN
                time.sleep(0.002)

    def offered(self, content: bytes) -> None:
        """What does not fit is gone, as at a real line."""
        assert self.ends is not None
        with suppress(BlockingIOError):
            os.write(self.ends[0], content)


class Bench:
    """A source and all that comes out of it."""

    def __init__(
        self, *ports: PortSettings, pairing: str = "ABC", marks: dict | None = None, **settings: float
    ) -> None:
        self.records: list[Record] = []
        self.said: list[str] = []
        self.room = 10**9
        every = SerialSettings(ports, **{"retry_most": 0.05, **settings})
        self.source = SerialSource(every, set(pairing), self._take, stamp, marks=marks, say=self.said.append)

    def _take(self, records: list[Record]) -> bool:
        if len(self.records) + len(records) > self.room:
            return False
        self.records += records
        return True

    @property
    def readings(self) -> list[tuple[str, int, int]]:
        return [(one.tag, one.tag_boot, one.tag_seq) for one in self.records if isinstance(one, Reading)]

    @property
    def lost(self) -> list[tuple[str, Lost]]:
        return [(one.reason, lost) for one in self.records if isinstance(one, Gap) for lost in one.lost]

    def seqs(self, tag: str = "A") -> list[int]:
        return [seq for name, _, seq in self.readings if name == tag]

    def opened(self, times: int = 1) -> None:
        until(lambda: self.source.counters()["opened"] >= times)


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    plugged = Line(tmp_path).plug()
    yield plugged
    plugged.unplug()


@pytest.fixture
def bench(line: Line) -> Iterator[Callable[..., Bench]]:
    """Starts a source at `line`, or at the ports given, and stops it in the end."""
    started: list[Bench] = []

    def start(*ports: PortSettings, **settings) -> Bench:
        made = Bench(*(ports or (PortSettings("bench", str(line.path)),)), **settings)
        started.append(made)
        made.source.start()
        return made

    yield start
    for one in started:
        one.source.stop()
        assert not one.source.alive


# --- frames through a real pty ----------------------------------------------------------------------------------


def test_readings_come_in_order_with_their_values_and_a_stamp_each(line, bench):
    one = bench()
    one.opened()
    line.write(data(0, 1, 2) + data(0, tag="B"))
    until(lambda: len(one.records) == 4)
    assert one.readings == [("A", 1, 0), ("A", 1, 1), ("A", 1, 2), ("B", 1, 0)]
    assert [record.values["strain"].raw for record in one.records] == [0.0, 1.0, 2.0, 0.0]
    stamps = [record.at.mono for record in one.records]
    assert stamps == sorted(set(stamps))
    assert one.source.marks() == {"A": (1, 2), "B": (1, 0)}


def test_half_frames_in_two_reads_at_every_split_point(line, bench):
    one = bench()
    one.opened()
    whole = data(0)
    for split in range(1, len(whole)):
        piece = data(split - 1)
        line.write(piece[:split])
        until(lambda: one.source.counters()["bytes"] == (split - 1) * len(whole) + split)  # noqa: B023
        line.write(piece[split:])
        until(lambda: one.source.counters()["bytes"] == split * len(whole))  # noqa: B023
    until(lambda: len(one.records) == len(whole) - 1)
    assert one.seqs() == list(range(len(whole) - 1))
    assert one.source.counters()["skipped_bytes"] == 0


def test_2000_frames_a_second_pass_without_a_gap(line, bench):
    one = bench()
    one.opened()
    began = time.monotonic()
    for second in range(20):
        line.write(data(*range(second * 200, second * 200 + 200)))
        time.sleep(max(0.0, began + (second + 1) * 0.1 - time.monotonic()))
    until(lambda: len(one.records) >= 4000)
    assert one.seqs() == list(range(4000))
    assert one.lost == []


def test_a_quiet_port_costs_next_to_nothing(line, bench):
    one = bench()
    one.opened()
    began = time.process_time()
    time.sleep(1.0)
    assert time.process_time() - began < 0.1
    assert one.source.beat > time.monotonic() - 2


# --- gaps, repetitions, restarts --------------------------------------------------------------------------------


def test_a_jump_becomes_a_gap_before_the_reading_behind_it(line, bench):
    one = bench()
    one.opened()
    line.write(data(0, 1, 5))
    until(lambda: len(one.records) == 4)
    assert isinstance(one.records[2], Gap)
    assert one.lost == [("radio", Lost("A", 1, 2, 4))]
    assert one.seqs() == [0, 1, 5]


def test_repeated_frames_are_dropped_and_late_ones_are_not(line, bench):
    one = bench()
    one.opened()
    line.write(data(0, 1, 1, 4, 3, 3, 0, 5))
    until(lambda: 5 in one.seqs())
    assert one.seqs() == [0, 1, 4, 3, 5]
    assert one.lost == [("radio", Lost("A", 1, 2, 3))]
    counters = one.source.counters()
    assert (counters["duplicates"], counters["late"], counters["readings"], counters["gaps"]) == (3, 1, 5, 1)


def test_a_restart_of_the_tag_begins_its_numbers_anew(line, bench):
    one = bench()
    one.opened()
    line.write(data(0, 1) + data(0, 1, boot=2) + data(2, boot=1) + data(3, boot=3))
    until(lambda: len(one.readings) == 6)
    assert one.readings == [("A", 1, 0), ("A", 1, 1), ("A", 2, 0), ("A", 2, 1), ("A", 1, 2), ("A", 3, 3)]
    assert one.lost == [("radio", Lost("A", 3, 0, 2))]


def test_a_restart_of_the_gateway_sees_what_it_missed(line, bench):
    one = bench(marks={"A": (1, 9)})
    one.opened()
    line.write(data(9, 12) + data(4, tag="B"))
    until(lambda: len(one.readings) == 2)
    assert one.readings == [("A", 1, 12), ("B", 1, 4)]
    assert one.lost == [("restarted", Lost("A", 1, 10, 11)), ("restarted", Lost("B", 1, None, 3))]
    assert one.source.counters()["duplicates"] == 1
    assert one.source.marks() == {"A": (1, 12), "B": (1, 4)}


def test_a_tag_that_forgets_to_count_its_starts_is_not_taken_for_a_repetition(line, bench):
    one = bench()
    one.opened()
    line.write(
        data(0, 1, 2) + Frame("A", 1, 0, {"strain": 99.0}).to_bytes() + Frame("A", 1, 1, {"strain": 98.0}).to_bytes()
    )
    until(lambda: len(one.records) == 5)
    assert one.source.counters()["conflicts"] == 2
    assert len(one.said) == 1
    assert "does it count its starts" in one.said[0]


def test_one_frame_heard_by_two_receivers_is_one_reading(line, bench, tmp_path):
    (tmp_path / "b").mkdir()
    other = Line(tmp_path / "b").plug()
    one = bench(PortSettings("north", str(line.path)), PortSettings("south", str(other.path)))
    one.opened(2)
    for seq in range(3):
        for radio, signal in ((line, -60.0), (other, -90.0)):
            radio.write(Frame("A", 1, seq, {"strain": 1.0}, signal=signal).to_bytes())
    until(lambda: one.source.counters()["duplicates"] == 3)
    assert one.seqs() == [0, 1, 2]
    other.unplug()


# --- strangers --------------------------------------------------------------------------------------------------


def test_an_unknown_tag_is_offered_never_delivered_and_taken_once_it_is_paired(line, bench):
    one = bench()
    one.opened()
    line.write(data(0, 1, tag="X") + data(0))
    until(lambda: one.seqs() == [0])
    (offer,) = one.source.offers()
    assert (offer.tag, offer.port, offer.frames, offer.quantities) == ("X", "bench", 2, ("strain",))
    assert offer.first.mono < offer.last.mono
    assert one.source.counters()["unpaired"] == 2
    one.source.pair({"A", "X"})
    until(lambda: one.source.offers() == (), 5)
    line.write(data(2, 3, tag="X"))
    until(lambda: one.seqs("X") == [2, 3])
    assert one.lost == [("restarted", Lost("X", 1, None, 1))]
    one.source.pair({"A"})
    until(lambda: "X" not in one.source.marks(), 5)
    line.write(data(4, tag="X") + data(1))
    until(lambda: one.seqs() == [0, 1])
    assert one.seqs("X") == [2, 3]


def test_the_table_of_strangers_is_bounded_and_keeps_those_heard_last(line, bench):
    one = bench()
    one.opened()
    line.write(b"".join(data(0, tag=f"X{number}") for number in range(250)))
    until(lambda: one.source.counters()["unpaired"] == 250)
    assert [offer.tag for offer in one.source.offers()] == [f"X{number}" for number in range(249, 149, -1)]


# --- what lines do ----------------------------------------------------------------------------------------------


def test_unplugged_and_plugged_in_again_it_goes_on_and_says_so_once_each(line, bench):
    one = bench()
    one.opened()
    line.write(data(0, 1) + data(2)[:9])
    until(lambda: one.seqs() == [0, 1] and one.source.counters()["bytes"] == len(data(0, 1)) + 9)
    line.unplug()
    until(lambda: not one.source.ports()[0].open)
    until(lambda: one.said)
    time.sleep(0.3)  # many attempts
    assert len(one.said) == 1
    assert "lost" in one.said[0]
    assert one.source.ports()[0].problem
    line.plug()
    one.opened(2)
    line.write(data(3, 4))
    until(lambda: one.seqs() == [0, 1, 3, 4])
    assert one.lost == [("radio", Lost("A", 1, 2, 2))]
    assert len(one.said) == 2
    assert one.said[1].endswith("back")
    counters = one.source.counters()
    assert (counters["opened"], counters["lost"], counters["skipped_bytes"]) == (2, 1, 8)  # 9, but the zero


def test_a_device_that_is_not_there_yet_is_waited_for(line, bench):
    line.unplug()
    one = bench()
    until(lambda: one.said)
    assert "cannot be opened" in one.said[0]
    line.plug()
    one.opened()
    line.write(data(0))
    until(lambda: one.seqs() == [0])
    assert one.source.counters()["lost"] == 0


def test_a_device_is_not_shared_with_a_second_reader(line, bench):
    one, other = bench(), None
    one.opened()
    other = bench()
    until(lambda: other.said)
    line.write(data(*range(50)))
    until(lambda: len(one.records) == 50)
    assert other.records == []


def test_garbage_among_the_frames_costs_only_itself_and_is_counted(line, bench):
    one = bench()
    one.opened()
    dice = random.Random(5)
    thrown = 0
    for seq in range(200):
        garbage = dice.randbytes(dice.randrange(300))
        thrown += sum(byte != 0 for byte in garbage)
        line.write(garbage + data(seq))
    until(lambda: len(one.records) >= 200)
    assert one.seqs() == list(range(200))
    assert one.source.counters()["skipped_bytes"] == thrown


def test_nothing_but_garbage_gives_one_hint_and_a_good_frame_takes_it_back(line, bench):
    one = bench(hint_after=0.2)
    one.opened()
    dice = random.Random(6)
    for _ in range(20):
        line.write(dice.randbytes(100))
        time.sleep(0.02)
    until(lambda: one.said)
    assert len(one.said) == 1
    assert "nothing but garbage" in one.said[0]
    assert "115200 baud" in one.said[0]
    line.write(b"\0" + data(0))
    until(lambda: one.seqs() == [0])
    for _ in range(20):
        line.write(dice.randbytes(100))
        time.sleep(0.02)
    until(lambda: len(one.said) == 2)


def test_a_good_but_rare_tag_is_not_called_garbage(line, bench):
    one = bench(hint_after=0.1)
    one.opened()
    for seq in range(8):
        line.write(data(seq) + b"\x55" * 30)
        time.sleep(0.05)
    time.sleep(0.2)
    assert one.said == []


# --- sockets and loops ------------------------------------------------------------------------------------------


def test_a_socket_that_is_closed_and_comes_back(bench):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        one = bench(PortSettings("radio", f"socket://127.0.0.1:{server.getsockname()[1]}"))
        for visit in range(3):
            peer, _ = server.accept()
            with peer:
                one.opened(visit + 1)
                peer.sendall(data(2 * visit, 2 * visit + 1))
                until(lambda: len(one.records) == 2 * visit + 2)  # noqa: B023
    until(lambda: not one.source.ports()[0].open)
    assert one.seqs() == [0, 1, 2, 3, 4, 5]
    assert one.lost == []


def test_a_port_without_a_descriptor_is_asked(bench):
    one = bench(PortSettings("loop", "loop://"))
    one.opened()
    one.source._ports[0].device.write(data(0, 1, 2))
    until(lambda: one.seqs() == [0, 1, 2])


def test_a_port_of_another_machine_by_rfc_2217(bench):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        one = bench(PortSettings("far", f"rfc2217://127.0.0.1:{server.getsockname()[1]}", baud=9600))
        peer, _ = server.accept()
        answers = peer.makefile("wb", buffering=0)
        far = pyserial.serial_for_url("loop://")
        manager = rfc2217.PortManager(far, answers)
        with peer, answers:
            peer.settimeout(0.05)
            end = time.monotonic() + 10
            while one.source.counters()["opened"] == 0:
                assert time.monotonic() < end, "it was not opened in time"
                with suppress(TimeoutError):
                    list(manager.filter(peer.recv(1024)))
            assert far.baudrate == 9600
            answers.write(b"".join(manager.escape(data(0, 255))))
            until(lambda: one.seqs() == [0, 255])


def test_ports_do_not_wait_for_each_other(line, bench):
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"socket://127.0.0.1:{server.getsockname()[1]}"
    one = bench(PortSettings("gone", url), PortSettings("bench", str(line.path)), PortSettings("loop", "loop://"))
    one.opened(2)
    for seq in range(20):
        line.write(data(seq))
        time.sleep(0.01)
    until(lambda: one.seqs() == list(range(20)))
    assert [state.open for state in one.source.ports()] == [False, True, True]


# --- text -------------------------------------------------------------------------------------------------------


def test_a_csv_logger_is_numbered_and_goes_on_from_its_marks(line, bench):
    port = PortSettings("log", str(line.path), format="csv", text=Text(tag="A", columns=("strain", "load")))
    one = bench(port, marks={"A": (5, 30)})
    one.opened()
    line.write(b"ignored,2\r\n1.5,null\r\n,0\r\n")
    until(lambda: len(one.records) == 2)
    assert one.readings == [("A", 5, 31), ("A", 5, 32)]
    assert one.records[0].values["load"].raw is None
    assert "strain" not in one.records[1].values
    assert one.records[1].values["load"].raw == 0.0


def test_a_csv_line_that_was_cut_by_unplugging_is_not_joined_to_what_comes_after(line, bench):
    one = bench(PortSettings("log", str(line.path), format="csv", text=Text(tag="A", columns=("strain",))))
    one.opened()
    line.write(b"0\n1.5\n11")
    until(lambda: one.source.counters()["bytes"] == 8)
    line.unplug()
    until(lambda: not one.source.ports()[0].open)
    line.plug()
    one.opened(2)
    line.write(b"2.5\n3.5\n")
    until(lambda: len(one.records) == 2)
    assert [record.values["strain"].raw for record in one.records] == [1.5, 3.5]


def test_json_lines_and_frames_at_two_ports_of_one_source(line, bench, tmp_path):
    (tmp_path / "b").mkdir()
    other = Line(tmp_path / "b").plug()
    one = bench(PortSettings("tags", str(line.path)), PortSettings("log", str(other.path), format="json"))
    one.opened(2)
    line.write(data(0))
    other.write(b'{"tag": "B", "values": {"strain": 2}}\n{"tag": "Z", "values": {}}\n')
    until(lambda: len(one.records) == 2 and one.source.offers())
    assert one.seqs("B") == [0]
    assert one.source.offers()[0].tag == "Z"
    other.unplug()


def test_two_starts_without_marks_never_number_two_lines_alike(line, bench):
    port = PortSettings("log", str(line.path), format="json", text=Text(tag="A"))
    for start in range(2):
        one = bench(port)
        one.opened()
        line.write(b'{"values": {}}\n')
        until(lambda: one.records)  # noqa: B023
        one.source.stop()
        boots = {record.tag_boot for record in one.records} | (boots if start else set())  # noqa: F821
    assert len(boots) == 2


# --- back pressure ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["false", "queue.Full"])
def test_while_records_are_refused_nothing_is_read_dropped_or_marked(line, bench, monkeypatch, how):
    one = bench()
    one.opened()
    take = one.source._deliver

    def deliver(records: list[Record]) -> bool:
        if take(records):
            return True
        if how == "false":
            return False
        raise queue.Full

    one.source._deliver = deliver
    line.write(data(0, 1))
    until(lambda: len(one.records) == 2)
    one.room = 2
    line.write(data(2, 3))
    until(lambda: one.source.counters()["overruns"] == 1)
    line.write(data(4))
    before = one.source.counters()["bytes"]
    time.sleep(0.2)
    assert one.source.counters()["bytes"] == before
    assert one.source.marks() == {"A": (1, 1)}
    one.room = 100
    until(lambda: one.seqs() == [0, 1, 2, 3, 4])
    assert one.lost == []
    assert one.source.counters()["overruns"] == 1


def test_what_the_systems_buffers_cannot_hold_is_an_overrun_gap(line, bench):
    one = bench()
    one.opened()
    line.write(data(0))
    until(lambda: len(one.records) == 1)
    one.room = 1
    line.write(data(1))
    until(lambda: one.source.counters()["overruns"] == 1)
    for seq in range(2, 5000):
        line.offered(data(seq))
    one.room = 10**6
    until(lambda: len(one.records) > 10)
    time.sleep(0.3)
    line.write(b"\0" + data(5000))
    until(lambda: 5000 in one.seqs())
    gaps = [(lost.first, lost.last) for _, lost in one.lost]
    assert gaps
    assert {reason for reason, _ in one.lost} == {"overrun"}
    line.write(data(5002))
    until(lambda: 5002 in one.seqs())
    assert one.lost[-1] == ("radio", Lost("A", 1, 5001, 5001))
    heard = set(one.seqs())
    assert all((seq in heard) != covers(gaps, seq) for seq in range(5001))


def test_stopping_delivers_what_was_read_and_leaves_no_descriptor(line, bench):
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    one = bench()
    one.opened()
    one.room = 0
    line.write(data(0, 1))
    until(lambda: one.source.counters()["overruns"] == 1)
    one.room = 10
    began = time.monotonic()
    one.source.stop()
    assert time.monotonic() - began < 2
    assert one.seqs() == [0, 1]
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


# --- the whole promise ------------------------------------------------------------------------------------------


def test_every_number_is_heard_or_in_a_gap_through_noise_losses_and_unplugging(line, bench):
    one = bench()
    one.opened()
    dice = random.Random(8)
    for seq in range(1500):
        if seq % 400 == 399:
            until(lambda: not one.source._pending)
            line.unplug()
            until(lambda: not one.source.ports()[0].open)
            line.plug()
            until(lambda: one.source.ports()[0].open)
        chance = dice.random()
        content = data(seq)
        if chance < 0.1:
            continue
        if chance < 0.2:
            content = content[: dice.randrange(len(content))]
        elif chance < 0.3:
            content = content * 2
        line.write(dice.randbytes(dice.randrange(20)) + content)
    line.write(b"\0" + data(1500))
    until(lambda: 1500 in one.seqs())
    gaps = [(lost.first or 0, lost.last) for _, lost in one.lost]
    heard = set(one.seqs())
    assert len(heard) == len(one.seqs())
    assert all((seq in heard) != covers(gaps, seq) for seq in range(1501))


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 2500)), max_size=40))
def test_in_whatever_order_frames_come_none_is_dropped_that_was_not_passed_on_before(sent):
    heard, passed = Heard(), set()
    for boot, seq in sent:
        if heard.hear("A", boot, seq, seq).kind == "repeated":
            assert (boot, seq) in passed
        passed.add((boot, seq))


@given(st.lists(st.tuples(st.integers(1, 2), st.integers(0, WINDOW - 1)), max_size=40))
def test_within_the_window_and_two_boots_every_frame_is_passed_on_once(sent):
    heard = Heard()
    passed = [one for one in sent if heard.hear("A", *one, 0).kind != "repeated"]
    assert sorted(passed) == sorted(set(sent))


@given(st.sets(st.integers(0, 5000), min_size=1))
def test_in_order_every_number_is_new_or_named_lost_exactly_once(seqs):
    heard, named = Heard({"A": (1, 0)}), []
    for seq in sorted(seqs - {0}):
        verdict = heard.hear("A", 1, seq, 7)
        assert verdict.kind == "new"
        named += [(lost.first, lost.last) for lost in verdict.lost]
    top = max(seqs)
    assert all((seq in seqs) != covers(named, seq) for seq in range(1, top + 1))
    for seq in range(max(1, top - WINDOW + 1), top + 1):
        assert heard.hear("A", 1, seq, 7).kind == ("repeated" if seq in seqs else "late")


# --- settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("port", "word"),
    [
        ({"name": "a", "url": "ttyUSB0"}, "/dev/ttyUSB0"),
        ({"name": "a", "url": "http://x"}, "socket://"),
        ({"name": "a b", "url": "/dev/x"}, "name"),
        ({"name": "a", "url": "/dev/x", "baud": 10}, "baud"),
        ({"name": "a", "url": "/dev/x", "format": "csv"}, "text.columns"),
        ({"name": "a", "url": "/dev/x", "format": "xml"}, "format"),
        ({"name": "a", "url": "/dev/x", "speed": 9600}, "speed"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(port, word):
    with pytest.raises(msgspec.ValidationError, match=word):
        msgspec.convert({"ports": [port]}, SerialSettings)


def test_two_ports_at_one_device_are_refused():
    ports = [{"name": "a", "url": "/dev/x"}, {"name": "b", "url": "/dev/x"}]
    with pytest.raises(msgspec.ValidationError, match="two have the url /dev/x"):
        msgspec.convert({"ports": ports}, SerialSettings)


def test_a_port_that_is_disabled_is_left_alone(line, bench):
    one = bench(PortSettings("bench", str(line.path), enabled=False))
    time.sleep(0.1)
    assert one.source.ports() == ()
    assert one.source.alive


def test_counters_are_there_from_the_start(bench):
    counters = bench().source.counters()
    assert set(source_module.COUNTERS) | {"frames", "bad_crc", "skipped_bytes", "opened", "lost"} <= set(counters)
