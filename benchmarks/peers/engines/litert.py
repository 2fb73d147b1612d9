"""LiteRT by itself: its converter's float model, its quantizer's ready-made static recipe."""

from pathlib import Path
from typing import Any

import numpy as np

TITLE = "ai-edge-litert"
PACKAGES: tuple[str, ...] = ()
SETTINGS = "XNNPACK with its threads; int8 by ai-edge-quantizer's recipe static_wi8_ai8"
PRECISIONS = ("fp32", "int8")
GAPS: dict[str, str] = {}


def convert(source: Path, precision: str, out: Path) -> None:
    """See `benchmarks.peers.peer.Peer`."""
    from toolkit.export.tflite import export
    from toolkit.models import find

    whole = export(*find(str(source / "model.safetensors")))
    if precision == "fp32":
        out.write_bytes(whole)
        return
    import importlib

    quantizer: Any = importlib.import_module("ai_edge_quantizer.quantizer")
    recipes: Any = importlib.import_module("ai_edge_quantizer.recipe")
    floats = out.with_suffix(".float.tflite")
    floats.write_bytes(whole)
    made = quantizer.Quantizer(str(floats))
    made.load_quantization_recipe(recipes.static_wi8_ai8())
    feeds = [{"image": image[None]} for image in np.load(source / "images.npy")]
    ranges = made.calibrate({"serving_default": feeds})
    made.quantize(ranges).export_model(str(out), overwrite=True)


def preload() -> None:
    """Its import."""
    from ai_edge_litert import interpreter  # noqa: F401


def session(model: Path, threads: int) -> Any:
    """See `benchmarks.peers.peer.Peer`."""
    from ai_edge_litert.interpreter import Interpreter

    opened = Interpreter(model_path=str(model), num_threads=threads)
    opened.allocate_tensors()
    given, made = opened.get_input_details()[0], opened.get_output_details()[0]

    def answer(image: Any) -> Any:
        opened.set_tensor(given["index"], image[None].astype(given["dtype"], copy=False))
        opened.invoke()
        values = opened.get_tensor(made["index"])[0]
        scale, zero = made["quantization"]
        return values if values.dtype == np.float32 else (values.astype(np.float32) - zero) * scale

    return answer
