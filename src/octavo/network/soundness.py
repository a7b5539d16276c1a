"""What a model does that no other network can repeat: dropout that is always on, batch statistics, mixed dtypes."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from octavo.errors import QuantizationError
from octavo.network.edit import layer_of
from octavo.network.passes import CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS

aten = torch.ops.aten

PRODUCTS = CONVOLUTIONS | TRANSPOSED_CONVOLUTIONS | {
    aten.linear.default, aten.matmul.default, aten.mm.default, aten.bmm.default, aten.addmm.default,
}  # fmt: skip
# Torch's own code for always-on dropout, of whichever kind: a mask of random bits.
_DROPOUT = {
    "native_dropout",
    "bernoulli",
    "rrelu",
    "scaled_dot_product_attention",
    "lstm",
    "gru",
    "rnn_tanh",
    "rnn_relu",
}
_FRAME = re.compile(r'File "(.+?)", line (\d+), in (\S+)\n\s*(.*)')


def check_sound(module: GraphModule) -> None:
    """Check what torch.export made of a model in evaluation mode.

    raises  QuantizationError naming the layer and the line of a dropout that is always on, of a batch-norm
            that takes the statistics of its batch, and of a product of two dtypes
    """
    for node in module.graph.nodes:
        if node.op == "call_function" and hasattr(node.target, "_schema"):
            _check_node(node)


def _check_node(node: Node) -> None:
    name = str(node.target._schema.name).partition("::")[2]  # type: ignore[union-attr]
    if name in _DROPOUT and _is_random(node):
        raise _unsound(
            node,
            f"{name} draws random numbers at every call, in evaluation mode too",
            "pass training=self.training (dropout_p=self.p if self.training else 0.0), or use nn.Dropout",
        )
    if "batch_norm" in name and _given(node).get("training") and node.target._schema.overload_name != "no_stats":  # type: ignore[union-attr]
        raise _unsound(
            node,
            "a batch-norm takes the statistics of its batch, in evaluation mode too",
            "pass training=self.training, or use nn.BatchNorm",
        )
    if node.target in PRODUCTS:
        values = [source.meta.get("val") for source in node.all_input_nodes]
        dtypes = {str(value.dtype) for value in values if isinstance(value, Tensor)}
        if len(dtypes) > 1:
            raise _unsound(
                node,
                f"{name} multiplies {' by '.join(sorted(dtypes))}",
                "give the example in the dtype of the model, or capture copy.deepcopy(model).float()",
            )


def _given(node: Node) -> dict[str, Any]:
    """The arguments of a call by name."""
    schema = node.target._schema  # type: ignore[union-attr]
    names = [argument.name for argument in schema.arguments]
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def _is_random(node: Node) -> bool:
    given = _given(node)
    if "dropout_p" in given or "dropout_p" in (argument.name for argument in node.target._schema.arguments):  # type: ignore[union-attr]
        return bool(given.get("dropout_p", 0.0))
    if "train" in given:  # recurrent layers have the share of their dropout beside it
        return bool(given["train"]) and bool(given.get("dropout", 1.0))
    if "training" in given:
        return bool(given["training"]) and torch.Tag.nondeterministic_seeded in node.target.tags  # type: ignore[union-attr]
    return torch.Tag.nondeterministic_seeded in node.target.tags  # type: ignore[union-attr]


def _unsound(node: Node, seen: str, remedy: str) -> QuantizationError:
    home = str(Path(torch.__file__).parent)
    frames = [frame for frame in _FRAME.findall(node.meta.get("stack_trace") or "") if not frame[0].startswith(home)]
    where = "".join(f" ({Path(file).name}:{line}, in {where}: `{source}`)" for file, line, where, source in frames[-1:])
    return QuantizationError(
        asked="capture a network that computes the same function at every call",
        seen=f"{seen}{where}",
        remedy=remedy,
        site=layer_of(node) or node.name,
    )
