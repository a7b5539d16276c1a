"""What OpenVINO made of a network: which kernel runs each operation, read from its compiled model."""

from collections.abc import Callable, Iterator

import openvino as ov

from octavo.engines.execution import Execution
from octavo_serve.openvino_repairs import PRODUCTS

# OpenVINO's names for the operations that do the arithmetic: as it reads them, and in the compiled model.
RECURRENT = {"LSTMSequence", "GRUSequence"}
COMPUTE_HEAVY = PRODUCTS | RECURRENT | {"Gather", "Einsum"}
KERNELS = {"Convolution", "Deconvolution", "FullyConnected", "MatMul", "RNNSeq", "Subgraph", "Gather"}
_RUNTIME_KEYS = ("layerType", "runtimePrecision", "primitiveType", "originalLayersNames")
_ABSORBED = {"Add", "Multiply", "Reshape", "Transpose", "Squeeze"}


def chains(model: ov.Model) -> Iterator[list[ov.Node]]:
    """Every compute-heavy operation, the last first, with the element-wise ones behind it, by whose names it may go."""
    for node in reversed(model.get_ordered_ops()):  # an operation may become several: the last one has its name
        if node.get_type_name() in COMPUTE_HEAVY:
            yield list(_absorbed(node))


def kernels_of(compiled: ov.CompiledModel, named: Callable[[str], str]) -> dict[str, Execution]:
    """{name of an operation: how it runs}, and {kind of kernel: how the first of it runs}.

    named  what to make of OpenVINO's own name of an operation
    """
    kernels: dict[str, Execution] = {}
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        kernel, precision, implementation, fused = (info[key].astype(str) for key in _RUNTIME_KEYS)
        if kernel in KERNELS:
            execution = Execution(kernel=kernel, precision=precision, implementation=implementation)
            for name in (node.get_friendly_name(), *fused.split(",")):
                kernels.setdefault(named(name), execution)
            kernels.setdefault(kernel, execution)
    return kernels


def _absorbed(node: ov.Node) -> Iterator[ov.Node]:
    """`node` and the element-wise operations that follow it one after the other."""
    yield node
    readers = list(node.output(0).get_target_inputs())
    if len(readers) == 1 and readers[0].get_node().get_type_name() in _ABSORBED:
        yield from _absorbed(readers[0].get_node())
