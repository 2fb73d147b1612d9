"""The suite: the machine's roof, then every network of the field beside ours, in one engine, turn by turn."""

import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.suite.field import OURS, Absent, Member, filled, fingerprint, members
from benchmarks.suite.roofline import Roof, place, roof
from benchmarks.suite.turns import Player, take_turns
from targets.runtime.errors import HighwallError
from targets.runtime.files import write_text
from targets.runtime.machine import look, this_machine, throttled

RESULTS: Final = Path(__file__).parents[1] / "results" / "suite"
SCHEMA: Final = 1
SECONDS: Final = 3.0  # of turns, a pair
STRAY: Final = 0.25  # how far our time may lie off its median over all pairs before a pair's ratio means nothing
STRAYED: Final = "ours took "  # how a pair's noise says so
SPARE: Final = 1.25  # of the memory that a model may need, how much must be there
Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What a run measures. sizes: pixels a side; empty takes every one there is."""

    networks: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    threads: tuple[int, ...] = ()
    seconds: float = SECONDS

    def takes(self, one: Member | Absent) -> bool:
        """Whether a member of the field is asked for; ours always is."""
        return (not self.networks or one.network in (*self.networks, OURS)) and (
            not self.sizes or one.size in self.sizes
        )


def smoke() -> Plan:
    """Proves in a minute that the suite runs; its figures mean little."""
    return Plan(("rnn", "mobilenetv2"), (18, 48), (1,), 0.2)


def plan(
    networks: Sequence[str] | None, sizes: Sequence[int] | None, threads: Sequence[int] | None, seconds: float | None
) -> Plan:
    """What was asked for; None takes everything. Raises HighwallError for what the field does not hold."""
    present = members()[0]
    for what, asked, known in (
        ("network", networks or (), sorted({one.network for one in present})),
        ("size", sizes or (), sorted({one.size for one in present})),
    ):
        for value in asked:
            if value not in known:
                raise HighwallError(f"the field has no {what} {value}; it has {', '.join(map(str, known))}")
    for count in threads or ():
        if count < 1:
            raise HighwallError(f"{count} threads cannot run a model; take 1 or more")
    if seconds is not None and not 0 < seconds < 3600:
        raise HighwallError(f"--seconds takes seconds of turns a pair, above 0 and below 3600, not {seconds:g}")
    return Plan(tuple(networks or ()), tuple(sizes or ()), tuple(threads or ()), seconds or SECONDS)


def machine_name() -> str:
    """What this machine's results are called: a board's kind, or host. Its name in the network is nobody's business."""
    tree = this_machine().device_tree
    words = re.findall(r"[a-z0-9]+", tree.lower().replace("raspberry pi ", "rpi"))
    return "-".join(words[:4]) or "host"


def thread_counts() -> tuple[int, ...]:
    """One, and all cores where there are more."""
    return tuple(sorted({1, os.cpu_count() or 1}))


def run(plan: Plan, path: Path, command: str, say: Say, again: bool = False) -> dict[str, Any]:
    """Measure what `path` does not hold yet, written there pair by pair, so that a killed run goes on.

    Raises HighwallError where the field, a package of the suite or the file's folder is not as it should be.
    """
    here, present = this_machine(), members()
    threads = plan.threads or thread_counts()
    identity = {"machine": asdict(here), "field": fingerprint(), "seconds": plan.seconds}
    result = {} if again else _before(path, identity)
    if not result:
        result = {"schema": SCHEMA, "command": command, **identity, "roof": {}, "cells": {}}
    result |= {"begun": result.get("begun") or time.strftime("%Y-%m-%d", time.gmtime())}
    wanted = [one for one in present[0] if plan.takes(one)]
    result["absent"] = [asdict(one) for one in present[1] if plan.takes(one)]
    pairs = [(one, partner(one, present[0]), count) for one in wanted for count in threads]
    # What was noisy or did not run is tried again: a calmer moment mends the one, more memory the other.
    good = {(name, cell["of"]) for name, cell in result["cells"].items() if "p50_ms" in cell and not cell["noise"]}
    left = [(one, other, count) for one, other, count in pairs if (key(one, count), other.name) not in good]
    say(f"{len(pairs)} measurements, {len(left)} to do")
    for count in threads:
        if str(count) not in result["roof"]:
            result["roof"][str(count)] = asdict(roof(count, plan.seconds))
            say(f"{count} thread{'s' * (count > 1)}: {_said(result['roof'][str(count)])}")
            _keep(path, result)
    before = look()
    for done, (one, other, count) in enumerate(left, 1):
        began = time.monotonic()
        cell = _cell(one, other, count, plan.seconds)
        slowed = throttled(before, [look()])
        cell["noise"] = [*cell.get("noise", []), *(f"the board was {word}" for word in slowed)]
        result["cells"][key(one, count)] = cell
        _keep(path, result)
        what = cell.get("reason") or f"p50 {cell['p50_ms']:.4g} ms, {cell['ratio']:.3g} times {cell['of']}"
        marks = "".join(f"; {noise}" for noise in cell["noise"])
        say(f"{done} of {len(left)}: {key(one, count)}: {what} ({time.monotonic() - began:.0f} s){marks}")
    mark(result["cells"])
    _keep(path, result)
    for name in (key(one, count) for one, _, count in pairs):
        strayed = [noise for noise in result["cells"][name]["noise"] if noise.startswith(STRAYED)]
        if strayed:
            say(f"{name}: {strayed[0]}; run the suite again to measure it anew")
    return result


