"""Hazardous shifts in a coal mine, from the shifts before: the RNN on windows beside a linear model and one column.

    python -m benchmarks.seismic --data DIR

DIR holds seismic-bumps.csv, one shift a row. Its `class` says whether the next shift brings a bump of 10 kJ or more.
Learning, choosing and judging follow each other in time; settings are chosen on the middle part alone, then both
models learn anew from the first two. Writes one JSON under --results; `--table` only prints what is there.
"""

import argparse
import json
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from benchmarks.script import script
from targets.runtime.files import write_text
from toolkit import baselines, metrics
from toolkit.data.batches import standardised
from toolkit.data.windows import Series, Windows, cut, read_series, split

RESULTS = Path(__file__).parent / "results" / "sensors"
FILE = "seismic-bumps.csv"
LABEL = "class"
SCALES = {"seismic": "abcd", "seismoacoustic": "abcd", "shift": "NW", "ghazard": "abcd"}  # the mine's own, low to high
ASSESSMENTS = ("seismic", "seismoacoustic", "ghazard")
LOGGED = ("genergy", "gpuls", "energy", "maxenergy")  # they run over five powers of ten
HAZARDOUS = 1e4  # joules
BOUNDS = (0.6, 0.8)  # of the rows: where choosing and judging begin
STEPS = (1, 4, 8, 16)
RATES = (1e-3, 3e-3, 1e-2)
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
EPOCHS = 20
BATCH = 64


@dataclass(frozen=True)
class Scaling:
    """Mean and standard deviation of each column over what was learned from."""

    mean: Tensor
    std: Tensor

    @staticmethod
    def of(windows: Windows) -> "Scaling":
        last = torch.from_numpy(windows.values[:, -1]).double()
        std = last.std(0)
        return Scaling(last.mean(0), torch.where(std > 0, std, 1.0))

    def apply(self, windows: Windows) -> Tensor:
        """(N, steps, m) in standard deviations."""
        return standardised(torch.from_numpy(windows.values).double(), self.mean, self.std).float()


def read(folder: Path) -> Series:
    """The shifts in time order, energies by their logarithm."""
    series = read_series(folder / FILE, LABEL, scales=SCALES)
    for name in LOGGED:
        column = series.values[:, series.names.index(name)]
        column[:] = np.log1p(column)
    return series


def linear(inputs: Tensor, labels: NDArray[np.uint8], penalty: float) -> tuple[Tensor, Tensor]:
    """Logistic regression with labels in balance: weights and bias of least loss + penalty / 2 |weights|^2."""
    flat, truth = inputs.flatten(1).double(), torch.from_numpy(labels).double()
    balance = torch.where(truth > 0, 0.5 / truth.mean(), 0.5 / (1 - truth.mean()))
    weights = torch.zeros(flat.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        logits = flat @ weights[:-1] + weights[-1]
        cost = F.binary_cross_entropy_with_logits(logits, truth, balance) + penalty / 2 * weights[:-1].square().sum()
        cost.backward()  # type: ignore[no-untyped-call]
        return cost

    solver.step(loss)  # type: ignore[no-untyped-call]
    found = weights.detach()
    return found[:-1], found[-1]


def linear_answers(model: tuple[Tensor, Tensor], inputs: Tensor) -> NDArray[np.float64]:
    """Probabilities (N,)."""
    answers: NDArray[np.float64] = torch.sigmoid(inputs.flatten(1).double() @ model[0] + model[1]).numpy()
    return answers


def rnn_answers(
    inputs: Tensor, labels: NDArray[np.uint8], others: Tensor, *, rate: float, epochs: int, seed: int
) -> list[NDArray[np.float64]]:
    """Train the RNN on `inputs`; its probabilities on `others` after each epoch."""
    torch.manual_seed(seed)
    network = baselines.make("rnn", "windows", inputs.shape[2], inputs.shape[1])
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=1e-2)
    truth = torch.from_numpy(labels).float().unsqueeze(1)
    rarity = (1 - truth.mean()) / truth.mean()
    found = []
    for _ in range(epochs):
        network.train()
        order = torch.randperm(len(inputs))
        for start in range(0, len(inputs), BATCH):
            batch = order[start : start + BATCH]
            loss = F.binary_cross_entropy_with_logits(network(inputs[batch]), truth[batch], pos_weight=rarity)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
        network.eval()
        with torch.inference_mode():
            found.append(torch.sigmoid(network(others)).double().numpy().ravel())
    return found


