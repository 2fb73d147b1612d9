"""What was measured of an artifact: as data, as JSON and back, and in words."""

import math
import types
import typing
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any

from targets.runtime.errors import HighwallError, plain
from targets.runtime.machine import Machine, State, conditions
from targets.runtime.timing import Cold, Sustained, Timed, WarmUp


@dataclass(frozen=True)
class Bench:
    """One measurement. `reasons` say why it has no headline, `notes` what else a reader should know."""

    name: str
    model_version: int
    model_sha256: str
    board: str
    runtime: str
    threads: int
    machine: Machine
    before: State
    after: State
    cold: Cold
    warm_up: WarmUp
    timed: Timed
    peak_mib: float | None
    sustained: Sustained | None
    reasons: tuple[str, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON; `headline` repeats p50 and p95 where they may be quoted, and is None where they may not."""
        timed = self.timed
        headline = None if self.reasons else {"p50_ms": timed.p50_ms, "p95_ms": timed.p95_ms}
        return {"headline": headline, **asdict(self)}

    @staticmethod
    def from_dict(raw: object) -> "Bench":
        """The inverse of as_dict; raises HighwallError naming what is not as it should be."""
        if isinstance(raw, dict):
            raw = {key: value for key, value in raw.items() if key != "headline"}
        made: Bench = _typed(Bench, raw, "bench")
        return made


def lines(bench: Bench) -> list[str]:
    """The measurement for people; figures without a headline say on every line that they are none."""
    timed, cold, here = bench.timed, bench.cold, bench.machine
    threads = f"{bench.threads} thread{'s' * (bench.threads > 1)}"
    engine = " ".join(f"{name} {number}" for name, number in here.packages.items())
    shown = [
        f"{bench.name} version {bench.model_version}, {bench.runtime}, {threads}, on {here.model}",
        f"  {here.cores} cores, kernel {here.kernel}, Python {here.python}, {engine}",
        *_figures(timed, bench.reasons),
        f"  min {timed.min_ms:.4g} ms, {timed.per_second:g} a second, {timed.cpu_use:.2f} cores in use",
        f"  cold: engine {cold.engine_ms:.4g} ms, model {cold.load_ms:.4g} ms, first inference {cold.first_ms:.4g} ms; "
        f"warm after {bench.warm_up.runs} runs",
    ]
    if bench.peak_mib is not None:
        shown.append(f"  peak memory {bench.peak_mib:g} MiB, beside Python and the engine")
    for title, state in (("before", bench.before), ("after", bench.after)):
        shown.append(f"  {title}: {conditions(state) or 'the machine says nothing of its state'}")
    if (hot := bench.sustained) is not None:
        shown.append(
            f"  {hot.seconds:g} s of load: p50 {hot.first_p50_ms:.4g} ms at first, {hot.last_p50_ms:.4g} ms at last "
            f"({hot.slowdown:.2f} times), p95 {hot.first_p95_ms:.4g} and {hot.last_p95_ms:.4g} ms"
        )
        shown += [f"  under that load the board was throttled: {word}" for word in hot.throttled]
    return [plain(line) for line in [*shown, *(f"  note: {note}" for note in bench.notes)]]


def _figures(timed: Timed, reasons: tuple[str, ...]) -> list[str]:
    (low50, high50), (low95, high95) = timed.p50_interval_ms, timed.p95_interval_ms
    figures = (
        f"p50 {timed.p50_ms:.4g} ms ({low50:.4g} to {high50:.4g}), "
        f"p95 {timed.p95_ms:.4g} ms ({low95:.4g} to {high95:.4g})"
    )
    if not reasons:
        return [figures, f"  of {timed.runs} runs, with 95 % confidence intervals"]
    return [
        *(f"no headline: {reason}" for reason in reasons),
        f"  not to be quoted: {figures} of {timed.runs} runs",
    ]


def _typed(hint: Any, value: Any, where: str) -> Any:
    """`value` as `hint`, of the kinds the dataclasses above are made of."""
    if isinstance(hint, types.UnionType):
        inner = next(part for part in typing.get_args(hint) if part is not types.NoneType)
        return None if value is None else _typed(inner, value, where)
    if is_dataclass(hint) and isinstance(value, dict) and set(value) == {entry.name for entry in fields(hint)}:
        hints = typing.get_type_hints(hint)
        return hint(**{name: _typed(hints[name], item, f"{where}.{name}") for name, item in value.items()})  # type: ignore[operator]
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
        if parts[-1] is ... or len(parts) == len(value):
            return tuple(_typed(parts[0], item, f"{where}[{at}]") for at, item in enumerate(value))
    elif typing.get_origin(hint) is dict and isinstance(value, dict):
        return {str(key): _typed(parts[1], item, f"{where}.{key}") for key, item in value.items()}
    elif hint is float and type(value) in (int, float) and abs(value) < math.inf:
        try:
            return float(value)
        except OverflowError:  # an int of JSON has no bound
            pass
    elif hint in (str, int, bool) and type(value) is hint:
        return value
    raise HighwallError(f"{plain(where)} is {plain(repr(value))[:80]}, not what a runner of this Highwall says")
