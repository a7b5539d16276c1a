"""OpenVINO IR and ONNX files on OpenVINO's CPU plugin; what is not on integers in float32, on every machine alike."""

from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import openvino as ov

from octavo.engines.execution import Execution
from octavo.engines.openvino_kernels import RECURRENT, chains, kernels_of
from octavo.errors import QuantizationError, reading, reason
from octavo.gate.foreign import external_files, read_onnx
from octavo.gate.network import Array, Arrays, Opened, Port, Product, Told
from octavo.gate.work import Shapes, conv, einsum, gemm, recurrent, transposed

RUNTIME = f"OpenVINO {version('openvino')}"
# CPUs with AMX would run the float network in bfloat16: then both lose, and the difference says little.
SETTINGS = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}


def open_with_openvino(path: Path, name: str) -> Opened:
    """The OpenVINO IR, or the ONNX file, `path` on OpenVINO.

    raises  QuantizationError for what is none, an ONNX file that asks for other files, or what OpenVINO refuses
    """
    files = {path, path.with_suffix(".bin")} if path.suffix == ".xml" else {path}
    if path.suffix == ".onnx":
        files |= external_files(path, read_onnx(path))
    with reading(asked=f"open {name}", seen=f"{RUNTIME} refuses it", remedy="see that it runs there", site=str(path)):
        compiled = ov.Core().compile_model(ov.Core().read_model(path), "CPU", SETTINGS)
        inputs = tuple(_port(number, port) for number, port in enumerate(compiled.inputs))
    return Opened(
        name=name,
        kind="OpenVINO IR" if path.suffix == ".xml" else "ONNX",
        runtime=RUNTIME,
        inputs=inputs,
        call=partial(_call, compiled, name, inputs),
        told=partial(_told, path, compiled, inputs),
        size_mb=sum(file.stat().st_size for file in files if file.exists()) / 1e6,
    )


def _named(port: ov.ConstOutput, otherwise: str) -> str:
    return min(port.get_names(), default=otherwise)


def _port(number: int, port: ov.ConstOutput) -> Port:
    shape = tuple(size.get_length() if size.is_static else None for size in port.get_partial_shape())
    return Port(name=_named(port, f"input_{number}"), dtype=np.dtype(port.get_element_type().to_dtype()), shape=shape)


def _call(compiled: ov.CompiledModel, name: str, inputs: tuple[Port, ...], arrays: Arrays) -> dict[str, Array]:
    try:
        found = compiled({number: arrays[port.name] for number, port in enumerate(inputs)})
    except Exception as error:  # what its shapes and its plugin raise shares no base but this
        raise QuantizationError(
            asked=f"run {name} on {', '.join(f'{key} {list(array.shape)}' for key, array in arrays.items())}",
            seen=f"{RUNTIME} failed ({reason(error)})",
            remedy="see that it runs there on these samples",
        ) from error
    ports = enumerate(compiled.outputs)
    return {_named(port, f"output_{number}"): np.array(found[port]) for number, port in ports}


def _told(path: Path, compiled: ov.CompiledModel, inputs: tuple[Port, ...], arrays: Arrays) -> Told:
    """What was compiled, by OpenVINO's model of it; what is computed once and for all is left out."""
    model = ov.Core().read_model(path)
    model.reshape({number: list(arrays[port.name].shape) for number, port in enumerate(inputs)})
    found = [chain for chain in chains(model) if _runs(chain[0])]
    kernels = kernels_of(compiled, partial(_owner, {part.get_friendly_name() for chain in found for part in chain}))
    return Told(
        by=f"the model that {RUNTIME} compiled", products=tuple(_as_it_ran(chain, kernels) for chain in found[::-1])
    )


def _runs(node: ov.Node) -> bool:
    """Whether this multiplies in every call: no lookup, and not of weights alone."""
    return bool(node.get_type_name() != "Gather") and not all(
        _is_fixed(value.get_node()) for value in node.input_values()
    )


def _owner(known: set[str], name: str) -> str:
    """The operation that a kernel was made of: its name without what was added, "head/DequantizationMultiply"."""
    short = name
    while short not in known and "/" in short:
        short = short.rpartition("/")[0]
    return short if short in known else name


def _as_it_ran(chain: list[ov.Node], kernels: dict[str, Execution]) -> Product:
    """A product and what follows it, by any of whose names its kernel may go."""
    names = [part.get_friendly_name() for part in chain] + ["RNNSeq"] * (chain[0].get_type_name() in RECURRENT)
    found = next((kernels[name] for name in names if name in kernels), None)
    return Product(
        layer=names[0].removesuffix("/WithoutBiases"),
        kernel="no kernel of its own" if found is None else found.kernel,
        on_integers=found is not None and found.on_integers,
        multiplications=_multiplications(chain[0]),
    )


def _is_fixed(node: ov.Node) -> bool:
    """Whether `node` is computed from constants alone: a weight, and what scales it."""
    sources = node.input_values()
    if not sources:
        return bool(node.get_type_name() == "Constant")
    return all(_is_fixed(source.get_node()) for source in sources)


def _multiplications(node: ov.Node) -> float | None:
    """Of one call, by the shapes that the model has for its inputs."""
    shapes = [value.get_partial_shape() for value in (*node.input_values(), *node.outputs())]
    if not all(shape.is_static for shape in shapes):
        return None
    sides = [tuple(shape.to_shape()) for shape in shapes]
    inputs, outputs = sides[: len(node.input_values())], sides[len(node.input_values()) :]
    return _COUNTS[node.get_type_name()](inputs, outputs)


def _grouped(inputs: Shapes, outputs: Shapes) -> float:
    """A weight [groups, outputs of one, inputs of one, …]."""
    return conv(inputs, outputs, [inputs[1][1:]])


def _grouped_transposed(inputs: Shapes, outputs: Shapes) -> float:
    return transposed(inputs, outputs, [inputs[1][1:]])


def _product(inputs: Shapes, outputs: Shapes) -> float:
    """A product of stacks of matrices, of which either may be given transposed."""
    left, rows = inputs[0], outputs[0][-2:-1] or (1,)
    return gemm([left[-2:]], [(rows[0], 1)], []) * (outputs[0][-1] if outputs[0] else 1) * _stack(outputs[0])


def _stack(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape[:-2]))


_COUNTS: dict[str, Callable[[Shapes, Shapes], float]] = {
    "Convolution": lambda inputs, outputs: conv(inputs, outputs, inputs[1:2]),
    "GroupConvolution": _grouped,
    "ConvolutionBackpropData": lambda inputs, outputs: transposed(inputs, outputs, inputs[1:2]),
    "GroupConvolutionBackpropData": _grouped_transposed,
    "MatMul": _product,
    "LSTMSequence": lambda inputs, outputs: recurrent(inputs, outputs, inputs[4:6]),
    "GRUSequence": lambda inputs, outputs: recurrent(inputs, outputs, inputs[3:5]),
    "Einsum": lambda inputs, outputs: einsum(inputs, outputs, []),
}
