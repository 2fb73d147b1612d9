"""What the twin client's tests share: a real broker, and the twin at its far end."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from receiver import Receiver

from benchmarks.loss.broker import Broker
from benchmarks.loss.line import Line


@pytest.fixture(scope="session")
def mosquitto(ci_or_skip: Callable[[str], NoReturn]) -> None:
    """Skips, or fails in CI, where mosquitto is not installed."""
    if shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin") is None:
        ci_or_skip("mosquitto is not installed (Debian: apt install mosquitto)")


@pytest.fixture
def line() -> Iterator[Line]:
    """A serial line, at its tag's end."""
    with Line() as line:
        yield line


@pytest.fixture
def broker(mosquitto: None, tmp_path: Path) -> Iterator[Broker]:
    """A broker that lets anybody in."""
    with Broker(tmp_path / "broker") as broker:
        yield broker


@pytest.fixture
def twin(broker: Broker) -> Iterator[Receiver]:
    """The twin behind `broker`."""
    with Receiver(broker.port) as twin:
        yield twin
