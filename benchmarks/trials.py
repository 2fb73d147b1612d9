"""One idea tried on inner ground: a fold is set aside for ever, and another of the rest scores the idea.

    python -m benchmarks.trials NAME --data DIR --task segment --aside 0 --inner 1 --epochs 12 --threads 1
    python -m benchmarks.trials --table

The fold aside is taken out before anything else, so what is chosen here can be judged on it. One JSON a trial
under --results; a killed one goes on at its last epoch.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.pretrained import pretrained
from benchmarks.script import script
from benchmarks.spelled import spelled
from targets.runtime.errors import HighwallError
from targets.runtime.files import write_text
from toolkit.data import batches
from toolkit.data.batches import Normalisation
from toolkit.data.folder import read
from toolkit.data.samples import Samples
from toolkit.optimizers import LEARNING_RATES
from toolkit.runs import Request, plan
from toolkit.train import LOSSES, predict

RESULTS = Path(__file__).parent / "results" / "trials"
COLUMNS = ("auc", "average_precision", "f1", "precision", "recall")


def trial(samples: Samples, request: Request) -> dict[str, Any]:
    """Train without the fold `request.held` and score it there.

    Scores are given at the threshold that the run chose, and at the one that suits the fold best, because the
    two ask different questions: what a user would get, and what the ranking of the pixels is worth.
    """
    assert samples.folds is not None
    trainer = plan(samples, request)
    resumed = trainer.resume_if_begun()
    began = time.perf_counter()
    model = trainer.run(lambda line: print(f"{request.out.name}: {line}", flush=True))
    held = samples.take(np.flatnonzero(samples.folds.astype(np.str_) == request.held))
    tally = predict(trainer.averaged, Normalisation(model.mean, model.std), held, tempering=model.tempering)
    return {
        "shipped": tally.scores(model.threshold).as_dict(),
        "best": tally.scores(tally.best_threshold()).as_dict(),
        "loss": trainer.history[-1]["loss"],
        "seconds": None if resumed else round(time.perf_counter() - began),
    }


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: a row a trial; f1 at the run's own threshold and at the fold's best."""
    heads = ("trial", "task", "aside", "inner", "epochs", "loss", *COLUMNS, "best f1", "minutes")
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for found in results:
        about = [str(found["settings"][key]) for key in ("name", "task", "aside", "inner", "epochs")]
        scores = [f"{found['shipped'][column]:.3f}" for column in COLUMNS] + [f"{found['best']['f1']:.3f}"]
        minutes = "-" if found["seconds"] is None else str(found["seconds"] // 60)
        lines.append("| " + " | ".join([*about, f"{found['loss']:.3f}", *scores, minutes]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the trial asked for, unless it is done, and print the table of all that are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", help="what the idea is called in the table")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--task", choices=("classify", "segment"))
    parser.add_argument("--aside", type=int, default=0, help="the fold that is not read")
    parser.add_argument("--inner", type=int, default=1, help="the fold that scores the trial")
    parser.add_argument("--network", default="cracknet")
    parser.add_argument("--multiplier", type=float, default=1.0)
    parser.add_argument("--width", type=int, help="default: the preset's")
    parser.add_argument("--growth", type=int, help="default: the preset's")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--loss", choices=LOSSES, default="bce")
    parser.add_argument("--optimizer", choices=tuple(LEARNING_RATES), default="adam")
    parser.add_argument("--lr", type=float)
    parser.add_argument("--no-ratios", action="store_true", help="without log ratios of bands")
    parser.add_argument("--seams", type=float, default=batches.SEAMS, help="share of photographs with a straight edge")
    parser.add_argument("--harsh", type=float, default=0.0, help="as of `highwall train`")
    parser.add_argument("--from", dest="start", type=Path, help="a run on other data to go on from")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="run nothing")
    args = parser.parse_args()
    if not args.table:
        if args.name is None or args.data is None or args.task is None:
            parser.error("a trial needs a NAME, --data and --task; --table prints those that are done")
        if args.aside == args.inner:
            parser.error("--aside and --inner are the same fold")
        _run(args)
    print(table([json.loads(path.read_text()) for path in sorted(args.results.glob("*.json"))]))


def _run(args: argparse.Namespace) -> None:
    name = f"{args.name}-{args.task}-{args.aside}-{args.inner}"
    done = args.results / f"{name}.json"
    keys = "name task aside inner network multiplier width growth epochs".split()
    keys += "optimizer loss lr no_ratios seams harsh".split()
    settings = {key: getattr(args, key) for key in keys}
    samples = read(args.data)
    settings["pretrained"] = pretrained(args.start, samples)
    if done.exists():
        # Trials that were done before these could be chosen had the preset's, no harsh images and fresh weights.
        if {"width": None, "growth": None, "harsh": 0.0, "pretrained": None} | json.loads(done.read_text())[
            "settings"
        ] != settings:
            raise HighwallError(f"{done} holds other settings; choose another NAME or --results")
        return
    torch.set_num_threads(args.threads)
    batches.SEAMS = args.seams
    if samples.folds is None:
        raise HighwallError(f"{args.data} has no folds.csv; a trial needs folds")
    request = Request(
        args.task,
        args.runs / name,
        architecture=args.network,
        multiplier=args.multiplier,
        width=args.width,
        growth=args.growth,
        held=str(args.inner),
        epochs=args.epochs,
        optimizer=args.optimizer,
        loss=args.loss,
        lr=args.lr,
        ratios=not args.no_ratios,
        harsh=args.harsh,
        start=args.start,
    )
    found = trial(samples.take(np.flatnonzero(samples.folds != args.aside)), request)
    options = {key: value for key, value in settings.items() if key not in ("name", "pretrained")}
    options |= {"from": args.start and "RUN", "threads": args.threads}
    command = spelled(f"benchmarks.trials {args.name}", {"data": "DIR"} | options)
    write_text(done, json.dumps({"command": command, "settings": settings} | found, indent=1) + "\n")


if __name__ == "__main__":
    script(main)
