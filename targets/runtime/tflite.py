"""The LiteRT engine: one thread by default, the same numbers every time; tflite-runtime serves where it is alone."""

import math
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from targets.runtime.errors import HighwallError
from targets.runtime.feed import feed

_IDENTIFIER = b"TFL3"
# tflite-runtime's binding knows no uint16, so such pixels travel as int32.
_DTYPES: Final[dict[Any, np.dtype[Any]]] = {np.uint8: np.dtype(np.uint8), np.int32: np.dtype(np.uint16)}

Kernels = Literal["fastest", "built-in", "reference"]
_RESOLVERS: Final[dict[Kernels, str]] = {
    "fastest": "AUTO",
    "built-in": "BUILTIN_WITHOUT_DEFAULT_DELEGATES",
    "reference": "BUILTIN_REF",
}


def load() -> ModuleType:
    """The engine's package, or its predecessor; raises HighwallError where neither is installed."""
    try:
        from ai_edge_litert import interpreter
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "ai_edge_litert":
            raise  # it is installed, and something that it needs is not
        try:
            from tflite_runtime import interpreter
        except ModuleNotFoundError:
            raise HighwallError(
                "this model runs in LiteRT, which is not installed here; pip install 'highwall[litert]'"
            ) from error
    module: ModuleType = interpreter
    return module


class Session:
    """A model with input `image` (1, H, W, C), perhaps `sensors` (1, m), and output `probability`."""

    def __init__(self, model: bytes, threads: int = 1, kernels: Kernels = "fastest") -> None:
        """Load the bytes of a .tflite file; raises HighwallError if the engine is missing or refuses it.

        The fastest kernels are the delegate's (XNNPACK). int8 layers run slower in the built-in ones, which
        tflite-runtime 2.14 has too, and round otherwise; the reference kernels are plain loops, which say the same on
        every CPU and in every release, very slowly.
        """
        interpreter = load()
        # LiteRT verifies a file; tflite-runtime follows its offsets wherever they lead and ends the process.
        if not is_whole(model):
            raise HighwallError("LiteRT refuses the model: it is no .tflite file, or a damaged one; copy it again")
        try:
            with _hushed():
                kinds = interpreter.OpResolverType
                self._interpreter = interpreter.Interpreter(
                    model_content=model,
                    num_threads=threads,
                    experimental_op_resolver_type=kinds[_RESOLVERS[kernels]],
                )
                self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise HighwallError(f"LiteRT refuses the model: {_first_line(error)}") from error
        self._inputs = {entry["name"]: entry for entry in self._interpreter.get_input_details()}
        outputs = {entry["name"]: entry for entry in self._interpreter.get_output_details()}
        if set(self._inputs) not in ({"image"}, {"image", "sensors"}) or list(outputs) != ["probability"]:
            raise HighwallError(
                f"the model maps {', '.join(self._inputs)} to {', '.join(outputs)}; "
                "wanted are image, perhaps sensors, to probability"
            )
        image = self._inputs["image"]
        if image["dtype"] not in _DTYPES or len(image["shape"]) != 4:
            kind, shape = np.dtype(image["dtype"]), image["shape"].tolist()
            raise HighwallError(f"the model's image is {kind} {shape}; wanted is uint8 or int32 (1, H, W, C)")
        if outputs["probability"]["dtype"] != np.float32:
            kind = np.dtype(outputs["probability"]["dtype"])
            raise HighwallError(f"the model's probability is {kind}; wanted is float32")
        self._output = int(outputs["probability"]["index"])
        self.dtype: np.dtype[Any] = _DTYPES[image["dtype"]]
        self.shape: tuple[int, ...] = tuple(int(length) for length in image["shape"][1:])
        self.sensors = math.prod(self._inputs["sensors"]["shape"].tolist()) if "sensors" in self._inputs else 0

    def run(self, image: NDArray[Any], sensors: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Image (H, W, C) of the model's dtype, sensors (m,) where it has them -> (K,) or (H, W) float32.

        Raises HighwallError when an input does not fit the model.
        """
        fed = feed(self, image, sensors)
        fed["image"] = fed["image"].astype(self._inputs["image"]["dtype"], copy=False)
        try:
            for name, values in fed.items():
                self._interpreter.set_tensor(self._inputs[name]["index"], values)
            self._interpreter.invoke()
            probability = self._interpreter.get_tensor(self._output)
        except (ValueError, RuntimeError) as error:
            raise HighwallError(f"LiteRT failed to run the model: {_first_line(error)}") from error
        return np.asarray(probability[0], np.float32)


def is_whole(model: bytes) -> bool:
    """Whether `model` is a .tflite file whose tables of graphs and constants lie inside it.

    This finds another file and one cut short; a file whose bytes were changed needs its artifact's digests.
    """
    if len(model) < 64 or model[4:8] != _IDENTIFIER:
        return False
    try:
        (root,) = struct.unpack_from("<I", model, 0)
        for field in (1, 2, 4):  # operator_codes, subgraphs, buffers
            vector = _follow(model, _field(model, root, field))
            (count,) = struct.unpack_from("<I", model, vector)
            if count == 0:
                return False
            for entry in range(count):
                table = _follow(model, vector + 4 + 4 * entry)
                _field(model, table, 0)
                if field == 4 and (data := _field(model, table, 0)):
                    start = _follow(model, data)
                    (length,) = struct.unpack_from("<I", model, start)
                    if start + 4 + length > len(model):
                        return False
    except (struct.error, ValueError):
        return False
    return True


def _field(model: bytes, table: int, number: int) -> int:
    """Where field `number` of the table at `table` is, 0 where the table lacks it."""
    (back,) = struct.unpack_from("<i", model, table)
    start = table - back
    if start < 0:
        raise ValueError("a table without fields")
    (size,) = struct.unpack_from("<H", model, start)
    if 4 + 2 * number >= size:
        return 0
    (offset,) = struct.unpack_from("<H", model, start + 4 + 2 * number)
    return table + offset if offset else 0


def _follow(model: bytes, place: int) -> int:
    """What the reference at `place` refers to."""
    if not 0 < place <= len(model) - 4:
        raise ValueError("a reference that leads nowhere")
    (offset,) = struct.unpack_from("<I", model, place)
    return place + int(offset)


@contextmanager
def _hushed() -> Iterator[None]:
    """Without what C++ writes to stderr: the engine names its delegate there at every load, and has no switch."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
