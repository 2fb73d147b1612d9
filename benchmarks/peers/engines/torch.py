"""PyTorch itself: eager, and compiled by Inductor with frozen weights."""

import importlib
from pathlib import Path
from typing import Any

TITLE = "torch"
PACKAGES: tuple[str, ...] = ()
SETTINGS = (
    "inference mode, channels last; `compiled` is torch.compile with Inductor's freezing, as its page on CPU inference "
    "has it (needs a C++ compiler); loading it compiles"
)
PRECISIONS = ("fp32", "fp32 compiled")
GAPS = {"int8": "its quantized models run in the engines below; eager int8 is a simulation"}


def convert(source: Path, precision: str, out: Path) -> None:
    """See `benchmarks.peers.peer.Peer`; the suffix of the file tells `session` what to do."""
    out.with_suffix(".compiled" if precision.endswith("compiled") else ".eager").write_bytes(b"")
    out.write_bytes((source / "model.safetensors").read_bytes())


def preload() -> None:
    """Its import."""
    importlib.import_module("torch")


def session(model: Path, threads: int) -> Any:
    """See `benchmarks.peers.peer.Peer`."""
    torch: Any = importlib.import_module("torch")
    from toolkit.export.onnx import Deployed
    from toolkit.models import find

    torch.set_num_threads(threads)
    network: Any = Deployed(*find(str(model))).eval()
    made = network.to(memory_format=torch.channels_last)
    if model.with_suffix(".compiled").exists():
        inductor: Any = importlib.import_module("torch._inductor.config")
        inductor.freezing = True
        made = torch.compile(made)

    def answer(image: Any) -> Any:
        with torch.inference_mode():
            return made(torch.from_numpy(image[None]))[0].numpy()

    return answer
