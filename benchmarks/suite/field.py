"""The networks of the field as models without weights, so that a Pi needs neither torch nor gigabytes to time them.

`field.zip` holds a graph each (ONNX, as our exporter and quantizer write it), in which a large tensor is only its
shape and how its numbers were spread; `filled` draws them again. What a network answers then means nothing, how long
it takes is the same: no kernel here looks at the values. Written by `python -m benchmarks.field`.
"""

import json
import zipfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from targets.runtime.errors import HighwallError

if TYPE_CHECKING:
    import onnx

FIELD: Final = Path(__file__).parent / "field.zip"
INDEX: Final = "index.json"
KEPT: Final = 32  # numbers of a tensor that is kept as it is: shapes, axes, scales of few channels
OURS: Final = "cracknet"


@dataclass(frozen=True)
class Member:
    """One network at one size and precision. MACs, parameters and activation bytes (fp32) are of the float network.

    traffic: bytes that must cross memory once at this precision: weights, and every activation written and read.
    """

    network: str
    title: str
    task: str  # classify, segment or detect
    size: int  # pixels a side
    bands: int
    precision: str  # fp32 or int8
    macs: int
    parameters: int
    activation_bytes: int

    @property
    def name(self) -> str:
        return f"{self.network}-{self.task}-{self.size}-{self.precision}"

    @property
    def traffic(self) -> int:
        wide = 4 if self.precision == "fp32" else 1
        return wide * self.parameters + 2 * self.activation_bytes * wide // 4

    @property
    def intensity(self) -> float:
        """MACs for each byte of traffic."""
        return self.macs / self.traffic


@dataclass(frozen=True)
class Absent:
    """A network that has no model at a size or precision, and why."""

    network: str
    title: str
    task: str
    size: int
    precision: str
    reason: str


def members(path: Path = FIELD) -> tuple[list[Member], list[Absent]]:
    """What the field holds, and what it cannot. Raises HighwallError where the file is missing or damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            index = json.loads(archive.read(INDEX))
        return [Member(**one) for one in index["members"]], [Absent(**one) for one in index["absent"]]
    except (OSError, zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
        raise HighwallError(
            f"{path} is no field of networks ({error}); write it with python -m benchmarks.field"
        ) from error


def fingerprint(path: Path = FIELD) -> int:
    """What results say of the field they are of: CRC-32 of its file, 0 where there is none."""
    return zlib.crc32(path.read_bytes()) if path.exists() else 0


def checksum(member: Member, path: Path = FIELD) -> int:
    """CRC-32 of the member's skeleton: a field that was written anew may hold the same networks but for one."""
    with zipfile.ZipFile(path) as archive:
        return archive.getinfo(f"{member.name}.onnx").CRC


def filled(member: Member, path: Path = FIELD) -> bytes:
    """The model with its numbers drawn, the same ones each time. Raises HighwallError without the onnx package."""
    onnx = _onnx()
    try:
        with zipfile.ZipFile(path) as archive:
            proto = onnx.ModelProto.FromString(archive.read(f"{member.name}.onnx"))
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        raise HighwallError(f"{path} holds no {member.name}: {error}") from error
    for tensor in proto.graph.initializer:
        if tensor.doc_string:
            spread = json.loads(tensor.doc_string)
            tensor.raw_data = _drawn(tensor.name, tuple(tensor.dims), _dtype(tensor), **spread).tobytes()
            tensor.doc_string = ""
    return bytes(proto.SerializeToString())


def skeleton(model: bytes) -> bytes:
    """A model without the numbers of its large tensors: the inverse of `filled`, but for the numbers."""
    onnx = _onnx()
    from onnx import numpy_helper

    proto = onnx.ModelProto.FromString(model)
    for tensor in proto.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.size <= KEPT or values.dtype == np.int64:
            continue
        spread = {"mean": values.mean(), "std": values.std(), "low": values.min(), "high": values.max()}
        dims, kind, name = tuple(tensor.dims), tensor.data_type, tensor.name
        tensor.Clear()
        tensor.dims.extend(dims)
        tensor.data_type, tensor.name = kind, name
        tensor.doc_string = json.dumps({key: float(f"{float(value):.6g}") for key, value in spread.items()})
    return bytes(proto.SerializeToString(deterministic=True))


def write(path: Path, models: dict[Member, bytes], absent: list[Absent]) -> None:
    """Pack skeletons, the same bytes each time."""
    from targets.runtime.files import atomic_write

    index = {"members": [asdict(one) for one in models], "absent": [asdict(one) for one in absent]}
    entries = {INDEX: json.dumps(index, indent=1).encode()}
    entries |= {f"{member.name}.onnx": model for member, model in sorted(models.items(), key=lambda pair: pair[0].name)}
    with atomic_write(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in entries.items():
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)


def _drawn(
    name: str, shape: tuple[int, ...], dtype: np.dtype[Any], mean: float, std: float, low: float, high: float
) -> NDArray[Any]:
    """Normal numbers within their bounds, seeded by the tensor's name."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    values = random.standard_normal(shape, dtype=np.float32)
    values *= std
    values += mean
    np.clip(values, low, high, out=values)
    if dtype.kind in "iu":
        np.rint(values, out=values)
    return values.astype(dtype, copy=False)


def _dtype(tensor: "onnx.TensorProto") -> np.dtype[Any]:
    from onnx import helper

    return np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))


def _onnx() -> Any:
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise HighwallError("the suite needs the onnx package; pip install 'highwall[bench]'") from error
    return onnx
