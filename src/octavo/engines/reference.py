"""The reference engine: integer arithmetic in plain PyTorch. Slow and readable; the oracle of the other engines.

For real values x = s_x·(q_x − z_x) and symmetric weights w = s_w·q_w (Wu et al. 2020, §3.1–3.2)

    Σ x·w  =  s_x·s_w · Σ (q_x − z_x)·q_w

The sum runs over integers alone and is exact; the scales multiply it once, afterwards. Between two integer operations
the value is float, as in fused kernels: rescale, add the bias, apply the activation, and round again at the next site.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from octavo.arguments import checked
from octavo.engines.execution import Execution
from octavo.engines.signature import Compiled
from octavo.errors import QuantizationError, naming
from octavo.network.edit import layer_of
from octavo.network.graph import clone, device_of
from octavo.network.inputs import Inputs
from octavo.network.marker import Rounded, is_marker
from octavo.network.operations import preserves_values
from octavo.network.passes import CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS
from octavo.network.placement import compute_heavy
from octavo.network.quantized import Quantized
from octavo.numerics.affine import QParams, dequantize, params_from_tensor, quantize
from octavo.numerics.broadcast import beside, broadcast_along

aten = torch.ops.aten
INT32 = torch.iinfo(torch.int32)


@dataclass(frozen=True, kw_only=True)
class Integers:
    """A quantized tensor on its way to an integer operation.

    centred  [...] int32: q − zero_point, so that zero is 0 and padding needs no care
    params   its scale; per tensor, along an axis along which the sum does not run, or of every row
    """

    centred: Tensor
    params: QParams

    @property
    def scale(self) -> Tensor:
        """Shaped to stand beside it, and beside what an operation returns whose sum does not run along its axis."""
        return beside(self.params.scale, self.params.scheme, self.centred.ndim)


def integers(x: Tensor, params: QParams) -> Integers:
    """Real values as integers: what stands at a marker of the plan."""
    params = params_from_tensor(x, params.scheme) if params.scheme.rows else params
    return Integers(centred=_centred(quantize(x, params), params), params=params)


@checked
def compile_reference(net: Quantized) -> "ReferenceModel":
    """`net` executed on integers; called like the user's model, with tensors on the CPU."""
    marked = clone(net.plan.marked)
    layers, nodes = compute_heavy(net.graph, net.plan.target), marked.module.graph.nodes
    executions = {layers[node.name]: _execution(node) for node in nodes if node.name in layers}
    return ReferenceModel(marked.module, dict(net.values), net.graph.inputs, executions)


def _execution(node: Node) -> Execution:
    """How `run_node` below runs `node`."""
    on_integers = node.target in KERNELS and all(_gives_integers(source) for source in node.args[:2])
    kernel, arithmetic = str(node.target).split(".")[1], "i8" if on_integers else "f32"
    return Execution(kernel=kernel, precision=arithmetic, implementation=f"torch_{arithmetic}")


def _gives_integers(source: Any) -> bool:
    if not isinstance(source, Node):
        return False
    return is_marker(source) or (preserves_values(source) and any(map(_gives_integers, source.all_input_nodes)))


class ReferenceModel(Compiled, nn.Module):
    """Runs the graph node by node: integer kernels where both operands are integers, float elsewhere."""

    def __init__(
        self,
        module: GraphModule,
        values: dict[str, QParams],
        inputs: Inputs,
        executions: dict[str, Execution],
    ) -> None:
        super().__init__()
        self.module, self.values, self.inputs = module, values, inputs
        self._executions = executions

    def executions(self) -> dict[str, Execution]:
        """{user's layer: how it runs} for every compute-heavy operation."""
        return dict(self._executions)

    @torch.inference_mode()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.inputs.check(args, kwargs, device=device_of(self.module))
        run = _IntegerInterpreter(self.module, lambda name, x: integers(x, self.values[name]))
        return run(*args, **kwargs)


