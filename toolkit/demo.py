"""The main job in one command: shipped weights to a verified Pi 4B artifact, and predictions to look at."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from targets.runtime import artifact, golden
from targets.runtime.engine import open_session
from targets.runtime.errors import HighwallError
from targets.runtime.files import atomic_write, write_text
from targets.runtime.overlay import draw_overlay
from targets.runtime.predict import label, predict
from toolkit import checkpoint
from toolkit.build import Calibration, build, summary
from toolkit.data.folder import read
from toolkit.data.samples import Samples
from toolkit.data.synthetic import mine_chips

BOARD = "rpi4b"
SHOWN = 6  # images of each label and kind in the picture


@dataclass(frozen=True)
class Shown:
    """One kind of images to predict on: where they are from, and some of each label."""

    title: str
    samples: Samples


def weights(name: str) -> Path:
    """The checkpoint of a shipped network, `mine` or `crack`."""
    path = Path(str(files("toolkit"))) / "weights" / f"{name}.safetensors"
    if not path.is_file():
        raise HighwallError(f"no weights are shipped as {name}; choose mine or crack")
    return path


def real_chips() -> Samples | None:
    """The real chips under $HIGHWALL_DATA (default: ../shared/data), where there are any."""
    folder = Path(os.environ.get("HIGHWALL_DATA", "../shared/data")) / "mine_chips"
    return read(folder) if folder.is_dir() else None


def run(out: Path, say: Callable[[str], None]) -> int:
    """Build, verify, predict and draw into `out`; returns 0 when the golden vectors passed."""
    started = time.perf_counter()
    model, network = checkpoint.load(weights("mine"))
    generated = mine_chips(240, seed=2023)
    real = real_chips()
    say(f"network      {model.name}, {model.network.slice_size}x{model.network.slice_size} px, trained on real chips")
    source = "generated chips" if real is None else "real chips"
    say(f"calibration  {source}, ranges from one part, accuracy from another")
    path = out / "mine.highwall"
    data = Calibration.of(generated if real is None else real, model)
    receipt = build(model, network, board=BOARD, out=path, precision="int8", data=data, say=lambda _: None)
    for line in summary(receipt):
        say(f"built        {line}")
    built = artifact.read(path)
    session = open_session(built.manifest.runtime, built.model)
    report = golden.check(built, session)
    verdict = "pass" if report.passed else "FAIL"
    say(f"verified     {report.n} golden vectors {verdict}, off by {report.max_difference:.2g} at most")
    write_text(out / "receipt.json", json.dumps(receipt, indent=2, sort_keys=True) + "\n")
    rows = [Shown("generated", generated)] + ([] if real is None else [Shown("real", real)])
    cells: list[NDArray[np.uint8]] = []
    for shown in rows:
        picked = _pick(shown.samples)
        right = 0
        row = []
        for i in picked:
            result = predict(session, built.manifest, shown.samples.images[i])
            right += result.positive == bool(shown.samples.positive[i])
            row.append(
                np.asarray(draw_overlay(shown.samples.images[i], result, label(built.manifest, result.positive)))
            )
        cells.append(np.concatenate(row, 1))
        say(f"predicted    {len(picked)} {shown.title} chips, {right} as labelled")
    with atomic_write(out / "predictions.png") as partial:
        Image.fromarray(np.concatenate(cells)).save(partial)
    say(f"wrote        {path}, receipt.json and predictions.png in {time.perf_counter() - started:.0f} s")
    say(f"next         highwall predict {path} YOUR.png --overlay {out}    (or: highwall train --help)")
    return 0 if report.passed else 1


def _pick(samples: Samples) -> list[int]:
    """Evenly spaced samples, positives first."""
    chosen: list[int] = []
    for positive in (True, False):
        there = np.flatnonzero(samples.positive == positive)
        chosen += [int(i) for i in there[np.linspace(0, len(there) - 1, SHOWN).astype(int)]]
    return chosen
