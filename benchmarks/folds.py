"""Leave one fold out: train, build by several recipes, and score each on ground that was never looked at.

    python -m benchmarks.folds --data DIR --task classify --folds 0 1 2 3 4 --epochs 12 --threads 1

One JSON a fold under --results, written when the fold is done; a fold that has one is not run again, and a
killed training resumes at its last epoch. `--table` only prints what is there, `--compare` a row a network.
"""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from benchmarks.pretrained import pretrained
from benchmarks.script import script
from benchmarks.spelled import spelled
from targets.runtime.errors import HighwallError
from targets.runtime.files import write_text
from toolkit import checkpoint
from toolkit.build import build
from toolkit.calibration import Calibration
from toolkit.cost import Cost, measure
from toolkit.data.folder import read
from toolkit.data.samples import Samples
from toolkit.evaluate import evaluate
from toolkit.network import build_network, preset
from toolkit.optimizers import LEARNING_RATES
from toolkit.quantize.recipes import recipe
from toolkit.refit import refit
from toolkit.runs import PRESET_OF_TASK, Request, plan
from toolkit.train import LOSSES

RESULTS = Path(__file__).parent / "results" / "folds"
# Float, integer throughout, and what the shipped contracts keep for a Pi 4B.
KINDS = {"fp32": "onnx-fp32", "int8": "onnx-int8-minmax", "int8w": "tflite-int8w"}
COLUMNS = ("auc", "average_precision", "f1", "precision", "recall", "kappa")


def run_fold(samples: Samples, request: Request, command: str) -> dict[str, Any]:
    """Train with one fold held out and score it there: torch, and an artifact of each kind. Raises HighwallError."""
    assert request.held is not None
    if samples.folds is None:
        raise HighwallError("the data has no folds; add folds.csv")

    def say(line: str) -> None:
        print(f"fold {request.held}: {line}", flush=True)

    if request.refit:
        model = refit(samples, request, say)
    else:
        trainer = plan(samples, request)
        trainer.resume_if_begun()
        model = trainer.run(say)
    held = samples.take(np.flatnonzero(samples.folds == int(request.held)))
    learned = Calibration.of(samples, model, request.held)
    path = request.out / "checkpoint.safetensors"
    result: dict[str, Any] = {
        "command": command,
        "fold": int(request.held),
        "request": settings(request),
        "data": samples.digest,
        "threads": torch.get_num_threads(),
        "torch": evaluate(path, held, None).as_dict(),
    }
    for kind, name in KINDS.items():
        out = request.out / f"{kind}.highwall"
        _, network = checkpoint.load(path)
        receipt = build(model, network, board="rpi4b", out=out, recipe=recipe(name), data=learned, say=lambda _: None)
        result[kind] = evaluate(out, held, None).as_dict() | {"model_bytes": receipt["model_bytes"]}
    return result


def settings(request: Request) -> dict[str, Any]:
    """All of a request but where its run lies."""
    return {key: value for key, value in asdict(request).items() if key not in ("out", "start")}


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: a row a fold and precision, then means and worsts."""
    lines = ["| fold | model | n | " + " | ".join(COLUMNS) + " | bytes |", "| --- " * (len(COLUMNS) + 4) + "|"]
    for result in results:
        for kind in (kind for kind in KINDS if kind in result):
            scores = result[kind]
            cells = " | ".join(f"{scores[column]:.3f}" for column in COLUMNS)
            lines.append(f"| {result['fold']} | {kind} | {scores['n']:,} | {cells} | {scores['model_bytes']:,} |")
    for name, pick in (("mean", mean), ("worst", min)):
        for kind in KINDS:
            if all(kind in result for result in results):
                cells = " | ".join(f"{pick([result[kind][column] for result in results]):.3f}" for column in COLUMNS)
                lines.append(f"| {name} | {kind} | | {cells} | |")
    return "\n".join(lines)


def compared(results: list[dict[str, Any]], folds: list[int]) -> str:
    """Markdown: a row a network at fp32 over `folds`, the best mean AUC first; who lacks one of them is named instead.

    MACs and parameters are those of the preset's slice; a network that was trained in two ways has two rows, and where
    the table has no other word for what differs, `how` tells it.
    """
    found: dict[tuple[str, str, str, str], dict[int, dict[str, Any]]] = {}
    ways: dict[tuple[str, str, str, str], list[dict[str, Any]]] = {}
    for result in results:
        way = _way(result)
        alike = ways.setdefault(_named(result), [])
        alike += [] if way in alike else [way]
    for result in results:
        key, way = _named(result), _way(result)
        apart = [f"{name} {way[name]}" for name in way if any(other[name] != way[name] for other in ways[key])]
        found.setdefault((*key[:3], ", ".join([key[3], *apart])), {})[result["fold"]] = result
    heads = ("network", "of its channels", "optimizer", "how", "MMAC", "parameters", "mean AUC", "worst AUC")
    lines = ["| " + " | ".join([*heads, "mean AP", "mean F1", "worst F1"]) + " |", "| --- " * (len(heads) + 3) + "|"]
    rows, lacking = [], []
    for key, by_fold in found.items():
        if not set(folds) <= set(by_fold):
            lacking.append(f"{' '.join(key[:3])}, {key[3]}: folds {', '.join(map(str, sorted(by_fold)))}")
            continue
        costs = cost_of(by_fold[folds[0]]["request"])
        auc, precision, f1 = ([by_fold[fold]["fp32"][name] for fold in folds] for name in COLUMNS[:3])
        figures = [mean(auc), min(auc), mean(precision), mean(f1), min(f1)]
        cells = [*key, f"{costs.macs / 1e6:,.1f}", f"{costs.parameters:,}", *(f"{figure:.3f}" for figure in figures)]
        rows.append((-figures[0], "| " + " | ".join(cells) + " |"))
    lines += [row for _, row in sorted(rows)]
    return "\n".join([*lines, *(["", "Not on all of these folds:", *sorted(lacking)] if lacking else [])])


def _named(result: dict[str, Any]) -> tuple[str, str, str, str]:
    """What the table calls the network of a fold, and the way it was trained."""
    request = result["request"]
    return request["architecture"], f"{request['multiplier']:g}", request["optimizer"], how(result)


def _way(result: dict[str, Any]) -> dict[str, Any]:
    """All that decided a fold's training beside its samples; what its request did not have yet, as by default."""
    same = settings(Request(result["request"]["task"], Path())) | result["request"]
    return {name: value for name, value in same.items() if name != "held"} | {"start": result.get("pretrained")}


