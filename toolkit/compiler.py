"""One network through one recipe: export, quantize, compare with torch, score. Each candidate is made once."""

import importlib
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from torch import nn

from targets.board import Board
from targets.emulator import counts
from targets.runtime import footprint, golden
from targets.runtime.engine import Engine, open_session
from targets.runtime.errors import HighwallError
from targets.runtime.footprint import Footprint
from targets.runtime.manifest import InputSpec
from toolkit import cache, cost
from toolkit.cache import Cache
from toolkit.calibration import Calibration
from toolkit.checkpoint import Model, digest
from toolkit.data.batches import SENSOR_LIMIT
from toolkit.data.samples import Samples
from toolkit.export.onnx import run_torch
from toolkit.metrics import Scores, Tally
from toolkit.models import example
from toolkit.quantize import sensitivity
from toolkit.quantize.recipes import Recipe

SEEDS: Final = (1, 2, 3, 4)
# How far a model may stray from torch before it is refused, whatever a contract says: a float one in any
# number, an int8 one by its drift over real images. One pixel of a map, or an image of noise, may change sides
# for good reasons. Of a map's pixels one in a hundred is crack, so that a mean over all would miss nothing of a
# model that finds none: there, drift is a share of what torch sees. The shipped network moves up to 0.15 of it, one
# whose ranges are cut by a third 0.6, one that is blind 1.
FLOAT_PARITY: Final = 1e-3
INT8_DRIFT: Final = {"classify": 0.2, "segment": 0.4}
WEIGHT_DRIFT: Final = 0.1  # of models whose weights alone are rounded, and whose arithmetic is float
LEAST_SEEN: Final = 1e-3  # mean probability of maps below which torch sees nothing that could be lost
REAL: Final = 4  # images that models are compared on
# Float kernels differ in the order of their sums; int8 ones by at most one step of the last activation.
TOLERANCE: Final = {"fp32": 1e-4, "int8w": 1e-4, "int8": 0.02, "mixed": 0.02}
LARGEST_TOLERANCE: Final = 0.1  # of a golden vector: beyond it, a wrong answer would pass as well
MAP_BLOCK: Final = 7  # golden maps keep means of 7x7 pixels: odd, so that no 2x2 pattern hides
PACKAGES: Final = ("torch", "numpy", "onnx", "onnxruntime", "litert-torch", "ai-edge-quantizer", "ai-edge-litert")


@dataclass(frozen=True)
class Candidate:
    """A model file of one recipe, and the facts a contract asks about. The same inputs give the same facts.

    parity: largest difference in probability from torch over the golden inputs; drift: over real images, or seeded
    ones where none were given, the largest mean difference of an image, and of maps the summed difference as a share
    of torch's own sum; scores: over the judged samples, where there are any; float_layers: what a mixed recipe left in
    float; spread: how far the kernels of its engine stand apart on the golden inputs (0 where there is one family of
    them); task: of the network.
    """

    recipe: Recipe
    model: bytes
    parity: float
    drift: float
    scores: dict[str, Any] | None
    float_layers: tuple[str, ...] = ()
    spread: float = 0.0
    task: str = "classify"

    @property
    def tolerance(self) -> float:
        """The largest difference between this machine's golden outputs and a board's that is still a match."""
        return max(TOLERANCE[self.recipe.precision], 2 * self.spread)

    @property
    def complaint(self) -> str | None:
        """Why nobody should run this model, or None."""
        if self.recipe.precision == "fp32" and not self.parity <= FLOAT_PARITY:
            return (
                f"the exported model is {self.parity:.3g} off torch, more than {FLOAT_PARITY:g}; "
                "it uses an operator that its engine computes otherwise"
            )
        maps = self.task == "segment"
        what = "of what torch sees is moved or lost" if maps else "off torch"
        if self.recipe.precision == "int8w":
            held = self.drift if maps else float(np.max([self.parity, self.drift]))  # NaN stays
            if not held <= WEIGHT_DRIFT:
                return f"the int8w model: {held:.3g} {what}, more than {WEIGHT_DRIFT:g}; build it at --precision fp32"
        elif not self.drift <= INT8_DRIFT[self.task]:
            most = f"{INT8_DRIFT[self.task]:g}"
            return (
                f"the {self.recipe.precision} model: {self.drift:.3g} {what}{'' if maps else ' on average'}, more than "
                f"{most}; build it at --precision fp32, or calibrate on images like the training ones"
            )
        if self.tolerance > LARGEST_TOLERANCE:
            return (
                f"two kernels of its engine differ by {self.spread:.3g} on the golden inputs, so that verify "
                "could hardly fail; take another recipe"
            )
        return None


