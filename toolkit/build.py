"""From a checkpoint to an artifact: export, quantize, compare with torch, score, write, step by step."""

import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from targets.board import load_board
from targets.runtime import artifact, golden
from targets.runtime.engine import Engine, open_session
from targets.runtime.errors import HighwallError
from targets.runtime.manifest import InputSpec, Manifest
from toolkit import cost
from toolkit.calibration import Calibration
from toolkit.checkpoint import Model, digest
from toolkit.data.samples import Samples
from toolkit.export import onnx
from toolkit.metrics import Scores, Tally
from toolkit.models import example
from toolkit.quantize import int8

SEEDS = (1, 2, 3, 4)
MAP_STRIDE = 7  # golden maps keep every 7th row and column: odd, so that no 2x2 pattern hides

# The largest difference between this machine's golden outputs and a board's that is still a match. Float
# kernels differ in the order of their sums; int8 ones by at most one step of the last activation.
TOLERANCE = {"fp32": 1e-4, "int8": 0.02}
# How far a built model may stray from torch before the build is refused: a float one in any number, an int8
# one on average over real images. One pixel of a map, or an image of noise, may change sides for good reasons.
FLOAT_PARITY, INT8_DRIFT = 1e-3, 0.2

Images = NDArray[Any]


@dataclass(frozen=True)
class Compiled:
    """A model in its engine's format, and what was learned on the way."""

    model: bytes
    parity: float  # largest difference from torch over the golden inputs
    float_model: bytes


def input_spec(model: Model) -> InputSpec:
    """What the artifact says of its input; the arithmetic itself is inside the graph."""
    side = model.network.slice_size
    return InputSpec(
        height=side,
        width=side,
        bands=model.network.bands,
        dtype=model.dtype,  # type: ignore[arg-type]
        scale=tuple(1 / std for std in model.std),
        offset=tuple(-mean / std for mean, std in zip(model.mean, model.std, strict=True)),
        sensors=model.network.sensors,
    )


def compile_model(
    model: Model, network: nn.Module, precision: str, calibration: Images | None, say: Callable[[str], None]
) -> Compiled:
    """Export, quantize when asked, and hold the result against torch on the golden inputs."""
    if precision not in TOLERANCE:
        raise HighwallError(f"precision {precision!r} is unknown; choose fp32 or int8")
    if precision == "int8" and calibration is None:
        raise HighwallError("int8 needs --calibration DIR: images like those the board will see")
    say("export to ONNX")
    exported = onnx.export(model, network)
    result = exported
    if precision == "int8" and calibration is not None:
        say(f"quantize to int8, calibrated on {len(calibration)} images")
        result = int8.quantize(exported, list(calibration))
    say("compare with torch")
    parity = compare(model, network, result, calibration)
    if precision == "fp32" and not parity.largest <= FLOAT_PARITY:
        raise HighwallError(
            f"the exported model is {parity.largest:.3g} off torch, more than {FLOAT_PARITY:g}; "
            "it uses an operator that its engine computes otherwise"
        )
    if precision == "int8" and not parity.mean_on_real <= INT8_DRIFT:
        raise HighwallError(
            f"the int8 model is {parity.mean_on_real:.3g} off torch on average, more than {INT8_DRIFT:g}; "
            "build it at --precision fp32, or calibrate on images like the training ones"
        )
    return Compiled(result, parity.largest, exported)


@dataclass(frozen=True)
class Parity:
    """Differences in probability from torch: the largest of all, and the mean over real images (0: none)."""

    largest: float
    mean_on_real: float


