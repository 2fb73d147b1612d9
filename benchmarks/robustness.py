"""What dust, haze, blur, noise, light, JPEG and a moved camera cost each model: the worst row is what to plan for.

    python -m benchmarks.robustness fp32.highwall int8.highwall --data DIR --fold 0 --json robustness.json

Checkpoints are scored in torch, artifacts in the engine the gateway uses, each at the threshold it ships with, all on
the same corrupted images. Every figure is written to --json when it is known; a killed run goes on from there.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from benchmarks.script import script
from targets.runtime.errors import HighwallError
from targets.runtime.files import atomic_write, write_text
from toolkit.calibration import draw
from toolkit.data.corrupt import KINDS, STRENGTHS, corrupt, corrupted, possible
from toolkit.data.folder import read
from toolkit.data.samples import Samples
from toolkit.data.split import hold_out
from toolkit.evaluate import answered
from toolkit.models import locate

METRICS = {"f1": "F1", "recall": "recall", "precision": "precision", "auc": "AUC"}
CLEAN = "clean"
COLOURS = ("#1d4ed8", "#c2410c", "#0f766e", "#6d28d9", "#a16207", "#be185d")
SEED = 0

Result = dict[str, Any]  # what lies in --json: settings, models, scores[model][condition]


def conditions(dtype: str) -> list[str]:
    """`clean`, then `KIND STRENGTH` of every corruption that pixels of `dtype` can have."""
    return [CLEAN] + [f"{kind} {strength}" for kind in KINDS if possible(kind, dtype) for strength in STRENGTHS]


def begin(samples: Samples, models: dict[str, Path], fold: str | None, limit: int | None, out: Path | None) -> Result:
    """What `out` holds already, or an empty result. Raises HighwallError where it was made of something else."""
    settings: dict[str, Any] = {"data": samples.digest, "fold": fold, "limit": limit, "n": len(samples), "seed": SEED}
    settings["amounts"] = {kind: list(KINDS[kind].amounts) for kind in KINDS}
    result: Result = {"settings": settings, "models": {}, "scores": {}}
    if out is not None and out.exists():
        result = _kept(out)
        different = [key for key, value in settings.items() if result["settings"].get(key) != value]
        if different:
            raise HighwallError(f"{out} was made with another {', '.join(different)}; choose another --json")
    for name, path in models.items():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if result["models"].setdefault(name, digest) != digest:
            raise HighwallError(f"{out} holds another {name}; choose another --json, or rename the model")
        result["scores"].setdefault(name, {})
    return result


def _kept(path: Path) -> Result:
    """What an earlier run wrote there. Raises HighwallError where it is something else."""
    try:
        result: Result = json.loads(path.read_text(encoding="utf-8"))
        whole = all(isinstance(result[key], dict) for key in ("settings", "models", "scores"))
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise HighwallError(f"{path} is no result of this command, or damaged; choose another --json")
    return result


def run(samples: Samples, models: dict[str, Path], result: Result) -> Iterator[None]:
    """Fill `result` in, one model under one condition at a time; yields after each so that it may be kept."""
    names = conditions(str(samples.images.dtype))
    missing = [(c, m) for c in names for m in models if c not in result["scores"][m]]
    made, condition_made = samples, CLEAN
    for condition, model in tqdm(missing, desc="conditions", leave=False, disable=None):
        if condition != condition_made:
            kind, _, strength = condition.partition(" ")
            made, condition_made = corrupted(samples, kind, int(strength), SEED), condition
        tally, threshold = answered(models[model], made)
        scores = tally.scores(threshold).as_dict()
        result["scores"][model][condition] = {key: round(scores[key], 6) for key in (*METRICS, "threshold", "n")}
        yield


def table(result: Result) -> str:
    """Markdown: a row a condition, four figures a model; then the worst row of each."""
    models = [name for name in result["models"] if result["scores"][name]]
    if not models:
        return "nothing is measured yet"
    rows = dict.fromkeys(condition for name in models for condition in result["scores"][name])
    heads = [
        "corruption",
        *(f"{name}, {word}" for name in models for word in METRICS.values()),
    ]
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for row in rows:
        cells = [
            f"{result['scores'][name][row][metric]:.3f}" if row in result["scores"][name] else "-"
            for name in models
            for metric in METRICS
        ]
        lines.append("| " + " | ".join([row, *cells]) + " |")
    return "\n".join([*lines, "", *(worst(result, name) for name in models)])


def worst(result: Result, model: str) -> str:
    """One sentence: where this model's F1 is lowest, beside what it is on clean images."""
    scores = result["scores"][model]
    row = min(scores, key=lambda condition: (scores[condition]["f1"], condition))
    clean = scores.get(CLEAN)
    beside = "" if clean is None else f" (clean: {clean['f1']:.3f}, {clean['recall']:.3f})"
    return f"Worst of {model}: {row}, F1 {scores[row]['f1']:.3f}, recall {scores[row]['recall']:.3f}{beside}."


LABELS, BAR, ROW, MARGIN = 90, 420, 9, 14