@dataclass(frozen=True, eq=False)
class _Probe:
    """One input that models are compared with torch on, what torch answers, and which figures it counts for."""

    image: NDArray[Any]
    sensors: NDArray[np.float32] | None
    answer: NDArray[np.float32]
    parity: bool
    drift: bool


@dataclass
class Compiler:
    """Makes candidates of one network. `say` hears what is being waited for."""

    model: Model
    network: nn.Module
    data: Calibration | None
    cache: Cache = field(default_factory=lambda: Cache(None))
    say: Callable[[str], None] = lambda _: None

    def __post_init__(self) -> None:
        self.spec = input_spec(self.model)
        _ = self.judged  # refuses other sensor features before anything slow
        self.cost = cost.measure(self.network, *example(self.model))
        self.seconds: dict[str, float] = {}
        self._made: dict[Recipe, Candidate] = {}
        self._floats: dict[str, bytes] = {}
        self._footprints: dict[tuple[Recipe, int], Footprint] = {}
        self._observed: dict[str, Any] = {}
        self._ranked: list[sensitivity.Sensitivity] | None = None
        self._probed: list[_Probe] | None = None

    @property
    def images(self) -> NDArray[Any] | None:
        """The calibration images (N, H, W, C)."""
        return None if self.data is None else self.data.images

    @property
    def judged(self) -> Samples | None:
        """The labelled samples, with the sensor features that the network takes."""
        if self.data is None or self.data.judged is None:
            return None
        return self.data.judged.feeding(self.model.name, self.model.network.sensors, self.model.sensor_names)

    def candidate(self, recipe: Recipe) -> Candidate:
        """The candidate of `recipe`, from memory, the cache or from scratch.

        Raises HighwallError when its engine cannot take the network or calibration images are missing, and
        ModuleNotFoundError when the extra that converts for its engine is not installed.
        """
        if recipe not in self._made:
            started = time.perf_counter()
            # What somebody else's forward() does is in no digest, so only networks of our own rooms are kept.
            ours = type(self.network).__module__.startswith("toolkit.")
            store = self.cache if ours else Cache(None)
            key = cache.key(self._identity(recipe))
            found = self._load(recipe, store.get(key))
            if found is None:
                found = self._make(recipe)
                store.put(key, self._members(found))
            self._made[recipe] = found
            self.seconds[recipe.name] = round(time.perf_counter() - started, 2)
        return self._made[recipe]

    def _make(self, recipe: Recipe) -> Candidate:
        if recipe.calibrated and self.images is None:
            raise HighwallError(f"{recipe.precision} needs --calibration DIR: images like those the board will see")
        backend = backend_of(recipe.runtime)
        source = self._float(recipe.runtime, backend)
        kept: tuple[str, ...] = ()
        if recipe.precision == "mixed":
            kept = sensitivity.keep_float(self._ranking())
        observed = self._ranges(recipe.runtime, backend, source) if recipe.calibrated else None
        if recipe.precision != "fp32":
            self.say(f"quantize by {recipe.name}")
        made: bytes = _ours(f"quantize by {recipe.name}", lambda: backend.quantize(source, recipe, observed, kept))
        session = open_session(recipe.runtime, made)
        parity, drift = self._compare(session)
        scores = None
        if self.judged is not None and np.isfinite(parity):
            self.say(f"score {len(self.judged)} labelled images by {recipe.name}")
            scores = _rounded(judge(session, self.judged, self.model.threshold))
        spread = self._spread(backend, made)
        return Candidate(recipe, made, parity, drift, scores, kept, spread, self.model.network.task)

    @property
    def block(self) -> int:
        """Side of the squares whose means golden maps keep."""
        return 1 if self.model.network.task == "classify" else MAP_BLOCK

    @property
    def golden_images(self) -> NDArray[Any] | None:
        """The real images that golden vectors are made of."""
        return None if self.images is None else self.images[: 4 if self.model.network.task == "classify" else 1]

    @property
    def golden_seeds(self) -> tuple[int, ...]:
        return SEEDS if self.model.network.task == "classify" else SEEDS[:2]

    def _spread(self, backend: ModuleType, made: bytes) -> float:
        apart = getattr(backend, "spread", None)
        if apart is None:
            return 0.0
        seeded = [golden.seeded_image(seed, self.spec) for seed in self.golden_seeds]
        images = np.stack(seeded + list([] if self.golden_images is None else self.golden_images))
        found = apart(made, self.feeds(images), lambda output: golden.sample(output, self.block))
        return float(f"{found:.1e}")

    def footprint(self, candidate: Candidate, runs: int) -> Footprint:
        """Memory and time of a candidate in a process of its own, measured once."""
        key = (candidate.recipe, runs)
        if key not in self._footprints:
            self.say(f"run {candidate.recipe.name} in a process of its own")
            self._footprints[key] = footprint.measure(candidate.recipe.runtime, candidate.model, self.spec, runs)
        return self._footprints[key]

    def instructions(self, candidate: Candidate, board: Board) -> int:
        """ARM instructions of one inference on the emulated `board`; counted once, see `counts.count`."""
        runtime, name = candidate.recipe.runtime, candidate.recipe.name
        return counts.count(
            board, runtime, candidate.model, self.spec, lambda line: self.say(f"{line}: {name}")
        ).instructions

    def _float(self, runtime: str, backend: ModuleType) -> bytes:
        if runtime not in self._floats:
            self.say(f"export to {runtime}")
            what = f"export {self.model.name} to {runtime}"
            self._floats[runtime] = _ours(what, lambda: backend.export(self.model, self.network))
        return self._floats[runtime]

    def _ranges(self, runtime: str, backend: ModuleType, source: bytes) -> Any:
        if runtime not in self._observed:
            images = self.images
            assert images is not None
            self.say(f"observe ranges over {len(images)} images in {runtime}")
            self._observed[runtime] = backend.observe(source, self.feeds(images, any_reading(self.model)))
        return self._observed[runtime]

    def feeds(
        self, images: NDArray[Any], readings: Callable[[int], NDArray[np.float32] | None] | None = None
    ) -> Iterator[dict[str, NDArray[Any]]]:
        """`images` (N, H, W, C) as inputs by name, with sensor features where the network has any: the golden ones,
        or those `readings` gives for each image's number."""
        for index, image in enumerate(images):
            sensors = golden.sensor_features(index, self.spec) if readings is None else readings(index)
            yield {"image": image[None]} | ({} if sensors is None else {"sensors": sensors[None]})

    def _ranking(self) -> list[sensitivity.Sensitivity]:
        if self._ranked is None:
            assert self.images is not None
            self.say("measure the sensitivity of every layer")
            self._ranked = sensitivity.measure(self.model, self.network, self.images)
        return self._ranked

    def _compare(self, session: Engine) -> tuple[float, float]:
        """(parity, drift) of the compiled model beside torch."""
        if self._probed is None:
            self._probed = self._probes()
        off = [(probe, np.abs(session.run(probe.image, probe.sensors) - probe.answer)) for probe in self._probed]
        largest = float(np.max([each.max() for probe, each in off if probe.parity]))  # NaN stays
        moved = [each for probe, each in off if probe.drift]
        if self.model.network.task == "classify":
            drift = float(np.max([each.mean() for each in moved]))
        else:
            seen = sum(float(probe.answer.sum()) for probe, _ in off if probe.drift)
            pixels = sum(each.size for each in moved)
            drift = sum(float(each.sum()) for each in moved) / max(seen, LEAST_SEEN * pixels)
        # Torch sums in an order that depends on its threads; two digits do not.
        return float(f"{largest:.1e}"), float(f"{drift:.1e}")

    def _probes(self) -> list[_Probe]:
        """The seeds' images, then the first real ones, and of maps more until torch sees something on them."""

        def probe(image: NDArray[Any], sensors: NDArray[np.float32] | None, parity: bool, drift: bool) -> _Probe:
            return _Probe(image, sensors, run_torch(self.model, self.network, image, sensors), parity, drift)

        found = []
        for index, seed in enumerate(SEEDS):
            features = golden.sensor_features(index, self.spec)
            found.append(probe(golden.seeded_image(seed, self.spec), features, True, False))
            if self.images is None:
                found.append(probe(patches(seed, self.spec), features, False, True))
        if self.images is None:
            return found
        reading, maps = any_reading(self.model), self.model.network.task == "segment"
        seen, pixels = 0.0, 0
        for index, image in enumerate(self.images):
            if index >= REAL and (not maps or seen >= LEAST_SEEN * pixels):
                return found
            found.append(probe(image, reading(len(SEEDS) + index), index < REAL, True))
            seen, pixels = seen + float(found[-1].answer.sum()), pixels + found[-1].answer.size
        if maps and seen < LEAST_SEEN * pixels:
            self.say("torch sees next to nothing on these images, so that nothing shows what a recipe loses")
        return found

    def _identity(self, recipe: Recipe) -> dict[str, Any]:
        data = self.data
        return {
            "weights": digest(self.network.state_dict()),
            "kind": f"{type(self.network).__module__}.{type(self.network).__qualname__}",
            "model": asdict(self.model) | {"provenance": {}},
            "data": None if data is None else data.identity,
            "recipe": recipe.name,
            "packages": packages(),
        }

    @staticmethod
    def _members(found: Candidate) -> dict[str, bytes]:
        facts = {
            "parity": found.parity,
            "drift": found.drift,
            "scores": found.scores,
            "float_layers": found.float_layers,
            "spread": found.spread,
            "task": found.task,
        }
        return {"facts.json": json.dumps(facts).encode(), "model": found.model}

    @staticmethod
    def _load(recipe: Recipe, members: dict[str, bytes] | None) -> Candidate | None:
        if members is None:
            return None
        facts = json.loads(members["facts.json"])
        return Candidate(recipe, members["model"], **(facts | {"float_layers": tuple(facts["float_layers"])}))


