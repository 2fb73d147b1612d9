"""The manifest: what an artifact says of itself, as frozen values and as checked, canonical JSON."""

import json
import re
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, NoReturn, cast

from targets.runtime.errors import HighwallError

SCHEMA: Final = 1
MAX_SIDE: Final = 4096  # pixels; the largest input an artifact may ask for
MAX_BANDS: Final = 256

Dtype = Literal["uint8", "uint16"]
Task = Literal["classify", "segment"]


@dataclass(frozen=True)
class InputSpec:
    """The image a model takes: raw pixels, (height, width, bands); scaling happens inside the graph.

    `scale` and `offset` say what the graph does: value = pixel * scale + offset, one number per band or
    one for all. `sensors` is the length of the second input, 0 where there is none.
    """

    height: int
    width: int
    bands: int
    dtype: Dtype
    layout: str = "NHWC"
    scale: tuple[float, ...] = (1.0,)
    offset: tuple[float, ...] = (0.0,)
    sensors: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, bands)."""
        return self.height, self.width, self.bands


@dataclass(frozen=True)
class Manifest:
    """Everything but the numbers. `output_shape` has no batch axis: (K,) to classify, (H, W) to segment.

    The last of `labels` is what the model watches for; its probability is the last of the K.
    `threshold` is the probability from which an image or pixel counts as that label.
    """

    name: str
    task: Task
    model_version: int
    input: InputSpec
    output_shape: tuple[int, ...]
    threshold: float
    labels: tuple[str, ...]
    board: str
    runtime: str
    recipe: dict[str, Any]
    provenance: dict[str, Any]
    schema: int = SCHEMA


def to_json(value: object, what: str) -> bytes:
    """Canonical JSON: keys sorted, two spaces, ASCII, a newline at the end.

    Raises HighwallError, naming `what`, for NaN, infinity or a value JSON has no word for.
    """
    try:
        text = json.dumps(value, sort_keys=True, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise HighwallError(f"{what} cannot be written as JSON: {error}") from error
    return text.encode("ascii") + b"\n"


def from_json(data: bytes, what: str) -> dict[str, Any]:
    """The object in canonical JSON; anything else, a repeated key included, raises HighwallError."""
    try:
        value = json.loads(data.decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise HighwallError(f"{what} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise HighwallError(f"{what} is not a JSON object")
    if to_json(value, what) != data:
        raise HighwallError(f"{what} is not in the form Highwall writes (sorted keys, each once)")
    return value


def encode_manifest(manifest: Manifest) -> bytes:
    """The bytes of manifest.json."""
    return to_json(asdict(manifest), "manifest.json")


def decode_manifest(data: bytes, where: str) -> Manifest:
    """The manifest in `data`; raises HighwallError, beginning with `where`, naming the key at fault."""
    raw = from_json(data, where)
    schema = raw.get("schema")
    if type(schema) is int and schema > SCHEMA:
        raise HighwallError(
            f"{where} has schema {schema}, newer than the {SCHEMA} this Highwall reads; upgrade Highwall"
        )
    keys = _Keys(raw, where, "")
    inner = _Keys(keys.table("input"), where, "input.")
    spec = InputSpec(
        height=inner.whole("height", 1, MAX_SIDE),
        width=inner.whole("width", 1, MAX_SIDE),
        bands=inner.whole("bands", 1, MAX_BANDS),
        dtype=cast(Dtype, inner.one_of("dtype", "uint8", "uint16")),
        layout=inner.one_of("layout", "NHWC"),
        scale=inner.numbers("scale"),
        offset=inner.numbers("offset"),
        sensors=inner.whole("sensors", 0, 4096),
    )
    for key, values in (("scale", spec.scale), ("offset", spec.offset)):
        if len(values) not in (1, spec.bands):
            inner.fail(key, f"has {len(values)} numbers for {spec.bands} bands")
    inner.finish()
    manifest = Manifest(
        schema=keys.whole("schema", 1, SCHEMA),
        name=keys.text("name"),
        task=cast(Task, keys.one_of("task", "classify", "segment")),
        model_version=keys.whole("model_version", 0, 2**53),
        input=spec,
        output_shape=keys.wholes("output_shape"),
        threshold=keys.number("threshold", 0.0, 1.0),
        labels=keys.texts("labels"),
        board=keys.text("board"),
        runtime=keys.text("runtime"),
        recipe=keys.table("recipe"),
        provenance=keys.table("provenance"),
    )
    keys.finish()
    _check_output(manifest, keys)
    return manifest


def _check_output(manifest: Manifest, keys: "_Keys") -> None:
    shape, spec = manifest.output_shape, manifest.input
    if manifest.task == "segment" and shape != (spec.height, spec.width):
        keys.fail("output_shape", f"is {shape}, but a map of the input is {(spec.height, spec.width)}")
    if manifest.task == "classify" and len(shape) != 1:
        keys.fail("output_shape", f"is {shape}; to classify it is (K,), without the batch axis")
    if manifest.task == "classify" and shape[0] > 1 and len(manifest.labels) != shape[0]:
        keys.fail("labels", f"has {len(manifest.labels)} names for {shape[0]} probabilities")
    if not re.fullmatch(r"[a-z][a-z0-9]{0,15}", manifest.runtime):
        keys.fail("runtime", f"is {manifest.runtime!r}, not the name of an engine")


class _Keys:
    """Takes typed values out of a JSON object and says by name which key is missing, wrong or unknown."""

    def __init__(self, raw: dict[str, Any], where: str, prefix: str) -> None:
        self._left = dict(raw)
        self._where = where
        self._prefix = prefix

    def fail(self, key: str, reason: str) -> NoReturn:
        raise HighwallError(f"{self._where}: key {self._prefix}{key} {reason}")

    def finish(self) -> None:
        for key in self._left:
            self.fail(key.encode("unicode_escape").decode("ascii")[:80], f"is unknown to schema {SCHEMA}")

    def take(self, key: str) -> Any:
        if key not in self._left:
            self.fail(key, "is missing")
        return self._left.pop(key)

    def table(self, key: str) -> dict[str, Any]:
        value = self.take(key)
        if not isinstance(value, dict):
            self.fail(key, "is not an object")
        return cast(dict[str, Any], value)

    def text(self, key: str) -> str:
        return self._text(key, self.take(key))

    def texts(self, key: str) -> tuple[str, ...]:
        return tuple(self._text(key, item) for item in self._items(key))

    def whole(self, key: str, least: int, most: int) -> int:
        return self._whole(key, self.take(key), least, most)

    def wholes(self, key: str) -> tuple[int, ...]:
        return tuple(self._whole(key, item, 1, MAX_SIDE) for item in self._items(key))

    def number(self, key: str, least: float, most: float) -> float:
        value = self._number(key, self.take(key))
        if not least <= value <= most:
            self.fail(key, f"is {value}, outside {least:g} to {most:g}")
        return value

    def numbers(self, key: str) -> tuple[float, ...]:
        return tuple(self._number(key, item) for item in self._items(key))

    def one_of(self, key: str, *allowed: str) -> str:
        value = self.take(key)
        if value not in allowed:
            self.fail(key, f"is {value!r}; it may be {' or '.join(allowed)}")
        return cast(str, value)

    def _items(self, key: str) -> list[Any]:
        value = self.take(key)
        if not isinstance(value, list) or not 1 <= len(value) <= MAX_SIDE:
            self.fail(key, "is not a list with something in it")
        return value

    def _text(self, key: str, value: Any) -> str:
        if not isinstance(value, str) or not 1 <= len(value) <= 200 or not value.isprintable():
            self.fail(key, "is not a line of 1 to 200 printable characters")
        return value

    def _whole(self, key: str, value: Any, least: int, most: int) -> int:
        if type(value) is not int or not least <= value <= most:
            self.fail(key, f"is {value!r}, not a whole number from {least} to {most}")
        return value

    def _number(self, key: str, value: Any) -> float:
        if type(value) not in (int, float) or not -1e300 < value < 1e300:
            self.fail(key, "is not a finite number")
        return float(value)
