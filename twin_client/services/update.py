"""The model update: fetch, verify, prove on this machine, run in the shadow of the model in use, switch, keep the old.

It can be killed anywhere and begun again: what has come of the file stays, and the switch is one rename.
"""

import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from targets.runtime.errors import HighwallError
from twin_client.protocol.orders import UpdateModel
from twin_client.protocol.records import Stamp
from twin_client.services import folder as disk
from twin_client.services import tls
from twin_client.services.download import Download, Link
from twin_client.services.execution import Done, Failed, Refused
from twin_client.services.models import Models, day_of
from twin_client.watch import WatchSettings

if TYPE_CHECKING:  # what these bring with them is loaded when there is a model to judge
    import numpy as np
    from numpy.typing import NDArray

    from targets.runtime.artifact import Artifact
    from targets.runtime.engine import Engine
    from targets.runtime.manifest import Manifest
    from targets.runtime.trust import Trust

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Shadow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far a new model may differ from the one in use on the latest images."""

    images: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 20  # at most
    least: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 4  # fewer say nothing, and do not hinder
    changed: Share = 0.25  # of the images' verdicts
    mean: Share = 0.25  # difference of the probabilities


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded model, ready to judge."""

    session: "Engine"
    manifest: "Manifest"


@dataclass(frozen=True, eq=False)
class Shot:
    """A recent image (H, W, C), with the sensor features (m,) that went in with it, if any."""

    image: "NDArray[Any]"
    sensors: "NDArray[np.float32] | None" = None


@dataclass(frozen=True)
class Surroundings:
    """What an update needs of the rest of the agent.

    `heavy` runs a function in the model's thread; `recent` gives at most so many of the latest shots and `running`
    the model in use, both called there. `reload` puts the artifact at a path (None: none) in use, or raises
    HighwallError. `context` is TLS as this gateway.
    """

    now: Callable[[], Stamp]
    context: Callable[[], ssl.SSLContext]
    trust: Callable[[], "Trust"]
    heavy: Callable[[Callable[[], Any]], Awaitable[Any]]
    recent: Callable[[int], Sequence[Shot]]
    running: Callable[[], Model | None]
    reload: Callable[[Path | None], Awaitable[None]]
    progress: Callable[[int, int], None] = lambda have, size: None


@dataclass(frozen=True)
class _Proven:
    """What `Update` has found out about a new model: its name in words, and whether the one before could come back."""

    name: str
    figures: dict[str, float]
    way_back: bool


