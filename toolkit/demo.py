"""The main job in one command: shipped weights to a verified Pi 4B artifact, and predictions to look at."""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from targets.runtime import artifact, golden
from targets.runtime.engine import open_session
from targets.runtime.files import atomic_write, write_text
from targets.runtime.overlay import draw_overlay
from targets.runtime.predict import label, predict
from toolkit import checkpoint
from toolkit.build import build
from toolkit.calibration import Calibration
from toolkit.data.folder import read
from toolkit.data.samples import Samples
from toolkit.data.synthetic import mine_chips
from toolkit.models import weights
from toolkit.quantize.recipes import plain
from toolkit.receipt import summary

BOARD = "rpi4b"
SHOWN = 6  # images in a row of the picture: one row a kind and label


@dataclass(frozen=True)
class Shown:
    """One kind of images to predict on: where they are from, and some of each label."""

    title: str
    samples: Samples


def real_chips() -> Samples | None:
    """The real chips under $HIGHWALL_DATA (default: ../shared/data), where there are any."""
    folder = Path(os.environ.get("HIGHWALL_DATA", "../shared/data")) / "mine_chips"
    return read(folder) if folder.is_dir() else None


def run(out: Path, say: Callable[[str], None], step: Callable[[str], None]) -> int:
    """Build, verify, predict and draw into `out`; returns 0 when the golden vectors passed.

    `say` gets what is to be read, `step` what is being waited for.
    """
    started = time.perf_counter()
    model, network = checkpoint.load(weights("mine"))
    step("draw generated chips")
    generated = mine_chips(240, seed=2023)
    real = real_chips()
    say(f"network      {model.name}, {model.network.slice_size}x{model.network.slice_size} px, trained on real chips")
    source = "generated chips" if real is None else "real chips"
    say(f"calibration  {source}, ranges from one part, accuracy from another")
    path = out / "mine.highwall"
    data = Calibration.of(generated if real is None else real, model)
    receipt = build(model, network, board=BOARD, out=path, recipe=plain("onnx", "int8"), data=data, say=step)
    for line in summary(receipt):
        say(f"built        {line}")
    built = artifact.read(path)
    session = open_session(built.manifest.runtime, built.model)
    report = golden.check(built, session)
    passed = "pass" if report.passed else "FAIL"
    say(f"verified     {report.n} golden vectors {passed}, off by {report.max_difference:.2g} at most")
    write_text(out / "receipt.json", json.dumps(receipt, indent=2, sort_keys=True) + "\n")
    strips: list[NDArray[np.uint8]] = []
    for shown in [Shown("generated", generated)] + ([] if real is None else [Shown("real", real)]):
        right = 0
        for positive in (True, False):
            strip = []
            for i in _pick(shown.samples, positive):
                image = shown.samples.images[i]
                found = predict(session, built.manifest, image)
                right += found.positive == positive
                word, truth = label(built.manifest, found.positive), label(built.manifest, positive)
                verdict = word if word == truth else f"{word}, labelled {truth},"
                strip.append(np.asarray(draw_overlay(image, found, verdict)))
            strips.append(np.concatenate(strip, 1))
        say(f"predicted    {2 * SHOWN} {shown.title} chips, {right} as labelled")
    with atomic_write(out / "predictions.png") as partial:
        Image.fromarray(np.concatenate(strips)).save(partial, format="PNG")
    say(f"wrote        {path}, receipt.json and predictions.png in {time.perf_counter() - started:.0f} s")
    here = sys.argv[0] if sys.argv[0].endswith("highwall") and not shutil.which("highwall") else "highwall"
    say(f"next         {here} predict {path} YOUR.png --overlay {out}    (or: {here} train --help)")
    return 0 if report.passed else 1


def _pick(samples: Samples, positive: bool) -> list[int]:
    """Evenly spaced samples of one label."""
    there = np.flatnonzero(samples.positive == positive)
    return [int(there[i]) for i in np.linspace(0, len(there) - 1, SHOWN).astype(int)]
