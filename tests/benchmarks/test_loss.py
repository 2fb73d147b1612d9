"""The loss benchmark finds out a client that loses, doubles or hides readings, and clears one that does not."""

import re
import shutil
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

import highwall
from benchmarks.loss.clients import mosquitto as bridge
from benchmarks.loss.clients import thingsboard
from benchmarks.loss.ledger import Arrival
from benchmarks.loss.line import Line
from benchmarks.loss.link import Link
from benchmarks.loss.measure import Process, _family, run
from benchmarks.loss.scenarios import Scenario
from benchmarks.loss.table import table
from targets.runtime.errors import HighwallError

HEALTHY = Scenario("healthy", "a healthy link", rate=100, seconds=2, settle=3)
CUT = Scenario("cut", "a connection reset twice", rate=50, seconds=3, events=((1, "cut"), (2, "cut")), settle=3)

# A client of a few lines: reads numbers from a tty, publishes each, and does to some what its third argument says.
CLIENT = """
import sys, time
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
line, port, how = sys.argv[1], int(sys.argv[2]), sys.argv[3]
client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="little", clean_session=False)
client.reconnect_delay_set(1, 1)
client.connect("127.0.0.1", port, keepalive=3)
client.loop_start()
with open(line, "rb", buffering=0) as tty:
    buffer = b""
    while True:
        buffer += tty.read(4096)
        *lines, buffer = buffer.split(b"\\n")
        for text in lines:
            number = int(text)
            tenth = number % 10 == 0 and number < 90_000_000
            if how == "owns-up" and tenth:
                client.publish("lost", text, qos=1)
            elif not (how == "loses" and tenth):
                client.publish("up", text, qos=1)
            if how == "doubles" and tenth:
                client.publish("up", text, qos=1)
"""


class Little:
    """The little client as a dialect."""

    TOPICS = ["up", "lost"]  # noqa: RUF012 (a module's constant in a real one)

    def __init__(self, how: str) -> None:
        self.how = how

    def encode(self, number: int) -> bytes:
        return b"%d\n" % number

    def read(self, topic: str, payload: bytes) -> Arrival:
        number = int(payload)
        return Arrival([number]) if topic == "up" else Arrival(declared=[(number, number)])

    def prepare(
        self, folder: Path, line: str, broker: int, say: Callable[[str], None]
    ) -> tuple[list[str], dict[str, str]]:
        (folder / "little.py").write_text(CLIENT)
        return [sys.executable, str(folder / "little.py"), line, str(broker), self.how], {}


@pytest.fixture
def mosquitto(ci_or_skip: Callable[[str], NoReturn]) -> None:
    if shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin") is None:
        ci_or_skip("mosquitto is not installed (Debian: apt install mosquitto)")


@pytest.mark.usefixtures("mosquitto")
@pytest.mark.parametrize(
    ("how", "lost", "declared", "duplicated"),
    [("keeps", 0, 0, 0), ("loses", 20, 0, 0), ("doubles", 0, 0, 20), ("owns-up", 0, 20, 0)],
)
def test_every_reading_is_accounted_for(how: str, lost: int, declared: int, duplicated: int, tmp_path: Path) -> None:
    found = run(Little(how), HEALTHY, tmp_path / "run", lambda _: None)
    counts = [found[key] for key in ("sent", "lost", "declared", "duplicated")]
    assert counts == [200, lost, declared, duplicated]
    assert found["rss_mib"] > 5
    assert found["threads"] >= 1


@pytest.mark.usefixtures("mosquitto")
def test_a_connection_that_is_reset_comes_back_through_the_link(tmp_path: Path) -> None:
    found = run(Little("keeps"), CUT, tmp_path / "run", lambda _: None)
    assert found["sent"] == 150
    assert found["lost"] == 0


@pytest.mark.usefixtures("mosquitto")
def test_a_client_that_never_comes_up_is_an_error_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Little, "prepare", lambda *_: ([sys.executable, "-c", "raise SystemExit('no licence')"], {}))
    with pytest.raises(HighwallError, match="no licence"):
        run(Little("keeps"), HEALTHY, tmp_path / "run", lambda _: None)


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(4096):
            self.request.sendall(data)


