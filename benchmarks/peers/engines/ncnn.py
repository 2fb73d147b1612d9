"""ncnn, converted by pnnx."""

import importlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

TITLE = "ncnn"
PACKAGES: tuple[str, ...] = ("ncnn==1.0.20261020", "pnnx==20261020")
SETTINGS = "pnnx from the torch module, its default options; pixels by from_pixels and substract_mean_normalize"
PRECISIONS = ("fp32",)
GAPS = {"int8": "the tools that quantize (ncnn2table, ncnn2int8) are not in its wheel"}


def convert(source: Path, precision: str, out: Path) -> None:
    """See `benchmarks.peers.peer.Peer`; a .param, a .bin and what to do to the pixels."""
    torch: Any = importlib.import_module("torch")
    pnnx: Any = importlib.import_module("pnnx")
    from toolkit.models import find
    from toolkit.temperature import fold

    model, network = fold(*find(str(source / "model.safetensors")))
    side = model.network.slice_size

    class Probability(torch.nn.Module):  # type: ignore[misc]
        """The network and its last sigmoid; pixels come scaled."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, pixels: Any) -> Any:
            return torch.sigmoid(self.network(pixels))

    before = Path.cwd()
    os.chdir(out.parent)  # pnnx writes its by-products where it stands
    try:
        sample = torch.zeros(1, model.network.bands, side, side)
        with suppress(SyntaxError):  # of the Python that it writes beside the model, and imports
            pnnx.export(Probability().eval(), "it.pt", (sample,), optlevel=2, fp16=False)
    finally:
        os.chdir(before)
    for part in (".ncnn.param", ".ncnn.bin"):
        try:
            out.with_name(f"it{part}").replace(out.with_suffix(part))
        except FileNotFoundError as error:
            raise SystemExit("pnnx wrote no ncnn model") from error
    out.write_text(json.dumps({"mean": model.mean, "norm": [1 / value for value in model.std]}), encoding="utf-8")


def preload() -> None:
    """Its import."""
    importlib.import_module("ncnn")


def session(model: Path, threads: int) -> Any:
    """See `benchmarks.peers.peer.Peer`."""
    ncnn: Any = importlib.import_module("ncnn")
    scaling = json.loads(model.read_text(encoding="utf-8"))
    net = ncnn.Net()
    net.opt.num_threads = threads
    if net.load_param(str(model.with_suffix(".ncnn.param"))) or net.load_model(str(model.with_suffix(".ncnn.bin"))):
        raise SystemExit("ncnn refuses the model that pnnx wrote")

    def answer(image: Any) -> Any:
        pixels = ncnn.Mat.from_pixels(image, ncnn.Mat.PixelType.PIXEL_RGB, image.shape[1], image.shape[0])
        pixels.substract_mean_normalize(scaling["mean"], scaling["norm"])
        with net.create_extractor() as extractor:
            extractor.input("in0", pixels)
            _, found = extractor.extract("out0")
            values = np.array(found)
        return values[0] if values.ndim == 3 else values

    return answer
