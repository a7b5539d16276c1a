"""Stacked LSTM and GRU layers, one node each: the input of every layer is then a tensor that can be quantized."""

import operator
from typing import Any

import torch
from torch.fx import GraphModule, Node

from octavo.network.edit import argument, emit, emit_as, replace, value

aten = torch.ops.aten

RECURRENT = {aten.lstm.input, aten.gru.input}


def split_recurrent(module: GraphModule) -> None:
    """Rewrite every LSTM and GRU of several layers as a chain of single layers, both directions of one in one node."""
    for node in list(module.graph.nodes):
        if node.target in RECURRENT and argument(node, "num_layers") > 1:
            _split(node)


def _split(node: Node) -> None:
    """One node a layer, and the results of `node` (output, last states) put together from theirs.

    The states are [layers · directions, N, H]. Dropout between layers is gone: the graph is in evaluation mode.
    """
    x, states, weights, has_biases, layers, _, _, bidirectional, batch_first = node.args
    assert isinstance(layers, int)
    single = isinstance(states, Node)  # a GRU has one state, an LSTM has two
    stacked: list[Any] = [states] if single else list(states)  # type: ignore[arg-type]
    results: list[list[Node]] = [[] for _ in stacked]
    for layer, own_weights in enumerate(_equal_parts(weights, layers)):
        first, last = (index * (2 if bidirectional else 1) for index in (layer, layer + 1))
        own: Any = [emit(node, aten.slice.Tensor, state, 0, first, last) for state in stacked]
        settings = (has_biases, 1, 0.0, False, bidirectional, batch_first)
        val = (value(node)[0], *map(value, own))  # inferring it would unroll the time axis, and fix the batch
        call = emit_as(node, val, node.target, x, own[0] if single else own, own_weights, *settings)  # type: ignore[arg-type]
        x, *lasts = (emit(node, operator.getitem, call, i) for i in range(1 + len(stacked)))
        for result, state in zip(results, lasts, strict=True):
            result.append(state)
    outputs = [x, *(emit(node, aten.cat.default, result) for result in results)]
    for reader in list(node.users):
        assert reader.target is operator.getitem
        replace(reader, outputs[reader.args[1]])  # type: ignore[index, arg-type]
    node.graph.erase_node(node)  # by hand: torch takes the random dropout of `node` for a side effect


def _equal_parts(weights: Any, parts: int) -> list[list[Any]]:
    size = len(weights) // parts
    return [list(weights[start : start + size]) for start in range(0, len(weights), size)]
