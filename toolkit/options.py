"""Options that several of the workbench's verbs share."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from toolkit.checkpoint import Model


def held_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--fold", metavar="NAME", help=what)
    parser.add_argument("--by", choices=("fold", "source", "group"), default="fold", help="what --fold names")


def foreign_arguments(parser: argparse.ArgumentParser) -> None:
    """What must be said of a network given as package.module:factory."""
    group = parser.add_argument_group("for package.module:factory")
    group.add_argument("--task", choices=("classify", "segment"), default="classify")
    group.add_argument("--size", type=int, default=224, help="pixels a side")
    group.add_argument("--bands", type=int, default=3)
    group.add_argument("--dtype", choices=("uint8", "uint16"), default="uint8", help="of the raw pixels")


def find(args: argparse.Namespace) -> "tuple[Model, nn.Module]":
    from toolkit import models
    from toolkit.models import Foreign

    return models.find(args.model, Foreign(args.task, args.size, args.bands, args.dtype))
