"""The workbench's verbs: what each asks on the command line, and the one call that answers it."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from targets.runtime.errors import HighwallError

if TYPE_CHECKING:
    from torch import nn

    from toolkit.calibration import Calibration
    from toolkit.checkpoint import Model


def train_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `highwall train`."""
    parser.add_argument("--data", type=Path, required=True, help="chips.npz, class folders, or images/ + masks/")
    parser.add_argument("--task", choices=("classify", "segment"), required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder for the run")
    parser.add_argument("--preset", help="mine or crack; default: the one of the task")
    parser.add_argument("--slice", type=int, help="pixels a side; default: the preset's, or the data's if smaller")
    parser.add_argument("--width", type=int, help="channels of the stem and of fusion; default: the preset's")
    parser.add_argument("--growth", type=int, help="channels each dense layer adds; default: the preset's")
    _held_arguments(parser, "hold this fold (or source, or group) out; it is never looked at")
    parser.add_argument("--optimizer", choices=("sgd", "adam", "rmsprop"), default="adam")
    parser.add_argument("--loss", choices=("bce", "bce+dice", "focal"), default="bce")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch", type=int, help="default: 64 to classify, 8 to segment")
    parser.add_argument("--lr", type=float, help="peak learning rate; default: one per optimizer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads; the same number gives the same weights")
    parser.add_argument("--from", dest="start", metavar="CHECKPOINT", help="go on from its weights (or mine, crack)")
    parser.add_argument("--resume", action="store_true", help="go on from the last finished epoch")


def train(args: argparse.Namespace) -> int:
    """Train a network and write RUN/checkpoint.safetensors."""
    import torch

    from toolkit.data.folder import read
    from toolkit.models import locate
    from toolkit.runs import Request, plan

    if args.threads is not None:
        if args.threads < 1:
            raise HighwallError(f"--threads must be at least 1, not {args.threads}")
        torch.set_num_threads(args.threads)
    samples = read(args.data)
    print(samples.describe())
    request = Request(
        task=args.task,
        out=args.out,
        preset=args.preset,
        slice_size=args.slice,
        width=args.width,
        growth=args.growth,
        held=args.fold,
        by=args.by,
        optimizer=args.optimizer,
        loss=args.loss,
        epochs=args.epochs,
        batch=args.batch,
        lr=args.lr,
        seed=args.seed,
        start=None if args.start is None else locate(args.start),
    )
    trainer = plan(samples, request)
    if trainer.provenance["split_note"]:
        print(f"note: {trainer.provenance['split_note']}")
    if trainer.state_path.exists():
        if not args.resume:
            raise HighwallError(f"{args.out} already holds a run; add --resume or choose another --out")
        trainer.resume()
        print(f"resumed after epoch {len(trainer.history)}")
    print(f"training on {len(trainer.train)}, choosing the threshold on {len(trainer.validation)}, {trainer.device}")
    try:
        model = trainer.run(lambda line: print(line, flush=True))
    except KeyboardInterrupt as stop:
        kept = len(trainer.history)
        raise KeyboardInterrupt(f"stopped; {kept} finished epochs are kept, go on with --resume") from stop
    print(f"wrote {args.out / 'checkpoint.safetensors'} (threshold {model.threshold})")
    return 0


def evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `highwall evaluate`."""
    parser.add_argument("model", metavar="MODEL", help="a checkpoint, a run's folder, an artifact, mine or crack")
    parser.add_argument("--data", type=Path, required=True)
    _held_arguments(parser, "score this fold (or source, or group) only")
    parser.add_argument("--threshold", type=float, help="default: the one the model ships with")
    parser.add_argument("--json", action="store_true")


def evaluate(args: argparse.Namespace) -> int:
    """Print the metrics of a model on labelled data."""
    from toolkit.data.folder import read
    from toolkit.data.split import hold_out
    from toolkit.evaluate import evaluate as score
    from toolkit.models import locate

    samples = read(args.data)
    if args.fold is not None:
        samples = samples.take(hold_out(samples, args.by, args.fold, 0)[1])
    scores = score(locate(args.model), samples, args.threshold).as_dict()
    if args.json:
        print(json.dumps(scores))
    else:
        for key, value in scores.items():
            print(f"{key.replace('_', ' '):<18} {value:.4f}" if isinstance(value, float) else f"{key:<18} {value}")
    return 0


def _held_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--fold", metavar="NAME", help=what)
    parser.add_argument("--by", choices=("fold", "source", "group"), default="fold", help="what --fold names")


def _foreign_arguments(parser: argparse.ArgumentParser) -> None:
    """What must be said of a network given as package.module:factory."""
    group = parser.add_argument_group("for package.module:factory")
    group.add_argument("--task", choices=("classify", "segment"), default="classify")
    group.add_argument("--size", type=int, default=224, help="pixels a side")
    group.add_argument("--bands", type=int, default=3)
    group.add_argument("--dtype", choices=("uint8", "uint16"), default="uint8", help="of the raw pixels")


def _find(args: argparse.Namespace) -> "tuple[Model, nn.Module]":
    from toolkit.models import Foreign, find

    return find(args.model, Foreign(args.task, args.size, args.bands, args.dtype))


def cost_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `highwall cost`."""
    parser.add_argument("model", metavar="MODEL", help="mine, crack, checkpoint, artifact or package.module:factory")
    parser.add_argument("--json", action="store_true")
    _foreign_arguments(parser)


def cost(args: argparse.Namespace) -> int:
    """Print what each layer costs, and the saving against generic convolutions."""
    from toolkit.cost import measure, table

    if args.model.endswith(".highwall"):
        from targets.runtime import artifact

        counted = artifact.read(Path(args.model)).receipt["cost"]
    else:
        from toolkit.models import example

        model, network = _find(args)
        counted = measure(network, *example(model)).as_dict()
    print(json.dumps(counted) if args.json else table(counted))
    return 0


def export_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `highwall export`."""
    parser.add_argument("model", metavar="CHECKPOINT", help="a checkpoint, mine, crack, or package.module:factory")
    parser.add_argument("--to", type=Path, required=True, metavar="FILE.onnx")
    parser.add_argument("--precision", choices=("fp32", "int8"), default="fp32")
    parser.add_argument("--calibration", type=Path, metavar="DIR", help="images for int8 ranges")
    _held_arguments(parser, "leave this fold (or source, or group) out of calibration")
    _foreign_arguments(parser)


def export(args: argparse.Namespace) -> int:
    """Write a plain ONNX file: raw pixels in, probability out."""
    from targets.runtime.files import atomic_write
    from toolkit.build import compile_model

    if args.to.suffix != ".onnx":
        raise HighwallError(f"cannot export to {args.to.name}; name it FILE.onnx")
    model, network = _find(args)
    data = _calibration(args, model)
    compiled = compile_model(model, network, args.precision, None if data is None else data.images, _step)
    with atomic_write(args.to) as partial:
        partial.write_bytes(compiled.model)
    print(f"wrote {args.to}, {len(compiled.model):,} bytes, at most {compiled.parity:.2g} off torch")
    return 0


def build_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `highwall build`."""
    parser.add_argument("model", metavar="CHECKPOINT", help="a checkpoint, mine, crack, or package.module:factory")
    parser.add_argument("--board", required=True, help="see `highwall boards`")
    parser.add_argument("--calibration", type=Path, metavar="DIR", help="images for int8 ranges; labels are scored")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.highwall")
    parser.add_argument("--precision", choices=("fp32", "int8"), default="int8")
    _held_arguments(parser, "judge on this fold (or source, or group), calibrate on the others")
    _foreign_arguments(parser)


def build(args: argparse.Namespace) -> int:
    """Compile a checkpoint into an artifact for a board."""
    from targets.board import load_board

    if args.out.suffix != ".highwall":
        raise HighwallError(f"an artifact's name ends in .highwall; {args.out.name} does not")
    load_board(args.board)  # an unknown board is refused before anything slow happens
    from toolkit.build import build as compile_for
    from toolkit.build import summary

    model, network = _find(args)
    receipt = compile_for(model, network, args.board, args.out, args.precision, _calibration(args, model), _step)
    for line in summary(receipt):
        print(line)
    return 0


def _calibration(args: argparse.Namespace, model: "Model") -> "Calibration | None":
    from toolkit.calibration import Calibration
    from toolkit.data.folder import read_any

    return None if args.calibration is None else Calibration.of(read_any(args.calibration), model, args.fold, args.by)


def _step(line: str) -> None:
    print(f"- {line}", flush=True)


def demo_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `highwall demo`."""
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder to write to (default: demo)")


def demo(args: argparse.Namespace) -> int:
    """Build, verify and run the shipped network; see `toolkit.demo`."""
    from toolkit.demo import run

    print("highwall demo: the shipped network, compiled for a Raspberry Pi 4B", flush=True)

    def step(line: str) -> None:
        print(f"  ... {line}", file=sys.stderr, flush=True)

    return run(args.out, lambda line: print(line, flush=True), step)


def generate_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `highwall generate`."""
    parser.description = "Make labelled images out of a seed: mine chips to classify, cracks to segment."
    parser.add_argument("--task", choices=("classify", "segment"), required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new or empty folder")
    parser.add_argument("--count", type=int, default=200, help="how many images (default 200)")
    parser.add_argument("--size", type=int, help="pixels per side (default 48 to classify, 448 to segment)")
    parser.add_argument("--bands", type=int, choices=(3, 13), default=3, help="3 is RGB, 13 Sentinel-2 (classify only)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes (default 0)")


def generate(args: argparse.Namespace) -> int:
    """`highwall generate`: writes a folder that `highwall train --data` reads."""
    from toolkit.data import synthetic
    from toolkit.data.write import require_empty

    require_empty(args.out)
    if args.task == "classify":
        samples = synthetic.mine_chips(args.count, 48 if args.size is None else args.size, args.bands, args.seed)
    elif args.bands != 3:
        raise HighwallError(f"photographs of cracks have 3 bands, not {args.bands}; leave --bands out")
    else:
        samples = synthetic.crack_images(args.count, 448 if args.size is None else args.size, args.seed)
    synthetic.write(samples, args.out)
    print(f"wrote {args.out}\n{samples.describe()}")
    return 0


def slices_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `highwall slices`."""
    parser.description = (
        "Cut balanced training slices out of a georeferenced scene. A slice is positive when its centre pixel, "
        "the one SIZE//2 below and right of its first, lies in a polygon."
    )
    parser.add_argument("scene", type=Path, metavar="SCENE.tif", help="a georeferenced scene, uint8 or uint16")
    parser.add_argument("shapes", type=Path, metavar="SHAPES", help="polygons: .shp with .prj, or .geojson")
    parser.add_argument("--size", type=int, default=18, help="pixels per side of a slice (default 18)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new or empty folder")
    parser.add_argument("--count", type=int, help="how many slices, even (default all, at most 2000)")
    parser.add_argument("--seed", type=int, default=0, help="chooses the slices (default 0)")


def slices(args: argparse.Namespace) -> int:
    """`highwall slices`: writes a folder that `highwall train --data` reads."""
    from toolkit.data.slices import cut_slices

    samples = cut_slices(args.scene, args.shapes, args.out, size=args.size, count=args.count, seed=args.seed)
    print(f"wrote {args.out}\n{samples.describe()}")
    return 0