def compare(model: Model, network: nn.Module, compiled: bytes, real: Images | None) -> Parity:
    """The compiled model beside torch, on the golden inputs."""
    session, spec = open_session("onnx", compiled), input_spec(model)
    images = [golden.seeded_image(seed, spec) for seed in SEEDS] + list([] if real is None else real[:4])
    largest, real_means = 0.0, [0.0]
    for index, image in enumerate(images):
        sensors = golden.sensor_features(index, spec)
        difference = session.run(image, sensors) - onnx.run_torch(model, network, image, sensors)
        largest = float(np.maximum(largest, np.abs(difference).max()))  # NaN stays
        if index >= len(SEEDS):
            real_means.append(float(np.abs(difference).mean()))
    return Parity(largest, max(real_means))


def judge(session: Engine, samples: Samples, threshold: float) -> Scores:
    """Run every sample, of the model's size and of two labels, through the engine and score it."""
    tally = Tally()
    for image, label in zip(samples.images, samples.labels, strict=True):
        probability = session.run(image)
        if samples.task == "classify":
            tally.add(label, probability[-1])
        else:
            tally.add_pixels(label, probability)
    return tally.scores(threshold)


def build(
    model: Model,
    network: nn.Module,
    board: str,
    out: Path,
    precision: str,
    data: Calibration | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Compile `model` for `board` and write the artifact to `out`; returns its receipt.

    Raises HighwallError before anything is written when a part does not fit; `out` is whole or absent.
    """
    started = time.perf_counter()
    target = load_board(board)
    calibration, judged = (data.images, data.judged) if data is not None else (None, None)
    compiled = compile_model(model, network, precision, calibration, say)
    accuracy: dict[str, Any] = {}
    if judged is not None:
        members = {"fp32": compiled.float_model, precision: compiled.model}
        for name, member in members.items():
            say(f"score {len(judged)} labelled images at {name}")
            accuracy[name] = judge(open_session("onnx", member), judged, model.threshold).as_dict()
    spec = input_spec(model)
    session = open_session("onnx", compiled.model)
    real = None if calibration is None else calibration[: 4 if model.network.task == "classify" else 1]
    vectors = golden.make(
        session,
        spec,
        SEEDS if model.network.task == "classify" else SEEDS[:2],
        real,
        stride=1 if model.network.task == "classify" else MAP_STRIDE,
        tolerance=TOLERANCE[precision],
    )
    counted = cost.measure(network, *example(model))
    receipt = {
        "precision": precision,
        "board": target.name,
        "model_bytes": len(compiled.model),
        "float_model_bytes": len(compiled.float_model),
        # Torch sums in an order that depends on its threads; two digits do not.
        "parity_error": float(f"{compiled.parity:.1e}"),
        "accuracy": accuracy,
        "cost": counted.as_dict(),
    }
    side = model.network.slice_size
    manifest = Manifest(
        name=model.name,
        task=model.network.task,
        model_version=1,
        input=spec,
        output_shape=(side, side) if model.network.task == "segment" else vectors.expected.shape[1:],
        threshold=model.threshold,
        labels=model.labels,
        board=target.name,
        runtime="onnx",
        recipe={"name": f"onnx-{precision}" + ("-minmax" if precision == "int8" else "")},
        provenance=_provenance(model, network, data),
    )
    say(f"write {out}")
    artifact.write(out, manifest, compiled.model, vectors, receipt)
    say(f"built in {time.perf_counter() - started:.1f} s")
    return receipt


def _provenance(model: Model, network: nn.Module, data: Calibration | None) -> dict[str, Any]:
    """What went in: enough to repeat the build, and nothing that differs from one machine to the next."""
    packages = ("torch", "onnx", "onnxruntime", "numpy")
    return {
        "weights_sha256": digest(network.state_dict()),
        "calibration_sha256": None if data is None else data.digest,
        "network": asdict(model.network),
        "training": model.provenance,
        "packages": {name: version(name).split("+")[0] for name in packages},
        "python": platform.python_version(),
    }


def summary(receipt: dict[str, Any]) -> list[str]:
    """A receipt's figures for people: size, parity, MACs, accuracy before and after."""
    counted = receipt["cost"]
    lines = [
        f"{receipt['precision']} model {receipt['model_bytes'] / 1000:,.0f} kB "
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
