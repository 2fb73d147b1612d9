"""Rebuilding an artifact from what it says of itself, to show that nothing else went in."""

import platform
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from targets.runtime import artifact
from targets.runtime.artifact import Artifact
from targets.runtime.errors import HighwallError
from toolkit.build import Order, carry_out
from toolkit.cache import Cache
from toolkit.calibration import Calibration
from toolkit.checkpoint import Model, digest
from toolkit.compiler import Compiler, packages
from toolkit.contract import Contract
from toolkit.data.samples import Samples, Unlabelled
from toolkit.quantize.recipes import recipe


@dataclass(frozen=True)
class Rebuilt:
    """Members that came out otherwise (none: identical), and packages of another version than then."""

    different: tuple[str, ...]
    members: tuple[str, ...]
    packages: dict[str, tuple[str | None, str | None]]

    @property
    def identical(self) -> bool:
        return not self.different


def rebuild(
    path: Path, model: Model, network: nn.Module, data: Samples | Unlabelled | None, say: Callable[[str], None]
) -> Rebuilt:
    """Build `path` again, from scratch, and compare every member byte by byte; its signature is not repeated.

    Memory and times differ from run to run, so what its receipt says of limits on them is believed, not measured.
    Raises HighwallError when the weights or the data are not those it was built from.
    """
    old = artifact.read(path)
    said = old.manifest.provenance
    calibration = _calibration(path, said, model, data)
    if digest(network.state_dict()) != said.get("weights_sha256"):
        raise HighwallError(f"{path} was built from other weights than this checkpoint's; give the one it came from")
    raw = old.receipt.get("contract")
    names = said.get("recipes")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise HighwallError(f"{path} does not say which recipes were tried; it was built by an older Highwall")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / path.name
        order = Order(
            old.manifest.board,
            out,
            tuple(recipe(name) for name in names),
            None if raw is None else Contract.from_dict(raw, str(path)),
            model_version=old.manifest.model_version,
            emulate=bool(said.get("emulated")),
            recorded=_verdicts(path, old.receipt),
        )
        carry_out(Compiler(model, network, calibration, Cache(None), say), order)
        new = artifact.read(out)
    return _compared(old, new, said)


def _verdicts(path: Path, receipt: dict[str, Any]) -> dict[str, str]:
    """What the receipt says of each candidate, by the name of its recipe."""
    rows = receipt.get("candidates")
    try:
        return {str(row["recipe"]): str(row["verdict"]) for row in rows}  # type: ignore[union-attr]
    except (TypeError, KeyError) as error:
        raise HighwallError(f"{path} does not say why candidates lost; it was built by an older Highwall") from error


def _calibration(
    path: Path, said: dict[str, Any], model: Model, data: Samples | Unlabelled | None
) -> Calibration | None:
    identity = said.get("data")
    if identity is None:
        return None
    if data is None:
        raise HighwallError(f"{path} was built with data; give the same with --data")
    if data.digest != identity.get("sha256"):
        raise HighwallError(f"{path} was built from other data than this; give the folder it was built from")
    return Calibration.of(data, model, identity.get("held"), identity.get("by"))


def _compared(old: Artifact, new: Artifact, said: dict[str, Any]) -> Rebuilt:
    names = tuple(dict.fromkeys((*old.digests, *new.digests)))
    then = said.get("packages", {}) | {"Python": said.get("python")}
    now = packages() | {"Python": platform.python_version()}
    changed = {
        name: (then.get(name), now.get(name))
        for name in dict.fromkeys((*then, *now))
        if then.get(name) != now.get(name)
    }
    return Rebuilt(tuple(name for name in names if old.digests.get(name) != new.digests.get(name)), names, changed)
