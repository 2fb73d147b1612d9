"""The network on images: what a proven artifact says of each, in a thread that the readings never wait for.

The model runs only after its file's digests, its signature, its version, its need of memory and its golden vectors
have passed on this very machine, at every start. That they passed before is not remembered: to check costs seconds, in
the model's own thread, and a note of it would vouch for a memory, an engine and a processor that may have changed.

numpy, Pillow and the engine are imported when a watch is opened: a gateway without a model stays small.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from targets.runtime.errors import HighwallError, plain
from twin_client.protocol.records import Box, Prediction, Stamp
from twin_client.sources.camera import Capture
from twin_client.worker import Worker, give_back

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from targets.runtime.admit import Admitted
    from targets.runtime.artifact import Artifact
    from targets.runtime.predict import Prediction as Answer
    from targets.runtime.trust import Trust

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Why = Literal["overrun", "unreadable", "unjoined", "dark", "failed"]
COUNTERS = ("judged", "overrun", "unreadable", "unjoined", "dark", "failed")


class Judging(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the images of a camera are judged."""

    threshold: Share | None = None  # None: the artifact's own
    boxes: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 20  # of an image at most, the largest
    least: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 8  # pixels of a component that has a box
    thumbnail: Annotated[int, msgspec.Meta(ge=0, le=65_536)] = 8192  # bytes at most; 0: none
    side: Annotated[int, msgspec.Meta(ge=16, le=2048)] = 320  # pixels of the thumbnail's longer side at most
    outline: bool = True  # what was found is drawn on the thumbnail
    darkest: Share = 0.0  # mean brightness, of the largest number there is, below which it is night; 0: never


class WatchSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the model may ask of the machine."""

    memory: Annotated[float, msgspec.Meta(ge=1, le=65_536)] = 256.0  # MiB beside Python and the engine, at most
    pixels: Annotated[int, msgspec.Meta(ge=1, le=10**9)] = 8_500_000  # of an image at most; each takes some 15 bytes
    threads: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1  # of the engine
    duty: Annotated[float, msgspec.Meta(ge=0.01, le=1)] = 0.5  # of the time at most; the model rests in between
    hang: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 120.0  # seconds without progress that say it hangs
    stale: Annotated[float, msgspec.Meta(gt=0, le=86_400)] = 600.0  # seconds between an image and the sensors' window
    recent: Annotated[int, msgspec.Meta(ge=0, le=100)] = 8  # pieces of images kept in memory to try a new model on


class Joined(msgspec.Struct, frozen=True):
    """The sensor features that go in with an image, in the artifact's order, and the reading they come from."""

    source: tuple[str, int, int]  # tag, tag_boot, tag_seq
    features: tuple[float, ...]
    at: Stamp  # of the reading


class Missed(msgspec.Struct, frozen=True):
    """An image that was captured and has no prediction, and why.

    overrun: a later one took its place. unreadable: it is damaged, or not what the model takes. unjoined: the model
    takes sensor features, and there are no valid ones. dark: it is night. failed: the model itself did.
    """

    camera: str
    capture: int
    why: Why
    text: str


Outcome = Prediction | Missed


