"""ExecuTorch with its XNNPACK delegate."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np

TITLE = "executorch"
PACKAGES: tuple[str, ...] = ("executorch==1.5.1",)
SETTINGS = (
    "lowered to XNNPACK (to_edge_transform_and_lower with XnnpackPartitioner); int8 by its XNNPACKQuantizer, "
    "symmetric, a scale a channel, through torchao's PT2E flow"
)
PRECISIONS = ("fp32", "int8")
GAPS: dict[str, str] = {}


def convert(source: Path, precision: str, out: Path) -> None:
    """See `benchmarks.peers.peer.Peer`."""
    torch: Any = importlib.import_module("torch")
    partitioner: Any = importlib.import_module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    exir: Any = importlib.import_module("executorch.exir")
    from toolkit.export.onnx import Deployed
    from toolkit.models import find

    class Planes(torch.nn.Module):  # type: ignore[misc]
        """Pixels lie band by band from the first copy on: its runtime refuses maps whose strides are turned."""

        def __init__(self) -> None:
            super().__init__()
            self.network = Deployed(*find(str(source / "model.safetensors")))

        def forward(self, image: Any) -> Any:
            return self.network(image.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1))

    network = Planes().eval()
    images = np.load(source / "images.npy")
    sample = (torch.from_numpy(images[:1]),)
    if precision == "int8":
        quantizer: Any = importlib.import_module("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
        pt2e: Any = importlib.import_module("torchao.quantization.pt2e.quantize_pt2e")
        wanted = quantizer.XNNPACKQuantizer().set_global(
            quantizer.get_symmetric_quantization_config(is_per_channel=True)
        )
        prepared = pt2e.prepare_pt2e(torch.export.export(network, sample).module(), wanted)
        with torch.no_grad():
            for image in images:
                prepared(torch.from_numpy(image[None]))
        network = pt2e.convert_pt2e(prepared)
    with torch.no_grad():
        program = torch.export.export(network, sample)
        lowered = exir.to_edge_transform_and_lower(program, partitioner=[partitioner.XnnpackPartitioner()])
    out.write_bytes(lowered.to_executorch().buffer)


def preload() -> None:
    """Its import, torch's with it."""
    importlib.import_module("executorch.runtime")


def session(model: Path, threads: int) -> Any:
    """See `benchmarks.peers.peer.Peer`; its threads are the cores it may run on."""
    torch: Any = importlib.import_module("torch")
    runtime: Any = importlib.import_module("executorch.runtime").Runtime.get()
    program = runtime.load_program(model)
    method = program.load_method("forward")

    def answer(image: Any, keep: Any = program) -> Any:
        return method.execute([torch.from_numpy(image[None])])[0][0].numpy()

    return answer