class Update:
    """Handles `update_model`; one at a time, as execution does. `limits` are the watch's, which runs the model then."""

    def __init__(
        self,
        models: Models,
        around: Surroundings,
        link: Link | None = None,
        shadow: Shadow | None = None,
        limits: WatchSettings | None = None,
    ):
        self._models, self._around = models, around
        self._link, self._shadow, self._limits = link or Link(), shadow or Shadow(), limits or WatchSettings()

    async def run(self, order: UpdateModel) -> Done:
        """Bring the artifact that `order` names into use.

        Raises Refused while another one is on trial, and HighwallError or Failed (with the shadow run's figures)
        where it does not come through; the model in use stays then.
        """
        if self._models.digest == order.sha256:
            return Done("this model is in use already")
        if self._models.on_trial:
            raise Refused("the model in use is on trial itself; send it again when that is over, under another id")
        part = self._models.folder / f"{order.sha256}.part"
        for left in self._models.folder.glob("*.part*"):
            if not left.name.startswith(part.name):
                disk.remove(left)
        if (orphan := self._models.orphan(order.sha256)) is not None:
            orphan.replace(part)
        download = Download(order.url, order.sha256, order.size, part, self._link)
        await download.run(self._around.context(), tls.check_peer(self._around.now), self._around.progress)
        try:
            proven = await self._around.heavy(lambda: self._prove(part, order.shadow))
        except Failed:
            raise  # the shadow run; the file is good, and the issuer may want it without one
        except HighwallError:
            download.drop()  # it will not get better by being tried again
            raise
        name, figures = proven.name, proven.figures
        path = self._models.switch(part, order.sha256, proven.way_back)
        download.drop()  # its mark
        try:
            await self._around.reload(path)
        except HighwallError as error:
            self._models.give_way(str(error))
            text = f"{name} could not be put in use: {error}"
            try:
                await self._around.reload(self._models.current)
            except HighwallError as worse:  # what the twin must hear first is why the new one is not in use
                text += f"; nor can the one before be loaded again: {worse}"
            raise Failed(text, figures) from error
        shadow = f"shadow run on {figures['images']:g} images" if "images" in figures else "without a shadow run"
        trial = "; it is on trial" if self._models.on_trial else ""
        return Done(f"{name} is in use, {shadow}{trial}", figures)

    def _prove(self, part: Path, shadowed: bool) -> _Proven:
        """Signature, version, memory, golden vectors and shadow run."""
        from targets.runtime.admit import admit
        from targets.runtime.trust import judge

        installed, trust, today = self._installed(), self._around.trust(), day_of(self._around.now())
        admitted = admit(
            part, trust, installed, today=today, threads=self._limits.threads, most_mib=self._limits.memory
        )
        manifest = admitted.artifact.manifest
        figures = {"golden_difference": admitted.golden.max_difference}
        running = self._around.running()
        if shadowed and running is not None:
            new = Model(admitted.session, manifest)
            figures |= compare(running, new, self._around.recent(self._shadow.images), self._shadow)
        # A trial could only end badly for a gateway whose model before runs no more: it would be left with none.
        way_back = installed is not None and judge(installed.signature, trust, today).state == "trusted"
        return _Proven(f"{manifest.name} version {manifest.model_version}", figures, way_back)

    def _installed(self) -> "Artifact | None":
        """What the new one replaces. An own model that cannot be read never ran, and holds back none that can."""
        from targets.runtime.artifact import read

        current = self._models.current
        if current is None:
            return None
        try:
            return read(current)
        except HighwallError:
            if self._models.digest:
                raise
            return None


def compare(old: Model, new: Model, shots: Sequence[Shot], limits: Shadow) -> dict[str, float]:
    """Let both models judge `shots`; the figures of how they differ, none where there are too few shots.

    Raises Failed, with the figures, where they differ beyond `limits`, where the new model cannot judge an image
    that the old one can, and where they take different inputs, so that nothing can be compared.
    """
    from targets.runtime.predict import predict

    ours, theirs = (model.manifest.input for model in (old, new))
    if (ours.bands, ours.dtype, ours.sensors) != (theirs.bands, theirs.dtype, theirs.sensors):
        what = f"it takes {theirs.bands} bands of {theirs.dtype} and {theirs.sensors} sensor features"
        here = f"the model in use {ours.bands} of {ours.dtype} and {ours.sensors}"
        raise Failed(f"{what}, {here}: they cannot be compared; send it with shadow = false if that is meant")
    pairs = []
    for shot in shots:
        try:
            before = predict(old.session, old.manifest, shot.image, shot.sensors)
        except HighwallError:
            continue  # the one in use cannot judge it either
        try:
            pairs.append((before, predict(new.session, new.manifest, shot.image, shot.sensors)))
        except HighwallError as error:
            raise Failed(f"it cannot judge an image that the model in use can: {error}") from error
    if len(pairs) < limits.least:
        return {}
    differences = [abs(before.probability - after.probability) for before, after in pairs]
    figures = {
        "images": float(len(pairs)),
        "changed": sum(before.positive != after.positive for before, after in pairs) / len(pairs),
        "mean_difference": sum(differences) / len(pairs),
        "max_difference": max(differences),
    }
    for name, limit in (("changed", limits.changed), ("mean_difference", limits.mean)):
        if figures[name] > limit:
            where = f"{name} {figures[name]:.3g} on {len(pairs)} recent images"
            raise Failed(f"it differs too much from the model in use: {where}, at most {limit:g}", figures)
    return figures