def key(one: Member, threads: int) -> str:
    """What a measurement is kept under."""
    return f"{one.name}-{threads}"


def partner(one: Member, present: Sequence[Member]) -> Member:
    """Ours, that `one` is measured beside: the same task, size and precision; ours at int8 beside ours at fp32.

    SSD has a size of its own, so it stands beside our classifier at the slice size that ships.
    """
    precision = "fp32" if one.network == OURS else one.precision
    task, size = ("classify", 48) if one.task == "detect" else (one.task, one.size)
    found = [each for each in present if each.network == OURS and (each.task, each.size) == (task, size)]
    return next((each for each in found if each.precision == precision), one)


def mark(cells: Mapping[str, dict[str, Any]]) -> None:
    """Say in the noise of every pair in which ours took another time than in most pairs, as far as is known by now.

    Within such a pair the turns may agree, and its ratio still contradicts the times beside it. What ran alone has no
    ratio, and on several threads it may well be faster so.
    """
    pairs = [cell for name, cell in cells.items() if "of_p50_ms" in cell and name != f"{cell['of']}-{cell['threads']}"]
    times: dict[tuple[str, int], list[float]] = {}
    for cell in pairs:
        times.setdefault((cell["of"], cell["threads"]), []).append(cell["of_p50_ms"])
    for cell in pairs:
        usual = median(times[cell["of"], cell["threads"]])
        cell["noise"] = [noise for noise in cell["noise"] if not noise.startswith(STRAYED)]
        if abs(cell["of_p50_ms"] - usual) > STRAY * usual:
            cell["noise"].append(f"{STRAYED}{cell['of_p50_ms']:.4g} ms, {usual:.4g} in most pairs")


def _cell(one: Member, other: Member, threads: int, seconds: float) -> dict[str, Any]:
    """One pair, or why there is none."""
    facts = {field.name: getattr(one, field.name) for field in fields(one)}
    facts |= {"threads": threads, "traffic": one.traffic, "intensity": round(one.intensity, 3)}
    needed, free = SPARE * _needs(one), _free()
    if free is not None and needed > free:
        return facts | {"reason": f"needs some {needed / 2**20:,.0f} MiB, {free / 2**20:,.0f} are free"}
    try:
        with tempfile.TemporaryDirectory(prefix="highwall-suite-") as folder:
            beside = other if other != one else None
            with _served(one, threads, Path(folder)) as player:
                if beside is None:
                    turns = take_turns([player], seconds, threads)
                else:
                    with _served(beside, threads, Path(folder)) as ours:
                        turns = take_turns([ours, player], seconds, threads)
    except HighwallError as error:
        return facts | {"reason": str(error)}
    against = turns.ratio(one.name, other.name)
    return facts | {
        **asdict(turns.players[one.name]),
        "of": other.name,
        "of_p50_ms": turns.players[other.name].p50_ms,
        "ratio": against.ratio,
        "ratio_interval": list(against.interval),
        "noise": list(turns.noise),
    }


def _served(one: Member, threads: int, folder: Path) -> Player:
    path = folder / f"{one.name}.onnx"
    path.write_bytes(filled(one))
    shape = f"{one.size},{one.size},{one.bands},uint8"
    command = [sys.executable, "-P", "-m", "benchmarks.suite.worker", "onnx", str(path), str(threads), shape]
    return Player(one.name, command)


def _needs(one: Member) -> int:
    """Bytes: the file, the engine's copy of its weights, and about half of all activations at once."""
    return 8 * one.parameters + one.activation_bytes // 2 + (64 << 20)


def _free() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), None)


def _before(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """What a run before this one left there; nothing where it was of another machine, field or budget."""
    if not path.exists():
        return {}
    found = read(path)
    as_json = json.loads(json.dumps(identity))
    if {name: found.get(name) for name in as_json} != as_json:
        raise HighwallError(
            f"{path} holds results of another machine, packages, field or --seconds; "
            "give another --name, or --again to measure everything anew"
        )
    return found


def read(path: Path) -> dict[str, Any]:
    """A suite's results, judged by `mark`. Raises HighwallError where they are none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise HighwallError(f"{path} is no result of `bench suite`: {error}") from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA or not isinstance(found.get("cells"), dict):
        raise HighwallError(f"{path} is no result of this Highwall's `bench suite`")
    mark(found["cells"])
    return found


def _keep(path: Path, result: dict[str, Any]) -> None:
    result["roofline"] = {name: _placed(cell, result["roof"]) for name, cell in result["cells"].items()}
    write_text(path, json.dumps(result, indent=1) + "\n")


def _placed(cell: dict[str, Any], roofs: dict[str, dict[str, Any]]) -> dict[str, float] | None:
    """Where a cell stands under the roof: the least time there is, and what share of the roof's speed it reached."""
    top = roofs.get(str(cell["threads"]))
    if top is None or "p50_ms" not in cell:
        return None
    peak = top["fp32_gmacs" if cell["precision"] == "fp32" else "int8_gmacs"]
    least = place(cell["macs"], cell["traffic"], peak, top["gbytes"])
    return {"least_ms": float(f"{least:.4g}"), "share": round(least / cell["p50_ms"], 4)}


def _said(top: dict[str, Any]) -> str:
    found = Roof(**top)
    return f"{found.fp32_gmacs:g} GMAC/s at fp32, {found.int8_gmacs:g} at int8, {found.gbytes:g} GB/s of copies"


def cells(result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every measurement that ran."""
    return (cell for cell in result["cells"].values() if "p50_ms" in cell)
