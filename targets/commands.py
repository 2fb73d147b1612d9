"""The verbs of this room: boards, inspect, verify, keygen, sign, predict."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from targets.runtime.errors import HighwallError

if TYPE_CHECKING:
    from targets.runtime.manifest import Manifest


def boards_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `highwall boards`."""
    parser.add_argument("action", nargs="?", choices=("check",), help="check: do these libraries run on that board?")
    parser.add_argument("board", nargs="?", metavar="BOARD", help="with check: which")
    parser.add_argument("files", nargs="*", type=Path, metavar="WHEEL_OR_SO", help="with check: wheels, .so or folders")
    parser.add_argument("--artifact", type=Path, metavar="FILE", help="with check: verify it through those very wheels")
    parser.add_argument("--static", action="store_true", help="with check: only read them; needs no emulator")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def boards(args: argparse.Namespace) -> int:
    """List the boards an artifact can be built for, or check libraries against one."""
    if args.action == "check":
        return _check_libraries(args)
    if args.artifact is not None or args.static:
        raise HighwallError("--artifact and --static belong to `highwall boards check BOARD WHEEL_OR_SO...`")
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


def _check_libraries(args: argparse.Namespace) -> int:
    from targets.board import load_board
    from targets.emulator.guest import open_guest
    from targets.gate.check import check

    if args.board is None or not args.files:
        raise HighwallError("name a board and what to check: `highwall boards check rpi4b WHEEL_OR_SO...`")
    board = load_board(args.board)
    guest = None if args.static or board.name == "host" else open_guest(board)
    report = check(board, args.files, guest, lambda line: print(f"- {line}", file=sys.stderr), args.artifact)
    if args.json:
        _print_json(report.as_dict())
    else:
        print("\n".join(report.lines()))
    return 0 if report.ok else 1


def inspect_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `highwall inspect`."""
    parser.add_argument("file", type=Path, metavar="FILE", help="an artifact, NAME.highwall")
    parser.add_argument("--json", action="store_true", help="print JSON: manifest, members, receipt, signature")


def inspect(args: argparse.Namespace) -> int:
    """Show what an artifact holds; only an undamaged one is shown."""
    from targets.report import key_json, receipt_lines, signature_line
    from targets.runtime.artifact import read

    artifact = read(args.file)
    members: dict[str, dict[str, Any]] = {
        name: {"bytes": size, "sha256": artifact.digests.get(name)} for name, size in artifact.sizes.items()
    }
    manifest = asdict(artifact.manifest)
    if args.json:
        whole = {"file": str(args.file), "manifest": manifest, "members": members, "receipt": artifact.receipt}
        _print_json({**whole, "signature": key_json(artifact.signer)})
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
    for title, line in receipt_lines(artifact.receipt):
        print(f"  {title:<10} {line}")
    print(f"  signature  {signature_line(artifact.signer)}")
    golden = artifact.golden
    print(f"  golden     {len(golden.seeds)} seeded, {len(golden.images)} real, tolerance {golden.tolerance:g}")
    for name, member in members.items():
        print(f"  {member['bytes']:>9}  {name:<14} {(member['sha256'] or '')[:16]}")
    return 0


def verify_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `highwall verify`."""
    parser.add_argument("file", type=Path, metavar="FILE", help="an artifact, NAME.highwall")
    parser.add_argument("--trust", type=Path, metavar="KEYS", help="refuse it unless signed by NAME.pub or TRUST.toml")
    parser.add_argument("--over", type=Path, metavar="INSTALLED", help="the artifact it would replace: no step back")
    parser.add_argument("--allow-downgrade", action="store_true", help="with --over: any version or model may")
    parser.add_argument("--emulate", action="store_true", help="on the emulated board, not on this machine")
    parser.add_argument("--board", metavar="BOARD", help="with --emulate: which (default: the one it was made for)")
    parser.add_argument("--json", action="store_true", help="print JSON: ok, digests_ok, signature, key, golden")


