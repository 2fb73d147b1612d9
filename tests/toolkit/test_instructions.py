"""What a multiply-accumulate is said to cost is what was counted, and counted for the network that ships."""

import json
from pathlib import Path

import pytest

from toolkit import models
from toolkit.cost import measure
from toolkit.instructions import PER_MAC


@pytest.mark.parametrize("board", ["rpi3bplus", "rpi4b", "rpi5"])
def test_the_table_holds_what_was_counted(board: str, root: Path) -> None:
    found = json.loads((root / "benchmarks" / "results" / "arm" / f"mine-{board}.json").read_text())
    model, network = models.find("mine")
    macs = measure(network, *models.example(model)).macs
    for runtime, ratios in PER_MAC[found["cpu"]].items():
        counted = [found["cells"][f"{runtime}-{kind}"]["counts"]["instructions"] for kind in ("fp32", "int8-mse")]
        assert ratios == tuple(round(count / macs, 3) for count in counted)
