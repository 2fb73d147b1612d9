"""Parts of a running agent that are begun again: no number is given twice, no image is forgotten, none lies about."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from living import kept, live, until

from benchmarks.loss.line import Line
from twin_client.agent import Agent
from twin_client.cameras import PENDING
from twin_client.outbox import OutboxFull
from twin_client.pairing import Tag
from twin_client.protocol.records import Gap, Lost, Prediction, Reading, Record
from twin_client.sources.camera import Capture


def lived(folder: Path, more: str, work: Callable[[Agent], Awaitable[None]]) -> list[Record]:
    """What an agent with `more` in its gateway.toml has kept after `work`."""
    text = 'gateway = "gw-1"\nfolder = "data"\ndestination = {host = "127.0.0.1", port = 1}\nuplink = {tls = false}\n'
    (folder / "gateway.toml").write_text(text + more)
    live(folder, work)
    return kept(folder)


def test_a_logger_that_counts_nothing_keeps_its_numbers_apart(tmp_path: Path, line: Line) -> None:
    sent = 0

    async def three_lines(agent: Agent) -> None:
        nonlocal sent
        await until(lambda: agent.serial is not None and agent.serial.ports()[0].open)
        source = agent.serial
        assert source is not None
        for _ in range(3):
            line.put(b'{"tag": "tag-1", "values": {"strain": %d}}\n' % sent)
            sent += 1
        await until(lambda: source.counters()["readings"] == 3)  # taken, and not on the disk yet

    async def begin_again(agent: Agent) -> None:
        source = agent.serial
        agent.part("serial ports").restart()
        await until(lambda: agent.serial is not source)

    async def work(agent: Agent) -> None:
        for _ in range(3):
            await three_lines(agent)
            await begin_again(agent)
        await three_lines(agent)
        await until(lambda: agent.reporter.counters["reading"] == sent)
        agent.pairing.unpair("tag-1")  # and once more while it is: its marks are the outbox's alone then
        await agent.pair()
        await asyncio.sleep(1.5)  # a look at the line
        await begin_again(agent)
        agent.pairing.pair("tag-1", Tag())
        await agent.pair()
        await begin_again(agent)
        await three_lines(agent)

    ports = f'[tags.tag-1]\n[[serial.ports]]\nname = "logger"\nurl = "{line.port}"\nformat = "json"\n'
    found = [record for record in lived(tmp_path, ports, work) if isinstance(record, Reading)]
    assert [record.values["strain"].raw for record in found] == list(range(15)), "each line is there once"
    assert len({(record.tag_boot, record.tag_seq) for record in found}) == 15, "under a number of its own"


class Model:
    """A model that finds nothing in anything, at once; with `hanging`, never."""

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
        self.hanging = False

    def submit(self, capture: Capture, *_: Any) -> Any:
        from concurrent.futures import Future

        answer: Future[Prediction] = Future()
        if not self.hanging:
            picture = capture.path.read_bytes()
            answer.set_result(
                Prediction(capture.at, capture.camera, capture.number, "m", 0.5, 0.5, 1, 1, 0, (), picture)
            )
        return answer

    def hung(self) -> bool:
        return False


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    model = Model()

    async def loaded(self: Any) -> None:
        self.watch = model

    monkeypatch.setattr("twin_client.cameras.Cameras._load", loaded)
    monkeypatch.setattr("twin_client.cameras.Cameras._joined", lambda *_: None)
    monkeypatch.setattr("twin_client.health.Reporter._words", lambda _: {})
    return model


CAMERA = """[[cameras]]
name = "east"
command = ["sh", "-c", "date +%s%N > {{out}}"]
period = 1.0
folder = "{images}"
"""


def cameras(folder: Path) -> str:
    (folder / "images").mkdir()
    return CAMERA.format(images=folder / "images")


def test_a_camera_that_is_begun_again_gives_each_image_its_own_number(tmp_path: Path, model: Model) -> None:
    async def work(agent: Agent) -> None:
        for _ in range(4):
            await until(lambda: "east" in agent.cameras.sources)
            source = agent.cameras.sources["east"][0]
            await until(lambda source=source: source.counters["captured"])
            await asyncio.sleep(0.02)  # judged, and on its way to the disk
            agent.part("cameras").restart()
            await until(lambda source=source: agent.cameras.sources.get("east", (source,))[0] is not source)

    found = [record for record in lived(tmp_path, cameras(tmp_path), work) if isinstance(record, Prediction)]
    assert len(found) >= 4
    assert len({record.capture for record in found}) == len({record.thumbnail for record in found}) == len(found)
    assert not list((tmp_path / "images").iterdir())


def test_an_image_that_was_being_judged_is_owned_up_to_and_does_not_stay(tmp_path: Path, model: Model) -> None:
    model.hanging = True

    async def work(agent: Agent) -> None:
        await until(lambda: "east" in agent.cameras.sources)
        source = agent.cameras.sources["east"][0]
        await until(lambda: source.counters["captured"])
        model.hanging = False
        agent.part("cameras").restart()
        await until(lambda: agent.reporter.counters["prediction"])

    found = lived(tmp_path, cameras(tmp_path), work)
    assert [record.lost for record in found if isinstance(record, Gap)] == [(Lost("east", 0, 0, 0),)]
    assert min(record.capture for record in found if isinstance(record, Prediction)) == 1
    assert not list((tmp_path / "images").iterdir())


def test_an_image_by_command_does_not_go_on_with_the_count_of_before(tmp_path: Path, model: Model) -> None:
    said: list[str] = []

    async def work(agent: Agent) -> None:
        await until(lambda: agent.reporter.counters["prediction"])
        source = agent.cameras.sources["east"][0]
        model.hanging = True
        asked = asyncio.create_task(agent.cameras.capture("east"))
        await until(lambda: list((tmp_path / "images").iterdir()))
        agent.part("cameras").restart()
        await until(lambda: agent.cameras.sources.get("east", (source,))[0] is not source)
        model.hanging = False
        (answer,) = await asyncio.gather(asked, return_exceptions=True)
        said.append(str(answer))
        before = agent.reporter.counters["prediction"]
        await until(lambda: agent.reporter.counters["prediction"] > before)

    found = [record for record in lived(tmp_path, cameras(tmp_path), work) if isinstance(record, Prediction)]
    assert said == ["the cameras were begun again meanwhile; ask once more"]
    assert len({record.capture for record in found}) == len(found)


def test_while_the_disk_takes_nothing_images_do_not_fill_it(tmp_path: Path, model: Model) -> None:
    most: list[int] = []

    async def work(agent: Agent) -> None:
        await until(lambda: agent.pipeline.outbox is not None and "east" in agent.cameras.sources)
        outbox = agent.pipeline.outbox
        assert outbox is not None

        def full(_: Any) -> Any:
            raise OutboxFull("no space left")

        write, outbox.write = outbox.write, full  # type: ignore[method-assign]
        source = agent.cameras.sources["east"][0]
        await until(lambda: source.counters["captured"] >= PENDING)
        await asyncio.sleep(1.5)  # time for one more, at a period of a second
        most.append(len(list((tmp_path / "images").iterdir())))
        outbox.write = write  # type: ignore[method-assign]
        await until(lambda: agent.reporter.counters["prediction"] > PENDING)

    found = [record for record in lived(tmp_path, cameras(tmp_path), work) if isinstance(record, Prediction)]
    assert most == [PENDING]
    assert [record.capture for record in found] == list(range(len(found))), "and all are there when it takes them again"
    assert not list((tmp_path / "images").iterdir())
