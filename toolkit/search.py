"""The search: every candidate recipe held against a board's contract; the cheapest that meets it is chosen."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from targets.board import Board
from targets.emulator.guest import open_guest
from targets.runtime import footprint
from targets.runtime.errors import HighwallError
from toolkit.compiler import Candidate, Compiler
from toolkit.contract import DROPS, Contract, Miss
from toolkit.instructions import per_mac
from toolkit.quantize.recipes import Recipe

COUNTED: Final = "max_instructions"  # a key whose fact takes the emulator some seconds a candidate
MEASURED: Final = ("max_peak_mib", "max_p95_ms")  # keys whose facts differ from run to run


@dataclass(frozen=True)
class Tried:
    """A recipe and how it fared. `work`: instructions as MACs let expect them of its engine on the board.

    instructions: of one inference, where the search counted them and nothing else ruled the recipe out;
    facts: what the contract was held against, the same every time; measured: memory and times, which are not;
    loss: its falls from float in the task's metric and in recall together, gains counting nothing;
    misses: the limits not kept; failure: why there is no candidate, or none that anybody should run.
    """

    recipe: Recipe
    work: int
    candidate: Candidate | None
    facts: Mapping[str, float | None] = field(default_factory=dict)
    measured: Mapping[str, float | None] = field(default_factory=dict)
    loss: float = 0.0
    misses: tuple[Miss, ...] = ()
    failure: str | None = None
    instructions: int | None = None

    @property
    def met(self) -> bool:
        return self.failure is None and not self.misses

    @property
    def kib(self) -> int:
        """Size of the model file, whole KiB; 0 without one."""
        return 0 if self.candidate is None else -(-len(self.candidate.model) // 1024)

    @property
    def parity(self) -> float:
        """Its parity with torch; infinite without a candidate."""
        return math.inf if self.candidate is None else self.candidate.parity

    @property
    def order(self) -> tuple[float, int, int, float, float, str]:
        """Cheapest first: instructions where they were counted, work, size, what it loses, parity with torch.

        Then the name, so that no two are equal.
        """
        counted = math.inf if self.instructions is None else self.instructions
        return counted, self.work, self.kib, self.loss, self.parity, self.recipe.name


def search(
    compiler: Compiler,
    board: Board,
    recipes: Sequence[Recipe],
    contract: Contract | None,
    *,
    emulate: bool = False,
    recorded: Mapping[str, str] | None = None,
) -> list[Tried]:
    """Every recipe, cheapest first. No stopwatch decides, so the same inputs give the same order.

    A recipe whose engine cannot take the network, or whose converter is not installed, is kept with the reason.
    emulate: count ARM instructions on the emulated board, as a limit on them does too, and order by them;
    recorded: verdicts by recipe of an earlier search, whose word is taken for memory and times: nothing is measured.
    """
    check_possible(compiler, board, contract, emulate=emulate, measure=recorded is None)
    count = emulate or (contract is not None and contract.needs("instructions"))
    tried = [_try(compiler, board, recipe, contract, count, recorded) for recipe in recipes]
    return sorted(tried, key=lambda one: one.order)


def winner(tried: Sequence[Tried]) -> Tried | None:
    """The first of `tried`, in their order, that meets the contract."""
    return next((one for one in tried if one.met), None)


def verdict(one: Tried, chosen: Tried | None) -> str:
    """Why this candidate was taken or lost, in a few words that are the same every time."""
    if one is chosen:
        return "chosen"
    if one.failure is not None:
        return one.failure
    if one.misses:
        return "; ".join(_said(miss) for miss in one.misses)
    assert chosen is not None  # or nothing would meet it
    worse = {
        "more instructions": (one.instructions or 0) > (chosen.instructions or 0),
        "more work": one.work > chosen.work,
        "larger": one.kib > chosen.kib,
        "loses more accuracy": one.loss > chosen.loss,
        "strays further from torch": one.parity > chosen.parity,
    }
    return "meets the contract, " + next((why for why, is_so in worse.items() if is_so), "later by name only")


def _said(miss: Miss) -> str:
    return f"{miss.key} not kept as measured" if miss.key in MEASURED else str(miss)


def shortfall(tried: Sequence[Tried], board: str) -> str:
    """One line for a build that found nothing: the candidate that misses fewest limits, and by how much."""
    made = [one for one in tried if one.failure is None]
    if not made:
        return f"no recipe can be made for {board}: {tried[0].recipe.name} {tried[0].failure}"
    least = min(made, key=lambda one: (len(one.misses), max(map(_share, one.misses)), one.order))
    return (
        f"none of {len(tried)} recipes meets the contract of {board}; nearest is {least.recipe.name}, where "
        f"{'; '.join(str(miss) for miss in least.misses)}"
    )


def _share(miss: Miss) -> float:
    """By how much of its bound a limit is missed; infinite where nothing could be judged."""
    return math.inf if miss.by is None else miss.by / max(abs(miss.bound), 1e-12)


def _try(
    compiler: Compiler,
    board: Board,
    recipe: Recipe,
    contract: Contract | None,
    count: bool,
    recorded: Mapping[str, str] | None,
) -> Tried:
    try:
        candidate = compiler.candidate(recipe)
        whole = compiler.candidate(Recipe(recipe.runtime, "fp32"))  # what falls are measured from
        facts = _facts(compiler, candidate, whole)
        out = _ruled_out(contract, facts, (COUNTED, *MEASURED))
        if count and not out and candidate.complaint is None:
            facts["instructions"] = compiler.instructions(candidate, board)
            out = _ruled_out(contract, facts, MEASURED)
        measured = {} if out or recorded is not None else _measured(compiler, candidate, contract)
    except (HighwallError, ModuleNotFoundError) as error:
        if contract is None:
            raise
        reason = f"cannot be made: {error}"
        if isinstance(error, ModuleNotFoundError):
            reason = f"not tried: {error.name} is not installed"
        return Tried(recipe, _work(compiler, board, recipe, ()), None, failure=reason)
    misses: list[Miss] = []
    if contract is not None:
        # What something else ruled out was neither counted nor measured, and that is no miss of its own.
        open_keys = [*(() if "instructions" in facts else (COUNTED,)), *(() if measured else MEASURED)]
        said = () if recorded is None else recorded.get(recipe.name, "").split("; ")
        found = contract.check({**facts, **measured})
        misses = [miss for miss in found if miss.key not in open_keys or _said(miss) in said]
    falls = [facts.get(f"drop.{metric}") or 0.0 for metric in DROPS[compiler.model.network.task]]
    loss = round(sum(max(0.0, fall) for fall in falls), 6)
    work = _work(compiler, board, recipe, candidate.float_layers)
    failure = candidate.complaint or whole.complaint
    counted = facts.get("instructions")
    instructions = None if counted is None else int(counted)
    return Tried(recipe, work, candidate, facts, measured, loss, tuple(misses), failure, instructions)


def _ruled_out(contract: Contract | None, facts: Mapping[str, float | None], later: Sequence[str]) -> bool:
    """Whether a limit is missed already, leaving aside the keys that are judged `later`."""
    return contract is not None and any(miss.key not in later for miss in contract.check(facts))


def _facts(compiler: Compiler, candidate: Candidate, whole: Candidate) -> dict[str, float | None]:
    """What may be held against a contract and is the same every time."""
    facts: dict[str, float | None] = {
        "parity_error": candidate.parity,
        "size_kib": len(candidate.model) / 1024,
        "macs": float(compiler.cost.macs),
    }
    if candidate.scores is None or whole.scores is None:
        return facts
    for metric, value in candidate.scores.items():
        facts[metric] = value
        facts[f"drop.{metric}"] = round(whole.scores[metric] - value, 6)
    return facts


def _measured(compiler: Compiler, candidate: Candidate, contract: Contract | None) -> dict[str, float | None]:
    """Memory and times in a process of its own, only where the contract limits them."""
    if contract is None or not (contract.needs("peak_mib") or contract.needs("p95_ms")):
        return {}
    found = compiler.footprint(candidate, footprint.RUNS if contract.needs("p95_ms") else 1)
    return {"peak_mib": found.peak_mib} | ({"p95_ms": found.p95_ms} if contract.needs("p95_ms") else {})


def check_possible(
    compiler: Compiler, board: Board, contract: Contract | None, *, emulate: bool = False, measure: bool = True
) -> None:
    """Refuse before anything slow what could never be judged: an emulator, a board or labels that are missing."""
    if emulate or (contract is not None and contract.needs("instructions")):
        open_guest(board).layout.check_counter()
    if contract is None:
        return
    if measure and contract.needs("p95_ms") and not board.at_hand:
        raise HighwallError(
            f"max_p95_ms of {board.name} can be measured only on one, and this machine is none; "
            "build there, or take the limit out"
        )
    if contract.needs_labels and compiler.judged is None:
        raise HighwallError("the contract limits accuracy, which needs --data with labels of both classes to judge by")


def _work(compiler: Compiler, board: Board, recipe: Recipe, float_layers: Sequence[str]) -> int:
    real, small = per_mac(board, recipe.runtime)
    macs = compiler.cost.macs
    if recipe.precision not in ("int8", "mixed"):
        return round(macs * real)
    whole = sum(
        layer.macs
        for layer in compiler.cost.layers
        if any(kept == layer.name or kept.startswith(f"{layer.name}.") for kept in float_layers)
    )
    return round(whole * real + (macs - whole) * small)
