"""The model update of a gateway that has a model of its own, named in gateway.toml: it is what was before the first."""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_update import ANN, BOB, NEW, OLD, Agent, artifact_of, digest

from targets.runtime.errors import HighwallError
from targets.runtime.footprint import Footprint
from targets.runtime.trust import Trust, TrustedKey
from twin_client.agent import Agent as Gateway
from twin_client.cameras import Cameras
from twin_client.config import Settings
from twin_client.protocol.orders import UpdateModel
from twin_client.protocol.site import Site
from twin_client.services import folder as disk
from twin_client.services.execution import Failed
from twin_client.services.models import Models, Probation
from twin_client.sources.folder import FolderSettings
from twin_client.uplink import Settings as Uplink
from twin_client.watch import WatchSettings
from twin_client.worker import Worker

NOBODY = (None, SimpleNamespace(context=lambda: None))  # no twin is asked for what has come already


@pytest.fixture(autouse=True)
def peak(monkeypatch):
    """The memory in MiB that the trial finds; it is made in a process of its own, which takes a second."""
    found = SimpleNamespace(mib=1.0)
    monkeypatch.setattr("targets.runtime.admit.measure", lambda *_, **__: Footprint(found.mib, 1.0, 1.0))
    return found


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.highwall"
    path.write_bytes(OLD)
    return path


@pytest.fixture
def agent(tmp_path: Path, own: Path) -> Agent:
    return Agent(tmp_path / "models", NOBODY, own)


def given(agent: Agent | Models, data: bytes = NEW) -> UpdateModel:
    """An order whose file has come already."""
    agent.folder.mkdir(parents=True, exist_ok=True)
    (agent.folder / f"{digest(data)}.part").write_bytes(data)
    return UpdateModel("https://twin.example/m", digest(data), len(data))


def version(agent: Agent) -> int:
    return agent.session.manifest.model_version


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (artifact_of(2), "version 2 of tiny where 3 is installed"),
        (artifact_of(3, 1.5), "yet has that number"),
        (artifact_of(9, name="other"), "model other where tiny is installed"),
    ],
    ids=["older", "same number", "other"],
)
def test_no_model_goes_back_behind_the_gateway_s_own(agent, own, data, says) -> None:
    assert says in agent.refusal(given(agent, data))
    assert agent.models.current == own and agent.loaded == [] and version(agent) == 3


def test_the_first_model_of_a_twin_is_on_trial_and_run_in_the_shadow_of_the_own_one(agent) -> None:
    done = agent.run(given(agent))
    assert done.text == "tiny version 4 is in use, shadow run on 9 images; it is on trial"
    agent.seconds += 600
    assert agent.models.worked() and not agent.models.on_trial
    agent.begin()
    assert version(agent) == 4


def test_starts_in_its_trial_bring_the_own_one_back_for_good(agent, own) -> None:
    agent.run(given(agent))
    for _ in range(3):
        agent.begin()
        assert version(agent) == 4
    for _ in range(3):
        agent.begin()
        assert agent.models.current == own and version(agent) == 3 and not agent.models.on_trial
    assert "gave way to the gateway's own: the agent ended 3 times" in agent.models.returned


def test_failures_in_its_trial_bring_the_own_one_back(agent, own) -> None:
    agent.run(given(agent))
    assert [agent.models.failed("torn") for _ in range(3)] == [False, False, True]
    assert agent.models.current == own and own.read_bytes() == OLD


def test_the_second_model_of_a_twin_gives_way_to_the_first_and_not_to_the_own_one(agent) -> None:
    agent.run(given(agent))
    agent.seconds += 600
    agent.models.worked()
    agent.run(given(agent, artifact_of(5, 1.02)))
    assert agent.models.failed("torn", at_all=True)
    assert agent.models.current.read_bytes() == NEW


def test_a_model_that_cannot_be_put_in_use_gives_way_to_the_own_one_now_and_after_a_restart(agent, own) -> None:
    agent.refuses = True
    order = given(agent)
    assert "out of memory" in agent.refusal(order, Failed)
    assert agent.loaded[1:] == [own] and version(agent) == 3 and agent.models.digest == ""
    agent.begin()
    assert agent.models.current == own and version(agent) == 3
    assert "in use" in agent.run(order).text  # what failed once for want of memory may be sent again


