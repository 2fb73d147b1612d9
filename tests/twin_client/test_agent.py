"""The agent as a real process: a pty, a broker and the twin around it; every number arrives once or is owned up to."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from receiver import Receiver
from reference_twin import Authority, Papers, Twin, guarded_by

from benchmarks.loss.broker import Broker
from benchmarks.loss.line import Line
from twin_client.protocol import orders
from twin_client.protocol.records import Alarm, Health, Reading
from twin_client.protocol.tags import Frame

if TYPE_CHECKING:
    from targets.emulator.guest import Guest

BOOT = 4


class Machine:
    """Where the agent runs: here, or on an emulated board."""

    def __init__(self, root: Path, guest: "Guest | None" = None):
        self.root, self._guest = root, guest
        self.slower = 1 if guest is None else 12

    def command(self, *words: str) -> tuple[list[str], dict[str, str]]:
        """How highwall is called there, and with what environment."""
        if self._guest is None:
            return [sys.executable, "-m", "highwall", *words], dict(os.environ)
        notify = {name: value for name, value in os.environ.items() if name.startswith(("NOTIFY_", "WATCHDOG_"))}
        return self._guest.command(["-m", "highwall", *words], environment=notify)


@pytest.fixture(params=["here", pytest.param("rpi4b", marks=pytest.mark.slow)])
def machine(request: pytest.FixtureRequest, root: Path) -> Machine:
    if request.param == "here":
        return Machine(root)
    return Machine(root, request.getfixturevalue("arm")(request.param))


class Process:
    """`highwall gateway run` with a gateway.toml in `folder`."""

    def __init__(
        self, folder: Path, port: int, line: str, machine: Machine, host: str = "127.0.0.1", tls: bool = False
    ):
        self.folder, self._machine = folder, machine
        (folder / "data").mkdir(parents=True, exist_ok=True)
        self.config = folder / "gateway.toml"
        self.config.write_text(
            f"""gateway = "gw-1"
folder = "data"
destination = {{host = "{host}", port = {port}}}
uplink = {{tls = {str(tls).lower()}, pace = {{wait = 2.0}}, retry = {{first = 0.1, most = 0.5}}}}
tags = {{"tag-1" = {{}}, "tag-2" = {{}}}}
health = 1.0
[[serial.ports]]
name = "radio"
url = "{line}"
"""
        )
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> "Process":
        self.start()
        self.hears()
        return self

    def hears(self) -> None:
        """Wait until it has opened its port: what comes before that is nobody's."""

        def open_port() -> bool:
            try:
                said = json.loads((self.folder / "data/status.json").read_bytes())
            except (OSError, ValueError):
                return False
            return said["pid"] == self.pid and any(port["open"] for port in said["ports"])

        assert wait_for(open_port, 20 * self._machine.slower), self.log()

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self.stop()

    def start(self) -> None:
        command, environment = self._machine.command("gateway", "run", "--config", str(self.config))
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=self._machine.root, env=environment, stdout=log, stderr=log)

    def stop(self) -> tuple[int, float]:
        """The exit code after SIGTERM, and the seconds that it took."""
        assert self._process is not None
        begun = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(10)
        return code, time.monotonic() - begun

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def call(self, *words: str) -> subprocess.CompletedProcess:
        command, environment = self._machine.command("gateway", *words, "--config", str(self.config))
        return subprocess.run(
            command,
            cwd=self._machine.root,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60 * self._machine.slower,
            check=False,
        )


@pytest.fixture
def line() -> Iterator[Line]:
    with Line() as line:
        yield line


def send(line: Line, first: int, last: int, tag: str = "tag-1", value: float | None = None) -> None:
    """Frames of a tag, at the pace that a radio has."""
    for number in range(first, last + 1):
        line.send(Frame(tag, BOOT, number, {"strain": 0.5 if value is None else value}).to_bytes(), 60)
        time.sleep(0.002)


def test_from_tag_to_twin_and_stopped_in_good_order(
    broker: Broker, twin: Receiver, line: Line, tmp_path: Path, machine: Machine
) -> None:
    with Process(tmp_path, broker.port, line.port, machine) as agent:
        send(line, 0, 99)
        send(line, 0, 49, "tag-2")
        send(line, 0, 9, "stranger")
        assert twin.until(lambda it: len(it.tags) == 150), (sorted(twin.tags), twin.gaps, agent.log())
        send(line, 100, 119)
        code, took = agent.stop()
        assert code == 0, agent.log()
        assert took < 5 or machine.slower > 1
    with Process(tmp_path, broker.port, line.port, machine) as agent:
        send(line, 120, 120)  # what lay in the line when it stopped is owned up to with this one
        assert twin.until(lambda it: it.tags["tag-1", BOOT, 120] > 0), agent.log()
    assert not twin.missing("tag-1", BOOT, range(121))
    assert not twin.twice()
    assert not [tag for tag, _, _ in twin.tags if tag == "stranger"]
    readings = [entry.record for have in twin.entries.values() for entry in have.values()]
    assert {record.values["strain"].raw for record in readings if isinstance(record, Reading)} == {0.5}