def verify(args: argparse.Namespace) -> int:
    """Check digests, signature, version and golden vectors as a gateway does; 1 where one is amiss."""
    if args.emulate:
        return _verify_emulated(args)
    if args.board is not None:
        raise HighwallError("--board says which board to emulate; add --emulate")
    from targets.report import findings_json, findings_lines
    from targets.runtime.admit import Findings, examine
    from targets.runtime.artifact import read
    from targets.runtime.trust import load_trust

    if args.allow_downgrade and args.over is None:
        raise HighwallError("--allow-downgrade says nothing without --over INSTALLED.highwall")
    try:
        trust = None if args.trust is None else load_trust(args.trust)
        installed = None if args.over is None else read(args.over)
    except HighwallError as error:
        found = Findings(refusal=str(error))
    else:
        found = examine(args.file, trust, installed, allow_downgrade=args.allow_downgrade)
    if args.json:
        _print_json({"file": str(args.file), **findings_json(found)})
    elif found.refusal is not None and found.golden is None:
        raise HighwallError(found.refusal)
    else:
        for line in findings_lines(found, args.file, args.trust, args.over):
            print(line)
    return 0 if found.refusal is None else 1


def _verify_emulated(args: argparse.Namespace) -> int:
    from targets.board import load_board
    from targets.emulator.verify import verify as verify_there
    from targets.runtime.artifact import read

    board = load_board(args.board or read(args.file).manifest.board)
    options = ["--json"] if args.json else []
    options += [f"--{name}={path}" for name in ("trust", "over") if (path := getattr(args, name)) is not None]
    options += ["--allow-downgrade"] if args.allow_downgrade else []
    done = verify_there(board, args.file, options)
    if args.json:
        found = json.loads(done.stdout)
        _print_json({**found, "emulated": {"board": board.name, "cpu": board.cpu, "python": board.python}})
    else:
        print(done.stdout, end="")
        sys.stderr.write(done.stderr)
        print(f"all of this on an emulated {board.cpu}, with the Python {board.python} of a {board.title}")
    return done.returncode


def keygen_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `highwall keygen`."""
    parser.add_argument("--out", type=Path, required=True, metavar="NAME", help="writes NAME.key and NAME.pub")
    parser.add_argument("--name", metavar="LABEL", help="what the key is called in messages (default: NAME)")


def keygen(args: argparse.Namespace) -> int:
    """Make a key to sign artifacts with, and the public one that gateways trust."""
    from targets.runtime.signing import key_paths, write_pair

    out = args.out.with_suffix("") if args.out.suffix in (".key", ".pub") else args.out
    private, public = key_paths(out)
    key = write_pair(out, out.name if args.name is None else args.name)
    print(f"{private}: the private key of {key.name}; whoever has it can sign, so keep it off gateways and back it up")
    print(f"{public}: the public key, to be mailed and given to `--trust`")
    print(f"fingerprint {key.fingerprint}")
    return 0


def sign_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `highwall sign`."""
    parser.add_argument("file", type=Path, metavar="FILE", help="an artifact, NAME.highwall; it is rewritten")
    parser.add_argument("--key", type=Path, required=True, metavar="KEY", help="a private key, NAME.key")


def sign(args: argparse.Namespace) -> int:
    """Sign an artifact, or sign it anew when keys rotate; what it holds stays as it is."""
    from targets.runtime.artifact import sign as sign_artifact
    from targets.runtime.signing import load_private

    key = load_private(args.key)
    before = sign_artifact(args.file, key)
    instead = f", instead of {before.key.name}, fingerprint {before.key.fingerprint}" if before else ""
    print(f"{args.file}: signed by {key.name}, fingerprint {key.public.fingerprint}{instead}")
    return 0