def _ours(what: str, work: Callable[[], bytes]) -> bytes:
    """The result of `work`; whatever somebody else's converter raises becomes one line that says `what` failed."""
    try:
        return work()
    except (HighwallError, ModuleNotFoundError):
        raise
    except Exception as error:
        plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()  # torch colours its messages
        reason = (plain.splitlines() or [type(error).__name__])[0][:300]
        raise HighwallError(f"cannot {what}: {reason}") from error


def backend_of(runtime: str) -> ModuleType:
    """The module that exports to `runtime` and quantizes what it exports."""
    return importlib.import_module(f"toolkit.quantize.{runtime}")


def packages() -> dict[str, str]:
    """Versions of what decides a candidate's bytes; a package that is not installed is left out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name).split("+")[0]
        except PackageNotFoundError:
            continue
    return found


def input_spec(model: Model) -> InputSpec:
    """What the artifact says of its input; the arithmetic itself is inside the graph."""
    side = model.network.slice_size
    return InputSpec(
        height=side,
        width=side,
        bands=model.network.bands,
        dtype=model.dtype,  # type: ignore[arg-type]
        scale=tuple(1 / std for std in model.std),
        offset=tuple(-mean / std for mean, std in zip(model.mean, model.std, strict=True)),
        sensors=model.network.sensors,
    )


def patches(seed: int, spec: InputSpec) -> NDArray[Any]:
    """A seeded image of even squares, larger ones by seed, dim and bright by turns.

    What networks are held against torch on where no real images are given: on plain noise many a network is sure of
    itself, and would be so with broken weights.
    """
    side = 3 << (seed - 1)
    noise = golden.seeded_image(seed, spec)
    squares = noise[::side, ::side].repeat(side, 0).repeat(side, 1)[: spec.height, : spec.width]
    return squares // 6 if seed % 2 else noise.max() - squares // 2


def any_reading(model: Model) -> Callable[[int], NDArray[np.float32] | None]:
    """Raw sensor features by number, drawn alike from all that a reading may be.

    int8 ranges are found on them, not on readings seen so far: an alarm is a reading that nobody has seen yet.
    """
    mean, std = np.array(model.sensor_mean), np.array(model.sensor_std)
    spec = input_spec(model)

    def reading(index: int) -> NDArray[np.float32] | None:
        unit = golden.sensor_features(index, spec)
        if unit is None or not mean.size:
            return unit
        return (mean + std * SENSOR_LIMIT * (2 * unit - 1)).astype(np.float32)

    return reading


def judge(session: Engine, samples: Samples, threshold: float) -> Scores:
    """Run every sample, of the model's size and of two labels, through the engine and score it."""
    tally = Tally()
    for index, (image, label) in enumerate(zip(samples.images, samples.labels, strict=True)):
        probability = session.run(image, None if samples.sensors is None else samples.sensors[index])
        if samples.task == "classify":
            tally.add(label, probability[-1])
        else:
            tally.add_pixels(label, probability)
    return tally.scores(threshold)


def _rounded(scores: Scores) -> dict[str, Any]:
    """Six digits: float kernels differ beyond them from one machine to the next."""
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in scores.as_dict().items()}
