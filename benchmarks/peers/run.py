"""Our artifact against each peer: converted in the peer's environment, timed turn by turn, judged by its answers."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.peer import Peer, environment, load, version
from benchmarks.peers.table import SHIPPED, read_result
from benchmarks.suite.turns import ROOT, Player, take_turns
from targets.runtime.engine import open_session
from targets.runtime.errors import HighwallError, plain
from targets.runtime.files import write_text
from targets.runtime.machine import this_machine
from toolkit.calibration import Calibration
from toolkit.compiler import Compiler
from toolkit.data.folder import read
from toolkit.data.samples import Samples
from toolkit.data.synthetic import crack_images, mine_chips
from toolkit.export.onnx import export
from toolkit.metrics import Tally
from toolkit.models import find, weights
from toolkit.quantize.recipes import recipe

NETWORKS: Final = {"mine": "mine_chips", "crack": "cracks"}  # and the folder of their data
GENERATED: Final[dict[str, Callable[[int], Samples]]] = {"mine": mine_chips, "crack": crack_images}
RECIPES: Final = ("tflite-int8w", "tflite-fp32", "tflite-int8-minmax", "onnx-fp32", "onnx-int8-minmax")
CALIBRATED, JUDGED = {"mine": 128, "crack": 16}, {"mine": 400, "crack": 24}  # images
CONVERT_S: Final = 900.0
Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """One network with what everyone gets: the checkpoint's folder, images to judge by, and torch's own answers."""

    network: str
    source: Path
    images: NDArray[Any]
    samples: Samples
    reference: NDArray[np.float32]
    spec: str  # H,W,C,dtype
    compiler: Compiler
    data: str


def prepare(network: str, folder: Path, data: Path | None, say: Say) -> Job:
    """Write what a peer converts from. Without `data` its images are generated."""
    model, module = find(network)
    if data is None:
        samples = GENERATED[network](CALIBRATED[network] + JUDGED[network])
    else:
        samples = read(data / NETWORKS[network])
    calibration = Calibration.of(samples, model)
    assert calibration.judged is not None
    judged = calibration.judged.take(_some(len(calibration.judged), JUDGED[network]))
    source = folder / network
    source.mkdir(parents=True)
    say(f"{network}: exporting")
    (source / "model.onnx").write_bytes(export(model, module))
    (source / "model.safetensors").write_bytes(weights(network).read_bytes())
    np.save(source / "images.npy", calibration.images[: CALIBRATED[network]])
    np.save(source / "judged.npy", judged.images)
    compiler = Compiler(model, module, replace(calibration, judged=None), say=say)
    side, bands = model.network.slice_size, model.network.bands
    session = open_session("onnx", (source / "model.onnx").read_bytes())
    reference = np.stack([session.run(image) for image in judged.images])
    words = f"{side},{side},{bands},{model.dtype}"
    return Job(network, source, judged.images, judged, reference, words, compiler, samples.digest)


def _some(count: int, wanted: int) -> NDArray[np.int64]:
    """Evenly spread over all there are, so that every source and both labels are among them."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).astype(np.int64))


def run(
    jobs: Sequence[str],
    peers: Sequence[str],
    threads: Sequence[int],
    seconds: float,
    data: Path | None,
    results: Path,
    command: str,
    say: Say,
    again: bool = False,
) -> dict[str, dict[str, Any]]:
    """Measure what `results` does not hold yet; one NETWORK.json each, written cell by cell.

    A peer that fails is a cell with its reason. Raises HighwallError where the data or a result cannot be read.
    """
    found = {}
    for network in jobs:
        with tempfile.TemporaryDirectory(prefix="highwall-peers-") as folder:
            found[network] = _Run(prepare(network, Path(folder), data, say), results, command, seconds, say, again)(
                peers, threads
            )
    return found


