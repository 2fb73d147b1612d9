"""Rebuilding believes a receipt about memory and times, which no second run could repeat, and measures nothing."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from targets.board import Board
from targets.runtime import artifact, footprint
from targets.runtime.errors import HighwallError
from targets.runtime.footprint import Footprint
from targets.runtime.manifest import InputSpec
from toolkit.build import Order, carry_out
from toolkit.checkpoint import Model
from toolkit.compiler import Compiler
from toolkit.contract import parse
from toolkit.network import NetworkConfig
from toolkit.quantize.recipes import recipe
from toolkit.rebuild import Rebuilt, rebuild

RECIPES = tuple(recipe(name) for name in ("onnx-int8w", "onnx-fp32"))  # the smaller first: of two that pass, it wins


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 64, 5), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 25, 1)).eval()
    return Compiler(
        Model("tiny", NetworkConfig("classify", 3, 0, 0, slice_size=9), (0.0,) * 3, (255.0,) * 3), network, None
    )


def ruled_out(path: Path) -> dict[str, str]:
    rows = artifact.read(path).receipt["candidates"]
    return {row["recipe"]: row["verdict"] for row in rows if "not kept" in row["verdict"]}


@pytest.fixture
def build(compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Builds under limits with a machine's measurements given by recipe; afterwards nothing may be measured."""

    def by(limits: dict[str, object], board: str, found: dict[str, Footprint]) -> Path:
        sizes = {len(compiler.candidate(recipe(name)).model): one for name, one in found.items()}

        def measure(runtime: str, model: bytes, spec: InputSpec, runs: int) -> Footprint:
            return sizes[len(model)]

        def never(*_: object) -> Footprint:
            raise AssertionError("a rebuild measured")

        out = tmp_path / "a.highwall"
        with monkeypatch.context() as here:
            here.setattr(footprint, "measure", measure)
            here.setattr(compiler, "_footprints", {})  # it remembers them
            here.setattr(Board, "at_hand", True)
            carry_out(compiler, Order(board, out, RECIPES, parse({board: limits}, "c.toml").of(board, "classify")))
        monkeypatch.setattr(footprint, "measure", never)
        return out

    return by


def again(path: Path, compiler: Compiler) -> Rebuilt:
    return rebuild(path, compiler.model, compiler.network, None, lambda _: None)


SMALL, LARGE = Footprint(5.0, 1.0, 2.0), Footprint(50.0, 10.0, 20.0)


@pytest.mark.parametrize(
    ("board", "limits", "lost"),
    [
        ("host", {"max_peak_mib": 10.0}, ["max_peak_mib"]),
        ("rpi4b", {"max_p95_ms": 10.0}, ["max_p95_ms"]),
        ("host", {"max_p95_ms": 10.0, "max_macs": 1e12, "max_peak_mib": 10.0}, ["max_p95_ms", "max_peak_mib"]),
    ],
)
def test_what_was_ruled_out_as_measured_stays_out(
    build, compiler: Compiler, board: str, limits: dict[str, object], lost: list[str]
) -> None:
    out = build(limits, board, {"onnx-int8w": LARGE, "onnx-fp32": SMALL})
    assert ruled_out(out) == {"onnx-int8w": "; ".join(f"{key} not kept as measured" for key in lost)}
    assert artifact.read(out).manifest.recipe["name"] == "onnx-fp32"
    assert again(out, compiler).identical


def test_what_kept_its_limits_as_measured_stays_in(build, compiler: Compiler) -> None:
    out = build({"max_peak_mib": 10.0, "max_p95_ms": 10.0}, "rpi4b", {"onnx-int8w": SMALL, "onnx-fp32": SMALL})
    assert ruled_out(out) == {}
    assert artifact.read(out).manifest.recipe["name"] == "onnx-int8w"
    assert again(out, compiler).identical


def test_memory_that_no_system_told_stays_no_match(build, compiler: Compiler) -> None:
    untold = replace(SMALL, peak_mib=None)
    out = build({"max_peak_mib": 10.0}, "host", {"onnx-int8w": untold, "onnx-fp32": SMALL})
    assert list(ruled_out(out)) == ["onnx-int8w"]
    assert again(out, compiler).identical


def test_limits_that_are_the_same_every_time_are_judged_anew(build, compiler: Compiler) -> None:
    out = build({"max_peak_mib": 10.0}, "host", {"onnx-int8w": SMALL, "onnx-fp32": SMALL})
    old = artifact.read(out)
    tight = {**old.receipt["contract"], "limits": {"max_peak_mib": 10.0, "max_size_kib": 0.5}}
    artifact.write(out, old.manifest, old.model, old.golden, old.receipt | {"contract": tight})
    with pytest.raises(HighwallError, match="the model is"):
        again(out, compiler)


@pytest.mark.parametrize("candidates", [None, 3, ["onnx-fp32"], [{"recipe": "onnx-fp32"}]])
def test_a_receipt_that_does_not_say_why_candidates_lost_is_refused_in_one_line(
    build, compiler: Compiler, candidates: object
) -> None:
    out = build({"max_peak_mib": 10.0}, "host", {"onnx-int8w": SMALL, "onnx-fp32": SMALL})
    old = artifact.read(out)
    artifact.write(out, old.manifest, old.model, old.golden, old.receipt | {"candidates": candidates})
    with pytest.raises(HighwallError, match="does not say why candidates lost") as caught:
        again(out, compiler)
    assert "\n" not in str(caught.value)