def best_column(learned: Windows) -> tuple[str, float]:
    """The column whose last reading alone ranks best, and its sign (-1: low is hazardous)."""
    aucs = {name: _auc(learned.labels, learned.values[:, -1, i]) for i, name in enumerate(learned.names)}
    name = max(aucs, key=lambda each: max(aucs[each], 1 - aucs[each]))
    return name, 1.0 if aucs[name] >= 0.5 else -1.0


def chosen(tried: list[dict[str, Any]]) -> dict[str, Any]:
    """The settings that did best on the part to choose by, and how well each window length could do there."""
    best = max(tried, key=lambda one: one["validation_auc"])
    lengths = {str(one["steps"]): 0.0 for one in tried}
    for one in tried:
        lengths[str(one["steps"])] = max(lengths[str(one["steps"])], one["validation_auc"])
    return best | {"validation_auc_by_steps": lengths}


def search_linear(parts: dict[int, list[Windows]], bar: Any) -> dict[str, Any]:
    """Window length and penalty with the best AUC on the part to choose by."""
    tried = []
    for steps, penalty in product(parts, PENALTIES):
        fit, choose, _ = parts[steps]
        scaling = Scaling.of(fit)
        model = linear(scaling.apply(fit), fit.labels, penalty)
        auc = _auc(choose.labels, linear_answers(model, scaling.apply(choose)))
        tried.append({"steps": steps, "penalty": penalty, "validation_auc": round(auc, 4)})
        bar.update()
    return chosen(tried)


def search_rnn(parts: dict[int, list[Windows]], seeds: int, epochs: int, bar: Any) -> dict[str, Any]:
    """Window length, learning rate and epochs with the best AUC, over the seeds, on the part to choose by."""
    tried = []
    for steps, rate in product(parts, RATES):
        fit, choose, _ = parts[steps]
        scaling = Scaling.of(fit)
        inputs, others = scaling.apply(fit), scaling.apply(choose)
        runs = [
            rnn_answers(inputs, fit.labels, others, rate=rate, epochs=epochs, seed=seed)
            for seed in range(100, 100 + seeds)
        ]
        for epoch, answers in enumerate(zip(*runs, strict=True), 1):
            auc = mean(_auc(choose.labels, each) for each in answers)
            tried.append({"steps": steps, "lr": rate, "epochs": epoch, "validation_auc": round(auc, 4)})
        bar.update()
    return chosen(tried)


def run(series: Series, seeds: int, epochs: int = EPOCHS) -> dict[str, Any]:
    """Search, learn anew, judge: everything of the result but its command."""
    bounds = [int(share * len(series)) for share in BOUNDS]
    constant = _constant(series, bounds[0])
    series = _without(series, constant)
    gap = max(STEPS) + 1  # one for all lengths, so that all are judged on the same shifts
    parts = {steps: split(cut(series, steps, ahead=0), bounds, gap) for steps in STEPS}
    with tqdm(total=len(STEPS) * (len(PENALTIES) + len(RATES)), desc="settings", leave=False, disable=None) as bar:
        settings = {"linear": search_linear(parts, bar), "rnn": search_rnn(parts, seeds, epochs, bar)}
    answers: dict[str, list[NDArray[np.float64]]] = {}
    fit, test = _learned(parts[settings["linear"]["steps"]])
    scaling = Scaling.of(fit)
    model = linear(scaling.apply(fit), fit.labels, settings["linear"]["penalty"])
    answers["linear"] = [linear_answers(model, scaling.apply(test))]
    name, sign = best_column(fit)
    columns = dict.fromkeys((*(each for each in ASSESSMENTS if each in series.names), name), 1.0) | {name: sign}
    for each, way in columns.items():
        answers[f"column {each}"] = [way * test.values[:, -1, series.names.index(each)].astype(np.float64)]
    fit, test = _learned(parts[settings["rnn"]["steps"]])
    scaling, best = Scaling.of(fit), settings["rnn"]
    inputs, others = scaling.apply(fit), scaling.apply(test)
    answers["rnn"] = [
        rnn_answers(inputs, fit.labels, others, rate=best["lr"], epochs=best["epochs"], seed=seed)[-1]
        for seed in range(seeds)
    ]
    first = parts[STEPS[0]]
    return {
        "data": cut(series, 1, ahead=0).digest,
        "rows": len(series),
        "parts": {
            name: {"from": int(part.rows[0]), "to": int(part.rows[-1]), "n": len(part), "hazardous": _count(part)}
            for name, part in zip(("learn", "choose", "judge"), first, strict=True)
        },
        "gap": gap,
        "columns": series.names,
        "left_out": {
            LABEL: "the answer itself",
            "every column of later shifts": "bumps and energies of the next shift are what the answer is read off",
        }
        | dict.fromkeys(constant, "never changes in the part to learn from"),
        "search": {"steps": STEPS, "lr": RATES, "epochs": epochs, "penalty": PENALTIES, "seeds": seeds},
        "chosen": settings,
        "best_column": name,
        "scores": {name: _scores(test.labels, each) for name, each in sorted(answers.items())},
    }


