"""How far from their masks the crack pixels of each fold's network lie, on the fold that it never saw.

    python -m benchmarks.margins runs/refit --data DIR --json benchmarks/results/margins/crack.json

RUNS is where `benchmarks.folds --task segment --runs RUNS` left a run a fold. At fp32, each at the threshold it chose.
"""

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from benchmarks.script import script
from targets.runtime.errors import HighwallError
from targets.runtime.files import write_text
from toolkit import checkpoint
from toolkit.data.folder import read
from toolkit.data.samples import Samples
from toolkit.evaluate import answers_of
from toolkit.margins import Margins

DISTANCES = (0.0, 1.0, 2.0, 3.0, 5.0)  # pixels


def measured(samples: Samples, path: Path, fold: str) -> dict[str, Any]:
    """Scores of the checkpoint at `path` within each of DISTANCES, on the fold it held out. Raises HighwallError."""
    assert samples.folds is not None
    model, weights = checkpoint.read(path)
    if model.provenance.get("held_out") != f"fold {fold}":
        raise HighwallError(f"{path} did not hold out fold {fold}, so its scores there would flatter; give another")
    held = samples.take(np.flatnonzero(samples.folds.astype(np.str_) == fold))
    answers, threshold = answers_of(path, held)
    margins = Margins(threshold, DISTANCES)
    for labels, probabilities in answers:
        margins.add(labels, probabilities)
    return {"weights": checkpoint.digest(weights), "threshold": threshold, "margins": margins.scores()}


def table(folds: dict[str, dict[str, Any]]) -> str:
    """Markdown: F1 within each distance, a row a fold, then mean and worst; precision and recall are in the JSON."""
    heads = ["fold", *(f"F1 within {distance:g} px" for distance in DISTANCES)]
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    rows = {fold: [part["f1"] for part in found["margins"]] for fold, found in folds.items()}
    columns = list(zip(*rows.values(), strict=True))
    rows |= {"mean": [mean(column) for column in columns], "worst": [min(column) for column in columns]}
    lines += ["| " + " | ".join([name, *(f"{value:.3f}" for value in row)]) + " |" for name, row in rows.items()]
    return "\n".join(lines)


def main() -> None:
    """Measure the folds asked for and print the table. Raises HighwallError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", metavar="RUNS", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--name", default="crack", help="RUNS/NAME-foldK is the run of fold K")
    parser.add_argument("--folds", nargs="+", default=list("01234"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    samples = read(args.data)
    if samples.task != "segment" or samples.folds is None:
        raise HighwallError(f"{args.data} needs masks and folds.csv for this")
    folds: dict[str, dict[str, Any]] = {}
    for fold in args.folds:
        path = args.runs / f"{args.name}-fold{fold}" / "checkpoint.safetensors"
        folds[fold] = measured(samples, path, fold)
        print(f"fold {fold} is done", flush=True)
    if args.json is not None:
        command = f"python -m benchmarks.margins RUNS --data DIR --name {args.name}"
        command += f" --folds {' '.join(args.folds)} --threads {args.threads}"
        result = {"command": command, "data": samples.digest, "folds": folds}
        write_text(args.json, json.dumps(result, indent=1) + "\n")
    print(table(folds))


if __name__ == "__main__":
    script(main)
