"""The contract: what a model must still do on a board, read from TOML, checked against what was measured."""

import difflib
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from targets.board import boards
from targets.runtime.errors import HighwallError

Task = Literal["classify", "segment"]

METRICS: Final = ("precision", "recall", "f1", "overall_accuracy", "kappa", "auc", "average_precision")
# What `max_drop = NUMBER` limits. AUC alone hardly sees int8 damage, so recall at the shipped threshold joins it.
DROPS: Final = {"classify": ("auc", "recall"), "segment": ("f1", "recall")}
# Largest values, by key: (the fact each limits, how people say it, what is missing when nobody measured it).
_CEILINGS: Final = {
    "max_parity_error": ("parity_error", "parity error is {}", "it was not compared with torch"),
    "max_size_kib": ("size_kib", "the model is {} KiB", "the model was not written"),
    "max_peak_mib": ("peak_mib", "peak memory is {} MiB", "memory was not measured; build on Linux"),
    "max_macs": ("macs", "it takes {} MACs", "MACs were not counted"),
    "max_instructions": ("instructions", "it takes {} ARM instructions", "they were not counted for this board"),
    "max_p95_ms": ("p95_ms", "95 of 100 runs end in {} ms", "latency was not measured on this board; be at one"),
}
_LEAST: Final = {f"min_{metric}": metric for metric in METRICS}
KEYS: Final = (*_LEAST, "max_drop", *_CEILINGS)
DEFAULT: Final = "default"
SLACK: Final = 1e-9  # 0.91 - 0.90 is 0.010000000000000009; a drop of just one point keeps a limit of one point


@dataclass(frozen=True)
class Limit:
    """One line of a contract: `fact` may be at most (or at least) `bound`, in the fact's own unit."""

    key: str
    fact: str
    bound: float
    at_most: bool

    def met(self, found: float) -> bool:
        """Whether `found` keeps the limit; NaN never does."""
        slack = SLACK * max(1.0, abs(self.bound))
        return found <= self.bound + slack if self.at_most else found >= self.bound - slack


@dataclass(frozen=True)
class Miss:
    """A limit that was not kept, and `by` how much; `found` and `by` are None where nothing could be measured."""

    key: str
    bound: float
    found: float | None
    by: float | None

    def __str__(self) -> str:
        """Such as `recall falls 0.021, allowed 0.010 (by 0.011)`."""
        limit = _limit(self.key, self.bound)
        if self.found is None or self.by is None:
            return f"{self.key} cannot be judged: {_missing(limit.fact)}"
        found, bound, by = _numbers(limit.fact, self.found, self.bound, self.by)
        return f"{_said(limit.fact).format(found)}, {'allowed' if limit.at_most else 'needed'} {bound} (by {by})"


@dataclass(frozen=True)
class Contract:
    """All limits of one board, for a model of one task; a receipt keeps `as_dict()`."""

    board: str
    task: Task
    limits: tuple[Limit, ...]

    @property
    def needs_labels(self) -> bool:
        """Whether it can be judged on labelled images only."""
        return any(limit.fact in METRICS or limit.fact.startswith("drop.") for limit in self.limits)

    def needs(self, fact_prefix: str) -> bool:
        """Whether any limit is on a fact whose name begins so: what nobody limits need not be measured."""
        return any(limit.fact.startswith(fact_prefix) for limit in self.limits)

    def check(self, facts: Mapping[str, float | None]) -> list[Miss]:
        """The limits that `facts` do not keep, in the contract's order.

        A fact is a metric by its name, `drop.METRIC` (float less this, from 0 to 1), `parity_error`,
        `size_kib`, `macs`, `instructions`, `peak_mib` or `p95_ms`. One that is None, NaN or absent is a miss too.
        """
        return [miss for limit in self.limits if (miss := _judge(limit, facts.get(limit.fact))) is not None]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, from which `from_dict` gives the same contract."""
        return {
            "board": self.board,
            "task": self.task,
            "limits": {limit.key: limit.bound for limit in self.limits},
        }

    @staticmethod
    def from_dict(raw: Mapping[str, Any], where: str = "receipt") -> "Contract":
        """What `as_dict` gave. Raises HighwallError, naming `where` and the key, for anything else."""
        board, task, limits = (raw.get(key) for key in ("board", "task", "limits"))
        if not isinstance(board, str) or task not in tuple(DROPS) or not isinstance(limits, Mapping):
            raise HighwallError(f"{where}: the contract has no board, task or limits; build the artifact again")
        return Contract(board, task, _limits(limits, f"{where}: contract"))


@dataclass(frozen=True)
class ContractFile:
    """A contract.toml whose every key was found valid: limits by table, each `default` or a board's name."""

    name: str
    tables: Mapping[str, Mapping[str, Any]]

    def of(self, board_name: str, task: Task) -> Contract:
        """The contract of one board: its own table over `[default]`, key by key.

        Raises HighwallError where neither speaks of it.
        """
        if board_name not in self.tables and DEFAULT not in self.tables:
            there = ", ".join(f"[{name}]" for name in self.tables)
            raise HighwallError(f"{self.name} says nothing of {board_name}: it has {there}; add [{board_name}]")
        table = {**self.tables.get(DEFAULT, {}), **self.tables.get(board_name, {})}
        flat = {inner: bound for key, value in table.items() for inner, bound in _flat(key, value, task).items()}
        return Contract(board_name, task, _limits(flat, f"{self.name}: [{board_name}]"))


