"""The receipt: what a build found out, as plain values that are the same every time, and as lines for people."""

from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.compiler import Compiler
from toolkit.contract import DROPS, Contract
from toolkit.quantize.recipes import Recipe
from toolkit.search import Tried, verdict


def make(
    compiler: Compiler, board: str, tried: Sequence[Tried], chosen: Tried, contract: Contract | None
) -> dict[str, Any]:
    """Everything that speaks for the chosen candidate. Times and memory are not in it: they differ by run."""
    candidate = chosen.candidate
    assert candidate is not None
    recipe = candidate.recipe
    whole = compiler.candidate(Recipe(recipe.runtime, "fp32"))
    accuracy = {} if whole.scores is None else {"fp32": whole.scores, recipe.precision: candidate.scores}
    return {
        "board": board,
        "precision": recipe.precision,
        "recipe": recipe.as_dict() | ({"float_layers": list(candidate.float_layers)} if candidate.float_layers else {}),
        "model_bytes": len(candidate.model),
        "float_model_bytes": len(whole.model),
        "parity_error": candidate.parity,
        "accuracy": accuracy,
        "cost": compiler.cost.as_dict(),
        "contract": None if contract is None else contract.as_dict(),
        "candidates": rows(tried, chosen, compiler.model.network.task),
    }


def timings(compiler: Compiler, tried: Sequence[Tried]) -> dict[str, Any]:
    """What lies beside the artifact: seconds each recipe took here (0 from the cache), memory and time to run."""
    return {
        "seconds": compiler.seconds,
        "measured": {one.recipe.name: dict(one.measured) for one in tried if one.measured},
    }


def rows(tried: Sequence[Tried], chosen: Tried | None, task: str) -> list[dict[str, Any]]:
    """The candidates, cheapest first, each with its figures and why it was taken or lost."""
    shown = [
        name for metric in DROPS["segment" if task == "segment" else "classify"] for name in (metric, f"drop.{metric}")
    ]
    found = []
    for one in tried:
        row: dict[str, Any] = {"recipe": one.recipe.name, "work": one.work, "verdict": verdict(one, chosen)}
        if one.instructions is not None:
            row["instructions"] = one.instructions
        if one.candidate is not None:
            row |= {"model_bytes": len(one.candidate.model), "parity_error": one.candidate.parity}
            row |= {name: one.facts[name] for name in shown if name in one.facts}
        found.append(row)
    return found


def table(candidates: Sequence[Mapping[str, Any]]) -> str:
    """A receipt's candidates for people: instructions and work in millions, sizes in kB, drops in points of 100."""
    metrics = [
        key
        for key in dict.fromkeys(name for row in candidates for name in row)
        if f"drop.{key}" in candidates_keys(candidates)
    ]
    counted = "instructions" in candidates_keys(candidates)
    heads = ["recipe", *(["M instr"] if counted else []), "M work", "kB", "parity"]
    heads += [head for metric in metrics for head in (metric, "drop")] + ["verdict"]
    lines = [heads]
    for row in candidates:
        cells = [row["recipe"], *([_figure(row.get("instructions"), "{:,.2f}", 1e-6)] if counted else [])]
        cells.append(f"{row['work'] / 1e6:.2f}")
        if "model_bytes" in row:
            cells += [f"{row['model_bytes'] / 1000:,.0f}", f"{row['parity_error']:.1e}"]
        else:
            cells += ["-", "-"]
        for metric in metrics:
            cells += [_figure(row.get(metric), "{:.4f}", 1), _figure(row.get(f"drop.{metric}"), "{:+.2f}", 100)]
        lines.append([*cells, row["verdict"]])
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in (0, len(heads) - 1) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def candidates_keys(candidates: Sequence[Mapping[str, Any]]) -> set[str]:
    return {key for row in candidates for key in row}


def _figure(value: float | None, form: str, scale: float) -> str:
    return "-" if value is None else form.format(value * scale)


def comparison(receipts: Sequence[Mapping[str, Any]]) -> str:
    """What was chosen for each board, side by side."""
    lines = [f"{'board':<10} {'recipe':<24} {'M instr':>8} {'M work':>8} {'kB':>6}"]
    for one in receipts:
        row = next(row for row in one["candidates"] if row["verdict"] == "chosen")
        counted, work = _figure(row.get("instructions"), "{:,.2f}", 1e-6), f"{row['work'] / 1e6:.2f}"
        size = f"{one['model_bytes'] / 1000:,.0f}"
        lines.append(f"{one['board']:<10} {one['recipe']['name']:<24} {counted:>8} {work:>8} {size:>6}")
    return "\n".join(lines)


def summary(receipt: Mapping[str, Any]) -> list[str]:
    """A receipt's figures for people: size, parity, MACs, accuracy before and after."""
    counted = receipt["cost"]
    lines = [
        f"{receipt['recipe']['name']} for {receipt['board']}: {receipt['model_bytes'] / 1000:,.0f} kB "
        f"(float {receipt['float_model_bytes'] / 1000:,.0f} kB), {counted['parameters']:,} parameters",
        f"{counted['macs'] / 1e6:,.1f} M MACs, {counted['ratio']:.1f} times fewer than with generic convolutions",
        f"at most {receipt['parity_error']:.2g} off torch on the golden inputs",
    ]
    for precision, scores in receipt["accuracy"].items():
        lines.append(
            f"{precision} AUC {scores['auc']:.4f}, F1 {scores['f1']:.4f}, recall {scores['recall']:.4f} "
            f"on {scores['n']:,} labels not used for calibration"
        )
    if receipt["accuracy"]:
        lines.append("(these show what int8 costs; for accuracy on new ground, `highwall evaluate --fold`)")
    return lines
