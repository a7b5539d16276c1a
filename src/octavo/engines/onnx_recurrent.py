"""LSTM and GRU layers as the ONNX operators: the exporter alone would unroll the time axis, and fix its length.

ONNX orders the gates in its own way. Weights are reordered before they are written, so that the file holds plain int8
initializers in the layout that engines read.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.onnx import ops

from octavo.engines.onnx_operators import DequantizedWeight
from octavo.errors import QuantizationError
from octavo.network.edit import attribute, emit_parameter, replace_by_module
from octavo_serve.onnx_allowed import OPSET

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class Gates:
    """Where ONNX keeps the gates of a recurrent layer: `order[i]` is torch's number of ONNX's gate i."""

    operator: str
    order: tuple[int, ...]
    attributes: dict[str, int]
    states: int


LSTM = Gates(operator="LSTM", order=(0, 3, 1, 2), attributes={}, states=2)  # i f g o → i o f c
GRU = Gates(operator="GRU", order=(1, 0, 2), attributes={"linear_before_reset": 1}, states=1)  # r z n → z r h


def in_onnx_order(tensor: Tensor, gates: Gates) -> Tensor:
    """A weight or bias [gates·H, ...] of one direction as [1, gates·H, ...], its gates in ONNX's order."""
    parts = tensor.detach().chunk(len(gates.order))
    return torch.cat([parts[gate] for gate in gates.order]).unsqueeze(0)


def weight_in_onnx_order(weight: DequantizedWeight, gates: Gates, site: str) -> DequantizedWeight:
    """The same for an integer weight and its scales.

    raises  QuantizationError for blocks of outputs that reach from one gate into the next
    """
    if weight.block is not None and weight.scale.shape[0] % len(gates.order):
        raise QuantizationError(
            asked=f"write the weight of a {gates.operator} with blocks of {weight.block} outputs",
            seen=f"its {len(gates.order)} gates have {weight.integers.shape[0] // len(gates.order)} outputs each",
            remedy="choose a block length that divides them, or blocks along axis 1",
            site=site,
        )

    def arranged(parameter: Tensor) -> Tensor:
        if weight.block is not None:
            return in_onnx_order(parameter, gates)
        return in_onnx_order(parameter, gates)[0] if weight.axis == 0 else parameter

    return DequantizedWeight(
        in_onnx_order(weight.integers, gates),
        arranged(weight.scale),
        None if weight.zero_point is None else arranged(weight.zero_point),
        None if weight.axis is None else weight.axis + 1,
        weight.block,
    )


class Recurrent(nn.Module):
    """One LSTM or GRU layer, called with the arguments of aten.lstm.input or aten.gru.input, weights in ONNX's order.

    x        [N, T, C] if batch_first, else [T, N, C]
    states   each [directions, N, H]
    returns  the outputs [N, T, directions·H] (or [T, N, …]), and the last states
    """

    def __init__(self, gates: Gates, *, has_biases: bool, bidirectional: bool, batch_first: bool) -> None:
        super().__init__()
        self.gates, self.has_biases = gates, has_biases
        self.bidirectional, self.batch_first = bidirectional, batch_first

    def forward(self, x: Tensor, states: Tensor | list[Tensor], weights: list[Tensor]) -> tuple[Tensor, ...]:
        x = x.transpose(0, 1) if self.batch_first else x
        states = [states] if isinstance(states, Tensor) else states
        directions, _, hidden = states[0].shape
        steps, batch, _ = x.shape
        shapes = [(steps, directions, batch, hidden), *((directions, batch, hidden) for _ in states)]
        outputs, *lasts = ops.symbolic_multi_out(
            self.gates.operator,
            (x, *self._parameters_of_both_directions(weights), None, *states),
            {"hidden_size": hidden, **self._direction(), **self.gates.attributes},
            dtypes=[torch.float32] * len(shapes),
            shapes=shapes,
            version=OPSET,
        )
        outputs = outputs.squeeze(1) if directions == 1 else outputs.transpose(1, 2).flatten(2, 3)
        return (outputs.transpose(0, 1) if self.batch_first else outputs), *lasts

    def _direction(self) -> dict[str, Any]:
        return {"direction": "bidirectional"} if self.bidirectional else {}

    def _parameters_of_both_directions(self, weights: list[Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        """W [directions, gates·H, C], R [directions, gates·H, H] and B [directions, 2·gates·H]."""
        count = 4 if self.has_biases else 2
        directions = [weights[start : start + count] for start in range(0, len(weights), count)]
        stacked = [torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*directions, strict=True)]
        return stacked[0], stacked[1], torch.cat(stacked[2:], dim=1) if self.has_biases else None


RECURRENT = {aten.lstm.input: LSTM, aten.gru.input: GRU}
_WEIGHTS_OF_A_DIRECTION = {True: 4, False: 2}  # w_ih, w_hh, and b_ih, b_hh if there are biases


def replace_recurrent(module: GraphModule) -> None:
    """Every LSTM and GRU as the ONNX operator: the exporter would unroll the time axis."""
    arranged: dict[tuple[str, Gates], Node] = {}
    for node in list(module.graph.nodes):
        if node.op == "call_function" and node.target in RECURRENT:
            _replace_layer(module, node, RECURRENT[node.target], arranged)


def _replace_layer(module: GraphModule, node: Node, gates: Gates, arranged: dict[Any, Node]) -> None:
    x, states, weights, has_biases, _, _, _, bidirectional, batch_first = node.args
    count = _WEIGHTS_OF_A_DIRECTION[bool(has_biases)] * (2 if bidirectional else 1)
    if len(weights) != count:  # type: ignore[arg-type]
        raise QuantizationError(
            asked=f"write a {gates.operator} with projections as ONNX",
            seen=f"ONNX's {gates.operator} has none",
            remedy="use a recurrent layer without proj_size, or the reference engine",
            site=node.name,
        )
    ordered = []
    for weight in weights:  # type: ignore[union-attr]
        key = (str(weight.target), gates.operator)  # type: ignore[union-attr]
        if key not in arranged:
            arranged[key] = _arranged(module, node, weight, gates)  # type: ignore[arg-type]
        ordered.append(arranged[key])
    layer = Recurrent(
        gates, has_biases=bool(has_biases), bidirectional=bool(bidirectional), batch_first=bool(batch_first)
    )
    replace_by_module(module, node, f"recurrent_{node.name}", layer, (x, states, ordered))


def _arranged(module: GraphModule, node: Node, weight: Node, gates: Gates) -> Node:
    """The weight in ONNX's order of gates, before `node`; float parameters and integer weights alike."""
    if weight.op == "get_attr":
        return emit_parameter(module, node, f"{weight.target}_onnx", in_onnx_order(attribute(module, weight), gates))
    integers = module.get_submodule(str(weight.target))
    assert isinstance(integers, DequantizedWeight)
    target = f"{weight.target}_onnx"
    module.add_submodule(target, weight_in_onnx_order(integers, gates, node.name))
    with module.graph.inserting_before(node):
        return module.graph.call_module(target, weight.args)
