"""Whether a model is trusted is judged by the gateway's own clock: a Pi's wakes from a power cut in any year."""

import asyncio
import contextlib
from base64 import b64encode
from datetime import UTC, date, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_models import ANN, write

from targets.runtime.errors import HighwallError
from targets.runtime.footprint import Footprint
from twin_client.cameras import Cameras
from twin_client.clock import Clock, Kept
from twin_client.config import Settings
from twin_client.protocol.records import ClockQuality, Stamp
from twin_client.protocol.site import Site
from twin_client.selftest import selftest
from twin_client.services import folder as disk
from twin_client.services.models import day_of
from twin_client.worker import Worker

FROM, UNTIL = "from = 2090-01-01\n", "from = 2020-01-01\nuntil = 2090-06-30\n"
KNOWN = int(datetime(2090, 7, 1, tzinfo=UTC).timestamp() * 1e6)  # by the clock that was kept; the system's is behind


@pytest.fixture(autouse=True)
def light(monkeypatch) -> None:
    monkeypatch.setattr("targets.runtime.admit.measure", lambda *_, **__: Footprint(1.0, 1.0, 1.0))
    monkeypatch.setattr("twin_client.clock.kernel_is_synchronised", lambda: False)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "data").mkdir()
    disk.save_state(tmp_path / "data/clock.json", Kept(KNOWN, 1, "the boot before", int(ClockQuality.NETWORK)))
    model = write(tmp_path / "own.highwall")
    return Settings(gateway="g", folder=str(tmp_path / "data"), model=str(model), trust=str(tmp_path / "trust.toml"))


def trust(settings: Settings, days: str) -> None:
    Path(settings.trust).write_text(f'[[key]]\nname = "ann"\npublic = "{b64encode(ANN.public.raw).decode()}"\n{days}')


def by_cameras(settings: Settings) -> None:
    """The cameras' model, as the agent loads it."""
    stamp = Clock(Path(settings.folder)).stamp
    with contextlib.closing(Worker()) as worker:
        cameras = Cameras(settings, Site, SimpleNamespace(), worker, None, stamp, lambda tag: None, lambda line: None)
        asyncio.run(cameras.reload(Path(settings.model)))


def by_selftest(settings: Settings) -> None:
    found = next(finding for finding in selftest(settings) if finding.part == "model")
    if found.verdict == "fail":
        raise HighwallError(found.text)
    assert "are right" in found.text


@pytest.mark.parametrize("by", [by_cameras, by_selftest])
def test_a_key_is_trusted_from_its_day_though_the_system_s_clock_woke_before(settings, by) -> None:
    trust(settings, FROM)
    by(settings)


@pytest.mark.parametrize("by", [by_cameras, by_selftest])
def test_a_key_that_has_ended_is_not_revived_by_the_system_s_clock(settings, by) -> None:
    trust(settings, UNTIL)
    with pytest.raises(HighwallError, match="trusted only until 2090-06-30; today is 2090-07-01"):
        by(settings)


def test_selftest_knows_no_other_time_than_the_system_s_before_there_is_a_folder(settings) -> None:
    bare = Settings(gateway="g", folder=settings.folder + "/none", model=settings.model, trust=settings.trust)
    trust(settings, FROM)
    with pytest.raises(HighwallError, match="trusted only from"):
        by_selftest(bare)


def test_the_day_is_that_of_utc() -> None:
    just_before = int(datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp() * 1e6)
    assert day_of(Stamp(just_before, 0, "boot")) == date(2026, 12, 31)
    assert day_of(Stamp(just_before + 1_000_000, 0, "boot")) == date(2027, 1, 1)