@pytest.fixture
def echo() -> Iterator[int]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def test_a_stalled_link_passes_nothing_and_closes_nothing_until_it_flows(echo: int) -> None:
    with Link(echo) as link, socket.create_connection(("127.0.0.1", link.port), 5) as client:
        client.sendall(b"before")
        assert client.recv(64) == b"before"
        link.stall()
        client.settimeout(0.5)
        client.sendall(b"meanwhile")
        with pytest.raises(TimeoutError):
            client.recv(64)
        with socket.create_connection(("127.0.0.1", link.port), 5):  # a new connection is taken and stalls too
            link.flow()
            client.settimeout(5)
            assert client.recv(64) == b"meanwhile"
        link.cut()
        with pytest.raises(ConnectionResetError):
            client.recv(64)


def test_a_line_that_nobody_reads_holds_readings_back_and_drops_none() -> None:
    with Line() as line:
        line.begin(lambda number: b"%06d\n" % number, rate=1e6, count=5000)
        assert not line.wait(0.3)  # a pty holds some kilobytes
        numbers: list[int] = []
        with Path(line.port).open("rb", buffering=0) as tty:
            buffer = b""
            while len(numbers) < 5000:
                buffer += tty.read(65536)
                *lines, buffer = buffer.split(b"\n")
                numbers += [int(text) for text in lines]
        assert numbers == list(range(1, 5001))
        assert line.wait(5)
        assert line.sent == 5000


def test_the_rival_reads_its_own_line_back_and_is_given_no_limits() -> None:
    line = thingsboard.encode(123)
    assert re.fullmatch(rb"00000123\+\d\.\d{3}\r\n", line)
    payload = b'{"T1": [{"ts": 1, "values": {"seq": 123, "strain": 1.1}}, {"ts": 2, "values": {"strain": 1.1}}]}'
    assert thingsboard.read("v1/gateway/telemetry", payload).numbers == [123]
    answer = thingsboard.read("v1/devices/me/rpc/request/7", b"{}").answer
    assert answer is not None
    assert answer[0] == "v1/devices/me/rpc/response/7"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--client", "thingsboard"], "needs --client NAME and --scenario NAME"),
        (["--client", "nobody", "--scenario", "stalled"], "no client is called 'nobody'; choose"),
        (["--client", "thingsboard", "--scenario", "flood"], "no scenario is called 'flood'; choose"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert highwall.main(["bench", "loss", *arguments]) == 1
    assert complaint in capsys.readouterr().err


def test_the_bridge_reads_its_own_line_back(tmp_path: Path) -> None:
    assert bridge.read(bridge.TOPICS[0], bridge.encode(123).strip()).numbers == [123]
    command, _ = bridge.prepare(tmp_path, "tty", 1883, print)
    assert command[-1] == bridge.TOPICS[0]
    settings = (tmp_path / "bridge.conf").read_text()
    assert "address 127.0.0.1:1883" in settings
    assert "cleansession false" in settings


def test_a_kill_ends_what_the_client_started_and_counts_its_memory(tmp_path: Path) -> None:
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    process = Process(tmp_path, [sys.executable, "-c", child], {})
    process.start()
    until = time.monotonic() + 20
    while process.footprint.threads < 2 and time.monotonic() < until:
        time.sleep(0.1)
        process.sample()
    assert process.footprint.threads == 2
    assert process.footprint.rss_mib > 10
    pids = _family(process._process.pid)
    assert len(pids) == 2
    process.kill()
    until = time.monotonic() + 10
    while any(Path(f"/proc/{pid}/stat").exists() and _state(pid) != "Z" for pid in pids) and time.monotonic() < until:
        time.sleep(0.05)
    assert all(not Path(f"/proc/{pid}").exists() or _state(pid) == "Z" for pid in pids)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_scenarios_and_clients_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert highwall.main(["bench", "loss", "--scenario", "list"]) == 0
    listed = capsys.readouterr().out
    assert "stalled" in listed
    assert "thingsboard" in listed


def test_the_table_in_the_docs_is_that_of_the_committed_results(root: Path) -> None:
    assert table() in (root / "docs" / "gateway.md").read_text()


def test_a_result_that_is_none_and_an_empty_folder_are_said(tmp_path: Path) -> None:
    with pytest.raises(HighwallError, match="no results"):
        table(tmp_path)
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(HighwallError, match=r"x\.json"):
        table(tmp_path)