def test_the_same_on_an_emulated_pi(
    broker: Broker, twin: Receiver, line: Line, tmp_path: Path, root: Path, arm: Callable[[str], "Guest"]
) -> None:
    with Process(tmp_path, broker.port, line.port, Machine(root, arm("rpi4b"))) as agent:
        send(line, 0, 199)
        assert twin.until(lambda it: len(it.tags) == 200, 60), agent.log()
    assert not twin.missing("tag-1", BOOT, range(200))
    assert not twin.twice()


def killed_again_and_again(
    agent: Process, twin: Receiver, line: Line, times: int, dice: random.Random, slower: int = 1
) -> int:
    """Kill the agent so often, at points drawn by chance, while frames come; how many frames were sent."""
    sent = 0
    for _ in range(times):
        until = time.monotonic() + dice.uniform(0.7, 2.0) * slower
        while time.monotonic() < until:
            send(line, sent, sent + 4)
            sent += 5
        agent.kill()
        agent.start()
    agent.hears()
    send(line, sent, sent + 20)  # after them nothing of before can be missing without being owned up to
    return sent + 21


def test_killed_at_any_point_it_loses_nothing_that_it_does_not_own_up_to(
    broker: Broker, twin: Receiver, line: Line, tmp_path: Path, machine: Machine
) -> None:
    with Process(tmp_path, broker.port, line.port, machine) as agent:
        sent = killed_again_and_again(agent, twin, line, 4, random.Random(7), machine.slower)
        assert twin.until(lambda it: it.tags["tag-1", BOOT, sent - 1] > 0, 30), agent.log()
        assert not twin.missing("tag-1", BOOT, range(sent))
        assert not twin.twice()


@pytest.mark.slow
def test_killed_at_200_points_it_loses_nothing_that_it_does_not_own_up_to(
    broker: Broker, twin: Receiver, line: Line, tmp_path: Path, root: Path
) -> None:
    with Process(tmp_path, broker.port, line.port, Machine(root)) as agent:
        sent = killed_again_and_again(agent, twin, line, 200, random.Random(8))
        assert twin.until(lambda it: it.tags["tag-1", BOOT, sent - 1] > 0, 60), agent.log()
        assert not twin.missing("tag-1", BOOT, range(sent))
        assert not twin.twice()


def test_it_has_four_threads_at_most_and_little_memory(
    broker: Broker, twin: Receiver, line: Line, tmp_path: Path, root: Path
) -> None:
    with Process(tmp_path, broker.port, line.port, Machine(root)) as agent:
        send(line, 0, 99)
        assert twin.until(lambda it: len(it.tags) == 100), agent.log()
        status = dict(
            row.split(":", 1) for row in Path(f"/proc/{agent.pid}/status").read_text().splitlines() if ":" in row
        )
    assert int(status["Threads"]) <= 4
    assert int(status["VmRSS"].split()[0]) < 48 * 1024  # the figure is measured by the loss benchmark


def test_an_alarm_is_raised_once_and_not_again_after_a_kill(
    broker: Broker, twin: Receiver, line: Line, tmp_path: Path, machine: Machine
) -> None:
    rule = {"kind": "level", "name": "high", "quantity": "strain", "limits": [10.0, 20.0], "hysteresis": 1.0}
    desired = orders.Desired(1, "gw-1", 1, {"rules": {"rules": [rule]}})
    twin.say("mine/gw-1/desired", orders.pack(desired), retain=True)

    def alarms() -> list[Alarm]:
        found = [entry.record for have in twin.entries.values() for entry in have.values()]
        return [record for record in found if isinstance(record, Alarm)]

    with Process(tmp_path, broker.port, line.port, machine) as agent:
        assert wait_for(lambda: "proven itself" in agent.log()), agent.log()
        send(line, 0, 4, value=1.0)
        send(line, 5, 9, value=12.0)
        assert wait_for(lambda: [alarm.level for alarm in alarms()] == [1]), agent.log()
        agent.kill()
        agent.start()
        agent.hears()
        send(line, 10, 14, value=12.0)
        send(line, 15, 19, value=25.0)
        assert wait_for(lambda: len(alarms()) == 2), agent.log()
        send(line, 20, 24, value=1.0)
        assert wait_for(lambda: len(alarms()) == 3), agent.log()
    assert sorted(alarm.level for alarm in alarms()) == [0, 1, 2]
    assert len({alarm.id for alarm in alarms()}) == 1


