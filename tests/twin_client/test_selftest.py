"""The selftest beside a running agent, which loses nothing by it, and without one."""

import asyncio
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.loss.line import Line
from twin_client.agent import Agent
from twin_client.config import Settings
from twin_client.outbox import Rows
from twin_client.pairing import Tag
from twin_client.protocol.records import Gap, Reading, record_of
from twin_client.protocol.site import Destination
from twin_client.protocol.tags import Frame
from twin_client.selftest import Finding, selftest
from twin_client.sources.port import PortSettings
from twin_client.sources.serial import SerialSettings
from twin_client.uplink import Settings as Uplink


@pytest.fixture
def settings(tmp_path: Path, line: Line) -> Settings:
    (tmp_path / "data").mkdir()
    return Settings(
        gateway="gw-1",
        folder=str(tmp_path / "data"),
        destination=Destination("127.0.0.1", 1),
        uplink=Uplink(tls=False),
        tags={"tag-1": Tag()},
        serial=SerialSettings((PortSettings("radio", line.port),)),
        health=1.0,
    )


def radio(settings: Settings) -> Finding:
    return next(finding for finding in selftest(settings) if finding.part == "port radio")


@pytest.fixture
def running(settings: Settings) -> Iterator[None]:
    """The outbox is in somebody's hands, and pyserial in nobody's."""
    with (Path(settings.folder) / "outbox.lock").open("wb") as lock, pytest.MonkeyPatch.context() as patch:
        patch.setattr("serial.serial_for_url", lambda *_, **__: pytest.fail("the port was opened"))
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def report(settings: Settings, *ports: dict, age: float = 0.0) -> None:
    path = Path(settings.folder) / "status.json"
    path.write_text(json.dumps({"at": time.time_ns() // 1000, "ports": ports}))
    os.utime(path, (time.time() - age,) * 2)


def port(line: Line, **changes: object) -> dict:
    return {"name": "radio", "url": line.port, "open": True, "problem": "", "counters": {"bytes": 0}, **changes}


def reported_open(settings: Settings) -> bool:
    path = Path(settings.folder) / "status.json"
    return path.exists() and any(port["open"] for port in json.loads(path.read_bytes())["ports"])


def test_the_agent_loses_no_frame_by_a_selftest(settings: Settings, line: Line) -> None:
    found: list[Finding] = []

    async def main() -> None:
        agent = Agent(settings, lambda line: None)
        life = asyncio.create_task(agent.run())
        try:
            async with asyncio.timeout(30):
                while not reported_open(settings):
                    await asyncio.sleep(0.05)
                test = asyncio.create_task(asyncio.to_thread(lambda: found.append(radio(settings))))
                sent = 0
                while not test.done() or sent < 50:
                    line.put(Frame("tag-1", 1, sent, {"strain": 1.0}).to_bytes())
                    sent += 1
                    await asyncio.sleep(0.01)
                await test
                while agent.reporter.counters["reading"] < sent:
                    await asyncio.sleep(0.02)
        finally:
            agent.stopping.set()
            await life
        assert agent.reporter.counters["reading"] == sent

    asyncio.run(main())
    assert found[0].verdict in ("ok", "look") and "in the agent" in found[0].text
    rows = Rows.look(Path(settings.folder))
    records = [record_of(row.body) for epoch in rows.epochs() for row in rows.read(epoch, 0, 10_000, 1 << 30)]
    rows.close()
    assert not [record for record in records if isinstance(record, Gap) and record.lost]
    numbers = [record.tag_seq for record in records if isinstance(record, Reading)]
    assert numbers == list(range(len(numbers)))


@pytest.mark.parametrize(
    ("changes", "verdict", "says"),
    [
        ({"counters": {"bytes": 321}}, "ok", "is open in the agent, 321 bytes heard"),
        ({}, "look", "is open in the agent, and silent"),
        ({"open": False, "problem": "no such device"}, "fail", "is not open in the agent: no such device"),
        ({"open": False}, "fail", "is not open in the agent: it is tried again"),
        ({"url": "/dev/ttyUSB7"}, "look", "the agent, which runs without it"),
        ({"name": "logger"}, "look", "the agent, which runs without it"),
    ],
)
def test_beside_an_agent_its_own_report_says_how_the_port_fares(
    settings, line, running, changes, verdict, says
) -> None:
    report(settings, port(line, **changes))
    found = radio(settings)
    assert found.verdict == verdict and says in found.text and line.port in found.text


def test_an_agent_that_reports_nothing_keeps_its_ports(settings: Settings, line: Line, running: None) -> None:
    assert "has not reported for a minute" in radio(settings).text
    report(settings, port(line), age=70)
    found = radio(settings)
    assert found.verdict == "look" and "left to the agent" in found.text
    report(settings)
    assert "runs without it" in radio(settings).text


def test_without_an_agent_what_waits_at_the_port_is_heard_and_not_thrown_away(settings: Settings, line: Line) -> None:
    assert (radio(settings).verdict, "silent" in radio(settings).text) == ("look", True)
    line.put(b"x" * 100)
    found = radio(settings)
    assert (found.verdict, found.text) == ("ok", f"{line.port} opens, 100 bytes heard")


def test_a_port_in_another_program_s_hands_is_left_alone(settings: Settings, line: Line) -> None:
    """Such as an agent of another user, whose outbox this one may not look at."""
    other = os.open(line.port, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    fcntl.flock(other, fcntl.LOCK_EX)
    line.put(b"x" * 100)
    try:
        found = radio(settings)
        assert (found.verdict, found.text) == ("fail", f"{line.port} is read by another program; end that first")
        assert os.read(other, 200) == b"x" * 100
    finally:
        os.close(other)


def test_a_port_that_is_none_fails_with_a_reason(settings: Settings) -> None:
    for url in ("/dev/null", "/dev/none", "socket://127.0.0.1:1"):
        changed = SerialSettings((PortSettings("radio", url),))
        found = radio(Settings(gateway="g", folder=settings.folder, serial=changed))
        assert found.verdict == "fail" and found.text and "\n" not in found.text
