"""The verbs of this room: boards, inspect, verify, predict."""

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from targets.runtime.errors import HighwallError

if TYPE_CHECKING:
    from targets.runtime.artifact import Artifact
    from targets.runtime.manifest import Manifest
    from targets.runtime.predict import Prediction


def boards_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `highwall boards`."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def boards(args: argparse.Namespace) -> int:
    """List the boards an artifact can be built for."""
    from targets.board import boards as known_boards

    known = known_boards()
    if args.json:
        _print_json([asdict(board) for board in known])
        return 0
    rows: list[tuple[str, ...]] = [
        ("board", "what", "cpu", "cores", "MHz", "MiB", "dot", "fp16", "GFLOP/s", "GOP/s int8", "GB/s")
    ]
    for board in known:
        features, ceilings = board.features, board.ceilings
        numbers = (ceilings.fp32_gflops, ceilings.int8_gops, ceilings.memory_copy_gbs)
        rows.append(
            (
                *(board.name, board.title, board.cpu.split(" @")[0]),
                *(str(number) for number in (board.cores, board.clock_mhz, board.memory_mib)),
                *("yes" if has else "-" for has in (features.dot_product, features.fp16)),
                *("-" if number is None else f"{number:g}" for number in numbers),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def inspect_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `highwall inspect`."""
    parser.add_argument("file", type=Path, metavar="FILE", help="an artifact, NAME.highwall")
    parser.add_argument("--json", action="store_true", help="print JSON: manifest, members, receipt")


def inspect(args: argparse.Namespace) -> int:
    """Show what an artifact holds; only an undamaged one is shown."""
    from targets.runtime.artifact import read

    artifact = read(args.file)
    members: dict[str, dict[str, Any]] = {
        name: {"bytes": size, "sha256": artifact.digests.get(name)} for name, size in artifact.sizes.items()
    }
    manifest = asdict(artifact.manifest)
    if args.json:
        _print_json({"file": str(args.file), "manifest": manifest, "members": members, "receipt": artifact.receipt})
        return 0
    spec = artifact.manifest.input
    shape = f"{spec.height} x {spec.width} x {spec.bands} {spec.dtype}"
    sensors = f" and {spec.sensors} sensor features" if spec.sensors else ""
    print(f"{args.file}: {manifest['name']}, model version {manifest['model_version']}")
    print(f"  task       {manifest['task']} {shape}{sensors}, threshold {manifest['threshold']:g}")
    print(f"  labels     {', '.join(manifest['labels'])}")
    print(f"  made for   {manifest['board']}, runs in {manifest['runtime']}")
    for title in ("recipe", "provenance"):
        print(f"  {title:<10} {_one_line(manifest[title])}")
    print(f"  receipt    {_one_line(artifact.receipt)}")
    golden = artifact.golden
    print(f"  golden     {len(golden.seeds)} seeded, {len(golden.images)} real, tolerance {golden.tolerance:g}")
    for name, member in members.items():
        print(f"  {member['bytes']:>9}  {name:<14} {(member['sha256'] or '')[:16]}")
    return 0


def verify_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `highwall verify`."""
    parser.add_argument("file", type=Path, metavar="FILE", help="an artifact, NAME.highwall")
    parser.add_argument("--json", action="store_true", help="print JSON: ok, digests_ok, golden")


def verify(args: argparse.Namespace) -> int:
    """Check an artifact's digests, then its golden vectors in its engine; 1 where they differ."""
    from targets.runtime.artifact import read

    result: dict[str, Any] = {"file": str(args.file), "ok": False, "digests_ok": False, "golden": None}
    try:
        artifact = read(args.file)
        result["digests_ok"] = True
        golden = _check_golden(artifact)
    except HighwallError as error:
        if not args.json:
            raise
        _print_json({**result, "error": str(error)})
        return 1
    ok = golden["passed"]
    if args.json:
        result |= {"ok": ok, "name": artifact.manifest.name, "runtime": artifact.manifest.runtime}
        _print_json({**result, "golden": golden})
        return 0 if ok else 1
    difference = golden["max_difference"]
    largest = "not a number" if difference is None else f"{difference:.3g}"
    print(f"{args.file}: {len(artifact.digests)} members match their SHA-256 digests")
    print(
        f"{'verified' if ok else 'FAILED'}: {golden['n']} golden vectors in {artifact.manifest.runtime}, "
        f"largest difference {largest}, tolerance {golden['tolerance']:g}"
    )
    return 0 if ok else 1


def predict_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `highwall predict`."""
    parser.add_argument("file", type=Path, metavar="FILE", help="an artifact, NAME.highwall")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="PNG, JPEG, TIFF or npy")
    parser.add_argument("--json", action="store_true", help="print a JSON list, one object per image")
    parser.add_argument("--overlay", type=Path, metavar="DIR", help="write NAME.overlay.png of each image there")
    parser.add_argument("--threshold", type=float, metavar="T", help="instead of the artifact's own, 0 to 1")


def predict(args: argparse.Namespace) -> int:
    """Run an artifact on images; every image is checked before anything is printed or written."""
    from targets.runtime import overlay
    from targets.runtime.artifact import read
    from targets.runtime.engine import open_session
    from targets.runtime.predict import label
    from targets.runtime.predict import predict as run

    if args.threshold is not None and not 0 <= args.threshold <= 1:
        raise HighwallError(f"--threshold is {args.threshold:g}; a probability lies between 0 and 1")
    artifact = read(args.file)
    manifest = artifact.manifest
    if manifest.input.sensors:
        raise HighwallError(f"{args.file} wants sensor readings beside the image; a gateway joins them")
    pictures = _overlay_paths(args.images, args.overlay)
    for path in args.images:
        _load(path, manifest)
    session = open_session(manifest.runtime, artifact.model)
    results = []
    for path in args.images:
        # Read a second time: holding every image would need the memory of all of them.
        image = _load(path, manifest)
        prediction = run(session, manifest, image, threshold=args.threshold)
        word = label(manifest, prediction.positive)
        if args.overlay is not None:
            overlay.write_overlay(pictures[path], image, prediction, word)
        results.append(_record(path, word, prediction))
        if not args.json:
            print(_line(path, word, prediction))
    if args.json:
        _print_json(results)
    return 0


def _check_golden(artifact: "Artifact") -> dict[str, Any]:
    from targets.runtime.engine import open_session
    from targets.runtime.golden import check

    report = asdict(check(artifact, open_session(artifact.manifest.runtime, artifact.model)))
    if not math.isfinite(report["max_difference"]):
        report["max_difference"] = None  # JSON has no word for infinity
    return report


def _load(path: Path, manifest: "Manifest") -> Any:
    """The image at `path` as the model takes it; every complaint names `path`."""
    from targets.runtime.image import check_image, read_image
    from targets.runtime.predict import check_size

    image = check_image(read_image(path), manifest.input, path)
    try:
        check_size(image, manifest)
    except HighwallError as error:
        raise HighwallError(f"{path}: {error}") from error
    return image


def _overlay_paths(images: list[Path], folder: Path | None) -> dict[Path, Path]:
    """Where each image's picture goes; two images may not share one."""
    if folder is None:
        return {}
    taken: dict[Path, Path] = {}
    for path in dict.fromkeys(images):
        picture = folder / f"{path.stem}.overlay.png"
        if picture in taken:
            raise HighwallError(f"{taken[picture]} and {path} would both be drawn to {picture}; rename one")
        taken[picture] = path
    return {path: picture for picture, path in taken.items()}


def _record(path: Path, word: str, prediction: "Prediction") -> dict[str, Any]:
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


def _line(path: Path, word: str, prediction: "Prediction") -> str:
    line = f"{path}: {word} {prediction.probability:.3f}"
    if prediction.tiles is None:
        boxes = len(prediction.boxes)
        return f"{line}, {100 * prediction.fraction:.2f} % of pixels, {boxes} box{'' if boxes == 1 else 'es'}"
    if len(prediction.tiles) > 1:
        above = sum(tile.probability >= prediction.threshold for tile in prediction.tiles)
        return f"{line}, {above} of {len(prediction.tiles)} tiles"
    return line


def _one_line(values: dict[str, Any], most: int = 160) -> str:
    text = ", ".join(f"{key} {value}" for key, value in values.items()) or "empty"
    return text if len(text) <= most else text[: most - 3] + "..."


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2))
