"""A whole agent in this process, for as long as a test wants it, and what it leaves on the disk."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from twin_client.agent import Agent
from twin_client.config import load
from twin_client.outbox import Rows
from twin_client.protocol.records import Record, record_of


def live(folder: Path, work: Callable[[Agent], Awaitable[None]]) -> list[str]:
    """An agent by `folder`/gateway.toml around `work`; what it said."""
    said: list[str] = []

    async def main() -> None:
        agent = Agent(load(folder / "gateway.toml"), said.append)
        life = asyncio.create_task(agent.run())
        try:
            await asyncio.wait_for(work(agent), 30)
        finally:
            agent.stopping.set()
            await life

    asyncio.run(main())
    return said


def kept(folder: Path) -> list[Record]:
    """All that its outbox holds."""
    rows = Rows.look(folder / "data")
    found = [record_of(row.body) for epoch in rows.epochs() for row in rows.read(epoch, 0, 10_000, 1 << 30)]
    rows.close()
    return found


async def until(true: Callable[[], object]) -> None:
    while not true():
        await asyncio.sleep(0.02)