class _Run:
    """One network's run."""

    def __init__(self, job: Job, results: Path, command: str, seconds: float, say: Say, again: bool) -> None:
        self.job, self.path, self.seconds, self.say = job, results / f"{job.network}.json", seconds, say
        self.folder = job.source.parent
        made = hashlib.sha256((job.source / "model.onnx").read_bytes()).hexdigest()
        identity = {"machine": asdict(this_machine()), "model_sha256": made, "data": job.data, "seconds": seconds}
        before = {} if again else read_result(self.path)
        same = before and {name: before.get(name) for name in identity} == json.loads(json.dumps(identity))
        self.result: dict[str, Any] = (
            before if same else {"command": command, "network": job.network, **identity, "cells": {}}
        )
        self.models: dict[str, Path] = {}
        self.judged: dict[str, dict[str, float]] = {}

    def __call__(self, peers: Sequence[str], threads: Sequence[int]) -> dict[str, Any]:
        self.result["reference"] = self._judge(self.job.reference)
        for count in threads:
            for name in RECIPES:
                self._cell(f"highwall {name}", count, partial(self._ours, name, count))
        for name in peers:
            peer = load(name)
            for precision in (*peer.PRECISIONS, *peer.GAPS):
                for count in threads:
                    title = f"{peer.TITLE} {precision}"
                    self._cell(title, count, partial(self._theirs, name, peer, precision, count))
        return self.result

    def _cell(self, title: str, threads: int, measure: Callable[[], dict[str, Any]]) -> None:
        key = f"{title}, {threads}"
        there = self.result["cells"].get(key)
        if there is not None and ("gap" in there or ("p50_ms" in there and not there["noise"])):
            return
        try:
            cell = measure()
        except HighwallError as error:
            cell = {"reason": str(error)}
        self.result["cells"][key] = {"title": title, "threads": threads} | cell
        write_text(self.path, json.dumps(self.result, indent=1) + "\n")
        said = cell.get("reason") or cell.get("gap") or f"p50 {cell['p50_ms']:.4g} ms, {cell['ratio']:.3g} times ours"
        self.say(f"{self.job.network}: {key} threads: {said}{'; '.join(['', *cell.get('noise', [])])}")

    def _ours(self, name: str, threads: int) -> dict[str, Any]:
        path = self._artifact(name)
        if name not in self.judged:
            session = open_session(recipe(name).runtime, path.read_bytes())
            self.judged[name] = self._judge(np.stack([session.run(image) for image in self.job.images]))
        facts = {"precision": name.partition("-")[2], "version": "", "model_bytes": path.stat().st_size}
        theirs = None if name == SHIPPED else self._player(name, threads)
        return facts | self._timed(theirs, threads) | self.judged[name]

    def _theirs(self, name: str, peer: Peer, precision: str, threads: int) -> dict[str, Any]:
        facts = {
            "precision": precision,
            "version": version(peer.PACKAGES, peer.TITLE),
            "settings": peer.SETTINGS,
            "packages": list(peer.PACKAGES),
        }
        if precision in peer.GAPS:
            return facts | {"gap": peer.GAPS[precision]}
        python = str(environment(name, peer.PACKAGES, self.say))
        model = self.folder / f"{self.job.network}-{name}-{precision.replace(' ', '-')}.model"
        worker = [python, "-m", "benchmarks.peers.worker"]
        if not model.exists():
            self.say(f"{self.job.network}: converting for {peer.TITLE} at {precision}")
            convert = [*worker, "convert", name, str(self.job.source), precision, str(model)]
            _call(convert, f"{peer.TITLE} cannot convert")
        images, answers = self.job.source / "judged.npy", model.with_suffix(".answers.npy")
        if not answers.exists():
            _call([*worker, "answer", name, str(model), "1", str(images), str(answers)], f"{peer.TITLE} cannot run")
        player = Player(peer.TITLE, [*worker, "serve", name, str(model), str(threads), str(images)])
        size = sum(path.stat().st_size for path in self.folder.glob(f"{model.stem}.*") if path.suffix != ".npy")
        return facts | {"model_bytes": size} | self._timed(player, threads) | self._judge(np.load(answers))

    def _timed(self, theirs: Player | None, threads: int) -> dict[str, Any]:
        ours = self._player(SHIPPED, threads)
        if theirs is None:
            with ours:
                turns = take_turns([ours], self.seconds, threads)
            name = ours.name
        else:
            with theirs, ours:
                turns = take_turns([ours, theirs], self.seconds, threads)
            name = theirs.name
        against = turns.ratio(name, ours.name)
        return asdict(turns.players[name]) | {
            "ours_p50_ms": turns.players[ours.name].p50_ms,
            "ratio": against.ratio,
            "ratio_interval": list(against.interval),
            "noise": list(turns.noise),
        }

    def _player(self, name: str, threads: int) -> Player:
        path = self._artifact(name)
        command = [sys.executable, "-P", "-m", "benchmarks.suite.worker", recipe(name).runtime, str(path)]
        return Player(f"ours, {name}", [*command, str(threads), self.job.spec])

    def _artifact(self, name: str) -> Path:
        if name not in self.models:
            self.say(f"{self.job.network}: compiling {name}")
            path = self.folder / f"{self.job.network}-{name}"
            path.write_bytes(self.job.compiler.candidate(recipe(name)).model)
            self.models[name] = path
        return self.models[name]

    def _judge(self, answers: NDArray[Any]) -> dict[str, float]:
        """Against the labels, and against the float model's answers."""
        answers = answers.reshape(self.job.reference.shape)
        tally = Tally()
        if self.job.network == "mine":
            tally.add(self.job.samples.labels, answers[:, -1])
        else:
            for mask, answer in zip(self.job.samples.labels, answers, strict=True):
                tally.add_pixels(mask, answer)
        scores = tally.scores(self.job.compiler.model.threshold)
        off = np.abs(answers - self.job.reference)
        return {
            "auc": round(scores.auc, 5),
            "f1": round(scores.f1, 5),
            "mean_difference": float(f"{off.mean():.3g}"),
            "largest_difference": float(f"{off.max():.3g}"),
        }


def _call(command: list[str], what: str) -> None:
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=CONVERT_S,
            env=os.environ | {"PYTHONPATH": paths},
        )
    except subprocess.TimeoutExpired as error:
        raise HighwallError(f"{what} within {CONVERT_S:g} s") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"])[-1]
        raise HighwallError(f"{what}: {plain(last)[:200]}")
