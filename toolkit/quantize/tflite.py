"""TFLite at int8: where values are observed, which operators are quantized, and how the result is written.

`int8w` stores weights at int8 behind a DEQUANTIZE each: float arithmetic, as fast as float in LiteRT, which
widens them once at loading. The dynamic-range form, where the engine quantizes activations as it goes, was
five times slower in LiteRT on x86 and wrong in tflite-runtime 2.14, so no recipe uses it.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from targets.runtime.tflite import Session, load
from toolkit.export.flatbuffer import constant, kind, pack, unpack
from toolkit.export.tflite import WEIGHTED, export, quiet
from toolkit.quantize.ranges import Histogram, limits
from toolkit.quantize.recipes import Recipe

__all__ = ["Feed", "Observed", "export", "layers", "observe", "quantize", "spread"]

Feed = Mapping[str, NDArray[Any]]  # by the model's input name, each with a batch axis of 1
Observed = dict[str, Histogram]  # by tensor name

QUANTIZED: Final = (
    *("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "CONCATENATION", "ADD", "MUL", "RELU", "PAD"),
    *("MIRROR_PAD", "MAX_POOL_2D", "AVERAGE_POOL_2D", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"),
    *("TRANSPOSE", "RESHAPE", "SLICE", "STRIDED_SLICE"),
)
SQUASHED: Final = ("LOGISTIC", "SOFTMAX")
POOLS: Final = ("MEAN", "REDUCE_MAX", "AVERAGE_POOL_2D")
# A way back from a gate's LOGISTIC that meets one of these before a pool has left the gate.
TRUNK: Final = ("MAX_POOL_2D", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "DEPTHWISE_CONV_2D", "CAST")
_MOVING: Final = ("RESHAPE", "TRANSPOSE", "SLICE", "STRIDED_SLICE", "SQUEEZE")


def layers(model: bytes) -> tuple[str, ...]:
    """Names of the layers with weights, in the order they run; the modules' own where torch named them."""
    graph = _Graph(model)
    kept = graph.gates() | graph.ends()
    return tuple(name for name, what in graph.kinds.items() if what in WEIGHTED and name not in kept)


def observe(model: bytes, feeds: Iterable[Feed], say: Callable[[str], None] = lambda _: None) -> Observed:
    """One histogram of every float tensor between operators, over all `feeds`."""
    with quiet():
        engine = load()
        session = engine.Interpreter(model_content=model, experimental_preserve_all_tensors=True, num_threads=2)
        session.allocate_tensors()
    made = set(_Graph(model).kinds)
    wanted = {
        entry["name"]: entry["index"]
        for entry in session.get_tensor_details()
        if entry["dtype"] == np.float32 and (entry["name"] in made or entry["name"] == "sensors")
    }
    inputs = {entry["name"]: entry for entry in session.get_input_details()}
    observed = {name: Histogram() for name in wanted}
    for count, feed in enumerate(feeds, 1):
        for name, values in feed.items():
            session.set_tensor(inputs[name]["index"], np.ascontiguousarray(values, inputs[name]["dtype"]))
        session.invoke()
        for name, index in wanted.items():
            observed[name].add(session.get_tensor(index))
        if count % 50 == 0:
            say(f"{count} images observed")
    return observed


def quantize(model: bytes, recipe: Recipe, observed: Observed | None, keep_float: Collection[str] = ()) -> bytes:
    """`model` (float, from `export`) by `recipe`; the layers named in `keep_float` are left as they are.

    Activations are asymmetric int8, weights symmetric with a scale a channel; those of FULLY_CONNECTED have
    one scale, because tflite-runtime 2.14 knows no other. Raw pixels in, float probability out, as ever.
    """
    if recipe.precision == "fp32":
        return model
    with quiet():
        quantizer = _planned(model, recipe, frozenset(keep_float))
        if recipe.precision == "int8w":
            result = quantizer.quantize(enable_progress_bar=False, enable_progress_report=False)
        else:
            assert observed is not None, "static int8 needs observed ranges"
            ranges = {name: _range(seen, recipe.ranges) for name, seen in observed.items()}
            result = quantizer.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    return _shortened(bytes(result.quantized_model))


def spread(
    model: bytes,
    feeds: Iterable[Feed],
    kept: Callable[[NDArray[np.float32]], NDArray[np.float32]] = lambda output: output,
) -> float:
    """Largest difference, in what is `kept` of an output, between the two kernel families that may run `model`.

    Next to none in float. At static int8 each rounds a layer's last bit in its own way, which a steep map
    amplifies, so a golden tolerance that tflite-runtime 2.14 can meet is about twice this.
    """
    sessions = [Session(model), Session(model, kernels="built-in")]
    largest = 0.0
    for feed in feeds:
        sensors = feed["sensors"][0] if "sensors" in feed else None
        one, other = (session.run(feed["image"][0], sensors) for session in sessions)
        largest = max(largest, float(np.abs(kept(one) - kept(other)).max()))
    return largest


