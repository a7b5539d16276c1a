"""ONNX files on ONNX Runtime, as anyone runs them: all its fusions, its own choice of threads."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from octavo.engines.onnxruntime_kernels import execution_of
from octavo.errors import QuantizationError, reading, reason
from octavo.files import scratch
from octavo.gate.foreign import external_files, external_tensors, read_onnx
from octavo.gate.network import Array, Arrays, Opened, Port, Product, Told
from octavo.gate.work import conv, einsum, gemm, last_axis, recurrent, transposed

RUNTIME = f"ONNX Runtime {ort.__version__}"
ERRORS = 4  # that it prints: none but those that end it, what it raises says the same
TYPES = {
    "float": np.float32, "double": np.float64, "float16": np.float16, "bool": np.bool_,
    "int8": np.int8, "uint8": np.uint8, "int16": np.int16, "uint16": np.uint16,
    "int32": np.int32, "uint32": np.uint32, "int64": np.int64, "uint64": np.uint64,
}  # fmt: skip


def open_with_onnxruntime(path: Path, name: str) -> Opened:
    """The ONNX file `path` on ONNX Runtime.

    raises  QuantizationError for what is none, or asks for other files (see `read_onnx`), or ONNX Runtime refuses
    """
    model = read_onnx(path)
    with reading(asked=f"open {name}", seen=f"{RUNTIME} refuses it", remedy="see that it runs there", site=str(path)):
        session = _session(path)
    files = [path, *external_files(path, model)]
    return Opened(
        name=name,
        kind="ONNX",
        runtime=RUNTIME,
        inputs=tuple(_port(name, node) for node in session.get_inputs()),
        call=partial(_call, session, name),
        told=partial(_told, path),
        size_mb=sum(file.stat().st_size for file in files) / 1e6,
    )


def _session(source: Path | bytes, options: ort.SessionOptions | None = None) -> ort.InferenceSession:
    options = options or ort.SessionOptions()
    options.log_severity_level = ERRORS
    model = source if isinstance(source, bytes) else str(source)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _port(name: str, node: Any) -> Port:
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    if kind not in TYPES:
        raise QuantizationError(
            asked=f"open {name}",
            seen=f"its input {node.name} is a {node.type}, which is no array of numbers",
            remedy="check a network that takes tensors of numbers",
            site=node.name,
        )
    shape = tuple(size if isinstance(size, int) and size > 0 else None for size in node.shape)
    return Port(name=node.name, dtype=np.dtype(TYPES[kind]), shape=shape)


def _call(session: ort.InferenceSession, name: str, arrays: Arrays) -> dict[str, Array]:
    names = [node.name for node in session.get_outputs()]
    try:
        found = session.run(names, dict(arrays))
    except Exception as error:  # its classes share no base but this
        raise QuantizationError(
            asked=f"run {name} on {', '.join(f'{key} {list(array.shape)}' for key, array in arrays.items())}",
            seen=f"{RUNTIME} failed ({reason(error)})",
            remedy="see that it runs there on these samples",
        ) from error
    for key, value in zip(names, found, strict=True):
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub":
            raise QuantizationError(
                asked=f"run {name}",
                seen=f"its output {key} is no array of numbers",
                remedy="check a network that returns tensors of numbers",
                site=key,
            )
    return dict(zip(names, found, strict=True))


def _told(path: Path, arrays: Arrays) -> Told:
    """What ran in a call, by the profile that ONNX Runtime writes of it."""
    with scratch() as folder:
        options = ort.SessionOptions()
        options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
        options.optimized_model_filepath = str(folder / "optimized.onnx")
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
        session = _session(_with_names(path), options)
        session.run(None, dict(arrays))
        events = json.loads(Path(session.end_profiling()).read_text())
        optimized = onnx.load(options.optimized_model_filepath, load_external_data=False)
    return Told(
        by=f"the profile of a call on {RUNTIME}",
        products=tuple(_products(events, optimized.graph)),
        by_batch=any(str(event.get("args", {}).get("op_name")).startswith("DynamicQuantize") for event in events),
    )


def _with_names(path: Path) -> Path | bytes:
    """The file, or what is in it with a name for every node, by which the profile calls it."""
    model = onnx.load(path, load_external_data=False)
    unnamed = [node for node in model.graph.node if not node.name]
    if not unnamed or next(external_tensors(model), None) is not None:
        return path
    for number, node in enumerate(unnamed):
        node.name = f"{node.output[0] or node.op_type}.{number}"
    return bytes(model.SerializeToString())


def _products(events: Sequence[Mapping[str, Any]], graph: onnx.GraphProto) -> list[Product]:
    """Every compute-heavy kernel that ran, once."""
    nodes = {node.name: node for node in graph.node}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    types = {name: tensor.data_type for name, tensor in constants.items()}
    found: dict[str, Product] = {}
    for event in events:
        facts, name = event.get("args", {}), str(event.get("name", ""))
        if event.get("cat") != "Node" or not name.endswith("_kernel_time"):
            continue
        name = name.removesuffix("_kernel_time")
        node = nodes.get(name)  # not of graphs inside of nodes
        execution = execution_of(node or onnx.NodeProto(op_type=str(facts.get("op_name"))), types)
        if execution is None or execution.kernel == "Gather" or name in found:  # a loop runs it more than once
            continue
        found[name] = Product(
            layer=name,
            kernel=execution.kernel,
            on_integers=execution.on_integers,
            multiplications=None if node is None else _multiplications(node, facts, constants),
        )
    return list(found.values())


def _multiplications(
    node: onnx.NodeProto, facts: Mapping[str, Any], constants: Mapping[str, onnx.TensorProto]
) -> float | None:
    """Of one call, by the shapes in the profile; it leaves out those of weights, which lie in the model."""
    count = next((count for kernels, count in _COUNTS if node.op_type in kernels), None)
    weights = [tuple(constants[name].dims) for name in node.input if name in constants]
    weights = [dims for dims in weights if len(dims) > 1]
    inputs, outputs = (_shapes(facts.get(f"{side}_type_shape", ())) for side in ("input", "output"))
    try:
        return None if count is None else count(inputs, outputs, weights)
    except (IndexError, ZeroDivisionError):
        return None


def _shapes(described: Sequence[Mapping[str, Sequence[int]]]) -> list[tuple[int, ...]]:
    return [tuple(shape) for one in described for shape in one.values()]


_COUNTS = [
    ({"Conv", "FusedConv", "NhwcFusedConv", "QLinearConv", "ConvInteger"}, conv),
    ({"ConvTranspose", "ConvTransposeWithDynamicPads"}, transposed),
    ({"Gemm", "FusedGemm", "QGemm"}, gemm),
    (
        {"MatMul", "FusedMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QLinearMatMul", "DynamicQuantizeMatMul",
         "MatMulNBits"},
        last_axis,
    ),
    ({"LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"}, recurrent),
    ({"Einsum"}, einsum),
]  # fmt: skip
