"""Reads the weights of an .onnx file without the package onnx: the few fields of its protocol buffers that hold them.

PyTorch's exporter keeps the names of most parameters. It drops those of arrays that it transposes or cuts; the nodes
that read these still carry the module's path, as in ``/encoder/layer.0/mlp/fc1/MatMul``.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np

DTYPES = {1: "<f4", 10: "<f2", 11: "<f8", 16: ml_dtypes.bfloat16}  # of TensorProto.DataType
GRAPH, NODES, INITIALISERS = 7, 1, 5  # fields of ModelProto and GraphProto
INPUTS, NODE_NAME, OPERATOR = 1, 3, 4  # of NodeProto
DIMENSIONS, DTYPE, FLOATS, TENSOR_NAME, RAW, LOCATION = 1, 2, 4, 8, 9, 14  # of TensorProto
ANONYMOUS = "onnx::"


def read_onnx(path: Path) -> dict[str, np.ndarray]:
    """{name: array} of a graph's weights of floating point, with PyTorch's names and order of axes.

    An array without a name takes that of the node that reads it: ``a.b.weight`` for the matrix of ``/a/b/MatMul``,
    which is stored transposed, and ``a.b.Reshape_1`` for what ``/a/b/Reshape_1`` reads.
    """
    arrays, readers = {}, {}
    graph = next((value for field, value in _fields(memoryview(path.read_bytes())) if field == GRAPH), None)
    if graph is None:
        raise ValueError("it has no graph")
    for part, content in _fields(graph):
        if part == INITIALISERS:
            arrays |= _tensor(content)
        elif part == NODES:
            readers |= _anonymous_inputs(content)
    return dict(_named(name, array, *readers.get(name, ("", ""))) for name, array in arrays.items())


def _anonymous_inputs(node: memoryview) -> dict[str, tuple[str, str]]:
    """{name of an array without a name of its own: (name, operator) of the `node` that reads it}."""
    texts = [(field, bytes(value).decode()) for field, value in _fields(node) if field in (INPUTS, NODE_NAME, OPERATOR)]
    name, operator = (next((text for field, text in texts if field == of), "") for of in (NODE_NAME, OPERATOR))
    return {text: (name, operator) for field, text in texts if field == INPUTS and text.startswith(ANONYMOUS)}


def _named(name: str, array: np.ndarray, reader: str, operator: str) -> tuple[str, np.ndarray]:
    path = reader.strip("/").replace("/", ".")
    if not path:
        return name, array
    return (f"{path.rpartition('.')[0]}.weight", array.T) if operator == "MatMul" else (path, array)


def _tensor(content: memoryview) -> dict[str, np.ndarray]:
    """{name: array} of a TensorProto; {} for one that holds no floating point."""
    name, dtype, shape, data = "", 0, [], b""
    for field, value in _fields(content):
        if field == TENSOR_NAME:
            name = bytes(value).decode()
        elif field == DTYPE:
            dtype = value
        elif field == DIMENSIONS:
            shape += [value] if isinstance(value, int) else _varints(value)
        elif field in (RAW, FLOATS) and isinstance(value, memoryview):
            data = value
        elif field == LOCATION and value:
            raise ValueError("its weights are in another file: save the model in one file")
    if dtype not in DTYPES:
        return {}
    return {name: np.frombuffer(data, DTYPES[dtype], math.prod(shape)).reshape(shape)}


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(number, value) of every field of a message: a whole number, or the bytes of anything else."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(message, at)
        elif kind in (1, 2, 5):
            length, at = _varint(message, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
            if at + length > len(message):
                raise ValueError("it ends too early")
            value, at = message[at : at + length], at + length
        else:
            raise ValueError("it is no protocol buffer")
        yield key >> 3, value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A whole number, 7 bits a byte, and where it ends."""
    value = shift = 0
    while True:
        if at == len(message) or shift > 63:
            raise ValueError("it ends too early")
        byte, at = message[at], at + 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def _varints(message: memoryview) -> list[int]:
    found, at = [], 0
    while at < len(message):
        value, at = _varint(message, at)
        found.append(value)
    return found