class Watch:
    """A model in use. All but `judge` may be called from any thread; `counters` say how many images fared how."""

    def __init__(self, admitted: "Admitted", worker: Worker, settings: WatchSettings) -> None:
        artifact = admitted.artifact
        self.manifest, self.digest, self.warning = artifact.manifest, artifact.sha256, admitted.standing.warning
        self.session = _Watched(admitted.session, worker)
        self.settings, self.worker = settings, worker
        self.counters = dict.fromkeys(COUNTERS, 0)
        self._recent: list[tuple[NDArray[Any], NDArray[np.float32] | None]] = []

    @staticmethod
    def open(
        path: Path,
        trust: "Trust",
        worker: Worker,
        settings: WatchSettings | None = None,
        *,
        version_floor: int = 0,
        installed: "Artifact | None" = None,
        today: date | None = None,
    ) -> "Watch":
        """The watch with the artifact at `path`, proven here and now; takes seconds, so call it in the worker.

        `version_floor`: the least model version that may run; `installed`: the artifact that it replaces, if any, so
        that no model goes backwards; `today`: by this machine's clock unless given. Raises HighwallError that says
        which check it failed.
        """
        from targets.runtime.admit import admit

        limits = settings or WatchSettings()
        admitted = admit(
            path,
            trust,
            installed,
            today=today,
            threads=limits.threads,
            version_floor=version_floor,
            most_mib=limits.memory,
        )
        watch = Watch(admitted, worker, limits)
        del admitted
        give_back()
        return watch

    def submit(
        self, capture: Capture, joined: Joined | None = None, judging: Judging | None = None, urgent: bool = False
    ) -> "Future[Outcome]":
        """Have `capture` judged in the worker; returns at once.

        One image of a camera waits at most: a later one takes its place, and it is missed. An urgent one goes first.
        """

        def passed_over() -> Outcome:
            return self._miss(capture, "overrun", "a later image came before it was its turn")

        return self.worker.offer(capture.camera, lambda: self.judge(capture, joined, judging), passed_over, urgent)

    def judge(self, capture: Capture, joined: Joined | None = None, judging: Judging | None = None) -> Outcome:
        """What the model says of one image. Called in the worker; raises nothing for an image, however bad."""
        try:
            return self._judge(capture, joined, judging or Judging())
        except Exception as error:  # a decoder or engine fed foreign bytes may raise anything; the next image must run
            return self._miss(capture, "failed", f"{type(error).__name__}: {error}")
        finally:
            give_back()

    def progress(self) -> float:
        """When the model's thread last got on, by the monotonic clock; now, if it is idle."""
        return self.worker.progress()

    def hung(self) -> bool:
        """Whether the model's thread has not got on for too long; only a new process helps then."""
        return self.worker.clock() - self.worker.progress() > self.settings.hang

    def recent(self, count: int) -> "list[tuple[NDArray[Any], NDArray[np.float32] | None]]":
        """At most `count` of the latest images, the newest last, each cut to the model's size where it found most.

        With each go the sensor features (m,) that went in with it, if any.
        """
        return self._recent[-count:] if count > 0 else []

    def _judge(self, capture: Capture, joined: Joined | None, judging: Judging) -> Outcome:
        from targets.runtime.image import check_image, read_image
        from targets.runtime.predict import check_size, predict

        try:
            sensors = self._features(capture, joined)
        except HighwallError as error:
            return self._miss(capture, "unjoined", str(error))
        spec = self.manifest.input
        try:
            most_bytes = self.settings.pixels * max(4, spec.bands * (2 if spec.dtype == "uint16" else 1))
            image = check_image(read_image(capture.path, most_bytes), spec, capture.path)
            if image.shape[0] * image.shape[1] > self.settings.pixels:
                raise HighwallError(f"{capture.path} has more than {self.settings.pixels} pixels; have it made smaller")
            check_size(image, self.manifest)
        except (HighwallError, MemoryError) as error:
            return self._miss(capture, "unreadable", str(error))
        self.worker.alive()
        brightness = _brightness(image)
        if brightness < judging.darkest:
            return self._miss(capture, "dark", f"brightness {brightness:.3f}, judged from {judging.darkest:g}")
        try:
            answer = predict(self.session, self.manifest, image, sensors, judging.threshold)
            prediction = self._record(capture, image, answer, judging)
        except (HighwallError, MemoryError) as error:
            return self._miss(capture, "failed", str(error))
        if sensors is not None and joined is not None:
            prediction = msgspec.structs.replace(prediction, joined=joined.source)
        self._remember(image, sensors, answer)
        self.counters["judged"] += 1
        return prediction

    def _features(self, capture: Capture, joined: Joined | None) -> "NDArray[np.float32] | None":
        """The second input, None where the model has none; raises HighwallError where it has and there is no valid."""
        from targets.runtime.predict import check_sensors

        if not self.manifest.input.sensors:
            return None
        if joined is None:
            raise HighwallError("the model takes a sensor window, and there is no valid one")
        image, window = capture.at, joined.at
        age = abs(image.mono - window.mono) / 1e6
        if image.boot != window.boot or age > self.settings.stale:
            when = "from another boot" if image.boot != window.boot else f"{age:.0f} s from the image"
            most = f"{self.settings.stale:g} s may lie between"
            raise HighwallError(f"the latest valid sensor window is {when}; {most}")
        return check_sensors(joined.features, self.manifest)

    def _record(self, capture: Capture, image: "NDArray[Any]", answer: "Answer", judging: Judging) -> Prediction:
        from targets.runtime.overlay import thumbnail

        mask, boxes = _found(answer, image.shape[:2])
        picture = b""
        if judging.thumbnail:
            picture = thumbnail(image, mask if judging.outline else None, judging.thumbnail, judging.side)
        largest = sorted((box for box in boxes if box.area >= judging.least), key=lambda box: -box.area)
        return Prediction(
            at=capture.at,
            camera=capture.camera,
            capture=capture.number,
            model=self.digest,
            probability=min(1.0, max(0.0, answer.probability)),
            threshold=answer.threshold,
            width=image.shape[1],
            height=image.shape[0],
            positive=int(mask.sum()),
            boxes=tuple(
                Box(box.col, box.row, box.col + box.width, box.row + box.height, box.peak)
                for box in largest[: judging.boxes]
            ),
            thumbnail=picture,
        )

    def _remember(self, image: "NDArray[Any]", sensors: "NDArray[np.float32] | None", answer: "Answer") -> None:
        spec = self.manifest.input
        if answer.map is not None:
            row, col = divmod(int(answer.map.argmax()), image.shape[1])
            row, col = row - spec.height // 2, col - spec.width // 2
        else:
            best = max(answer.tiles or (), key=lambda tile: tile.probability)
            row, col = best.row, best.col
        row, col = (
            max(0, min(at, whole - size))
            for at, whole, size in zip((row, col), image.shape[:2], (spec.height, spec.width), strict=True)
        )
        piece = image[row : row + spec.height, col : col + spec.width].copy()
        self._recent = [*self._recent, (piece, sensors)][-self.settings.recent :] if self.settings.recent else []

    def _miss(self, capture: Capture, why: Why, text: str) -> Missed:
        self.counters[why] += 1
        return Missed(capture.camera, capture.number, why, plain(text or why))


