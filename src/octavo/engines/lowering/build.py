"""A planned graph on its way to integer kernels: the values it has, and the graph that grows beside it.

Activations are uint8 throughout, with a zero-point; signed integers are stored 128 higher. oneDNN has integer kernels
for that on every x86 processor, and for signed activations on few (hundreds of times slower on the others).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph as FxGraph, GraphModule, Node
from torch.fx.node import map_arg

from octavo.engines.lowering.executions import mark
from octavo.network.edit import attribute
from octavo.network.marker import is_marker, quantizer_of, source_of
from octavo.numerics.affine import QParams, dequantize, quantize
from octavo.numerics.broadcast import broadcast_along
from octavo.numerics.rows import along, scale_of_rows


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The uint8 integers of one tensor: real = scale · (u − zero), u from `low` to `high`.

    channels  where every channel has a scale: those, along axis 1; then `scale` is 1
    """

    scale: float
    zero: int
    low: int
    high: int
    channels: tuple[float, ...] | None = None

    def scales(self) -> Tensor:
        """float64 [channels], or [] where all have one."""
        return torch.tensor(self.channels or self.scale, dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class Integers:
    """A node of the lowered graph that holds uint8, and what they stand for."""

    node: Node
    grid: Grid


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A node of the lowered graph in float32, which its reader rounds by rows.

    axis             along which they lie, counted from behind
    lowest, highest  of their integers: −highest, or 0
    """

    node: Node
    axis: int
    lowest: int
    highest: int

    @property
    def numbers(self) -> tuple[int, int, int]:
        """As arguments of what rounds."""
        return self.axis, self.lowest, self.highest


@dataclass(frozen=True, kw_only=True)
class Weight:
    """A constant of the planned graph that is quantized by `params`.

    real  [...] float, before rounding
    """

    real: Tensor
    params: QParams

    def integers(self) -> Tensor:
        """[...] int8, or uint8 if the scheme is unsigned."""
        return quantize(self.real, self.params)

    def dequantized(self) -> Tensor:
        """[...] float, for operations without an integer kernel."""
        return dequantize(self.integers(), self.params)

    def scales(self, axis: int) -> Tensor | None:
        """[size of axis]: one scale for each index of `axis`. None if its scales lie otherwise, or zero is not 0; or if
        the sum of an index, of products with uint8, might leave int32.
        """
        scheme, ndim = self.params.scheme, self.real.ndim
        if not (scheme.symmetric and scheme.signed) or scheme.block is not None:
            return None
        if bool((255 * self.integers().double().abs().transpose(0, axis).flatten(1).sum(1) >= 2**31).any()):
            return None
        if scheme.axis is None:
            return self.params.scale.repeat(self.real.shape[axis])
        return self.params.scale.clone() if scheme.axis % ndim == axis % ndim else None


def grid_of(params: QParams) -> Grid | None:
    """The integers of `params`, shifted into uint8; None if their scales or zero-points lie as no kernel has them."""
    scheme = params.scheme
    shift, zeros = 128 if scheme.signed else 0, {*params.zero_point.reshape(-1).tolist()}
    if scheme.rows or scheme.axis not in (None, 1) or len(zeros) != 1:
        return None
    several = scheme.axis is not None
    return Grid(
        scale=1.0 if several else float(params.scale),
        zero=zeros.pop() + shift,
        low=scheme.qmin + shift,
        high=scheme.qmax + shift,
        channels=tuple(params.scale.tolist()) if several else None,
    )


def quantize_to_uint8(x: Tensor, inverse_scale: float | Tensor, zero: int, low: int, high: int) -> Tensor:
    """The integers of `x`; Inductor fuses this with what computes `x`."""
    return torch.clamp(torch.round(x * inverse_scale) + zero, low, high).to(torch.uint8)


def dequantize_from_uint8(u: Tensor, scale: float | Tensor, zero: int) -> Tensor:
    """The real values of `u`, in float32."""
    return (u.to(torch.float32) - zero) * scale


def bytes_of_rows(x: Tensor, axis: int, lowest: int, highest: int) -> tuple[Tensor, int, Tensor]:
    """(`x` in uint8, signed integers 128 higher; where zero is; the scale of each row, 1 in place of its length)."""
    scale, zero = scale_of_rows(x, axis, highest), 128 if lowest < 0 else 0
    return quantize_to_uint8(x, scale.reciprocal(), zero, lowest + zero, highest + zero), zero, scale


def rounded_by_rows(x: Tensor, axis: int, lowest: int, highest: int) -> Tensor:
    """`x` rounded by rows, in float32: for operations that have no kernel."""
    u, zero, scale = bytes_of_rows(x, axis, lowest, highest)
    return dequantize_from_uint8(u, scale, zero)


class Lowering:
    """The lowered graph while it grows, in the order of the planned one.

    values      {node of the planned graph: a node of the lowered one in float, `Integers`, `Rows`, or a `Weight`}
    attentions  {last product: the attention it completes}
    chains      {a node of the lowered graph: the chain of convolutions that it calls}
    layers      {node of the planned graph: the user's layer}, of every compute-heavy operation
    params      {quantizer: its scale and zero-point}
    """

    def __init__(self, module: GraphModule, layers: Mapping[str, str], params: Mapping[str, QParams]) -> None:
        self.module, self.layers, self.params = module, layers, params
        self.graph = FxGraph()
        self.values: dict[Node, Any] = {}
        self.attentions: dict[Node, Any] = {}
        self.chains: dict[Node, Any] = {}

    def emit(self, operator: Callable[..., Any], *args: Any, **kwargs: Any) -> Node:
        """The new node `operator(*args, **kwargs)`; its arguments are of the lowered graph."""
        return self.graph.call_function(operator, args, kwargs)

    def constant(self, tensor: Tensor) -> Node:
        """The new node that reads `tensor`, from here on a buffer of the module."""
        name = f"lowered_{sum(1 for key in self.module._buffers if key.startswith('lowered_'))}"
        self.module.register_buffer(name, tensor)
        return self.graph.get_attr(name)

    def real(self, argument: Any) -> Any:
        """The counterpart of an argument, for a reader that wants real values."""
        return map_arg(argument, self._real)

    def _real(self, node: Node) -> Any:
        value = self.values[node]
        if isinstance(value, Integers):
            return self.emit(
                dequantize_from_uint8, value.node, self._beside(value.grid.scales(), node), value.grid.zero
            )
        if isinstance(value, Rows):
            return self.emit(rounded_by_rows, value.node, *value.numbers)
        return self.constant(value.dequantized()) if isinstance(value, Weight) else value

    def _beside(self, scales: Tensor, node: Node) -> Any:
        """`scales` as an argument beside `node`: a number, or the constant [channels, 1, …]."""
        if scales.ndim == 0:
            return float(scales)
        return self.constant(broadcast_along(scales.float(), 0, node.meta["val"].ndim - 1))

    def integers(self, argument: Any, *, of_channels: bool = False) -> Integers | None:
        """The counterpart of `argument` if it is in integers; of_channels: also if every channel has a scale."""
        value = self.values.get(argument) if isinstance(argument, Node) else None
        if not isinstance(value, Integers) or (value.grid.channels is not None and not of_channels):
            return None
        return value

    def rows(self, argument: Any, axis: int = -1) -> Rows | None:
        """The counterpart of `argument` if it is rounded by rows that lie along `axis`."""
        value = self.values.get(argument) if isinstance(argument, Node) else None
        return value if isinstance(value, Rows) and value.axis == axis else None

    def weight(self, argument: Any) -> Weight | None:
        """The counterpart of `argument` if it is a quantized constant."""
        value = self.values.get(argument) if isinstance(argument, Node) else None
        return value if isinstance(value, Weight) else None

    def tensor(self, argument: Any) -> Tensor | None:
        """The constant that `argument` reads, in float; None if it is computed."""
        if not isinstance(argument, Node) or argument.op != "get_attr":
            return None
        return attribute(self.module, argument).detach()

    def rounding(self, node: Node | None) -> QParams | None:
        """How `node` rounds, if it is a marker."""
        return self.params[quantizer_of(node)] if node is not None and is_marker(node) else None

    def rounded(self, node: Node) -> Any:
        """The counterpart of a marker."""
        params, source = self.params[quantizer_of(node)], source_of(node)
        constant = self.tensor(source)
        if constant is not None:
            return Weight(real=constant, params=params)
        grid, x, scheme = grid_of(params), self.real(source), params.scheme
        if scheme.rows:
            return Rows(node=x, axis=along(scheme), lowest=scheme.qmin, highest=scheme.qmax)
        if grid is None:
            return self._rounded_in_float(x, params)
        inverse = self._beside(1 / grid.scales(), node)
        u = self.emit(quantize_to_uint8, x, inverse, grid.zero, grid.low, grid.high)
        return Integers(node=u, grid=grid)

    def _rounded_in_float(self, x: Node, params: QParams) -> Node:
        """`x` on the grid of `params`, which no kernel has: what reads it computes in float."""
        scheme = params.scheme
        scales = (self.constant(params.scale), self.constant(params.zero_point), scheme.axis, scheme.qmin, scheme.qmax)
        return self.emit(torch.fake_quantize_per_channel_affine, x, *scales)

    def ran(self, kernel: Node, *nodes: Node) -> None:
        """Note that `kernel` of the lowered graph computes these compute-heavy operations of the planned one."""
        mark(kernel, [self.layers[node.name] for node in nodes])


def only_reader(node: Node) -> Node | None:
    """Who reads `node`, if it is one."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def readers(node: Node) -> Iterator[Node]:
    """Who reads `node`, in the order of the graph."""
    order = {other: index for index, other in enumerate(node.graph.nodes)}
    yield from sorted(node.users, key=order.__getitem__)
