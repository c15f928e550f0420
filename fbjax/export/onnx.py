"""The format ``onnx``: one model a function, of any batch and text length, and one file with the weights of all.

jax2onnx converts, ONNX checks, onnxruntime runs. No other file imports these three.
"""

import contextlib
import hashlib
import io
import logging
import mmap
from collections.abc import Iterator
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import onnx
import onnxruntime
from jax2onnx import to_onnx

from fbjax.export.functions import BATCH, Function, abstract_inputs
from fbjax.export.source_model import SourceModel
from fbjax.model.backbones.layers import DepthwiseConv

WEIGHTS, SUFFIX = "weights.bin", ".onnx"
OPSET = 21  # onnxruntime from 1.20 on
LARGE = 1024  # bytes of an array that goes to the weights' file
for _name in ("jax2onnx", "onnx_ir"):
    logging.getLogger(_name).setLevel(logging.ERROR)  # warnings of plug-ins for libraries that fbjax does not use


def write(source_model: SourceModel, folder: Path) -> None:
    params = jax.tree.map(jax.numpy.asarray, source_model.params)
    with open(folder / WEIGHTS, "wb") as stream:
        store = _Store(stream)
        for name, function in source_model.functions.items():
            model = convert(function, params, source_model.run.config.model.text_tokens)
            for tensor in _tensors(model.graph):
                store.take(tensor)
            onnx.save(model, folder / f"{name}{SUFFIX}")
    for name in source_model.functions:
        onnx.checker.check_model(folder / f"{name}{SUFFIX}", full_check=True)


def convert(function: Function, params: dict, longest: int) -> onnx.ModelProto:
    """`function` with `params` inside it."""
    quiet = contextlib.redirect_stdout(io.StringIO())  # jax2onnx prints every flax.linen.Conv
    with quiet, jax.default_matmul_precision("highest"), nn.intercept_methods(_as_one_node):
        model = to_onnx(
            lambda *arrays: function.call(params, *arrays),
            abstract_inputs(function, longest),
            model_name=function.name,
            opset=OPSET,
            input_names=[given.name for given in function.inputs],
            output_names=list(function.outputs),
        )
    for graph in _graphs(model.graph):
        del graph.value_info[:]  # sizes of intermediate arrays, whose derived axes have wrong names
    for output in model.graph.output:
        output.type.tensor_type.shape.dim[0].dim_param = BATCH
    return model


class OnnxModels:
    """``call(name, **arrays)`` by onnxruntime on this machine's CPU."""

    def __init__(self, folder: str | Path):
        self._folder = Path(folder)
        self._sessions = {}

    def call(self, name: str, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        session = self.session(name)
        return dict(zip((given.name for given in session.get_outputs()), session.run(None, arrays), strict=True))

    def session(self, name: str) -> onnxruntime.InferenceSession:
        if name not in self._sessions:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3  # errors
            path, providers = self._folder / f"{name}{SUFFIX}", ["CPUExecutionProvider"]
            self._sessions[name] = onnxruntime.InferenceSession(path, options, providers=providers)
        return self._sessions[name]


load = OnnxModels


class _Store:
    """Arrays in one file, each stored once, at offsets that can be mapped into memory."""

    def __init__(self, stream):
        self._stream, self._offsets = stream, {}

    def take(self, tensor: onnx.TensorProto) -> None:
        """Moves the data of a large `tensor` to the file."""
        data = tensor.raw_data
        if len(data) < LARGE:
            return
        key = hashlib.sha256(data).digest()
        if key not in self._offsets:
            self._stream.write(b"\0" * (-self._stream.tell() % mmap.ALLOCATIONGRANULARITY))
            self._offsets[key] = self._stream.tell()
            self._stream.write(data)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for field, value in (("location", WEIGHTS), ("offset", self._offsets[key]), ("length", len(data))):
            tensor.external_data.add(key=field, value=str(value))


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """`graph` and the graphs of its loops."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    for inner in _graphs(graph):
        yield from inner.initializer
        for node in inner.node:
            yield from (found.t for found in node.attribute if found.type == onnx.AttributeProto.TENSOR)


def _as_one_node(call, arguments, options, context):
    """Exports a depthwise convolution as one node, for which onnxruntime has a kernel. As shifted products MobileNetV1
    took 2.3 times as long there (16 images of 224 pixels, 2 CPU cores)."""
    module = context.module
    if not (isinstance(module, DepthwiseConv) and context.method_name == "__call__"):
        return call(*arguments, **options)
    kernel = module.get_variable("params", "depthwise_kernel").swapaxes(2, 3)
    return jax.lax.conv_general_dilated(
        *(arguments[0], kernel, (module.stride, module.stride), "SAME"),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=kernel.shape[3],
    )
