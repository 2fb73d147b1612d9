"""The workbench's verbs: what each asks on the command line, and the one call that answers it."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from targets.runtime.errors import HighwallError
from toolkit.options import find, foreign_arguments, held_arguments

if TYPE_CHECKING:
    from toolkit.data.samples import Samples
    from toolkit.network import NetworkConfig
    from toolkit.runs import Request


def train_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `highwall train`."""
    parser.add_argument("--data", type=Path, required=True, help="chips.npz, class folders, or images/ + masks/")
    parser.add_argument("--task", choices=("classify", "segment"), required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder for the run")
    parser.add_argument("--preset", help="mine or crack; default: the one of the task")
    parser.add_argument(
        "--network", default="cracknet", help="cracknet (the default) or a baseline: resnet50, unet, ..."
    )
    parser.add_argument("--multiplier", type=float, default=1.0, help="of a baseline's channels (default: 1)")
    parser.add_argument("--slice", type=int, help="pixels a side; default: the preset's, or the data's if smaller")
    parser.add_argument("--width", type=int, help="channels of the stem and of fusion; default: the preset's")
    parser.add_argument("--growth", type=int, help="channels each dense layer adds; default: the preset's")
    held_arguments(parser, "hold this fold (or source, or group) out; it is never looked at")
    parser.add_argument("--optimizer", choices=("sgd", "adam", "rmsprop", "muon"), default="adam")
    parser.add_argument("--loss", choices=("bce", "bce+dice", "focal"), default="bce")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch", type=int, help="default: 64 to classify, 8 to segment")
    parser.add_argument("--lr", type=float, help="peak learning rate; default: one per optimizer")
    parser.add_argument(
        "--harsh",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of images in haze, as many blurred, twice as many noisy",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads; the same number gives the same weights")
    parser.add_argument("--from", dest="start", metavar="CHECKPOINT", help="go on from its weights (or mine, crack)")
    parser.add_argument("--qat", action="store_true", help="train as at int8, from the weights of --from")
    parser.add_argument(
        "--refit", type=int, default=0, metavar="K", help="average K runs from --from that set nothing aside"
    )
    parser.add_argument("--no-sensors", action="store_true", help="learn from the images alone, whatever lies beside")
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
    _check_out(args.out, args.refit, args.resume)
    samples = read(args.data)
    print(samples.describe())
    request = Request(
        task=args.task,
        out=args.out,
        preset=args.preset,
        architecture=args.network,
        multiplier=args.multiplier,
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
        harsh=args.harsh,
        start=None if args.start is None else locate(args.start),
        qat=args.qat,
        refit=args.refit,
        sensors=not args.no_sensors,
    )
    if args.refit:
        return _refit(samples, request)
    trainer = plan(samples, request)
    if samples.sensors is not None:
        print(_said_of_sensors(trainer.config.network))
    if trainer.provenance["split_note"]:
        print(f"note: {trainer.provenance['split_note']}")
    if trainer.resume_if_begun():
        print(f"resumed after epoch {len(trainer.history)}")
    assert trainer.validation is not None
    print(f"training on {len(trainer.train)}, choosing the threshold on {len(trainer.validation)}, {trainer.device}")
    try:
        model = trainer.run(lambda line: print(line, flush=True))
    except KeyboardInterrupt as stop:
        kept = len(trainer.history)
        raise KeyboardInterrupt(f"stopped; {kept} finished epochs are kept, go on with --resume") from stop
    print(f"wrote {args.out / 'checkpoint.safetensors'} (threshold {model.threshold})")
    return 0


def _check_out(out: Path, refit: int, resume: bool) -> None:
    """Refuse, before anything slow, a folder that cannot be written or whose run would be overwritten."""
    from toolkit.build import check_writable
    from toolkit.refit import folders

    path = out / "checkpoint.safetensors"
    begun = any(folder.exists() for folder in folders(out, refit)) if refit else (out / "state.safetensors").exists()
    if begun and not resume:
        raise HighwallError(f"{out} already holds a run; add --resume or choose another --out")
    if path.exists() and not begun:
        raise HighwallError(
            f"{out} holds a checkpoint of another run, which this one would overwrite; choose another --out"
        )
    check_writable(path)


def _refit(samples: "Samples", request: "Request") -> int:
    """Average several runs that go on from one, and write RUN/checkpoint.safetensors."""
    from toolkit.refit import keeps_threshold, refit

    kept = "threshold and temperature stay those" if keeps_threshold(request) else "the temperature stays that"
    print(f"nothing is set aside; {kept} of --from")
    try:
        model = refit(samples, request, lambda line: print(line, flush=True))
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt("stopped; finished epochs are kept, go on with --resume") from stop
    print(f"wrote {request.out / 'checkpoint.safetensors'} (threshold {model.threshold})")
    return 0


def _said_of_sensors(network: "NetworkConfig") -> str:
    """Whether the readings beside the images are learned from."""
    if network.sensors:
        return f"joining {network.sensors} sensor features with each image"
    return f"note: {network.architecture} learns from the images alone, the sensor features are left out"


def evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `highwall evaluate`."""
    parser.add_argument("model", metavar="MODEL", help="a checkpoint, a run's folder, an artifact, mine or crack")
    parser.add_argument("--data", type=Path, required=True)
    held_arguments(parser, "score this fold (or source, or group) only")
    parser.add_argument("--threshold", type=float, help="default: the one the model ships with")
    parser.add_argument(
        "--within", type=float, metavar="PIXELS", help="also score crack pixels within this distance of the mask"
    )
    parser.add_argument(
        "--reliability", type=Path, metavar="PICTURE.png", help="draw how often what it calls likely is so"
    )
    parser.add_argument("--json", action="store_true")


def evaluate(args: argparse.Namespace) -> int:
    """Print the metrics of a model on labelled data."""
    from toolkit.data.folder import read
    from toolkit.data.split import hold_out
    from toolkit.evaluate import answers_of, check_threshold
    from toolkit.margins import Margins
    from toolkit.metrics import tallied
    from toolkit.models import locate
    from toolkit.reliability import draw, of_tally

    check_threshold(args.threshold)
    samples = read(args.data)
    if args.fold is not None:
        samples = samples.take(hold_out(samples, args.by, args.fold, 0)[1])
    if args.within is not None and samples.task != "segment":
        raise HighwallError("--within is for masks, and these samples have none; leave it out")
    answers, threshold = answers_of(locate(args.model), samples)
    if args.threshold is not None:
        threshold = args.threshold
    margins = Margins(threshold, () if args.within is None else (args.within,))
    if margins.distances:
        answers = margins.counting(answers)
    tally = tallied(samples.task, answers)
    found = of_tally(tally)
    scores = tally.scores(threshold).as_dict() | {"ece": found.ece, "brier": found.brier}
    for margin in margins.scores():
        scores |= {"within": margin["within"]} | {f"{key}_within": margin[key] for key in ("precision", "recall", "f1")}
    if args.reliability is not None:
        draw(found, f"{Path(args.model).name} on {args.data.name}", args.reliability)
    if args.json:
        print(json.dumps(scores))
    else:
        for key, value in scores.items():
            print(f"{key.replace('_', ' '):<18} {value:.4f}" if isinstance(value, float) else f"{key:<18} {value}")
    return 0


def temper_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `highwall temper`."""
    parser.add_argument("model", metavar="RUN", help="a run's folder, a checkpoint, mine or crack")
    parser.add_argument("--data", type=Path, required=True, help="the run's own data, or labelled images it never saw")
    held_arguments(parser, "fit on this fold (or source, or group), which the run held out")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.safetensors", help="the tempered checkpoint")
    parser.add_argument("--json", action="store_true")


def temper(args: argparse.Namespace) -> int:
    """Fit a temperature and write the checkpoint with it; it calls the same images positive as before."""
    from toolkit.data.folder import read
    from toolkit.models import locate
    from toolkit.temper import temper as fit

    found = fit(locate(args.model), read(args.data), args.out, args.fold, args.by).as_dict()
    if args.json:
        print(json.dumps(found))
        return 0
    print(f"fitted on {found['fitted_on']}: probability = sigmoid(logit / {found['temperature']} + {found['bias']})")
    for name in ("ece", "brier"):
        print(f"{name:<6} {found[f'{name}_before']:.4f} -> {found[f'{name}_after']:.4f}")
    print(f"wrote {args.out} (threshold {found['threshold']}, which calls the same images positive as before)")
    return 0


def cost_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `highwall cost`."""
    parser.add_argument("model", metavar="MODEL", help="mine, crack, checkpoint, artifact or package.module:factory")
    parser.add_argument("--json", action="store_true")
    foreign_arguments(parser)


def cost(args: argparse.Namespace) -> int:
    """Print what each layer costs, and the saving against generic convolutions."""
    from toolkit.cost import measure, table

    if args.model.endswith(".highwall"):
        from targets.runtime import artifact

        counted = artifact.read(Path(args.model)).receipt["cost"]
    else:
        from toolkit.models import example

        model, network = find(args)
        counted = measure(network, *example(model)).as_dict()
    print(json.dumps(counted) if args.json else table(counted))
    return 0


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
    parser.description = (
        "Make labelled images out of a seed: mine chips to classify, cracks to segment, or, with --sensors, slopes "
        "to classify by a photograph and the readings beside it."
    )
    parser.add_argument("--task", choices=("classify", "segment"), required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new or empty folder")
    parser.add_argument("--count", type=int, default=200, help="how many images (default 200)")
    parser.add_argument("--size", type=int, help="pixels per side (default 48 to classify, 448 to segment)")
    parser.add_argument("--bands", type=int, choices=(3, 13), default=3, help="3 is RGB, 13 Sentinel-2 (classify only)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes (default 0)")
    parser.add_argument(
        "--sensors", action="store_true", help="crack crops with five sensor features; hazardous where both say so"
    )


def generate(args: argparse.Namespace) -> int:
    """`highwall generate`: writes a folder that `highwall train --data` reads."""
    from toolkit.data import slopes, synthetic
    from toolkit.data.write import require_empty

    require_empty(args.out)
    if args.sensors:
        if args.task != "classify" or args.bands != 3:
            raise HighwallError("slopes with sensors are photographs to classify; use --task classify --bands 3")
        samples = slopes.slopes(args.count, 48 if args.size is None else args.size, args.seed)
    elif args.task == "classify":
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