def predict_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `highwall predict`."""
    parser.add_argument("file", type=Path, metavar="FILE", help="an artifact, NAME.highwall")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="PNG, JPEG, TIFF or npy")
    parser.add_argument("--json", action="store_true", help="print a JSON list, one object per image")
    parser.add_argument("--overlay", type=Path, metavar="DIR", help="write NAME.overlay.png of each image there")
    parser.add_argument("--threshold", type=float, metavar="T", help="instead of the artifact's own, 0 to 1")
    parser.add_argument(
        "--sensors",
        metavar="V1,V2,...",
        help="raw readings beside every image (--sensors=-1.5,2 where the first is negative), or a CSV file with "
        "a column a feature, and a row a `name` of an image or one row for all",
    )


def predict(args: argparse.Namespace) -> int:
    """Run an artifact on images; every image is checked before anything is printed or written."""
    from targets.report import prediction_json, prediction_line
    from targets.runtime import overlay
    from targets.runtime.artifact import read
    from targets.runtime.engine import open_session
    from targets.runtime.predict import label
    from targets.runtime.predict import predict as run

    if args.threshold is not None and not 0 <= args.threshold <= 1:
        raise HighwallError(f"--threshold is {args.threshold:g}; a probability lies between 0 and 1")
    artifact = read(args.file)
    manifest = artifact.manifest
    readings = _readings(args.sensors, args.images, manifest)
    pictures = _overlay_paths(args.images, args.overlay)
    for path in args.images:
        _load(path, manifest)
    session = open_session(manifest.runtime, artifact.model)
    results = []
    for path in args.images:
        # Read a second time: holding every image would need the memory of all of them.
        image = _load(path, manifest)
        prediction = run(session, manifest, image, readings[path], args.threshold)
        word = label(manifest, prediction.positive)
        if args.overlay is not None:
            overlay.write_overlay(pictures[path], image, prediction, word)
        results.append(prediction_json(path, word, prediction))
        if not args.json:
            print(prediction_line(path, word, prediction))
    if args.json:
        _print_json(results)
    return 0


def _readings(given: str | None, images: list[Path], manifest: "Manifest") -> dict[Path, Any]:
    """The sensor features of each image; None where the model takes none."""
    from targets.runtime.predict import check_sensors, sensor_names

    if given is None or not given.lower().endswith(".csv"):
        values = check_sensors(None if given is None else _numbers(given.split(","), "--sensors"), manifest)
        return dict.fromkeys(images, values)
    names, rows = _sensor_rows(Path(given))
    if manifest.input.sensors and sensor_names(manifest) not in ((), names):
        raise HighwallError(f"{given} has {', '.join(names)}; the model takes {', '.join(sensor_names(manifest))}")
    found: dict[Path, Any] = {}
    for path in images:
        row = rows.get("") or rows.get(str(path)) or rows.get(path.name)
        if row is None:
            raise HighwallError(f"{given} has no row whose name is {path.name}; add it")
        found[path] = check_sensors(_numbers(row, f"{given}, the row of {path.name}"), manifest)
    return found


def _sensor_rows(path: Path) -> tuple[tuple[str, ...], dict[str, list[str]]]:
    """The features' names and, by the image's name, their cells; the one row of a table without names is ''."""
    import csv

    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            head, *rows = [[cell.strip() for cell in row] for row in csv.reader(handle, strict=True) if row] or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise HighwallError(f"cannot read {path}: {error}; expected a CSV file in UTF-8") from error
    if not rows or any(len(row) != len(head) for row in rows):
        raise HighwallError(f"{path} needs a line of names and as many cells in each line after it")
    if "name" not in head:
        if len(rows) > 1:
            raise HighwallError(f"{path} has {len(rows)} rows and no column 'name' to tell whose they are; add it")
        return tuple(head), {"": rows[0]}
    at = head.index("name")
    named = {row[at]: row[:at] + row[at + 1 :] for row in rows}
    if len(named) < len(rows) or "" in named:
        raise HighwallError(f"{path} has rows without a name or of one name; give each image one row")
    return tuple(head[:at] + head[at + 1 :]), named


def _numbers(cells: list[str], where: str) -> list[float]:
    try:
        return [float(cell) for cell in cells]
    except ValueError:
        raise HighwallError(f"{where}: {','.join(cells)!r} are not numbers; give a reading for each feature") from None


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


def _one_line(values: dict[str, Any], most: int = 160) -> str:
    text = ", ".join(f"{key} {value}" for key, value in values.items()) or "empty"
    return text if len(text) <= most else text[: most - 3] + "..."


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2))
