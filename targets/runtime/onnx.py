"""The ONNX Runtime engine: one thread by default, in sequence, the same numbers every time."""

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from targets.runtime.errors import HighwallError
from targets.runtime.feed import feed

SMALL: Final = 128 * 128  # pixels
PROVIDERS: Final = ["CPUExecutionProvider"]
_DTYPES: Final[dict[Any, np.dtype[Any]]] = {"tensor(uint8)": np.dtype(np.uint8), "tensor(uint16)": np.dtype(np.uint16)}


def load() -> Any:
    """The engine's package; raises HighwallError where it is not installed."""
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise HighwallError(
            "this model runs in ONNX Runtime, which is not installed here; pip install 'highwall[ort]'"
        ) from error
    return onnxruntime


class Session:
    """A model with input `image` (1, H, W, C), perhaps `sensors` (1, m), and output `probability`."""

    def __init__(self, model: bytes, threads: int = 1) -> None:
        """Load the bytes of an .onnx file; raises HighwallError if ONNX Runtime is missing or refuses it."""
        onnxruntime = load()
        try:
            self._session, options = _opened(onnxruntime, model, threads)
            if _is_small(self._session):
                options.enable_cpu_mem_arena = options.enable_mem_pattern = True
                self._session = onnxruntime.InferenceSession(model, options, providers=PROVIDERS)
        except Exception as error:  # the binding's exceptions share no base class but this
            raise HighwallError(f"ONNX Runtime refuses the model: {_first_line(error)}") from error
        inputs = {entry.name: entry for entry in self._session.get_inputs()}
        outputs = [entry.name for entry in self._session.get_outputs()]
        if set(inputs) not in ({"image"}, {"image", "sensors"}) or outputs != ["probability"]:
            raise HighwallError(
                f"the model maps {', '.join(inputs)} to {', '.join(outputs)}; "
                "wanted are image, perhaps sensors, to probability"
            )
        if inputs["image"].type not in _DTYPES or len(inputs["image"].shape) != 4:
            kind, shape = inputs["image"].type, inputs["image"].shape
            raise HighwallError(f"the model's image is {kind} {shape}; wanted is uint8 or uint16 (1, H, W, C)")
        self.dtype: np.dtype[Any] = _DTYPES[inputs["image"].type]
        self.shape: tuple[int, ...] = tuple(inputs["image"].shape[1:])
        self.sensors = int(inputs["sensors"].shape[1]) if "sensors" in inputs else 0

    def run(self, image: NDArray[Any], sensors: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Image (H, W, C) of the model's dtype, sensors (m,) where it has them -> (K,) or (H, W) float32.

        Raises HighwallError when an input does not fit the model.
        """
        fed = feed(self, image, sensors)
        try:
            (probability,) = self._session.run(["probability"], fed)
        except Exception as error:  # as above
            raise HighwallError(f"ONNX Runtime failed to run the model: {_first_line(error)}") from error
        return np.asarray(probability[0], np.float32)


def _opened(onnxruntime: Any, model: bytes, threads: int) -> tuple[Any, Any]:
    """A session whose sums of integers are exact on every processor, and its options.

    Left alone, x86 without VNNI adds pairs of 8-bit products in 16 bits, which saturate as on no board. ONNX Runtime
    can be asked not to, but its 1.31 then spoils models of weights alone, where nothing is added in 16 bits: it gives
    one zero point to a tensor that has a scale a channel. And it fails on a layer that is used twice; such a model is
    computed in floats, exact and slower.
    """
    options = _options(onnxruntime, threads)
    if b"QuantizeLinear" not in model:  # a word that DequantizeLinear does not hold
        return onnxruntime.InferenceSession(model, options, providers=PROVIDERS), options
    options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        return onnxruntime.InferenceSession(model, options, providers=PROVIDERS), options
    except Exception:  # whatever it says: what is broken is refused once more, and by the same words
        options = _options(onnxruntime, threads)
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        return onnxruntime.InferenceSession(model, options, providers=PROVIDERS), options


def _options(onnxruntime: Any, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    options.log_severity_level = 4
    # What an inference took goes back when it is done: a gateway rests most of the time, and an arena would keep
    # the peak for years. The plan of a pattern asks for its sum at once. On x86-64 `crack` rests at 86 MB without
    # both and at 214 with them, and takes 13 to 22 % longer. Of small images an arena keeps next to nothing:
    # `mine` takes a quarter longer without, and 1 MB more with it.
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    return options


def _is_small(session: Any) -> bool:
    """Whether its images are; the shape is known only when the model is loaded."""
    lengths = [length for entry in session.get_inputs() if entry.name == "image" for length in entry.shape[1:3]]
    return len(lengths) == 2 and all(isinstance(length, int) for length in lengths) and math.prod(lengths) <= SMALL


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