class _Watched:
    """An engine that says after each run that it gets on, so that a large image of many tiles is no hang."""

    def __init__(self, engine: Any, worker: Worker) -> None:
        self._engine, self._worker = engine, worker

    def run(self, image: "NDArray[Any]", sensors: "NDArray[np.float32] | None" = None) -> "NDArray[np.float32]":
        output: NDArray[np.float32] = self._engine.run(image, sensors)
        self._worker.alive()
        return output


def _found(answer: "Answer", shape: Sequence[int]) -> "tuple[NDArray[np.bool_], Sequence[Any]]":
    """The mask (H, W) of what reaches the threshold, and its components' boxes; of a classifier, its windows'."""
    import numpy as np

    from targets.runtime.components import components

    level = np.float32(answer.threshold)
    if answer.map is not None:
        return answer.map >= level, answer.boxes
    mask, peak = np.zeros(shape, np.bool_), np.zeros(shape, np.float32)
    for tile in answer.tiles or ():
        if tile.probability >= level:
            there = np.s_[tile.row : tile.row + tile.height, tile.col : tile.col + tile.width]
            mask[there] = True
            np.maximum(peak[there], tile.probability, out=peak[there])
    return mask, components(mask, peak)


def _brightness(image: "NDArray[Any]") -> float:
    """The mean of the pixels, thinned, as a share of the largest number of their type."""
    import numpy as np

    return float(image[::8, ::8].mean() / np.iinfo(image.dtype).max)
