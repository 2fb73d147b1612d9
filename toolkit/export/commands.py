"""Verbs on the way from the workbench to the mine: lint, sensitivity, export, build, rebuild."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from targets.runtime.errors import HighwallError
from toolkit.options import find, foreign_arguments, held_arguments
from toolkit.quantize.recipes import PRECISIONS, RECIPES, RUNTIMES, Recipe, choose, plain, recipe

if TYPE_CHECKING:
    from toolkit.calibration import Calibration
    from toolkit.checkpoint import Model
    from toolkit.compiler import Compiler


def lint_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `highwall lint`."""
    parser.add_argument("model", metavar="MODEL", help="mine, crack, a checkpoint or package.module:factory")
    parser.add_argument("--board", help="also say what is known of int8 there; see `highwall boards`")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--strict", action="store_true", help="exit 1 when something hurts")
    foreign_arguments(parser)


def lint(args: argparse.Namespace) -> int:
    """Print what will hurt or slow a network at int8, before anything is calibrated."""
    from targets.board import load_board

    board = None if args.board is None else load_board(args.board)
    from toolkit.lint import lint as look
    from toolkit.lint import text

    found = look(*find(args), board)
    print(json.dumps([finding.as_dict() for finding in found]) if args.json else text(found))
    return int(args.strict and any(finding.severity == "hurts" for finding in found))


def sensitivity_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `highwall sensitivity`."""
    parser.add_argument("model", metavar="MODEL", help="mine, crack, a checkpoint or package.module:factory")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="images like those the board will see")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="draw the layers, most sensitive first")
    parser.add_argument("--json", action="store_true")
    held_arguments(parser, "leave this fold (or source, or group) out")
    foreign_arguments(parser)


def sensitivity(args: argparse.Namespace) -> int:
    """Print how much noise quantizing each layer alone brings."""
    from tqdm import tqdm

    from toolkit.quantize.sensitivity import measure, table

    model, network = find(args)
    data = _calibration(args.data, args, model)
    assert data is not None
    with tqdm(desc="layers", leave=False, disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        ranked = measure(model, network, data.images, progress)
    if args.picture is not None:
        from toolkit.quantize.picture import draw

        draw(ranked, args.picture)
    print(json.dumps([one.as_dict() for one in ranked]) if args.json else table(ranked))
    return 0


def export_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `highwall export`."""
    parser.add_argument("model", metavar="CHECKPOINT", help="a checkpoint, mine, crack, or package.module:factory")
    parser.add_argument("--to", type=Path, required=True, metavar="FILE", help="FILE.onnx or FILE.tflite")
    parser.add_argument("--precision", choices=tuple(PRECISIONS), help="default: fp32")
    parser.add_argument("--recipe", metavar="NAME", help=f"instead of --precision: {', '.join(RECIPES)}")
    parser.add_argument("--calibration", type=Path, metavar="DIR", help="images for int8 ranges")
    held_arguments(parser, "leave this fold (or source, or group) out of calibration")
    foreign_arguments(parser)


def export(args: argparse.Namespace) -> int:
    """Write a plain model file: raw pixels in, probability out."""
    runtime = args.to.suffix.removeprefix(".")
    if runtime not in RUNTIMES:
        raise HighwallError(
            f"cannot export to {args.to.name}; name it {' or '.join(f'FILE.{each}' for each in RUNTIMES)}"
        )
    wanted = plain(runtime, args.precision or "fp32") if args.recipe is None else recipe(args.recipe)
    if args.precision not in (None, wanted.precision):
        raise HighwallError(
            f"--recipe {wanted.name} and --precision {args.precision} contradict each other; leave one out"
        )
    if wanted.runtime != runtime:
        raise HighwallError(f"{wanted.name} gives a .{wanted.runtime} file, not {args.to.name}")
    from dataclasses import replace

    from targets.runtime.files import atomic_write
    from toolkit.compiler import Compiler

    model, network = find(args)
    data = _calibration(args.calibration, args, model)
    candidate = Compiler(model, network, None if data is None else replace(data, judged=None), say=_step).candidate(
        wanted
    )
    if candidate.complaint is not None:
        raise HighwallError(candidate.complaint)
    with atomic_write(args.to) as partial:
        partial.write_bytes(candidate.model)
    print(f"wrote {args.to}, {len(candidate.model):,} bytes, at most {candidate.parity:.2g} off torch")
    return 0


