"""ONNX models written without the onnx package: nodes in order, weights beside them.

A model is a protocol buffer (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, Apache-2.0), and what is
needed of it fits in a page: writing it takes milliseconds at load, so nothing is exported, shipped or cached.
Weights are no part of the bytes. They are declared as external and handed to the session as they lie in
memory.
"""

import struct
from collections.abc import Mapping, Sequence

import numpy as np

# operators of ONNX Runtime itself
CONTRIB = "com.microsoft"
_OPSET, _CONTRIB_OPSET, _IR = 21, 1, 10
_TYPES = {"float32": 1, "int64": 7}
Attribute = int | float | str | Sequence[int]


class Graph:
    """A model as it is written: each call adds a node, or names a value.

    Args:
        name: of the graph, for messages of the runtime.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.weights: dict[str, np.ndarray] = {}
        self._nodes: list[bytes] = []
        self._constants: list[bytes] = []
        self._inputs: list[bytes] = []
        self._outputs: list[bytes] = []
        self._count = 0

    def input(self, name: str, shape: Sequence[int | str], dtype: str = "float32") -> str:
        """An input of the model; a dimension with a name may have any size."""
        self._inputs.append(_value_info(name, shape, dtype))
        return name

    def output(self, value: str, name: str, shape: Sequence[int | str]) -> None:
        """Make a value an output of the model, under a name of its own."""
        self._nodes.append(_node("Identity", [value], [name], "", {}))
        self._outputs.append(_value_info(name, shape, "float32"))

    def weight(self, value: np.ndarray) -> str:
        """A constant that lies outside of the model's bytes: float32, contiguous."""
        name = f"w{len(self.weights)}"
        self.weights[name] = np.ascontiguousarray(value, np.float32)
        self._constants.append(_tensor(name, value.shape, "float32", None))
        return name

    def constant(self, value: np.ndarray | Sequence[int]) -> str:
        """A small constant in the model's bytes: int64 for whole numbers, else float32."""
        array = np.asarray(value)
        array = array.astype(np.int64 if array.dtype.kind in "iu" else np.float32)
        name = f"c{len(self._constants)}"
        self._constants.append(_tensor(name, array.shape, array.dtype.name, array.tobytes()))
        return name

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Attribute) -> str:
        """A node with one output; an input that is left out is the empty name."""
        return self.ops(kind, 1, *inputs, domain=domain, **attributes)[0]

    def ops(
        self, kind: str, count: int, *inputs: str, domain: str = "", **attributes: Attribute
    ) -> tuple[str, ...]:
        """A node with `count` outputs."""
        names = tuple(f"v{self._count + i}" for i in range(count))
        self._count += count
        self._nodes.append(_node(kind, list(inputs), list(names), domain, attributes))
        return names

    def reshape(self, x: str, *shape: int) -> str:
        """A view of another shape; 0 keeps a dimension, -1 is what is left."""
        return self.op("Reshape", x, self.constant(np.array(shape)))

    def linear(self, x: str, weight: np.ndarray, bias: np.ndarray | None = None) -> str:
        """`x (R, in)` times a torch weight `(out, in)`, plus a bias."""
        more = () if bias is None else (self.weight(bias),)
        return self.op("Gemm", x, self.weight(weight), *more, transB=1)

    def split(self, x: str, count: int, axis: int) -> tuple[str, ...]:
        """Equal parts along an axis."""
        return self.ops("Split", count, x, axis=axis, num_outputs=count)

    def slice(self, x: str, start: int, stop: int, axis: int) -> str:
        """Part of an axis."""
        return self.op("Slice", x, *(self.constant(np.array([n])) for n in (start, stop, axis)))

    def rms_norm(self, x: str, weight: np.ndarray, eps: float) -> str:
        """Root-mean-square norm over the last axis."""
        return self.op("SimplifiedLayerNormalization", x, self.weight(weight), axis=-1, epsilon=eps)

    def model(self) -> bytes:
        """The model as a file would hold it, without its weights."""
        graph = b"".join(
            (
                *(_field(1, node) for node in self._nodes),
                _field(2, self.name.encode()),
                *(_field(5, constant) for constant in self._constants),
                *(_field(11, value) for value in self._inputs),
                *(_field(12, value) for value in self._outputs),
            )
        )
        opsets = [_varint_field(2, _OPSET), _field(1, CONTRIB.encode()) + _varint_field(2, _CONTRIB_OPSET)]
        return _varint_field(1, _IR) + _field(7, graph) + b"".join(_field(8, each) for each in opsets)


def _node(
    kind: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    domain: str,
    attributes: Mapping[str, Attribute],
) -> bytes:
    parts = [_field(1, name.encode()) for name in inputs]
    parts += [_field(2, name.encode()) for name in outputs]
    parts += [_field(3, outputs[0].encode()), _field(4, kind.encode())]
    parts += [_field(5, _attribute(name, value)) for name, value in attributes.items()]
    return b"".join(parts) + (_field(7, domain.encode()) if domain else b"")


def _attribute(name: str, value: Attribute) -> bytes:
    head = _field(1, name.encode())
    if isinstance(value, int):
        return head + _varint_field(3, value) + _varint_field(20, 2)
    if isinstance(value, float):
        return head + _key(2, 5) + struct.pack("<f", value) + _varint_field(20, 1)
    if isinstance(value, str):
        return head + _field(4, value.encode()) + _varint_field(20, 3)
    return head + b"".join(_varint_field(8, each) for each in value) + _varint_field(20, 7)


def _tensor(name: str, shape: Sequence[int], dtype: str, data: bytes | None) -> bytes:
    """A tensor; without data it is external, and comes from the session's options by its name."""
    out = b"".join(_varint_field(1, size) for size in shape)
    out += _varint_field(2, _TYPES[dtype]) + _field(8, name.encode())
    if data is not None:
        return out + _field(9, data)
    place = _field(1, b"location") + _field(2, b"memory")
    return out + _field(13, place) + _varint_field(14, 1)


def _value_info(name: str, shape: Sequence[int | str], dtype: str) -> bytes:
    dims = b"".join(
        _field(1, _field(2, size.encode()) if isinstance(size, str) else _varint_field(1, size))
        for size in shape
    )
    kind = _varint_field(1, _TYPES[dtype]) + _field(2, dims)
    return _field(1, name.encode()) + _field(2, _field(1, kind))


def _key(number: int, wire: int) -> bytes:
    return _varint(number << 3 | wire)


def _varint(value: int) -> bytes:
    value &= 2**64 - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _varint_field(number: int, value: int) -> bytes:
    return _key(number, 0) + _varint(value)


def _field(number: int, content: bytes) -> bytes:
    return _key(number, 2) + _varint(len(content)) + content
