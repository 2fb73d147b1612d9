"""A small trained run and its data, shared by the workbench's tests."""

from pathlib import Path

import pytest
from small import small_request

from toolkit.data.folder import read
from toolkit.data.synthetic import mine_chips
from toolkit.data.write import write
from toolkit.runs import plan


@pytest.fixture(scope="session")
def chips_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chips") / "data"
    write(mine_chips(90, size=24, seed=5), folder)
    return folder


@pytest.fixture(scope="session")
def run_folder(chips_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "small"
    plan(read(chips_folder), small_request(folder)).run(lambda _: None)
    return folder
