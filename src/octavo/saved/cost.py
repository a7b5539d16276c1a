"""What one call of a graph takes, found without computing it: shapes are propagated, and nothing is allocated.

A file may ask for any amount of memory and time with a few bytes: an expand, a product of what was expanded, again.
So a graph that comes from elsewhere is run on shapes alone first, and refused if it does not fit together or asks for
more than `LIMITS`.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import SymBool, SymFloat, SymInt, Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves, tree_map

from octavo.errors import QuantizationError, reading, refused
from octavo.network.edit import attribute
from octavo.network.work import multiplications
from octavo.quiet import quiet


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a saved network may take for one call on its samples.

    bytes            of all tensors that are needed at one time, parameters not counted
    multiplications  in all products and convolutions
    """

    bytes: float = 2.0**30
    multiplications: float = 1e12


LIMITS = Limits()
RAISE = "if you trust this file, pass limits=octavo.Limits(bytes=…, multiplications=…)"


def check_cost(module: GraphModule, leaves: Sequence[Any], limits: Limits, *, recorded: bool) -> None:
    """Run `module` on the shapes of `leaves`, its inputs in order.

    recorded  `leaves` have the sizes of the example: every shape has to be the one that the graph states
    raises    QuantizationError naming the node whose operation does not fit its arguments, whose shape is another than
              is stated, or with which a limit is passed
    """
    mode = FakeTensorMode(allow_fallback_kernels=False, allow_non_fake_inputs=True)
    nodes = list(module.graph.nodes)
    dies = {source: number for number, node in enumerate(nodes) for source in node.all_input_nodes}
    gone: dict[int, list[Node]] = {}
    for source, number in dies.items():
        gone.setdefault(number, []).append(source)
    values: dict[Node, Any] = {}
    inputs, alive, multiplied = iter(leaves), 0.0, 0.0
    for number, node in enumerate(nodes):
        with _naming(node), mode:
            values[node] = _value(module, node, inputs, values, mode)
        if node.op != "get_attr":
            alive += _bytes(values[node])
            multiplied += multiplications(node, values)
        if recorded and node.op != "output":
            _compare(node, values[node])
        if alive > limits.bytes or multiplied > limits.multiplications:
            raise _too_much(node, alive, multiplied, limits)
        for source in gone.get(number, ()):
            alive -= _bytes(values[source]) if source.op != "get_attr" else 0


def _value(module: GraphModule, node: Node, inputs: Any, values: dict[Node, Any], mode: FakeTensorMode) -> Any:
    if node.op == "placeholder":
        return _fake(next(inputs), mode)
    if node.op == "get_attr":
        return _fake(attribute(module, node), mode)
    if node.op == "output":
        return None
    args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _fake(value: Any, mode: FakeTensorMode) -> Any:
    return mode.from_tensor(value.detach(), static_shapes=True) if isinstance(value, Tensor) else value


@contextmanager
def _naming(node: Node) -> Iterator[None]:
    """What torch says of an operation that does not fit, as one error that names the node, and no log beside it."""
    with (
        quiet("torch._subclasses.fake_tensor", level=logging.CRITICAL, ignored=()),
        reading(
            asked="load a saved network",
            seen=f"{node.target} does not fit its arguments",
            remedy="do not use this file; octavo.save wrote another one",
            site=node.name,
        ),
    ):
        yield


def _bytes(value: Any) -> float:
    return float(sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(value) if isinstance(leaf, Tensor)))


def _compare(node: Node, found: Any) -> None:
    """That `found` is what the graph states, with its symbols as in the example."""
    stated = node.meta.get("val")
    if isinstance(found, tuple | list):
        found = tuple(found)
    if _facts(found) != _facts(stated):
        seen = f"{node.target} gives {_facts(found)}, and the file states {_facts(stated)}"
        raise refused(node.name, seen)


def _facts(value: Any) -> Any:
    """Shapes and dtypes as plain values."""

    def plain(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return (tuple(map(_number, leaf.shape)), str(leaf.dtype))
        return _number(leaf) if isinstance(leaf, int | SymInt) else None

    return tree_map(plain, value)


def _number(size: Any) -> int:
    return int(size.node.hint) if isinstance(size, SymInt | SymBool | SymFloat) else int(size)


def _too_much(node: Node, alive: float, multiplied: float, limits: Limits) -> QuantizationError:
    seen = f"a call on its samples takes {alive / 1e6:.3g} MB and {multiplied:.1e} multiplications until here, and "
    most = f"{limits.bytes / 1e6:.0f} MB and {limits.multiplications:.0e} are allowed"
    return refused(node.name, seen + most, RAISE)
