"""What the verbs of this room say of a signature, of an artifact's findings and of a prediction: text and JSON."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from targets.runtime.admit import Findings
from targets.runtime.errors import plain
from targets.runtime.predict import Prediction
from targets.runtime.signing import PublicKey


def key_json(key: PublicKey | None) -> dict[str, str] | None:
    """A key by its label and fingerprint."""
    return None if key is None else {"name": key.name, "fingerprint": key.fingerprint}


def signature_line(key: PublicKey | None) -> str:
    """Who signed, where nobody asked whether that key is trusted."""
    if key is None:
        return "unsigned"
    return f"signed by {key.name} (not checked: give --trust to `highwall verify`), fingerprint {key.fingerprint}"


def findings_json(found: Findings) -> dict[str, Any]:
    """The findings as `highwall verify --json` prints them; a signature nobody checked is not trusted."""
    artifact, report = found.artifact, found.golden
    signer = artifact.signer if artifact else None
    key = found.standing.key if found.standing else signer
    state = found.standing.state if found.standing else "untrusted" if signer else "unsigned"
    result: dict[str, Any] = {
        "ok": found.refusal is None,
        "digests_ok": artifact is not None,
        "signature": state if artifact else None,
        "key": key_json(key),
        "golden": None,
    }
    if artifact:
        result |= {"name": artifact.manifest.name, "runtime": artifact.manifest.runtime}
    if found.standing and found.standing.warning:
        result["warning"] = found.standing.warning
    if report is not None:
        golden = asdict(report)
        if not math.isfinite(report.max_difference):
            golden["max_difference"] = None  # JSON has no word for infinity
        result["golden"] = golden
    if found.refusal is not None:
        result["error"] = found.refusal
    return result


def findings_lines(found: Findings, file: Path, trust: Path | None, over: Path | None) -> list[str]:
    """The findings in an artifact that came as far as its golden vectors, in the order of its way."""
    artifact, report, standing = found.artifact, found.golden, found.standing
    if artifact is None or report is None:
        return []
    lines = [f"{file}: {len(artifact.digests)} members match their SHA-256 digests"]
    if standing is None or standing.key is None:
        lines.append(signature_line(artifact.signer))
    else:
        lines.append(f"signed by {standing.key.name}, trusted by {trust}; fingerprint {standing.key.fingerprint}")
        lines += [f"warning: {standing.warning}"] * bool(standing.warning)
    if over is not None:
        lines.append(f"version {artifact.manifest.model_version} of {artifact.manifest.name} may replace {over}")
    largest = f"{report.max_difference:.3g}" if math.isfinite(report.max_difference) else "not a number"
    lines.append(
        f"{'verified' if report.passed else 'FAILED'}: {report.n} golden vectors in {artifact.manifest.runtime}, "
        f"largest difference {largest}, tolerance {report.tolerance:g}"
    )
    return lines


def prediction_json(path: Path, word: str, prediction: Prediction) -> dict[str, Any]:
    """One image's prediction; `word` is the label for its verdict."""
    record: dict[str, Any] = {
        "image": str(path),
        "probability": prediction.probability,
        "label": word,
        "positive": prediction.positive,
        "threshold": prediction.threshold,
    }
    if prediction.tiles is not None:
        return {**record, "tiles": [asdict(tile) for tile in prediction.tiles]}
    boxes = [asdict(box) for box in prediction.boxes]
    return {**record, "pixels": prediction.pixels, "fraction": prediction.fraction, "boxes": boxes}


def prediction_line(path: Path, word: str, prediction: Prediction) -> str:
    """The same in one line of text."""
    line = f"{path}: {word} {prediction.probability:.3f}"
    if prediction.tiles is None:
        boxes = len(prediction.boxes)
        return f"{line}, {100 * prediction.fraction:.2f} % of pixels, {boxes} box{'' if boxes == 1 else 'es'}"
    if len(prediction.tiles) > 1:
        level = float(np.float32(prediction.threshold))  # as probabilities are, or one on the threshold lies below it
        above = sum(tile.probability >= level for tile in prediction.tiles)
        return f"{line}, {above} of {len(prediction.tiles)} tiles"
    return line


def receipt_lines(receipt: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A receipt for people, as (title, line): what it proves first, then the contract and every candidate.

    A receipt is whatever its builder wrote: what is not there, or of another kind, is passed over.
    """
    lines = []
    if isinstance(receipt.get("model_bytes"), int) and isinstance(receipt.get("parity_error"), float):
        size, off = receipt["model_bytes"] / 1000, receipt["parity_error"]
        lines.append(("receipt", f"{size:,.0f} kB model, at most {off:.2g} off the original network"))
    for precision, scores in _table(receipt.get("accuracy")).items():
        figures = [f"{key} {_plain(_table(scores).get(key))}" for key in ("auc", "f1", "precision", "recall")]
        lines.append((_plain(precision), f"{', '.join(figures)} on {_plain(_table(scores).get('n'))} labels"))
    limits = _table(_table(receipt.get("contract")).get("limits"))
    if limits:
        lines.append(("contract", ", ".join(f"{_plain(key)} {_plain(bound)}" for key, bound in limits.items())))
    candidates = receipt.get("candidates")
    for row in candidates if isinstance(candidates, list) and limits else []:
        lines.append(("", f"{_plain(_table(row).get('recipe'))}: {_plain(_table(row).get('verdict'))}"))
    return lines or [("receipt", "says nothing this Highwall knows")]


def _plain(value: object) -> str:
    """A value on one line: numbers to four digits, and no control character of a stranger's file."""
    return plain(f"{value:.4g}" if isinstance(value, float) else str(value), most=200)


def _table(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