def build_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `highwall build`."""
    parser.add_argument("model", metavar="CHECKPOINT", help="a checkpoint, mine, crack, or package.module:factory")
    parser.add_argument("--board", required=True, action="append", help="see `highwall boards`; may be repeated")
    parser.add_argument(
        "--contract", type=Path, metavar="FILE.toml", help="try every recipe, keep the cheapest that meets it"
    )
    parser.add_argument(
        "--data",
        "--calibration",
        dest="data",
        type=Path,
        metavar="DIR",
        help="images: some find int8 ranges; the others, where they have labels, judge",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE.highwall", help="with several boards, FILE-BOARD.highwall"
    )
    parser.add_argument("--runtime", choices=RUNTIMES, help="default: onnx; with a contract, both are tried")
    parser.add_argument("--precision", choices=tuple(PRECISIONS), help="default: int8; with a contract, all are tried")
    parser.add_argument("--recipe", metavar="NAME", help=f"this one only: {', '.join(RECIPES)}")
    parser.add_argument("--sign", type=Path, metavar="KEY", help="a private key from `highwall keygen`")
    parser.add_argument(
        "--emulate", action="store_true", help="count ARM instructions on each emulated board and order by them"
    )
    parser.add_argument(
        "--model-version", type=int, default=1, metavar="N", help="gateways refuse a lower one (default 1)"
    )
    parser.add_argument("--no-cache", action="store_true", help="compile every candidate anew")
    parser.add_argument("--json", action="store_true", help="print the receipts instead of the tables")
    held_arguments(parser, "judge on this fold (or source, or group), calibrate on the others")
    foreign_arguments(parser)


def build(args: argparse.Namespace) -> int:
    """Compile a checkpoint into one artifact a board."""
    from targets.board import load_board
    from targets.runtime.signing import load_private
    from toolkit import contract

    boards = list(dict.fromkeys(args.board))
    for board in boards:
        load_board(board)  # an unknown board is refused before anything slow happens
    outs = _outs(args.out, boards)
    recipes = _recipes(args)
    key = None if args.sign is None else load_private(args.sign)
    if not 0 <= args.model_version < 2**53:
        raise HighwallError(f"--model-version is {args.model_version}; it counts up from 0")
    written = None if args.contract is None else contract.read(args.contract)
    from toolkit.build import NoCandidate, Order, carry_out, check_writable
    from toolkit.receipt import summary, table
    from toolkit.search import check_possible

    for out in outs:
        check_writable(out)
    compiler = _compiler(args)
    task = compiler.model.network.task
    limits = [None if written is None else written.of(board, task) for board in boards]
    for board, limit in zip(boards, limits, strict=True):
        check_possible(
            compiler, load_board(board), limit, emulate=args.emulate
        )  # of every board, before the first is built
    receipts, failures = [], []
    for board, out, limit in zip(boards, outs, limits, strict=True):
        order = Order(board, out, recipes, limit, key, args.model_version, args.emulate)
        try:
            receipts.append(carry_out(compiler, order))
        except NoCandidate as error:
            failures.append(str(error))
            print(f"{board}\n{error.table}", file=sys.stderr if args.json else sys.stdout)
            continue
        if not args.json:
            if limit is not None:
                print(f"{board}\n{table(receipts[-1]['candidates'])}")
            print("\n".join(summary(receipts[-1])))
    if args.json:
        print(json.dumps(receipts, indent=1))
    elif len(receipts) > 1:
        from toolkit.receipt import comparison

        print(comparison(receipts))
    if failures:
        raise HighwallError("; ".join(failures) + "; no artifact written for it")
    return 0


def _outs(out: Path, boards: list[str]) -> list[Path]:
    """One artifact a board."""
    if out.suffix != ".highwall":
        raise HighwallError(f"an artifact's name ends in .highwall; {out.name} does not")
    return [out] if len(boards) == 1 else [out.with_name(f"{out.stem}-{board}.highwall") for board in boards]


def _recipes(args: argparse.Namespace) -> tuple[Recipe, ...]:
    """What to try: one recipe, or with a contract all that the options leave."""
    if args.recipe is not None:
        one = recipe(args.recipe)
        for name in ("runtime", "precision"):
            asked = getattr(args, name)
            if asked not in (None, getattr(one, name)):
                raise HighwallError(f"--recipe {one.name} and --{name} {asked} contradict each other; leave one out")
        return (one,)
    if args.contract is None:
        return (plain(args.runtime or "onnx", args.precision or "int8"),)
    return tuple(choose(args.runtime, args.precision))


def _compiler(args: argparse.Namespace) -> "Compiler":
    from toolkit.cache import Cache
    from toolkit.compiler import Compiler

    model, network = find(args)
    data = _calibration(args.data, args, model)
    return Compiler(model, network, data, Cache(None) if args.no_cache else Cache.default(), _step_to(args.json))


def rebuild_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `highwall rebuild`."""
    parser.add_argument("file", type=Path, metavar="FILE.highwall")
    parser.add_argument(
        "--checkpoint", required=True, dest="model", metavar="CHECKPOINT", help="what it was built from"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="the data it was built with")
    parser.add_argument("--json", action="store_true")
    foreign_arguments(parser)


def rebuild(args: argparse.Namespace) -> int:
    """Build an artifact again from what it says of itself; 1 where a byte comes out otherwise."""
    from toolkit.data.folder import read_any
    from toolkit.rebuild import rebuild as again

    model, network = find(args)
    found = again(args.file, model, network, None if args.data is None else read_any(args.data), _step_to(args.json))
    if args.json:
        print(json.dumps({"identical": found.identical, "different": found.different, "packages": found.packages}))
        return int(not found.identical)
    for name in found.members:
        print(f"{'differs' if name in found.different else 'same'}  {name}")
    for name, (then, now) in found.packages.items():
        print(f"note: {name} was {then or 'absent'} then, is {now or 'absent'} here")
    print("identical: nothing but these inputs went into it" if found.identical else "NOT identical")
    return int(not found.identical)


def _calibration(folder: Path | None, args: argparse.Namespace, model: "Model") -> "Calibration | None":
    from toolkit.calibration import Calibration
    from toolkit.data.folder import read_any

    return None if folder is None else Calibration.of(read_any(folder), model, args.fold, args.by)


def _step(line: str) -> None:
    print(f"- {line}", flush=True)


def _step_to(json_wanted: bool) -> Callable[[str], None]:
    """Progress on stdout, but on stderr where stdout is for a machine."""
    return lambda line: print(f"- {line}", flush=True, file=sys.stderr if json_wanted else sys.stdout)
