"""From a checkpoint to an artifact: try recipes, keep the cheapest that meets the contract, write it and its proof."""

import json
import os
import platform
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from targets.board import Board, load_board
from targets.runtime import artifact, golden
from targets.runtime.engine import open_session
from targets.runtime.errors import HighwallError
from targets.runtime.files import atomic_write, write_text
from targets.runtime.manifest import Manifest
from targets.runtime.signing import SigningKey
from toolkit import receipt
from toolkit.cache import Cache
from toolkit.calibration import Calibration
from toolkit.checkpoint import Model, digest
from toolkit.compiler import Compiler, packages
from toolkit.contract import Contract
from toolkit.quantize.recipes import Recipe
from toolkit.search import Tried, search, shortfall, winner


@dataclass(frozen=True)
class Order:
    """What is wanted for one board. Without a contract there is one recipe, which is taken as it is.

    emulate: count instructions on the emulated board, whatever the contract says; recorded: verdicts by recipe
    of the build that this one repeats; see `search`.
    """

    board: str
    out: Path
    recipes: tuple[Recipe, ...]
    contract: Contract | None = None
    key: SigningKey | None = None
    model_version: int = 1
    emulate: bool = False
    recorded: Mapping[str, str] | None = None


class _Enough(Exception):
    """A trial write has come as far as it should."""


def check_writable(out: Path) -> None:
    """Refuse an `out` that could not be written, before anything slow; nothing is left behind, no folder either.

    Raises HighwallError as `atomic_write` would.
    """
    missing = [folder for folder in out.parents if not os.path.lexists(folder)]
    try:
        with suppress(_Enough), atomic_write(out) as partial:
            partial.touch()
            raise _Enough
    finally:
        for folder in missing:  # the innermost first
            with suppress(OSError):
                folder.rmdir()
    if out.is_dir():  # what can be asked only now: an unreadable parent would raise
        raise HighwallError(f"cannot write {out}: it is a folder; name a file in it, such as {out / 'model.highwall'}")


class NoCandidate(HighwallError):
    """No recipe meets the contract; `table` shows what each of them missed."""

    def __init__(self, message: str, table: str) -> None:
        super().__init__(message)
        self.table = table


def build(
    model: Model,
    network: nn.Module,
    board: str,
    out: Path,
    recipe: Recipe,
    data: Calibration | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Compile `model` by one recipe and write the artifact to `out`; returns its receipt. See `carry_out`."""
    return carry_out(Compiler(model, network, data, Cache(None), say), Order(board, out, (recipe,)))


def carry_out(compiler: Compiler, order: Order) -> dict[str, Any]:
    """Write the artifact `order` asks for, and NAME.timings.json beside it; returns the receipt.

    Raises NoCandidate when nothing meets the contract, HighwallError when a part does not fit; either way
    nothing is written. `out` is whole or absent.
    """
    board = load_board(order.board)
    tried = search(compiler, board, order.recipes, order.contract, emulate=order.emulate, recorded=order.recorded)
    chosen = winner(tried)
    if chosen is None:
        if order.contract is None:
            raise HighwallError(tried[0].failure or "the recipe cannot be made")
        task = compiler.model.network.task
        raise NoCandidate(shortfall(tried, board.name), receipt.table(receipt.rows(tried, None, task)))
    proof = receipt.make(compiler, board.name, tried, chosen, order.contract)
    compiler.say(f"write {order.out}")
    beside = order.out.with_suffix(".timings.json")
    write_text(beside, json.dumps(receipt.timings(compiler, tried), indent=1, sort_keys=True) + "\n")
    try:
        _write(compiler, board, order, chosen, proof)
    except BaseException:
        beside.unlink(missing_ok=True)  # times of an artifact that is not there
        raise
    return proof


def _write(compiler: Compiler, board: Board, order: Order, chosen: Tried, proof: dict[str, Any]) -> None:
    candidate, model = chosen.candidate, compiler.model
    assert candidate is not None
    config = model.network
    classify = config.task == "classify"
    vectors = golden.make(
        open_session(candidate.recipe.runtime, candidate.model),
        compiler.spec,
        compiler.golden_seeds,
        compiler.golden_images,
        block=compiler.block,
        tolerance=candidate.tolerance,
    )
    side = config.slice_size
    manifest = Manifest(
        name=model.name,
        task=config.task,
        model_version=order.model_version,
        input=compiler.spec,
        output_shape=vectors.expected.shape[1:] if classify else (side, side),
        threshold=model.threshold,
        labels=model.labels,
        board=board.name,
        runtime=candidate.recipe.runtime,
        recipe=proof["recipe"],
        provenance=_provenance(compiler, order),
    )
    artifact.write(order.out, manifest, candidate.model, vectors, proof, key=order.key)


def _provenance(compiler: Compiler, order: Order) -> dict[str, Any]:
    """What went in: enough to repeat the build, and nothing that differs from one machine to the next."""
    model = compiler.model
    scaling = {"names": list(model.sensor_names), "mean": list(model.sensor_mean), "std": list(model.sensor_std)}
    return ({"sensors": scaling} if model.network.sensors else {}) | {
        "weights_sha256": digest(compiler.network.state_dict()),
        "data": None if compiler.data is None else compiler.data.identity,
        "recipes": [recipe.name for recipe in order.recipes],
        "emulated": order.emulate,
        "network": asdict(compiler.model.network),
        "temperature": asdict(compiler.model.tempering),
        "training": compiler.model.provenance,
        "packages": packages(),
        "python": platform.python_version(),
    }
