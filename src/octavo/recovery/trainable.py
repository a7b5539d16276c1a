"""The network that quantization-aware training trains, and what it has become afterwards (Wu et al. 2020, §5.2).

    trainable(net) ─▶ a module, trained by any loop ─▶ trained(net, module)

It is the simulation, whose rounding has the straight-through gradient: 1 inside the range, 0 outside. Ranges of
activations are fixed at their calibrated values, as in the paper, or learned; ranges of weights follow the weights.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from octavo.arguments import checked
from octavo.errors import QuantizationError
from octavo.network.edit import attribute, copy_module
from octavo.network.graph import PASSES
from octavo.network.marker import places, sources, with_modules
from octavo.network.placement import make_plan
from octavo.network.plan import Plan, Quantizer
from octavo.network.quantized import TRAINING, Origin, Quantized, on_graph, remember
from octavo.network.simulate import FakeQuantize, check_calls, copy_by
from octavo.numerics.affine import QParams, params_from_tensor, round_through
from octavo.numerics.scheme import SMALLEST_SCALE, Scheme

Weights = Literal["follow", "fixed"]
Ranges = Literal["fixed", "learned"]

aten = torch.ops.aten


class FollowingWeight(nn.Module):
    """Rounds a weight on the range that it has now: its maximum, per channel if the scheme is (§3.4)."""

    def __init__(self, scheme: Scheme) -> None:
        super().__init__()
        self.scheme = scheme

    def forward(self, weight: Tensor) -> Tensor:
        scale, zero_point = _range_of(weight.detach(), self.scheme)
        return round_through(weight, scale, zero_point, self.scheme)


def _range_of(weight: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Scale and zero-point as `params_from_tensor` chooses them; without its checks in the usual case."""
    if not scheme.symmetric or scheme.block is not None:
        params = params_from_tensor(weight, scheme)
        return params.scale.to(weight.device), params.zero_point.to(weight.device)
    most = weight.float().abs()
    most = most.amax() if scheme.axis is None else most.movedim(scheme.axis, 0).flatten(1).amax(1)
    scale = (most / scheme.qmax).clamp(min=SMALLEST_SCALE).masked_fill(most == 0, 1.0)
    return scale, torch.zeros_like(scale, dtype=torch.int32)


