"""The handlers of a real agent: what is repeatable does twice what it does once, also if the agent ends in between."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from targets.runtime.errors import HighwallError
from twin_client.agent import Agent
from twin_client.config import Settings
from twin_client.pairing import Tag
from twin_client.protocol import orders
from twin_client.protocol.orders import ORDERS
from twin_client.services.execution import Done, Handler, Refused

T = TypeVar("T")
MODEL = hashlib.sha256(b"a model").hexdigest()
CURVE = {"version": 2, "coefficients": [0.0, 2.0], "low": -1.0}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "pair_tag": {"tag": "tag-7", "type": "person", "note": "bench 4"},
    "unpair_tag": {"tag": "own-1"},
    "set_sensor_calibration": {"tag": "tag-7", "quantity": "strain", "calibration": CURVE},
    "send_diagnostics": {},
    "update_model": {"url": "https://twin.example/m", "sha256": MODEL, "size": 7},
    "reconfigure": {"number": 3, "settings": {"utc_offset": 60}},
}


def living(folder: Path, work: Callable[[Agent], Awaitable[T]]) -> T:
    """What `work` gives with an agent that runs meanwhile."""

    async def life() -> T:
        tags = {"own-1": Tag("person"), "own-2": Tag()}
        agent = Agent(Settings("gw-1", folder=str(folder), tags=tags), say=lambda line: None)
        running = asyncio.create_task(agent.run())
        await asyncio.sleep(0)
        try:
            return await work(agent)
        finally:
            agent.stopping.set()
            await running

    return asyncio.run(life())


def handler(agent: Agent, name: str) -> Handler:
    from twin_client.handlers import Handlers

    return Handlers(agent).by_name()[name]


async def done(agent: Agent, name: str, **changes: object) -> str:
    """Have it done; what the handler says."""
    said = await handler(agent, name)(msgspec.convert({**ARGUMENTS[name], **changes}, ORDERS[name].arguments))
    return said.text if isinstance(said, Done) else said


def left(agent: Agent) -> object:
    """All that orders change."""
    kept = agent.folder / "calibrations.json"
    curves = kept.read_bytes() if kept.exists() else b""
    return agent.pairing.tags, curves, agent.configuration.number, agent.site, agent.models.digest


@pytest.mark.parametrize("name", sorted(name for name, order in ORDERS.items() if order.repeatable))
def test_what_is_repeatable_does_twice_what_it_does_once(tmp_path: Path, name: str) -> None:
    async def work(agent: Agent) -> object:
        if name == "update_model" and not agent.models.digest:  # test_update fetches one; here the agent died after it
            given = agent.models.folder / "given.part"
            given.parent.mkdir(exist_ok=True)
            given.write_bytes(b"a model")
            agent.models.switch(given, MODEL)
        await done(agent, name)
        return left(agent)

    once = living(tmp_path, work)
    assert living(tmp_path, work) == once  # begun again by the next agent
    again = living(tmp_path, lambda agent: twice(agent, work))
    assert again == once


async def twice(agent: Agent, work: Callable[[Agent], Awaitable[T]]) -> T:
    await work(agent)
    return await work(agent)


def test_a_curve_is_in_use_after_it_was_sent_again(tmp_path: Path) -> None:
    async def work(agent: Agent) -> str:
        return await done(agent, "set_sensor_calibration")

    assert living(tmp_path, work) == living(tmp_path, work) == "strain of tag-7 is read by the new curve"


@pytest.mark.parametrize("changes", [{"version": 1}, {"coefficients": [0.0, 3.0]}, {"low": None}, {"unit": "mm"}])
def test_an_older_curve_or_another_one_of_the_same_version_is_not_taken(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    async def work(agent: Agent) -> bytes:
        await done(agent, "set_sensor_calibration")
        kept = (agent.folder / "calibrations.json").read_bytes()
        with pytest.raises(HighwallError, match="has version 2; send a higher one"):
            await done(agent, "set_sensor_calibration", calibration={**CURVE, **changes})
        assert (agent.folder / "calibrations.json").read_bytes() == kept
        return kept

    living(tmp_path, work)


def test_a_curve_that_the_site_has_overtaken_is_not_called_the_one_in_use(tmp_path: Path) -> None:
    async def work(agent: Agent) -> None:
        await done(agent, "set_sensor_calibration")
        newer = {"calibrations": {"tag-7": {"strain": {"version": 5}}}}
        await done(agent, "reconfigure", settings=newer)
        await asyncio.sleep(0.05)  # the agent judges by it from its next turn on
        with pytest.raises(HighwallError, match="has version 5"):
            await done(agent, "set_sensor_calibration")
        await done(agent, "set_sensor_calibration", calibration={"version": 5})  # as the site has it

    living(tmp_path, work)


def test_a_curve_that_is_none_is_said_to_be_none(tmp_path: Path) -> None:
    async def work(agent: Agent) -> None:
        with pytest.raises(HighwallError, match="calibration: "):
            await done(agent, "set_sensor_calibration", calibration={"version": 0})

    living(tmp_path, work)


def test_a_tag_that_is_not_paired_is_unpaired_already(tmp_path: Path) -> None:
    async def work(agent: Agent) -> list[str]:
        return [await done(agent, "unpair_tag", tag=tag) for tag in ("own-2", "own-2", "never-seen")]

    assert living(tmp_path, work) == [
        "own-2 is not paired any more",
        "own-2 is not paired",
        "never-seen is not paired",
    ]


def test_a_type_that_is_nearly_a_known_one_is_refused_with_the_right_word(tmp_path: Path) -> None:
    async def work(agent: Agent) -> None:
        for kind in ("Person", "MACHINE", " person"):
            with pytest.raises(Refused, match=f"type is {kind.strip().lower()}, not"):
                await done(agent, "pair_tag", type=kind)
        assert "tag-7" not in agent.pairing.tags
        for kind in ("person", "machine", "", "truck", "Extensometer"):
            await done(agent, "pair_tag", type=kind)
            assert agent.pairing.tags["tag-7"].type == kind

    living(tmp_path, work)


def test_every_order_has_its_handler_and_the_comments_name_no_type_that_is_not_judged() -> None:
    assert set(ARGUMENTS) == {name for name, order in ORDERS.items() if order.repeatable}
    assert "truck" not in Path(orders.__file__).read_text()