def _planned(model: bytes, recipe: Recipe, keep_float: frozenset[str]) -> Any:
    """The quantizer with its orders, of which the last that fits an operator counts."""
    from ai_edge_quantizer import qtyping, quantizer
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    plan = quantizer.Quantizer(model)
    names, scales = qtyping.TFLOperationName, qtyping.QuantGranularity
    granularity = dict.fromkeys(QUANTIZED, scales.CHANNELWISE) | {"FULLY_CONNECTED": scales.TENSORWISE}
    weighted = [what for what in QUANTIZED if what in WEIGHTED]
    if recipe.precision == "int8w":
        for what in weighted:
            plan.add_weight_only_config(".*", names(what), 8, granularity[what])
    else:
        for what in QUANTIZED:
            plan.update_quantization_recipe(".*", names(what), _static(granularity[what]))
        graph = _Graph(model)
        spared = _exactly(graph.gates() | graph.ends())
        plan.update_quantization_recipe(spared, names.ALL_SUPPORTED, algorithm_key=AlgorithmName.NO_QUANTIZE)
        for what in weighted:  # a gate's arithmetic stays float, but its weights are as many as a layer's
            plan.add_weight_only_config(spared, names(what), 8, granularity[what])
    if keep_float:
        kept = _exactly(keep_float)
        plan.update_quantization_recipe(kept, names.ALL_SUPPORTED, algorithm_key=AlgorithmName.NO_QUANTIZE)
    return plan


def _exactly(operators: Collection[str]) -> str:
    """A pattern that fits these names alone, as the quantizer spells them."""
    return f"^(?:{'|'.join(re.escape(name) for name in sorted(operators))});?$"


def _static(granularity: Any) -> Any:
    from ai_edge_quantizer import qtyping

    return qtyping.OpQuantizationConfig(
        activation_tensor_config=qtyping.TensorQuantizationConfig(num_bits=8, symmetric=False),
        weight_tensor_config=qtyping.TensorQuantizationConfig(num_bits=8, symmetric=True, granularity=granularity),
        compute_precision=qtyping.ComputePrecision.INTEGER,
        explicit_dequantize=False,
    )


def _range(seen: Histogram, method: str) -> dict[str, NDArray[np.float32]]:
    low, high = limits(seen, method)
    return {"min": np.array([low], np.float32), "max": np.array([high], np.float32)}


def _shortened(model: bytes) -> bytes:
    """`model` with short names for all but its ends: half of a small int8 file is names."""
    proto = unpack(model)
    graph = proto.subgraphs[0]
    ends = {*graph.inputs, *graph.outputs}
    for index, tensor in enumerate(graph.tensors):
        if index not in ends:
            tensor.name = f"{index:x}"
    return pack(proto)


class _Graph:
    """Who makes what in a float model from `export`, by the name of each operator's output."""

    def __init__(self, model: bytes) -> None:
        proto = unpack(model)
        tensors = proto.subgraphs[0].tensors
        self.kinds: dict[str, str] = {}
        self.sources: dict[str, list[str]] = {}  # inputs that are no constants, each once
        for operator in proto.subgraphs[0].operators:
            name = _text(tensors[operator.outputs[0]].name)
            self.kinds[name] = kind(proto, operator)
            live = [index for index in operator.inputs if index >= 0 and not constant(proto, index)]
            self.sources[name] = list(dict.fromkeys(_text(tensors[index].name) for index in live))

    def ends(self) -> set[str]:
        """Operators between raw pixels and the first layers, and between the last logits and the output.

        The first see the pixels' own range, which int8 would coarsen; the last give the probability, whose
        steps the contract's threshold is read on. A last linear layer costs next to nothing and stays with it.
        """
        found: set[str] = set()
        for name, what in self.kinds.items():
            if what not in WEIGHTED and all(source in found or source == "image" for source in self.sources[name]):
                found.add(name)
        waiting = ["probability"]
        while waiting:
            here = waiting.pop()
            if self.kinds.get(here) in (*SQUASHED, *_MOVING):
                waiting += self.sources[here]
            elif self.kinds.get(here) != "FULLY_CONNECTED":
                continue
            found.add(here)
        return found

    def gates(self) -> set[str]:
        """Operators that compute attention gates: from the pools of a map up to the gate's LOGISTIC.

        They see one number a channel, or three a pixel, so they cost little in float, while a gate's error
        multiplies every pixel it scales. A LOGISTIC that no pool feeds is an activation, and no gate.
        """
        found: set[str] = set()
        for name, what in self.kinds.items():
            if what == "LOGISTIC" and name not in self.ends():
                found |= self._gate(name)
        return found

    def _gate(self, logistic: str) -> set[str]:
        seen: set[str] = set()
        pooled = False
        waiting = [logistic]
        while waiting:
            here = waiting.pop()
            if here in seen or here not in self.kinds:
                continue
            what = self.kinds[here]
            if what in TRUNK:
                return set()
            if what == "DIV":  # stochastic pooling, a ratio of sums over squares: int8 holds no squares
                seen |= self._arithmetic(here)
                pooled = True
                continue
            seen.add(here)
            if what in POOLS:
                pooled = True
                continue
            waiting += self.sources[here]
        return seen if pooled else set()

    def _arithmetic(self, division: str) -> set[str]:
        """What leads to `division` from the map it pools: steps that each read one tensor."""
        seen = {division}
        waiting = list(self.sources[division])
        while waiting:
            here = waiting.pop()
            steps = ("SUM", "ADD", "MUL", "RELU", "RESHAPE", "TRANSPOSE")
            if here not in seen and self.kinds.get(here) in steps and len(self.sources[here]) == 1:
                seen.add(here)
                waiting += self.sources[here]
        return seen


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
