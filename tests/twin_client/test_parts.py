"""Parts of the agent: what fails is begun again, what has nothing to do waits, and neither ends the others."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from targets.runtime.errors import HighwallError
from twin_client import parts
from twin_client.parts import Part, ended


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "FIRST_S", 0.01)
    monkeypatch.setattr(parts, "MOST_S", 0.04)


def lived(work: Callable[[], Awaitable[None]], through: Callable[[Part], Awaitable[None]]) -> tuple[Part, list[str]]:
    said: list[str] = []

    async def main() -> Part:
        part = Part("ports", work, said.append)
        life = asyncio.ensure_future(part.run())
        await through(part)
        assert not life.done()
        await ended(life, 1)
        assert life.cancelled()
        return part

    return asyncio.run(main()), said


def test_what_fails_is_begun_again_and_said_once_for_as_long_as_it_fails_alike() -> None:
    begun = []

    async def work() -> None:
        begun.append(1)
        raise HighwallError("the cable is out") if len(begun) < 4 else KeyError("oops")

    async def through(part: Part) -> None:
        while len(begun) < 6:
            await asyncio.sleep(0.01)

    part, said = lived(work, through)
    assert said[0] == "ports: the cable is out; it is begun again"
    assert len(said) == 2
    assert "KeyError" in said[1]
    assert "test_parts.py:" in said[1], "a mistake of ours says where"
    assert part.failures >= 5


def test_a_trouble_that_is_over_is_said_to_be_and_the_same_trouble_later_is_said_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parts, "STEADY_S", 0.05)
    fail = asyncio.Event()

    async def work() -> None:
        await fail.wait()
        fail.clear()
        raise HighwallError("the cable is out")

    async def through(part: Part) -> None:
        for _ in range(2):
            fail.set()
            while not part.problem:
                await asyncio.sleep(0.001)
            while part.problem:
                await asyncio.sleep(0.001)

    _, said = lived(work, through)
    assert said == ["ports: the cable is out; it is begun again", "ports: runs again"] * 2


@pytest.mark.parametrize("returns", [True, False])
def test_it_can_be_restarted_whether_it_runs_or_has_nothing_to_do(returns: bool) -> None:
    begun = []

    async def work() -> None:
        begun.append(1)
        if not returns:
            await asyncio.Event().wait()

    async def through(part: Part) -> None:
        for count in (1, 2, 3):
            while len(begun) < count:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.02)
            assert len(begun) == count
            part.restart()
        while len(begun) < 4:
            await asyncio.sleep(0.001)

    lived(work, through)


def test_a_restart_does_not_wait_for_the_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "FIRST_S", 1000.0)
    monkeypatch.setattr(parts, "MOST_S", 1000.0)
    begun = []

    async def work() -> None:
        begun.append(1)
        raise HighwallError("no")

    async def through(part: Part) -> None:
        while not part.problem:
            await asyncio.sleep(0.001)
        part.restart()
        while len(begun) < 2:
            await asyncio.sleep(0.001)

    lived(work, through)


def test_work_that_does_not_end_is_not_waited_for() -> None:
    async def main() -> float:
        async def stubborn() -> None:
            for _ in range(3):
                try:
                    await asyncio.sleep(10)
                except asyncio.CancelledError:
                    continue

        task = asyncio.ensure_future(stubborn())
        await asyncio.sleep(0)
        begun = asyncio.get_running_loop().time()
        await ended(task, 0.05)
        took = asyncio.get_running_loop().time() - begun
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        return took

    assert asyncio.run(main()) < 1
