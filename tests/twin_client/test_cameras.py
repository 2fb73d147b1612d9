"""Cameras in a whole agent with a real artifact: each image has a record, whatever it is, and none has two."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from living import kept, live, until
from PIL import Image
from tiny_models import ANN, BOB, CHIP, write

from targets.runtime.artifact import InputSpec
from twin_client.agent import Agent
from twin_client.protocol.orders import CaptureNow
from twin_client.protocol.records import ClockQuality, Gap, Measure, Prediction, Reading, Stamp

SENSED = InputSpec(7, 5, 3, "uint8", sensors=2)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A gateway's folder with a model, its key, and a folder of images."""
    write(tmp_path / "tiny.highwall")
    (tmp_path / "trust.pub").write_text(ANN.public.line + "\n")
    (tmp_path / "in").mkdir()
    (tmp_path / "gateway.toml").write_text(
        """gateway = "gw-1"
folder = "data"
model = "tiny.highwall"
trust = "trust.pub"
destination = {host = "127.0.0.1", port = 1}
uplink = {tls = false}
[[folders]]
name = "face"
folder = "in"
poll = 0.05
[joined]
face = "tag-1"
"""
    )
    return tmp_path


def image(path: Path, value: int) -> None:
    partial = path.with_name(f".{path.name}")
    Image.fromarray(np.full((7, 5, 3), value, np.uint8)).save(partial, "PNG")
    partial.rename(path)


def test_each_image_becomes_a_prediction_and_a_restart_repeats_none(place: Path) -> None:
    for number, value in enumerate((0, 128, 255)):
        image(place / "in" / f"{number}.png", value)

    async def three(agent: Agent) -> None:
        await until(lambda: agent.reporter.counters["prediction"] >= 3)

    async def one_more(agent: Agent) -> None:
        image(place / "in" / "3.png", 64)
        await until(lambda: agent.reporter.counters["prediction"] >= 1)
        await asyncio.sleep(0.3)

    live(place, three)
    live(place, one_more)
    found = [record for record in kept(place) if isinstance(record, Prediction)]
    assert [record.capture for record in found] == [0, 1, 2, 3]
    assert [round(record.probability, 2) for record in found] == [0.0, 0.5, 1.0, 0.25]


def test_an_image_that_cannot_be_judged_is_owned_up_to(place: Path) -> None:
    (place / "in" / "bad.png").write_bytes(b"no image at all")

    async def work(agent: Agent) -> None:
        await until(lambda: agent.reporter.counters["gap"] >= 1)
        image(place / "in" / "good.png", 255)
        await until(lambda: agent.reporter.counters["prediction"] >= 1)

    live(place, work)
    gaps = [record for record in kept(place) if isinstance(record, Gap)]
    assert [(gap.reason, gap.lost[0].subject, gap.lost[0].last) for gap in gaps] == [("unjudged", "face", 0)]
    assert gaps[0].text.startswith("unreadable")


def test_a_model_of_a_stranger_does_not_run_and_everything_else_does(place: Path) -> None:
    write(place / "tiny.highwall", key=BOB)
    image(place / "in" / "0.png", 255)

    async def work(agent: Agent) -> None:
        await until(lambda: agent.part("cameras").problem)
        await agent.pipeline.put([reading(0)])
        assert "signed" in agent.cameras.problem or "trust" in agent.cameras.problem

    said = live(place, work)
    assert any("cameras: " in line for line in said)
    assert not [record for record in kept(place) if isinstance(record, Prediction)]
    assert [record.tag_seq for record in kept(place) if isinstance(record, Reading)] == [0]


def test_an_image_by_command(place: Path) -> None:
    image(place / "in" / "0.png", 255)

    async def work(agent: Agent) -> None:
        await until(lambda: agent.reporter.counters["prediction"] >= 1)
        from twin_client.handlers import Handlers

        said = await Handlers(agent).capture_now(CaptureNow("face"))
        assert said == "face 1: probability 1.000"

    live(place, work)
    assert [record.capture for record in kept(place) if isinstance(record, Prediction)] == [0, 1]


def reading(seq: int) -> Reading:
    at = Stamp(1_763_884_800_000_000, 1, "boot", ClockQuality.NETWORK)
    return Reading(at, "tag-1", 1, seq, {"strain": Measure(0.5), "tilt": Measure(1.0)})


def test_a_model_that_takes_readings_gets_the_last_of_the_tag_that_was_named(place: Path, monkeypatch) -> None:
    write(place / "tiny.highwall", SENSED)
    monkeypatch.setattr("targets.runtime.predict.sensor_names", lambda manifest: ("strain", "tilt"))

    async def work(agent: Agent) -> None:
        image(place / "in" / "0.png", 255)
        await until(lambda: agent.reporter.counters["gap"] >= 1)  # there is no reading yet
        await agent.pipeline.put([replace_at(reading(7), agent.clock.stamp())])
        image(place / "in" / "1.png", 255)
        await until(lambda: agent.reporter.counters["prediction"] >= 1)

    live(place, work)
    (found,) = [record for record in kept(place) if isinstance(record, Prediction)]
    assert found.joined == ("tag-1", 1, 7)
    assert found.probability == pytest.approx(0.75, abs=0.01)


def replace_at(record: Reading, at: Stamp) -> Reading:
    return Reading(at, record.tag, record.tag_boot, record.tag_seq, record.values)


def test_a_new_model_that_fails_gives_way_to_the_one_before(place: Path) -> None:
    image(place / "in" / "0.png", 255)

    async def work(agent: Agent) -> None:
        await until(lambda: agent.reporter.counters["prediction"] >= 1)
        for version, name in ((4, "good"), (5, "bad")):
            path = write(agent.models.folder / f"{name}.part", CHIP, version=version)
            agent.models.switch(path, name * 10)
        agent.models.path("bad" * 10).write_bytes(b"torn by the card")

    live(place, work)

    async def again(agent: Agent) -> None:
        await until(lambda: agent.cameras.watch is not None)
        assert agent.cameras.watch is not None
        assert agent.cameras.watch.manifest.model_version == 4

    said = live(place, again)
    assert any("the one before is back" in line for line in said)


def test_the_agent_stops_quickly_with_a_model_in_use(place: Path) -> None:
    async def work(agent: Agent) -> None:
        await until(lambda: agent.cameras.watch is not None)

    live(place, work)