def test_with_nothing_before_a_model_that_cannot_be_put_in_use_is_forgotten(tmp_path: Path) -> None:
    agent = Agent(tmp_path / "models", NOBODY)
    agent.refuses = True
    order = given(agent)
    assert "out of memory" in agent.refusal(order, Failed)
    assert agent.loaded[1:] == [None]
    for _ in range(2):
        assert agent.models.current is None and agent.models.digest == "" and not agent.models.on_trial
        assert "gave way to none" in agent.models.returned
        agent.begin()
    assert "version 2" in agent.run(given(agent, artifact_of(2))).text  # it holds back no version that would run


def test_where_the_one_before_cannot_be_loaded_either_both_reasons_are_told(agent, own) -> None:
    async def reload(path: Path | None) -> None:
        raise HighwallError("its own fault" if path == own else "the first fault")

    agent.reload = reload
    agent.begin()
    said = agent.refusal(given(agent), Failed)
    assert "the first fault" in said and "nor can the one before be loaded again: its own fault" in said
    assert agent.models.current == own


@pytest.mark.parametrize("spoil", [Path.unlink, lambda own: own.write_bytes(b"torn")], ids=["missing", "torn"])
def test_an_own_model_that_cannot_run_holds_none_back_and_is_no_way_back(agent, own, spoil) -> None:
    agent.session = None
    spoil(own)
    assert agent.run(given(agent)).text == "tiny version 4 is in use, without a shadow run"
    assert not agent.models.on_trial


def test_an_own_model_whose_key_has_ended_is_no_way_back(tmp_path: Path, own: Path) -> None:
    agent = Agent(tmp_path / "models", NOBODY, own)
    agent.trust = Trust((TrustedKey(ANN.public, last=date(2026, 1, 1)), TrustedKey(BOB.public)), "trust.toml")
    agent.session = None
    agent.run(given(agent, artifact_of(4, key=BOB)))
    assert not agent.models.on_trial


def test_an_own_model_in_the_models_folder_is_neither_moved_nor_swept_away(tmp_path: Path) -> None:
    own = tmp_path / "models" / f"{digest(OLD)}.highwall"
    own.parent.mkdir()
    own.write_bytes(OLD)
    agent = Agent(own.parent, NOBODY, own)
    assert agent.models.orphan(digest(OLD)) is None
    for data in (NEW, artifact_of(5, 1.02)):
        agent.run(given(agent, data))
        agent.seconds += 600
        agent.models.worked()
    assert own.read_bytes() == OLD


def test_the_agent_itself_has_a_model_of_a_twin_tried_against_its_own(tmp_path: Path, own: Path) -> None:
    (tmp_path / "trust.pub").write_text(ANN.public.line + "\n")
    (tmp_path / "in").mkdir()
    settings = Settings(
        gateway="g",
        folder=str(tmp_path / "data"),
        model=str(own),
        trust=str(tmp_path / "trust.pub"),
        folders=(FolderSettings(name="face", folder=str(tmp_path / "in")),),
        uplink=Uplink(tls=False),
        watch=WatchSettings(memory=200),
    )

    async def main() -> None:
        gateway = Gateway(settings, lambda line: None)
        gateway.update._around = replace(gateway.update._around, context=NOBODY[1].context)
        life = asyncio.create_task(gateway.run())
        try:
            async with asyncio.timeout(30):
                while gateway.cameras.watch is None:
                    await asyncio.sleep(0.02)
            with pytest.raises(HighwallError, match="where 3 is installed"):
                await gateway.update.run(given(gateway.models, artifact_of(2)))
            assert (await gateway.update.run(given(gateway.models))).text.endswith("; it is on trial")
            assert gateway.cameras.watch.manifest.model_version == 4 and gateway.update._limits is settings.watch
        finally:
            gateway.stopping.set()
            await life

    asyncio.run(main())