def picture(result: Result, path: Path) -> None:
    """Write a PNG: F1 as a bar a model under every condition; a thin line is the same model on clean images."""
    models = [name for name in result["models"] if result["scores"][name]]
    rows = list(dict.fromkeys(condition for name in models for condition in result["scores"][name]))
    tall = ROW * len(models) + 8
    size = (LABELS + BAR + 3 * MARGIN, MARGIN * (len(models) + 2) + tall * len(rows) + MARGIN)
    image = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(image)
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(models)}
    for i, name in enumerate(models):
        pen.rectangle((MARGIN, MARGIN * (i + 1) + 2, MARGIN + 9, MARGIN * (i + 1) + 10), fill=colours[name])
        pen.text((MARGIN + 14, MARGIN * (i + 1)), f"{name}: F1, line: clean", fill="black")
    top = MARGIN * (len(models) + 2)
    for tenth in range(0, 11, 2):
        x = LABELS + BAR * tenth / 10
        pen.line((x, top, x, top + tall * len(rows)), fill="#e5e7eb")
        pen.text((x - 8, top + tall * len(rows)), f"{tenth / 10:.1f}", fill="black")
    for i, row in enumerate(rows):
        y = top + i * tall
        pen.text((MARGIN, y), row, fill="black")
        for j, name in enumerate(models):
            if row in result["scores"][name]:
                f1 = result["scores"][name][row]["f1"]
                pen.rectangle(
                    (LABELS, y + j * ROW, LABELS + max(1, BAR * f1), y + j * ROW + ROW - 2), fill=colours[name]
                )
    for name in models:
        if CLEAN in result["scores"][name]:
            x = LABELS + BAR * result["scores"][name][CLEAN]["f1"]
            pen.line((x, top, x, top + tall * len(rows)), fill=colours[name])
    with atomic_write(path) as partial:
        image.save(partial, format="PNG")


def sheet(samples: Samples, path: Path, side: int = 176) -> None:
    """Write a PNG of the first positive image under every corruption, a row a kind, clean on the left."""
    image = samples.images[int(np.argmax(samples.positive))]
    kinds = [kind for kind in KINDS if possible(kind, str(image.dtype))]
    made = Image.new("RGB", (4 * side, len(kinds) * (side + MARGIN)), "white")
    pen = ImageDraw.Draw(made)
    for i, kind in enumerate(kinds):
        pen.text((4, i * (side + MARGIN)), f"{kind}: none, then strengths 1 to 3", fill="black")
        for j, seen in enumerate([image, *(corrupt(image, kind, strength, SEED) for strength in STRENGTHS)]):
            # Three bands or one; 12-bit reflectance of bright ground is about 3000.
            shown = seen[..., :3] if seen.shape[2] >= 3 else seen[..., :1].repeat(3, 2)
            shown = shown if seen.dtype == np.uint8 else (shown / (3000 / 255)).clip(0, 255).astype(np.uint8)
            made.paste(
                Image.fromarray(np.ascontiguousarray(shown)).resize((side, side)),
                (j * side, i * (side + MARGIN) + MARGIN),
            )
    with atomic_write(path) as partial:
        made.save(partial, format="PNG")


def _models(specs: list[str]) -> dict[str, Path]:
    """Files by a short name: the file's own, or the run's folder's."""
    found: dict[str, Path] = {}
    for spec in specs:
        path = locate(spec)
        name = path.name if path.is_dir() else path.stem
        path = path / "checkpoint.safetensors" if path.is_dir() else path
        if not path.is_file():
            raise HighwallError(f"no model at {path}; give a checkpoint, a run's folder, an artifact, mine or crack")
        if name in found:
            raise HighwallError(f"two models are called {name}; rename one of them")
        found[name] = path
    return found


def _carry_out(args: argparse.Namespace) -> None:
    models = _models(args.models)
    samples = read(args.data)
    if args.fold is not None:
        samples = samples.take(hold_out(samples, "fold", args.fold, 0)[1])
    if args.limit is not None:
        samples = samples.take(draw(samples.positive, args.limit))
    if args.sheet is not None:
        sheet(samples, args.sheet)
    if not models:
        return
    result = begin(samples, models, args.fold, args.limit, args.json)
    for _ in run(samples, models, result):
        if args.json is not None:
            write_text(args.json, json.dumps(result, indent=1) + "\n")
    if args.picture is not None:
        picture(result, args.picture)
    print(table(result))


def main() -> None:
    """Measure what is missing and print the table of all that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="artifacts, checkpoints, runs, mine or crack")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--fold", help="corrupt this fold only: the one the models held out")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N images, drawn with labels in proportion")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep every figure here, and go on from it")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="draw F1 under every corruption")
    parser.add_argument("--sheet", type=Path, metavar="FILE.png", help="draw every corruption of one image")
    args = parser.parse_args()
    if not args.models and args.sheet is None:
        parser.error("name a model to measure, or a --sheet to draw")
    if args.limit is not None and args.limit < 2:
        parser.error("--limit must be at least 2")
    _carry_out(args)


if __name__ == "__main__":
    script(main)
