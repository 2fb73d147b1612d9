"""The .tflite file as an object that can be changed, and back to bytes that depend on the object alone."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

IDENTIFIER = b"TFL3"
ALIGNMENT = 16  # the schema's, for constants; kernels of some boards read nothing less aligned


def unpack(model: bytes) -> Any:
    """A `ModelT` of the schema, its constants still inside `model`."""
    from ai_edge_litert.tools import flatbuffer_utils

    return flatbuffer_utils.read_model_from_bytearray(model)


def pack(proto: Any) -> bytes:
    """`proto` as a file, without notes, and without constants that nothing refers to."""
    import flatbuffers

    graph = proto.subgraphs[0]
    graph.name = proto.description = proto.metadata = proto.metadataBuffer = None
    used = sorted({tensor.buffer for tensor in graph.tensors} - {0})
    place = {old: new for new, old in enumerate([0, *used])}
    proto.buffers = [_aligned(proto.buffers[old].data) for old in place]
    for tensor in graph.tensors:
        tensor.buffer = place[tensor.buffer]
    builder = flatbuffers.Builder(sum(0 if b.data is None else len(b.data) for b in proto.buffers) + 65536)
    builder.Finish(proto.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


def _aligned(data: Any) -> Any:
    """A constant that packs as the schema demands; the schema's own Python writer forgets the alignment."""
    from ai_edge_litert import schema_py_generated as schema

    class Aligned(schema.BufferT):  # type: ignore[misc]
        def Pack(self, builder: Any) -> Any:  # noqa: N802 (the schema's name)
            place = None
            if self.data is not None and len(self.data):
                content = bytes(self.data)
                builder.StartVector(1, len(content), ALIGNMENT)
                builder.head -= len(content)
                builder.Bytes[builder.head : builder.head + len(content)] = content
                place = builder.EndVector()
            schema.BufferStart(builder)
            if place is not None:
                schema.BufferAddData(builder, place)
            return schema.BufferEnd(builder)

    return Aligned(data=data)


def kind(proto: Any, operator: Any) -> str:
    """The operator's name in the schema, such as CONV_2D."""
    code = proto.operatorCodes[operator.opcodeIndex]
    return _kinds()[max(code.builtinCode, code.deprecatedBuiltinCode)]


def _kinds() -> dict[int, str]:
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    return {number: name for name, number in vars(BuiltinOperator).items() if isinstance(number, int)}


def tensor_types() -> Any:
    """The schema's numbers for element types: `.FLOAT32`, `.INT8`, ..."""
    from ai_edge_litert.schema_py_generated import TensorType

    return TensorType


def values(proto: Any, index: int) -> NDArray[np.float32] | None:
    """A float constant's values in its own shape; None where tensor `index` is no such thing."""
    tensor = proto.subgraphs[0].tensors[index]
    data = proto.buffers[tensor.buffer].data
    if data is None or tensor.type != tensor_types().FLOAT32:
        return None
    return np.frombuffer(bytes(data), np.float32).reshape(tensor.shape)


def constant(proto: Any, index: int) -> bool:
    """Whether tensor number `index` is stored in the file rather than computed."""
    return proto.buffers[proto.subgraphs[0].tensors[index].buffer].data is not None