class LearnedRange(nn.Module):
    """Rounds on a scale that is a parameter: learned step size (Esser et al. 2020). The zero-point stays.

    scale  float32 [1] or [channels]; its gradient is divided by √(entries that share it · qmax), so that it moves about
           as fast as a weight
    """

    zero_point: Tensor

    def __init__(self, params: QParams) -> None:
        super().__init__()
        self.scheme = params.scheme
        self.scale = nn.Parameter(params.scale.reshape(-1).clone())
        self.register_buffer("zero_point", params.zero_point.reshape(-1).float())

    def forward(self, x: Tensor) -> Tensor:
        scheme, scale = self.scheme, self.scale.abs().clamp(min=SMALLEST_SCALE)
        slowing = (x.numel() // len(scale) * scheme.qmax) ** -0.5
        if scheme.axis is not None:
            return torch._fake_quantize_learnable_per_channel_affine(
                x, scale, self.zero_point, scheme.axis % x.ndim, scheme.qmin, scheme.qmax, slowing
            )
        return torch._fake_quantize_learnable_per_tensor_affine(
            x, scale, self.zero_point, scheme.qmin, scheme.qmax, slowing
        )

    def params(self) -> QParams:
        """What it has learned."""
        shape = [] if self.scheme.axis is None else [-1]
        scale = self.scale.detach().abs().clamp(min=SMALLEST_SCALE).reshape(shape)
        return QParams(scale=scale, zero_point=self.zero_point.reshape(shape).int(), scheme=self.scheme)


class LiveBatchNorm(nn.Module):
    """A batch-norm that follows the statistics of its batches; parameters and buffers are the user's."""

    def __init__(self, momentum: float, epsilon: float) -> None:
        super().__init__()
        self.momentum, self.epsilon = momentum, epsilon

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return F.batch_norm(x, mean, variance, weight, bias, self.training, self.momentum, self.epsilon)


@checked
def trainable(net: Quantized, *, weights: Weights = "follow", ranges: Ranges = "fixed") -> GraphModule:
    """A module called like the user's model, with the user's parameter names, to be trained by any loop.

    weights  "follow": their ranges are their maximum at every step; "fixed": the calibrated ranges stay
    ranges   of activations; "learned": scales are parameters under `quantizers`. The paper finds that learned ranges
             are hardly better than calibrated ones that stay (§5.2)
    """

    def rounding(quantizer: Quantizer) -> nn.Module:
        chosen = net.values[quantizer.name]
        if quantizer.constant and weights == "follow":
            return FollowingWeight(quantizer.scheme)
        learned = not quantizer.constant and not quantizer.scheme.rows and ranges == "learned"
        return (LearnedRange(chosen) if learned else FakeQuantize(chosen)).to(net.graph.device)

    module = with_modules(net.plan.marked, {quantizer.name: rounding(quantizer) for quantizer in net.plan.quantizers})
    _enliven(module)
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    check_calls(module, net.graph)
    copy_by(module, partial(trainable, weights=weights, ranges=ranges), net)
    return remember(module, Origin(net=net, engine=TRAINING))


def _enliven(module: GraphModule) -> None:
    """Make every batch-norm that `capture` kept a `LiveBatchNorm`."""
    for index, node in enumerate(module.graph.nodes):
        if node.target is aten.batch_norm.default:
            x, weight, bias, mean, variance, _, momentum, epsilon, _ = node.args
            module.add_submodule(f"batch_norms.{index}", LiveBatchNorm(momentum, epsilon))
            with module.graph.inserting_before(node):
                live = module.graph.call_module(f"batch_norms.{index}", (x, weight, bias, mean, variance))
            live.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(live)
            module.graph.erase_node(node)
    module.recompile()


@checked
def trained(net: Quantized, module: nn.Module) -> Quantized:
    """The network with the parameters that `module` has now, and its scales; batch-norm folded. `net` stays as it is.

    module  what `trainable(net)` returned
    raises  QuantizationError if a batch-norm is to be folded into weights that share one scale
    """
    own = copy_module(net.graph.module)
    state = module.state_dict()
    paths = places(net.plan.marked, [quantizer.name for quantizer in net.plan.quantizers])
    known = {name for name, _ in module.named_modules()}
    trained_too = net.plan.marked.module.state_dict()  # what a repair has replaced, nothing reads
    lacking = [name for name in trained_too if name not in state]
    lacking += [path for path in paths.values() if path not in known]
    if lacking:
        raise QuantizationError(
            asked="take the parameters of a trained module",
            seen=f"the module has no {lacking[0]}: it was not made from this network",
            remedy="pass what trainable(net) returned, with the same net",
        )
    own.load_state_dict({name: state[name] for name in trained_too}, strict=False)
    for name, parameter in own.named_parameters():
        parameter.requires_grad_(net.graph.module.get_parameter(name).requires_grad)
    found = replace(net.graph, module=own)
    values, read = dict(net.values), sources(net.plan.marked)
    for quantizer in net.plan.quantizers:
        rounding = module.get_submodule(paths[quantizer.name])
        if isinstance(rounding, FollowingWeight):
            weight = attribute(own, read[quantizer.name][0])
            values[quantizer.name] = params_from_tensor(weight.detach(), quantizer.scheme)
        elif isinstance(rounding, LearnedRange):
            values[quantizer.name] = rounding.params()
    return _folded(on_graph(net, found, values))


def _folded(net: Quantized) -> Quantized:
    """With every batch-norm in its convolution: the same function, as each channel's scale grows with its weights."""
    if all(node.target is not aten.batch_norm.default for node in net.graph.module.graph.nodes):
        return net
    folded = replace(net.graph, module=copy_module(net.graph.module))
    PASSES["fold_batch_norm"](folded.module)
    plan = make_plan(folded, net.plan.rules, target=net.plan.target)
    before, after = sources(net.plan.marked), sources(plan.marked)
    _check_same(plan, before)
    values = dict(net.values)
    for quantizer in plan.quantizers:
        if quantizer.constant:
            old = attribute(net.graph.module, before[quantizer.name][0])
            new = attribute(folded.module, after[quantizer.name][0])
            if not torch.equal(old, new):
                values[quantizer.name] = _grown(values[quantizer.name], old, new, quantizer.name)
    return replace(net, plan=plan, values=MappingProxyType(values))


def _check_same(plan: Plan, before: Mapping[str, list[Node]]) -> None:
    names = {quantizer.name for quantizer in plan.quantizers}
    if names != before.keys():
        raise QuantizationError(
            asked="fold batch-norm after training",
            seen="the folded network has other quantizers than the one that was trained",
            remedy='capture it with batch_norm="fold"',
            site=min(names ^ before.keys()),
        )


def _grown(params: QParams, old: Tensor, new: Tensor, name: str) -> QParams:
    """`params` of `old`, for `new`, which is `old` with every channel multiplied by a number."""
    scheme = params.scheme
    if scheme.axis is None or not scheme.symmetric or scheme.block is not None:
        raise QuantizationError(
            asked="fold batch-norm after training",
            seen=f"the weights are quantized as {scheme}: folding would change how they round",
            remedy='quantize weights per channel and symmetrically, or capture with batch_norm="fold"',
            site=name,
        )
    most = [w.detach().double().movedim(scheme.axis, 0).flatten(1).abs().amax(1).cpu() for w in (old, new)]
    factor = torch.where(most[0] > 0, most[1] / most[0], torch.ones_like(most[0]))
    scale = (params.scale.double() * factor).clamp(min=SMALLEST_SCALE).masked_fill(most[1] == 0, 1.0)
    return replace(params, scale=scale.float())