def told_by_next(folder: Path) -> float:
    """Share of shifts whose `class` is what the next shift's strongest bump says: 1 where rows are in time order."""
    series = read_series(folder / FILE, LABEL, scales=SCALES)
    bump = series.values[1:, series.names.index("maxenergy")] >= HAZARDOUS
    return float((bump == (series.labels[:-1] > 0)).mean())


def table(result: dict[str, Any]) -> str:
    """Markdown: a row a model, best first."""
    head = "| model | AUC on the last shifts | 95 % of resampled tests | average precision |"
    lines = [head, "| --- " * 4 + "|"]
    for name, score in sorted(result["scores"].items(), key=lambda item: -item[1]["auc"]):
        spread = f" ± {score['auc_spread']:.3f}" if score["runs"] > 1 else ""
        low, high = score["auc_interval"]
        lines.append(
            f"| {name} | {score['auc']:.3f}{spread} | {low:.2f} to {high:.2f} | {score['average_precision']:.3f} |"
        )
    return "\n".join(lines)


def _learned(parts: list[Windows]) -> tuple[Windows, Windows]:
    """What the final models learn from, the first two parts together, and what judges them."""
    fit, choose, test = parts
    both = Windows(
        np.concatenate([fit.values, choose.values]),
        np.concatenate([fit.labels, choose.labels]),
        np.concatenate([fit.rows, choose.rows]),
        fit.names,
        fit.ahead,
    )
    return both, test


def _scores(labels: NDArray[np.uint8], runs: list[NDArray[np.float64]]) -> dict[str, Any]:
    """Mean and spread over the runs, and where the mean lies in 95 of 100 tests resampled from this one."""
    aucs = [_auc(labels, run) for run in runs]
    precisions = [metrics.evaluate(labels, run).average_precision for run in runs]
    dice = np.random.default_rng(0)
    resampled = []
    for _ in range(500):
        drawn = dice.integers(0, len(labels), len(labels))
        if 0 < labels[drawn].sum() < len(drawn):
            resampled.append(mean(_auc(labels[drawn], run[drawn]) for run in runs))
    return {
        "runs": len(runs),
        "auc": round(mean(aucs), 4),
        "auc_spread": round(stdev(aucs), 4) if len(aucs) > 1 else 0.0,
        "auc_interval": [round(float(each), 4) for each in np.percentile(resampled, (2.5, 97.5))],
        "average_precision": round(mean(precisions), 4),
        "average_precision_spread": round(stdev(precisions), 4) if len(precisions) > 1 else 0.0,
    }


def _auc(labels: NDArray[np.uint8], scores: NDArray[Any]) -> float:
    return metrics.evaluate(labels, scores).auc


def _count(part: Windows) -> int:
    return int(part.labels.sum())


def _constant(series: Series, rows: int) -> list[str]:
    spread = np.ptp(series.values[:rows], axis=0)
    return [name for name, each in zip(series.names, spread, strict=True) if each == 0]


def _without(series: Series, names: list[str]) -> Series:
    kept = [i for i, name in enumerate(series.names) if name not in names]
    return replace(series, values=series.values[:, kept], names=tuple(series.names[i] for i in kept))


def main() -> None:
    """Run the benchmark and keep its result, or only print what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help=f"folder with {FILE}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="at most; how many is chosen")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--table", action="store_true", help="run nothing")
    args = parser.parse_args()
    out = args.results / "seismic.json"
    if not args.table:
        if args.data is None:
            parser.error("--data is needed to run; --table prints what is there")
        torch.set_num_threads(args.threads)
        command = f"python -m benchmarks.seismic --data DIR --seeds {args.seeds} --epochs {args.epochs} "
        command += f"--threads {args.threads}"
        told = {"class_told_by_next_shift": told_by_next(args.data)}
        result = {"command": command} | told | run(read(args.data), args.seeds, args.epochs)
        write_text(out, json.dumps(result, indent=1) + "\n")
    if not out.is_file():
        parser.error(f"{out} is not there; run the benchmark first")
    result = json.loads(out.read_text())
    print(json.dumps(result) if args.json else table(result))


if __name__ == "__main__":
    script(main)
