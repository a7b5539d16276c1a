"""Which tensors can be handed to engines that take arrays of numpy."""

import torch
from torch import Tensor

from octavo.engines.retrace import tensor_inputs
from octavo.engines.signature import output_nodes
from octavo.errors import QuantizationError
from octavo.network.graph import Graph

_OF_NUMPY = {
    torch.float64, torch.float32, torch.float16, torch.bool,
    torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64,
}  # fmt: skip


def check_dtypes(graph: Graph, engine: str) -> None:
    """raises QuantizationError for an input or output of another dtype, bfloat16 first of all: numpy has no such array.

    engine  what the user calls it
    """
    for kind, nodes in (("input", tensor_inputs(graph)), ("output", output_nodes(graph.module))):
        for node in nodes:
            val = node.meta["val"]
            if isinstance(val, Tensor) and val.dtype not in _OF_NUMPY:
                raise QuantizationError(
                    asked=f"compile for {engine}",
                    seen=f"the {kind} {node.target if kind == 'input' else node.name} is {val.dtype}, "
                    "which has no array to be passed in",
                    remedy=f"let the {kind} be torch.float32, with .to() in the model; or use the reference engine",
                )
