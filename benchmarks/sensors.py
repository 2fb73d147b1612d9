"""What readings beside the image are worth: CrackNet with and without them, and a linear model on them alone.

    python -m benchmarks.sensors

On generated slopes, where a hazard is a crack and a movement together (`toolkit.data.slopes`): one fold held out,
the same samples, epochs and learning rate for both networks, three seeds. Then the two-input network is built for
a Pi 4B at int8, verified as a gateway does, and asked. A run that is done is not run again, a killed one resumes.
Writes one JSON under --results; `--table` only prints what is there.
"""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch

from benchmarks.script import script
from benchmarks.seismic import RESULTS, linear, linear_answers
from targets.runtime.admit import examine
from targets.runtime.files import write_text
from targets.runtime.predict import predict
from toolkit import checkpoint, metrics
from toolkit.build import build
from toolkit.calibration import Calibration
from toolkit.data.batches import Normalisation
from toolkit.data.samples import Samples
from toolkit.data.slopes import SENSORS, slopes
from toolkit.evaluate import evaluate
from toolkit.quantize.recipes import plain
from toolkit.runs import Request, plan

HELD = "0"
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
SHOWN = ("auc", "average_precision", "f1", "precision", "recall")
BOARD = "rpi4b"


def trained(samples: Samples, request: Request) -> Path:
    """The checkpoint of `request`, trained unless it is there."""
    path = request.out / "checkpoint.safetensors"
    trainer = plan(samples, request)
    trainer.resume_if_begun()
    trainer.run(lambda line: print(f"{request.out.name}: {line}", flush=True))
    return path


def linear_scores(samples: Samples, test: Samples, request: Request) -> dict[str, Any]:
    """Logistic regression on the sensors alone, from the samples that the networks learn from.

    Its penalty is chosen, and its threshold set, on those that the networks' thresholds are set on.
    """
    trainer = plan(samples, request)
    assert trainer.validation is not None
    normalisation = Normalisation.of(trainer.train)
    fit, choose, judge = (normalisation.of_sensors(part.sensors) for part in (trainer.train, trainer.validation, test))
    assert fit is not None
    assert choose is not None
    assert judge is not None
    models = [linear(fit, trainer.train.labels, penalty) for penalty in PENALTIES]
    tallies = []
    for model in models:
        tally = metrics.Tally()
        tally.add(trainer.validation.labels, linear_answers(model, choose))
        tallies.append(tally)
    best = max(range(len(models)), key=lambda i: tallies[i].scores(0.5).auc)
    threshold = tallies[best].best_threshold()
    found = metrics.evaluate(test.labels, linear_answers(models[best], judge), threshold)
    return found.as_dict() | {"penalty": PENALTIES[best]}


def deployed(samples: Samples, test: Samples, path: Path, out: Path) -> dict[str, Any]:
    """Build at int8, verify and score the artifact; and its word on one slope, still and moving."""
    model, network = checkpoint.load(path)
    learned = Calibration.of(samples, model, HELD)
    recipe = plain("onnx", "int8")
    receipt = build(model, network, board=BOARD, out=out, recipe=recipe, data=learned, say=lambda _: None)
    found = examine(out, None)
    assert found.artifact is not None
    assert found.session is not None
    assert found.golden is not None
    assert test.sensors is not None
    calm = test.sensors[int(np.argmin(test.sensors[:, SENSORS.index("extensometer_velocity")]))]
    index = int(np.flatnonzero(test.positive)[0])
    said = {
        what: predict(found.session, found.artifact.manifest, test.images[index], readings).probability
        for what, readings in (("its own readings", test.sensors[index]), ("the slowest slope's readings", calm))
    }
    return {
        "board": BOARD,
        "precision": "int8",
        "model_bytes": receipt["model_bytes"],
        "macs": receipt["cost"]["macs"],
        "verified": found.refusal is None,
        "golden": asdict(found.golden),
        "scores": evaluate(out, test, None).as_dict(),
        "one_hazardous_slope": {what: round(value, 4) for what, value in said.items()},
    }


def run(samples: Samples, request: Request, seeds: int) -> dict[str, Any]:
    """Everything of the result but its command; runs lie in folders beside `request.out`."""
    assert samples.folds is not None
    test = samples.take(np.flatnonzero(samples.folds == int(HELD)))
    scores: dict[str, list[dict[str, Any]]] = {"image and sensors": [], "image alone": [], "sensors alone, linear": []}
    paths = []
    for seed in range(seeds):
        for joined, name in ((True, "image and sensors"), (False, "image alone")):
            folder = request.out / f"{'joined' if joined else 'image'}-seed{seed}"
            path = trained(samples, replace(request, out=folder, seed=seed, sensors=joined))
            scores[name].append(evaluate(path, test, None).as_dict())
            paths += [path] if joined else []
        scores["sensors alone, linear"].append(linear_scores(samples, test, replace(request, seed=seed)))
    return {
        "data": samples.digest,
        "samples": len(samples),
        "judged": len(test),
        "hazardous": float(samples.positive.mean()),
        "request": {key: value for key, value in asdict(request).items() if key not in ("out", "start")},
        "seeds": seeds,
        "threads": torch.get_num_threads(),
        "scores": scores,
        "artifact": deployed(samples, test, paths[0], request.out / "joined-int8.highwall"),
    }


def table(result: dict[str, Any]) -> str:
    """Markdown: a row a model, mean and spread over the seeds, then the artifact of the first seed."""
    lines = ["| learns from | " + " | ".join(each.replace("_", " ") for each in SHOWN) + " |"]
    lines.append("| --- " * (len(SHOWN) + 1) + "|")
    for name, runs in result["scores"].items():
        cells = []
        for column in SHOWN:
            values = [one[column] for one in runs]
            cells.append(f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else ""))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    found = result["artifact"]
    cells = [f"{found['scores'][column]:.3f}" for column in SHOWN]
    lines.append(
        f"| image and sensors, int8 artifact of seed 0, {found['model_bytes']:,} bytes | " + " | ".join(cells) + " |"
    )
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark and keep its result, or only print what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1600, help="slopes, a fifth of them to judge by")
    parser.add_argument("--size", type=int, default=32, help="pixels a side")
    parser.add_argument("--width", type=int, default=12)
    parser.add_argument("--growth", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs") / "sensors")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--table", action="store_true", help="run nothing")
    args = parser.parse_args()
    out = args.results / "slopes.json"
    if not args.table:
        torch.set_num_threads(args.threads)
        request = Request(
            "classify",
            args.runs,
            slice_size=args.size,
            width=args.width,
            growth=args.growth,
            held=HELD,
            epochs=args.epochs,
            batch=32,
        )
        given = ("count", "size", "width", "growth", "epochs", "seeds", "threads")
        command = "python -m benchmarks.sensors " + " ".join(f"--{name} {getattr(args, name)}" for name in given)
        result = {"command": command} | run(slopes(args.count, args.size), request, args.seeds)
        write_text(out, json.dumps(result, indent=1) + "\n")
    if not out.is_file():
        parser.error(f"{out} is not there; run the benchmark first")
    result = json.loads(out.read_text())
    print(json.dumps(result) if args.json else table(result))


if __name__ == "__main__":
    script(main)
