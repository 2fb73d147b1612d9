"""Rules made ready to be applied: which of them mind which quantity of which subject."""

import zlib
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

import msgspec

from twin_client.protocol.rules.settings import (
    LOST,
    Common,
    LevelRule,
    MissingRule,
    Rule,
    Rules,
    SpikingRule,
    StuckRule,
    ValidityRule,
    Windowed,
)

MOST_REMEMBERED = 20_000  # subjects whose duties are looked up once

PAIRED = ""  # stands among the rules' names for the tags that are waited for


class Duties(NamedTuple):
    """All rules that mind one quantity of one subject."""

    validity: tuple[ValidityRule, ...]
    spiking: SpikingRule | None
    stuck: tuple[StuckRule, ...]
    levels: tuple[LevelRule, ...]
    windowed: tuple[Windowed, ...]


class Plan(NamedTuple):
    """All rules that mind one subject."""

    quantities: dict[str, Duties]
    missing: tuple[MissingRule, ...]
    lost: dict[str, int]  # numbers that must be lost at once for what a rule remembers to begin anew


class Book:
    """A set of rules and what follows from it. It carries nothing from record to record.

    tags: all that are paired, whether a rule waits for them or not: alarms of others end. None: nobody knows.
    """

    def __init__(self, rules: Rules, tags: Collection[str] | None = None):
        self.rules, self._tags = rules, None if tags is None else frozenset(tags)
        self.missing = [
            (rule, tuple(sorted({tag for tag in _named(rule, rules.paired) if minds(rule, tag)})))
            for rule in rules.rules
            if isinstance(rule, MissingRule)
        ]
        self.digests = {rule.name: (rule.version, _digest(_said(rule))) for rule in rules.rules}
        self.digests[PAIRED] = (0, _digest(rules.paired if tags is None else (rules.paired, sorted(tags))))
        self._plans: dict[str, Plan] = {}
        self._shared: dict[tuple[str, ...], Plan] = {}  # by the rules in them: most subjects have the same

    def left(self, key: str) -> bool:
        """Whether a subject is a tag that is not paired any more."""
        return self._tags is not None and not key.startswith("/") and key not in self._tags

    def plan(self, key: str) -> Plan:
        """What minds the subject whose key this is: a tag's name, or a slash and a camera's name."""
        found = self._plans.get(key)
        if found is None:
            if len(self._plans) >= MOST_REMEMBERED:
                self._plans.clear()
                self._shared.clear()
            found = self._plans[key] = self._planned(key)
        return found

    def _planned(self, key: str) -> Plan:
        rules: list[Rule] = [rule for rule in self.rules.rules if minds(rule, key.removeprefix("/"))]
        if key.startswith("/"):  # nobody waits for a camera's next image
            rules = [rule for rule in rules if not isinstance(rule, MissingRule)]
        names = tuple(rule.name for rule in rules)
        if names not in self._shared:
            missing = tuple(rule for rule in rules if isinstance(rule, MissingRule))
            quantities = dict.fromkeys(rule.quantity for rule in rules if rule.quantity is not None)
            self._shared[names] = Plan(
                {quantity: _duties(rules, quantity) for quantity in quantities},
                missing,
                {rule.name: rule.lost for rule in rules if not isinstance(rule, MissingRule)},
            )
        return self._shared[names]


def minds(rule: Common, name: str) -> bool:
    """Whether a rule is about the subject of this name."""
    return any(fnmatchcase(name, pattern) for pattern in rule.subjects)


def _duties(rules: Sequence[Common], quantity: str) -> Duties:
    mine = [rule for rule in rules if getattr(rule, "quantity", None) == quantity]
    return Duties(
        tuple(rule for rule in mine if isinstance(rule, ValidityRule)),
        next((rule for rule in mine if isinstance(rule, SpikingRule)), None),
        tuple(rule for rule in mine if isinstance(rule, StuckRule)),
        tuple(rule for rule in mine if isinstance(rule, LevelRule)),
        tuple(rule for rule in mine if isinstance(rule, Windowed)),
    )


def _said(rule: Rule) -> dict[str, object]:
    """What makes a rule the one it is: a setting that rules have got since is no part of it while it is left alone.

    Else every alarm would end, and begin under another id, because the gateway was updated.
    """
    said: dict[str, object] = msgspec.to_builtins(rule)
    if not isinstance(rule, Windowed) and said.get("lost") == LOST:
        del said["lost"]
    return said


def _digest(what: object) -> int:
    return zlib.crc32(msgspec.msgpack.encode(what))


def _named(rule: MissingRule, paired: tuple[str, ...]) -> tuple[str, ...]:
    return (*paired, *(name for name in rule.subjects if not set(name) & set("*?")))
