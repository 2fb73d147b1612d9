"""A serial port that cannot be opened or read, for whatever reason, is its own trouble and not that of the others."""

import time
from collections.abc import Callable

import pytest

from benchmarks.loss.line import Line
from twin_client.protocol.records import Stamp
from twin_client.protocol.tags import Frame
from twin_client.sources.port import Port, PortSettings
from twin_client.sources.serial import SerialSettings, SerialSource


def until(promise: Callable[[], object], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not promise():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def stamp() -> Stamp:
    return Stamp(time.time_ns() // 1000, time.monotonic_ns() // 1000, "boot")


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("hwgrep://[", "unterminated character set"),
        ("hwgrep://*", "nothing to repeat"),
        ("hwgrep://tty&n=x", "'x'"),
        ("loop://?x", "KeyError"),
        ("socket://h", "socket://h"),
        ("socket://127.0.0.1:99999", "99999"),
        ("rfc2217://127.0.0.1:1?timeout=abc", "abc"),
        ("socket://[::1", "Invalid IPv6 URL"),
    ],
)
def test_a_url_that_pyserial_chokes_on_stops_no_other_port(line: Line, url: str, word: str) -> None:
    heard: list = []
    said: list[str] = []
    ports = (PortSettings("bad", url), PortSettings("good", line.port))
    source = SerialSource(
        SerialSettings(ports, retry_most=0.02),
        {"A"},
        lambda records: heard.extend(records) or True,
        stamp,
        say=said.append,
    )
    source.start()
    try:
        until(lambda: source.counters()["opened"])  # which throws away what came before
        for seq in range(3):
            line.put(Frame("A", 1, seq, {"strain": 1.0}).to_bytes())
            until(lambda seq=seq: len(heard) > seq)
        bad, good = source.ports()
        assert word in bad.problem and not bad.open
        assert good.problem == "" and source.alive
        assert len(said) == 1 and "serial port bad" in said[0] and "\n" not in said[0]  # though tried many times
    finally:
        source.stop()


def test_a_device_that_fails_in_a_new_way_is_closed_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nothing:
        def __init__(self) -> None:
            self.counters: dict[str, int] = {}

        def feed(self, data: bytes) -> list[Frame]:
            return []

        def reset(self) -> None:
            pass

    said: list[str] = []
    port = Port(PortSettings("loop", "loop://"), Nothing(), said.append, retry_most=1.0)
    port.tend(0.0)
    assert port.device is not None

    def broken(*_: object) -> None:
        raise LookupError("a driver's mood")

    monkeypatch.setattr(port.device, "read", broken)
    monkeypatch.setattr(port.device, "close", broken)
    assert port.read(0.1) == []
    assert port.device is None and port.problem == "LookupError: a driver's mood"
    port.tend(10.0)
    port.tend(20.0)
    assert port.device is not None and port.problem == ""
    assert len(said) == 2 and said[1].endswith("back")
    port.close()
