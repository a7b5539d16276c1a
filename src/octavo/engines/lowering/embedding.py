"""Embeddings that read an int8 table."""

import torch
from torch import Tensor
from torch.fx import Node

from octavo.engines.lowering.build import Lowering
from octavo.network.edit import argument


def embedding(lowering: Lowering, node: Node) -> bool:
    """Rows [...] of an int8 table [rows, width], each scaled by its own scale."""
    weight = lowering.weight(argument(node, "weight"))
    scales = None if weight is None else weight.scales(0)
    if weight is None or scales is None:
        return False
    table, per_row = lowering.constant(weight.integers()), lowering.constant(scales.unsqueeze(1))
    lowering.values[node] = lowering.emit(gather, table, per_row, lowering.real(argument(node, "indices")))
    lowering.ran(lowering.values[node], node)
    return True


def gather(table: Tensor, scales: Tensor, index: Tensor) -> Tensor:
    """[..., width] float32: rows of an int8 table [rows, width], scaled by [rows, 1]."""
    return torch.nn.functional.embedding(index, table).to(torch.float32) * torch.nn.functional.embedding(index, scales)
