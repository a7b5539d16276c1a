"""Simulation: the float network that rounds where the integers will. For scoring and for training, never for timing."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from octavo.arguments import checked
from octavo.network.graph import Graph, device_of
from octavo.network.inputs import Inputs
from octavo.network.marker import with_modules
from octavo.network.quantized import SIMULATION, Origin, Quantized, remember
from octavo.numerics.affine import QParams, round_through


class FakeQuantize(nn.Module):
    """dequantize(quantize(x)) with ATen's operators, whose gradient is the straight-through estimator (§5.2)."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, params: QParams) -> None:
        super().__init__()
        self.scheme = params.scheme
        self.register_buffer("scale", params.scale.clone())
        self.register_buffer("zero_point", params.zero_point.clone())

    def forward(self, x: Tensor) -> Tensor:
        return round_through(x, self.scale, self.zero_point, self.scheme)

    def extra_repr(self) -> str:
        return f"{self.scheme.bits} bits, {'signed' if self.scheme.signed else 'unsigned'}"


@checked
def simulate(net: Quantized) -> GraphModule:
    """A module called like the user's model, with the user's parameter names, that rounds as the integers will.

    It computes in float and is slower than the float model: use it to score and to train, and time `compile`'s result.
    """
    device = net.graph.device
    roundings = {
        quantizer.name: FakeQuantize(net.values[quantizer.name]).to(device) for quantizer in net.plan.quantizers
    }
    module = with_modules(net.plan.marked, roundings)
    vars(module)["extra_repr"] = _purpose
    check_calls(module, net.graph)
    copy_by(module, simulate, net)
    return remember(module, Origin(net=net, engine=SIMULATION))


def check_calls(module: nn.Module, graph: Graph) -> None:
    """Let `module`, called like `graph`, raise QuantizationError for inputs that it was not captured for."""
    module.register_forward_pre_hook(partial(_check_call, graph.inputs), with_kwargs=True)


def _check_call(inputs: Inputs, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if not torch.compiler.is_compiling():  # a tracer's inputs hold no values
        inputs.check(args, kwargs, device=device_of(module))


def copy_by(module: GraphModule, make: Callable[..., GraphModule], net: Quantized) -> None:
    """Let a copy or a pickle of `module`, which is make(net), be made anew and given the state it has now."""

    def state(self: GraphModule) -> tuple[Any, ...]:
        return make, net, self.state_dict(), self.training

    own: Any = type(module)  # torch gives every GraphModule a class of its own
    own.__reduce__ = lambda self: (_made_again, state(self))
    own.__deepcopy__ = lambda self, memo: _made_again(*copy.deepcopy(state(self), memo))


def _made_again(
    make: Callable[..., GraphModule], net: Quantized, state: dict[str, Tensor], training: bool
) -> GraphModule:
    module = make(net)
    module.load_state_dict(state, strict=False)  # it may lack constants that a state does not keep
    module.training = training
    return module


def _purpose() -> str:
    return "simulation of the integers in float: to score and to train, slower than the float network; never time it"
