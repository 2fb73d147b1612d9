"""The cameras with the network behind them: each image becomes a Prediction, or a Gap that says why there is none."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final, Protocol

from targets.runtime.errors import HighwallError
from twin_client.config import Settings
from twin_client.config import cameras as cameras_in_force
from twin_client.pipeline import Pipeline
from twin_client.protocol.records import Gap, Lost, Prediction, Reading, Reason, Stamp
from twin_client.protocol.site import Site
from twin_client.services.models import Models, day_of
from twin_client.services.update import Model, Shot
from twin_client.sources.camera import Capture, CommandSettings, CommandSource
from twin_client.sources.folder import FolderSource
from twin_client.watch import Joined, Judging, Outcome, Watch
from twin_client.worker import Worker

PENDING: Final = 8  # images of a camera without their record on the disk; then it takes none until one has it


class Source(Protocol):
    """What a camera can do, whatever it is; see `sources.camera`."""

    lost: tuple[int, ...]
    problem: str
    counters: dict[str, int]

    def captures(self) -> Any: ...
    async def capture(self) -> Capture: ...
    def done(self, capture: Capture, bad: bool = False) -> bytes: ...
    def mark(self) -> bytes: ...
    def drop(self, capture: Capture) -> None: ...
    def tidy(self, capture: Capture) -> None: ...


class Cameras:
    """All methods belong to the loop. `latest` gives the last reading of a tag, for a model that takes sensors too."""

    def __init__(
        self,
        settings: Settings,
        site: Callable[[], Site],
        models: Models,
        worker: Worker,
        pipeline: Pipeline,
        stamp: Callable[[], Stamp],
        latest: Callable[[str], Reading | None],
        say: Callable[[str], None],
    ):
        self.watch: Watch | None = None
        self.problem = "not loaded yet"
        self.sources: dict[str, tuple[Source, Judging]] = {}
        self._marks: dict[str, bytes] = {}  # of sources that have ended: what is on the disk may be older
        self._settings, self._site, self._models, self._worker = settings, site, models, worker
        self._pipeline, self._stamp, self._latest, self._say = pipeline, stamp, latest, say

    async def run(self) -> None:
        """Prove the model, then judge what the cameras take, until cancelled. Returns where there are no cameras."""
        wanted = cameras_in_force(self._settings, self._site())
        if not wanted:
            self.problem = ""
            return
        if self.watch is None:
            await self._load()
        self.sources = {}
        for name, (settings, judging) in wanted.items():
            mark = self._marks.get(name) or await self._pipeline.recall(f"camera/{name}")
            kind = CommandSource if isinstance(settings, CommandSettings) else FolderSource
            self.sources[name] = (kind(settings, self._stamp, self._say, mark or b""), judging)  # type: ignore[arg-type]
        try:
            async with asyncio.TaskGroup() as tasks:
                for name in self.sources:
                    tasks.create_task(self._serve(name))
        except BaseException:
            self._marks |= {name: source.mark() for name, (source, _) in self.sources.items()}
            self.sources = {}
            raise

    async def reload(self, path: Path | None) -> None:
        """Put the artifact at `path` in use once it is proven here; None: none. Raises HighwallError."""
        if path is None:
            self.watch, self.problem = None, "no model is installed"
            return
        from targets.runtime.trust import load_trust

        trust, today = load_trust(Path(self._settings.trust)), day_of(self._stamp())
        opening = self._worker.call(lambda: Watch.open(path, trust, self._worker, self._settings.watch, today=today))
        try:
            self.watch = await asyncio.wrap_future(opening)
        except HighwallError as error:
            self.problem = str(error)
            raise
        self.problem = ""
        manifest = self.watch.manifest
        warning = f" ({self.watch.warning})" if self.watch.warning else ""
        self._say(f"the model {manifest.name} version {manifest.model_version} is proven and in use{warning}")

    async def capture(self, name: str | None) -> str:
        """Take and judge an image now with one camera, or with all of them. Raises HighwallError."""
        if self.watch is None:
            raise HighwallError(f"no model is in use: {self.problem}")
        names = list(self.sources) if name is None else [name]
        if unknown := [each for each in names if each not in self.sources]:
            raise HighwallError(
                f"no camera called {unknown[0]} is in use; there are {', '.join(self.sources) or 'none'}"
            )
        said = []
        for each in names:
            source, judging = self.sources[each]
            capture = await source.capture()
            self._check_current(source, capture)
            outcome = await self._judged(source, judging, capture, urgent=True)
            said.append(
                f"{each} {capture.number}: probability {outcome.probability:.3f}"
                if isinstance(outcome, Prediction)
                else f"{each} {capture.number}: {outcome.text}"
            )
        return "; ".join(said)

    def running(self) -> Model | None:
        """The model in use, for the shadow run of another."""
        return None if self.watch is None else Model(self.watch.session, self.watch.manifest)

    def recent(self, count: int) -> list[Shot]:
        """The latest images, for the same."""
        return [] if self.watch is None else [Shot(*shot) for shot in self.watch.recent(count)]

    async def _load(self) -> None:
        """The model that the twin has sent, the one before where that fails for good, or the gateway's own."""
        path = self._models.start()
        try:
            await self.reload(path)
        except HighwallError as error:
            if not self._models.failed(str(error), at_all=True):
                raise
            self._say(f"the new model failed: {error}; the one before is back")
            await self.reload(self._models.current)
        if path is None:
            self._say("there are cameras, but no model; name one as `model` in gateway.toml, or have the twin send it")

    async def _serve(self, name: str) -> None:
        source, judging = self.sources[name]
        if source.lost:
            lost = tuple(Lost(name, 0, number, number) for number in source.lost)
            await self._pipeline.put([Gap(self._stamp(), "restarted", lost=lost)])
        if self.watch is None:
            return
        async with aclosing(source.captures()) as captures:
            pending: set[asyncio.Task[Outcome]] = set()
            try:
                async for capture in captures:
                    task = asyncio.create_task(self._judged(source, judging, capture))
                    pending.add(task)
                    task.add_done_callback(pending.discard)
                    task.add_done_callback(_raised)
                    while len(pending) >= PENDING:  # the disk takes nothing, and images may not fill what is left of it
                        await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in pending:
                    task.cancel()

    async def _judged(self, source: Source, judging: Judging, capture: Capture, urgent: bool = False) -> Outcome:
        watch = self.watch
        assert watch is not None
        joined = self._joined(capture.camera, watch)
        try:
            outcome = await asyncio.wrap_future(watch.submit(capture, joined, judging, urgent))
        except asyncio.CancelledError:
            source.drop(capture)
            raise
        self._check_current(source, capture)
        if isinstance(outcome, Prediction):
            record: Prediction | Gap = outcome
        else:
            lost = (Lost(capture.camera, 0, capture.number, capture.number),)
            reason: Reason = "overrun" if outcome.why == "overrun" else "unjudged"
            record = Gap(capture.at, reason, lost=lost, text=f"{outcome.why}: {outcome.text}")
        bad = not isinstance(outcome, Prediction) and outcome.why == "unreadable"
        await asyncio.shield(asyncio.ensure_future(self._keep(source, capture, record, source.done(capture, bad))))
        await self._weigh(outcome)
        return outcome

    def _check_current(self, source: Source, capture: Capture) -> None:
        """Drop an image of a source that has ended: who goes on has named its number as lost, or gives it anew."""
        if self.sources.get(capture.camera, (None,))[0] is not source:
            source.drop(capture)
            raise HighwallError("the cameras were begun again meanwhile; ask once more")

    async def _keep(self, source: Source, capture: Capture, record: Prediction | Gap, mark: bytes) -> None:
        """What is said of an image to the disk, then the image away; also where the cameras end meanwhile."""
        await self._pipeline.put([record], {f"camera/{capture.camera}": mark})
        source.tidy(capture)

    async def _weigh(self, outcome: Outcome) -> None:
        """What an image says for or against a model that is on trial."""
        if isinstance(outcome, Prediction):
            self._models.worked()
        elif outcome.why == "failed" and self._models.failed(outcome.text):
            self._say(f"the new model failed too often: {outcome.text}; the one before is back")
            await self.reload(self._models.current)

    def _joined(self, camera: str, watch: Watch) -> Joined | None:
        """The sensor features that go in with an image: the last reading of the tag that was named for the camera."""
        from targets.runtime.predict import sensor_names

        tag = self._settings.joined.get(camera)
        reading = None if tag is None else self._latest(tag)
        if reading is None:
            return None
        measures = [reading.values.get(name) for name in sensor_names(watch.manifest)]
        values = [
            None if measure is None else measure.value if measure.calibration else measure.raw for measure in measures
        ]
        features = tuple(value for value in values if value is not None)
        if len(features) < len(values) or not features:
            return None
        return Joined((reading.tag, reading.tag_boot, reading.tag_seq), features, reading.at)


def _raised(task: "asyncio.Task[Outcome]") -> None:
    """One image's failure is not the end of its camera; it is counted where it happened."""
    if not task.cancelled():
        task.exception()