def read(path: Path) -> ContractFile:
    """The contract at `path`, validated whole; raises HighwallError naming the file and the key at fault."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # broken TOML, bytes that are no UTF-8, absurd numbers or nesting
        raise HighwallError(f"{path} is not TOML: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise HighwallError(f"cannot read the contract {path}: {error.strerror or error}") from error
    return parse(tables, str(path))


def parse(tables: Mapping[str, Any], name: str) -> ContractFile:
    """A contract of what TOML held; `name` is what errors call it."""
    known = (DEFAULT, *(board.name for board in boards()))
    for table, content in tables.items():
        if table not in known:
            if table in KEYS:
                raise HighwallError(f"{name}: {table} stands in no table; put it under [{DEFAULT}] or a board's name")
            raise HighwallError(f"{name}: no board is called {table!r}; {_nearest(table, known)}")
        if not isinstance(content, Mapping):
            raise HighwallError(f"{name}: {table} must be a table, [{table}]")
        where = f"{name}: [{table}]"
        if not content and (table == DEFAULT or not tables.get(DEFAULT)):
            raise HighwallError(f"{where} is empty; give it a limit such as max_drop = 0.01")
        for key, value in content.items():
            if key == "max_drop" and isinstance(value, Mapping) and not value:
                raise HighwallError(f"{where} max_drop is empty; give a number, or one a metric")
            for inner, bound in _flat(key, value, "classify").items():
                _bound(inner, bound, where)
    if not tables:
        raise HighwallError(f"{name} is empty; give it a table such as [{DEFAULT}] with max_drop = 0.01")
    return ContractFile(name, tables)


def _flat(key: str, value: Any, task: Task) -> dict[str, Any]:
    """One TOML entry as keys that each bear one number: `max_drop` becomes `max_drop.METRIC`."""
    if key != "max_drop":
        return {key: value}
    by_metric = value if isinstance(value, Mapping) else dict.fromkeys(DROPS[task], value)
    return {f"max_drop.{metric}": bound for metric, bound in by_metric.items()}


def _limits(flat: Mapping[str, Any], where: str) -> tuple[Limit, ...]:
    if not flat:
        raise HighwallError(f"{where} is empty; give it a limit such as max_drop = 0.01")
    return tuple(_limit(key, _bound(key, value, where)) for key, value in flat.items())


def _limit(key: str, bound: float) -> Limit:
    """The limit a known, flat key stands for."""
    if key in _LEAST:
        return Limit(key, _LEAST[key], bound, at_most=False)
    fact = _CEILINGS[key][0] if key in _CEILINGS else key.removeprefix("max_")
    return Limit(key, fact, bound, at_most=True)


def _bound(key: str, value: Any, where: str) -> float:
    """`value` as the number that flat `key` takes, or the reason why not."""
    head, dot, metric = key.partition(".")
    if head == "max_drop" and dot:
        if metric not in METRICS:
            raise HighwallError(f"{where} max_drop knows no metric {metric!r}; {_nearest(metric, METRICS)}")
    elif key not in _LEAST and key not in _CEILINGS:
        raise HighwallError(f"{where} has an unknown key {key!r}; {_nearest(key, KEYS)}")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise HighwallError(f"{where} {key} must be a number, not {_kind(value)}")
    try:
        bound = float(value)
    except OverflowError:
        bound = math.inf
    if not math.isfinite(bound) or bound < 0:
        raise HighwallError(f"{where} {key} must be a finite number from 0, not {bound:g}")
    if bound > 1 and (key in _LEAST or dot):
        raise HighwallError(f"{where} {key} is a fraction of 1, not {bound:g}; a point is 0.01")
    return bound


def _judge(limit: Limit, found: float | None) -> Miss | None:
    if found is None or math.isnan(found):
        return Miss(limit.key, limit.bound, None, None)
    return None if limit.met(found) else Miss(limit.key, limit.bound, float(found), abs(found - limit.bound))


def _said(fact: str) -> str:
    head, _, metric = fact.partition(".")
    if head == "drop":
        return f"{metric.replace('_', ' ')} falls {{}}"
    ceilings = {name: words for name, words, _ in _CEILINGS.values()}
    return ceilings.get(fact, f"{fact.replace('_', ' ')} is {{}}")


def _missing(fact: str) -> str:
    return {name: why for name, _, why in _CEILINGS.values()}.get(fact, "the images have no labels; give labelled ones")


def _numbers(fact: str, found: float, bound: float, by: float) -> tuple[str, str, str]:
    """The three with as few decimals as still tell them apart: three for fractions, none for MACs."""
    least = {"macs": 0, "instructions": 0, "size_kib": 1, "peak_mib": 1, "p95_ms": 1}.get(fact, 3)
    for decimals in range(least, 13):
        texts = f"{found:,.{decimals}f}", f"{bound:,.{decimals}f}", f"{by:,.{decimals}f}"
        if texts[0] != texts[1] and texts[2].strip("0.,"):
            break
    return texts


def _nearest(word: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"


def _kind(value: Any) -> str:
    names = {bool: "true or false", str: "text", list: "a list", dict: "a table"}
    return names.get(type(value), f"a {type(value).__name__}")