def how(result: dict[str, Any]) -> str:
    """What a fold's training had beside its samples, in a few words."""
    request = result["request"]
    words = [
        "pretrained" if result.get("pretrained") else "",
        "harsh" if request.get("harsh") else "",
        f"refitted {request['refit']} times" if request.get("refit") else "",
    ]
    return ", ".join(filter(None, words)) or "plain"


def cost_of(request: dict[str, Any]) -> Cost:
    """What the network of a fold's request costs at its preset's slice."""
    shape = {key: request[key] for key in ("width", "growth") if request.get(key) is not None}
    config = preset(PRESET_OF_TASK[request["task"]], **shape)
    config = replace(config, ratios=config.ratios and request["ratios"])
    if request["architecture"] != "cracknet":
        config = replace(config, architecture=request["architecture"], multiplier=request["multiplier"], ratios=False)
    image = torch.zeros(1, config.bands, config.slice_size, config.slice_size)
    return measure(build_network(config).eval(), image)


def main() -> None:
    """Run the folds asked for and print the table of all that are done. Raises HighwallError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--task", choices=("classify", "segment"), required=True)
    parser.add_argument("--network", default="cracknet", help="or a baseline's name: the same folds and budget")
    parser.add_argument("--multiplier", type=float, default=1.0, help="of a baseline's channels")
    parser.add_argument("--width", type=int, help="default: the preset's")
    parser.add_argument("--growth", type=int, help="default: the preset's")
    parser.add_argument("--folds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument(
        "--from", dest="start", type=Path, help="folder whose PRESET-foldK to go on from, or a run on other data"
    )
    parser.add_argument("--optimizer", choices=tuple(LEARNING_RATES), default="adam")
    parser.add_argument("--lr", type=float)
    parser.add_argument("--loss", choices=LOSSES, default="bce")
    parser.add_argument("--harsh", type=float, default=0.0, help="as of `highwall train`")
    parser.add_argument("--refit", type=int, default=0, help="networks to go on from --from and to average")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--compare", action="store_true", help="run nothing; a row a network over --folds")
    args = parser.parse_args()
    if args.data is None and not (args.table or args.compare):
        parser.error("--data is needed to run folds; --table and --compare print those that are done")
    if args.compare:
        every = [json.loads(path.read_text()) for path in sorted(args.results.rglob("*-fold*.json"))]
        print(compared([one for one in every if one["request"]["task"] == args.task], args.folds))
        return
    name = PRESET_OF_TASK[args.task] if args.network == "cracknet" else args.network
    if not args.table:
        torch.set_num_threads(args.threads)
        samples = read(args.data)
        for fold in args.folds:
            _run(samples, _request(args, f"{name}-fold{fold}", fold), args)
    done = sorted(args.results.glob(f"{name}-fold*.json"))
    if not done:
        raise HighwallError(f"{args.results} holds no fold of {name}; run some with --data, or name another --results")
    print(table([json.loads(path.read_text()) for path in done]))


def _request(args: argparse.Namespace, name: str, fold: int) -> Request:
    same = ("multiplier", "width", "growth", "epochs", "optimizer", "loss", "lr", "harsh", "refit")
    return Request(
        args.task,
        args.runs / name,
        architecture=args.network,
        held=str(fold),
        start=args.start if args.start is None or _is_run(args.start) else args.start / name,
        **{key: getattr(args, key) for key in same},
    )


def _is_run(path: Path) -> bool:
    return path.is_file() or (path / "checkpoint.safetensors").exists()


def _run(samples: Samples, request: Request, args: argparse.Namespace) -> None:
    """Run one fold and keep its result, unless that is there. Raises HighwallError where it is another's."""
    done = args.results / f"{request.out.name}.json"
    begins = pretrained(request.start, samples, request.held)
    if done.exists():
        there = json.loads(done.read_text())
        defaults = settings(Request(args.task, request.out))  # of what requests did not have when it was written
        same = (defaults | there["request"], there["data"], there.get("pretrained"))
        if same != (settings(request), samples.digest, begins):
            raise HighwallError(f"{done} holds other settings or data; choose another --results")
        return
    options = {
        "data": "DIR",
        "task": request.task,
        "network": request.architecture,
        "multiplier": request.multiplier,
        "width": request.width,
        "growth": request.growth,
        "folds": request.held,
        "epochs": request.epochs,
        "optimizer": request.optimizer,
        "lr": request.lr,
        "harsh": request.harsh or None,
        "refit": request.refit or None,
        "from": request.start and ("RUN" if request.start == args.start else "DIR"),
        "loss": request.loss,
        "threads": args.threads,
    }
    result = run_fold(samples, request, spelled("benchmarks.folds", options))
    if begins is not None:
        result["pretrained"] = begins
    write_text(done, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    script(main)