class _IntegerInterpreter(Rounded):
    def output(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return torch.fx.node.map_aggregate(args[0], _to_float)

    def run_node(self, n: Node) -> Any:
        if n.op != "call_function" or is_marker(n):
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        kernel = KERNELS.get(n.target)
        if kernel is not None and isinstance(args[0], Integers) and isinstance(args[1], Integers):
            return _run_kernel(n, kernel, args, kwargs)
        if preserves_values(n) and _any_integers(args):
            return _move(n.target, args, kwargs)
        args, kwargs = torch.fx.node.map_aggregate((args, kwargs), _to_float)
        assert callable(n.target)
        return n.target(*args, **kwargs)


def _run_kernel(node: Node, kernel: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    with naming(layer_of(node) or node.name):
        return kernel(node.target, *args, **kwargs)


def accumulate(operation: Callable[..., Tensor], lhs: Tensor, rhs: Tensor, *rest: Any) -> Tensor:
    """`operation(lhs, rhs)` of integers, exactly: int32 out.

    float64 carries the integers: it holds every one up to 2⁵³, runs on every device and is far faster than torch's
    integer loops.
    raises  QuantizationError where an int32 accumulator would overflow
    """
    sums = operation(lhs.double(), rhs.double(), *rest)
    if sums.numel() and not INT32.min <= float(sums.min()) <= float(sums.max()) <= INT32.max:
        raise QuantizationError(
            asked="accumulate in int32",
            seen=f"a sum reaches {float(sums.abs().max()):.0f}",
            remedy="use fewer bits for this layer, or leave it in float",
        )
    return sums.to(torch.int32)


def _convolution(operation: Any, x: Integers, weight: Integers, bias: Tensor | None = None, *rest: Any) -> Tensor:
    _check_no_blocks("convolution", weight)
    sums = accumulate(lambda a, b: operation(a, b, None, *rest), x.centred, weight.centred)
    space = weight.centred.ndim - 2
    outputs, scale, own = sums.shape[-space - 1], weight.params.scale, x.params.scale
    if scale.ndim == 1:
        # A grouped transposed convolution has one scale for each output channel *within* a group.
        scale = broadcast_along(scale.repeat(outputs // scale.numel()), 0, space + 1)
    if own.ndim == 1:
        own = broadcast_along(_of_outputs(x, outputs, rest), 0, space + 1)
    return rescale(sums, own * scale, None if bias is None else broadcast_along(bias, 0, space + 1))


def _of_outputs(x: Integers, outputs: int, rest: tuple[Any, ...]) -> Tensor:
    """[outputs]: the scale of the input channels that each output channel sums, which must be one."""
    groups = rest[3] if len(rest) > 3 else 1
    scale = x.params.scale.reshape(groups, -1)
    if bool((scale != scale[:, :1]).any()):
        raise QuantizationError(
            asked="execute a convolution whose input has a scale for each channel",
            seen="one of its sums runs over channels of different scales",
            remedy="choose the scales by choose_params, or give the input a scheme without axis",
        )
    return scale[:, 0].repeat_interleave(outputs // groups)


def _linear(operation: Any, x: Integers, weight: Integers, bias: Tensor | None = None) -> Tensor:
    if weight.params.scheme.block is not None:
        return _linear_in_blocks(operation, x, weight, bias)
    return rescale(accumulate(operation, x.centred, weight.centred), x.scale * weight.params.scale, bias)


def _linear_in_blocks(operation: Any, x: Integers, weight: Integers, bias: Tensor | None) -> Tensor:
    """Each block of inputs has its own scales [outputs]: one integer product a block, summed after rescaling."""
    block, axis = weight.params.scheme.block, weight.params.scheme.axis
    assert block is not None
    if axis not in (1, -1):
        raise QuantizationError(
            asked=f"execute a linear whose weight has blocks along axis {axis}",
            seen="an integer sum runs along the input axis, so only blocks of inputs can have scales",
            remedy="give the weight Scheme(axis=1, block=…)",
        )
    out = torch.zeros((), device=x.centred.device)
    blocks = (torch.split(x.centred, block, -1), torch.split(weight.centred, block, 1))
    for lhs, rhs, scale in zip(*blocks, weight.params.scale.unbind(1), strict=True):
        out = out + rescale(accumulate(operation, lhs, rhs), x.scale * scale, None)
    return out if bias is None else out + bias


def _matmul(operation: Any, lhs: Integers, rhs: Integers) -> Tensor:
    _check_no_blocks("matmul", lhs, rhs)
    return rescale(accumulate(operation, lhs.centred, rhs.centred), lhs.scale * rhs.scale, None)


def _check_no_blocks(name: str, *operands: Integers) -> None:
    for operand in operands:
        if operand.params.scheme.block is not None:
            raise QuantizationError(
                asked=f"execute a {name} whose weight is quantized in blocks",
                seen="only a linear sums its blocks one by one",
                remedy="give the weight one scale per channel, Scheme(axis=0)",
            )


def rescale(sums: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """scale·sums + bias in float32: the first half of requantization; `integers`, at the next marker, is the other."""
    out = sums.to(torch.float32) * scale
    return out if bias is None else out + bias


KERNELS: dict[Any, Callable[..., Tensor]] = {
    **dict.fromkeys(CONVOLUTIONS | TRANSPOSED_CONVOLUTIONS, _convolution),
    aten.linear.default: _linear,
    aten.matmul.default: _matmul,
}


def _move(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Reshape, pool, pad or concatenate integers: they all have one scale, which goes with them."""
    params: list[QParams] = []

    def open_(leaf: Any) -> Any:
        if isinstance(leaf, Integers):
            params.append(leaf.params)
            return leaf.centred.double()
        return leaf

    moved = operation(*torch.fx.node.map_aggregate(args, open_), **kwargs)
    return Integers(centred=moved.to(torch.int32), params=params[0])


def _any_integers(args: tuple[Any, ...]) -> bool:
    return any(isinstance(a, Integers) or (isinstance(a, list | tuple) and _any_integers(tuple(a))) for a in args)


def _to_float(leaf: Any) -> Any:
    """Real values of integers that an operation without integer kernel reads."""
    if not isinstance(leaf, Integers):
        return leaf
    scheme, params = leaf.params.scheme, leaf.params
    zero = beside(params.zero_point, scheme, leaf.centred.ndim)
    return dequantize((leaf.centred + zero).to(scheme.dtype), params)


def _centred(q: Tensor, params: QParams) -> Tensor:
    return q.to(torch.int32) - beside(params.zero_point, params.scheme, q.ndim)