# --- memory -----------------------------------------------------------------------------------------------


def test_a_model_that_takes_too_much_memory_is_never_loaded_in_the_agent(tmp_path, own, peak, monkeypatch) -> None:
    agent = Agent(tmp_path / "models", NOBODY, own, limits=WatchSettings(memory=200, threads=3))
    threads = []
    from targets.runtime.admit import open_session as load

    monkeypatch.setattr("targets.runtime.admit.open_session", lambda *a: threads.append(a[2]) or load(*a))
    peak.mib = 201.0
    assert "takes 201 MiB of memory to run here, at most 200" in agent.refusal(given(agent))
    assert threads == [] and agent.loaded == [] and version(agent) == 3
    peak.mib = 200.0
    agent.run(given(agent))
    assert threads == [3]


# --- power cuts -------------------------------------------------------------------------------------------


class PowerCut(BaseException):
    pass


@dataclass
class Cut:
    """Ends the machine at the write number `limit`: before it happened, or after it where `late`."""

    limit: int
    late: bool
    happened: bool = False

    @contextlib.contextmanager
    def armed(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(PowerCut):
            for name in ("save", "save_state", "sync_folder", "remove"):
                patch.setattr(disk, name, self._around(getattr(disk, name)))
            yield

    def _around(self, call):
        def step(*arguments):
            mine, self.limit = self.limit == 0, self.limit - 1
            if mine and not self.late:
                self._end()
            result = call(*arguments)
            if mine:
                self._end()
            return result

        return step

    def _end(self) -> None:
        self.happened = True
        raise PowerCut


def cuts(folder: Path) -> Iterator[tuple[Path, Cut]]:
    """Every cut there can be, each with a folder of its own."""
    for limit in range(40):
        for late in (False, True):
            here, cut = folder / f"{limit}-{late}", Cut(limit, late)
            here.mkdir()
            yield here, cut
        if not cut.happened:
            assert limit > 3
            return
    pytest.fail("the cuts have no end")


def test_the_power_may_go_at_every_step_of_the_first_switch(tmp_path: Path, own: Path) -> None:
    for folder, cut in cuts(tmp_path):
        agent = Agent(folder / "models", NOBODY, own)
        order = given(agent)
        with cut.armed():
            agent.run(order)
        agent.begin()
        assert version(agent) in (3, 4)
        if agent.models.digest != order.sha256:
            agent.run(order)
        assert agent.models.current.read_bytes() == NEW and agent.models.on_trial
        for _ in range(4):
            agent.begin()
        assert agent.models.current == own and version(agent) == 3


def test_the_power_may_go_at_every_step_with_a_model_that_cannot_be_loaded(tmp_path, own, monkeypatch) -> None:
    """What the cameras load at the start after it is the own one, and at every start after that."""

    class Opened:
        manifest, warning = SimpleNamespace(name="tiny", model_version=3), ""

        @staticmethod
        def open(path: Path, *_: object, **__: object) -> "Opened":
            if path != own:
                raise HighwallError("it takes 900 MiB of memory to run here")
            return Opened()

    def cameras() -> Cameras:
        models = Models(agent.folder, agent.now, Probation(), own)
        return Cameras(settings, Site, models, worker, None, agent.now, lambda tag: None, lambda line: None)

    monkeypatch.setattr("twin_client.cameras.Watch", Opened)
    (tmp_path / "trust.pub").write_text(ANN.public.line + "\n")
    settings = Settings(gateway="g", model=str(own), trust=str(tmp_path / "trust.pub"))
    with contextlib.closing(Worker()) as worker:
        for folder, cut in cuts(tmp_path):
            agent = Agent(folder / "models", NOBODY, own)
            agent.reload = cameras().reload
            agent.begin()
            order = given(agent)
            with cut.armed():
                with contextlib.suppress(Failed):
                    agent.run(order)
                asyncio.run(cameras()._load())
            for _ in range(2):
                again = cameras()
                asyncio.run(again._load())
                assert again.watch is not None and again._models.current == own and not again._models.on_trial