def test_a_disk_that_takes_nothing_for_a_while_costs_nothing(
    broker: Broker, twin: Receiver, line: Line, tmp_path: Path, machine: Machine
) -> None:
    with Process(tmp_path, broker.port, line.port, machine) as agent:
        send(line, 0, 49)
        assert twin.until(lambda it: len(it.tags) == 50, 60), agent.log()
        _, most = resource.prlimit(agent.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(agent.pid, resource.RLIMIT_FSIZE, (0, most))  # no file may be written at all
        send(line, 50, 249)
        time.sleep(3)
        assert len(twin.tags) == 50, "nothing is sent that is not on the disk"
        resource.prlimit(agent.pid, resource.RLIMIT_FSIZE, (most, most))
        send(line, 250, 259)
        assert twin.until(lambda it: len(it.tags) == 260, 60), agent.log()
    assert not twin.twice()


def test_commands_are_answered_and_tags_paired_on_the_way(
    broker: Broker, twin: Receiver, line: Line, tmp_path: Path, machine: Machine
) -> None:
    now = time.time_ns() // 1000

    def command(number: int, name: str, **arguments: object) -> orders.Command:
        return orders.Command(1, "gw-1", f"c-{number}", "ann", now, now + 600_000_000, name, arguments)

    def answers() -> dict[str, str]:
        found = [orders.unpack(orders.Answer, payload) for topic, payload in list(twin.said) if "answer" in topic]
        return {answer.id: answer.outcome for answer in found}

    with Process(tmp_path, broker.port, line.port, machine) as agent:
        assert wait_for(lambda: "connected to" in agent.log()), agent.log()
        twin.command(command(1, "send_diagnostics"))
        twin.command(command(2, "pair_tag", tag="new-tag"))
        assert wait_for(lambda: len(answers()) == 2), agent.log()
        send(line, 0, 9, "new-tag")
        clock_is_set = answers()["c-2"] == "done"  # without NTP a gateway cannot say whether a command has expired
        if clock_is_set:
            assert twin.until(lambda it: it.tags["new-tag", BOOT, 9] > 0), agent.log()
        else:
            assert answers()["c-2"] == "refused"
        assert answers()["c-1"] == "done"
        assert twin.until(
            lambda it: any(isinstance(entry.record, Health) for have in it.entries.values() for entry in have.values())
        )


def test_enrolled_by_a_person_it_sends_through_tls_and_not_before(
    mosquitto: None, line: Line, tmp_path: Path, machine: Machine
) -> None:
    authority = Authority()
    papers = Papers(tmp_path, authority, "twin")
    context = papers.context()
    context.check_hostname = False  # the receiver calls the broker by its number
    pem = authority.server(tmp_path, ends=3000)
    with (
        guarded_by(tmp_path, authority) as broker,
        Twin(authority, pem) as office,
        Receiver(broker.port, context) as twin,
    ):
        office.signing = {"ends": 3000}
        with Process(tmp_path, broker.port, line.port, machine, host="localhost", tls=True) as agent:
            send(line, 0, 49)
            time.sleep(1.5 * machine.slower)
            assert "not enrolled" in agent.call("status").stdout
            assert not twin.tags
            refused = agent.call("enroll", office.url, Authority("somebody else").invite())
            assert refused.returncode == 1
            assert "the code was not sent" in refused.stderr
            done = agent.call("enroll", office.url, authority.invite(), "--again")
            assert done.returncode == 0, done.stderr
            assert twin.until(lambda it: len(it.tags) == 50, 60 * machine.slower), agent.log()
            assert "good for" in agent.call("selftest").stdout
    assert not twin.twice()


def test_status_pairing_and_draining_beside_a_running_agent(
    broker: Broker, line: Line, tmp_path: Path, machine: Machine
) -> None:
    with Process(tmp_path, 1, line.port, machine) as agent:  # nobody listens there
        send(line, 0, 99)
        send(line, 0, 9, "stranger")
        assert wait_for(lambda: "stranger" in agent.call("status").stdout), agent.log()
        said = json.loads(agent.call("status", "--json").stdout)
        assert said["running"]
        assert said["outbox"]["rows"] >= 100
        assert said["agent"]["tags"]["tag-1"]["seen"] is not None
        paired = agent.call("pair", "stranger", "--type", "extensometer")
        assert paired.returncode == 0, paired.stderr
        assert wait_for(lambda: "stranger (extensometer)" in agent.call("status").stdout), agent.call("status").stdout
        (tmp_path / "stick").mkdir()
        drained = agent.call("drain", "--to", str(tmp_path / "stick"), "--json")
        assert json.loads(drained.stdout)["records"] >= 100, drained.stderr
        refused = agent.call("drain", "--to", str(tmp_path / "stick"), "--forget")
        assert refused.returncode == 1
        assert "another agent has the outbox" in refused.stderr
    assert agent.call("status").returncode == 1
    gone = agent.call("drain", "--to", str(tmp_path / "stick"), "--forget", "--json")
    assert json.loads(gone.stdout)["forgotten"] >= 100, gone.stderr


def test_systemd_hears_that_it_is_ready_and_that_it_gets_on(
    broker: Broker, line: Line, tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as system:
        system.bind(str(tmp_path / "notify"))
        system.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "3000000")
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        with Process(tmp_path, broker.port, line.port, machine) as agent:
            said = ""
            while "READY=1" not in said or said.count("WATCHDOG=1") < 3:
                said += system.recv(4096).decode() + "\n"
            os.kill(agent.pid, signal.SIGTERM)
            while "STOPPING=1" not in said:
                said += system.recv(4096).decode() + "\n"


def wait_for(true, seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.1)
    return False
