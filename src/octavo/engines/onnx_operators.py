"""Modules that stand for ONNX operators: torch.export traces them, and the ONNX exporter writes them down as they are.

    Activation         x ─▶ [Clip ─▶] QuantizeLinear ─▶ DequantizeLinear
    DequantizedWeight  int8 initializer ─▶ DequantizeLinear, per tensor, per channel or per block

They have no arithmetic of their own: outside an export they return zeros.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.onnx import ops

from octavo.network.simulate import FakeQuantize
from octavo.numerics.affine import QParams, quantize
from octavo.numerics.broadcast import beside, broadcast_along
from octavo_serve.onnx_allowed import OPSET


class Activation(nn.Module):
    """x rounded to integers and back: two ONNX nodes, which engines fuse with the operations around them.

    QuantizeLinear saturates at the ends of int8 or uint8. A scheme that stops earlier (the paper's −127, fewer bits)
    needs a Clip before it.

    as_uint8  store signed integers 128 higher: the same real values, in the type that convolutions of CPUs multiply
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, params: QParams, *, as_uint8: bool = False) -> None:
        super().__init__()
        raised = as_uint8 and params.scheme.signed
        self.dtype, self.axis = torch.uint8 if raised else params.scheme.dtype, params.scheme.axis
        self.register_buffer("scale", params.scale.clone())
        self.register_buffer("zero_point", (params.zero_point + 128 * raised).to(self.dtype))
        self.clip = _clip_bounds(params)

    def forward(self, x: Tensor) -> Tensor:
        clipped = x if self.clip is None else self._within_bounds(x, *self.clip)
        parameters = (self.scale, self.zero_point)
        axis: dict[str, Any] = {} if self.axis is None else {"axis": self.axis}
        q = ops.symbolic("QuantizeLinear", (clipped, *parameters), axis, dtype=self.dtype, shape=x.shape, version=OPSET)
        return ops.symbolic(
            "DequantizeLinear", (q, *parameters), axis, dtype=torch.float32, shape=x.shape, version=OPSET
        )

    def _within_bounds(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        if self.axis is None:
            return x.clamp(float(low), float(high))
        low, high = (broadcast_along(bound, self.axis, x.ndim) for bound in (low, high))
        return torch.minimum(torch.maximum(x, low), high)


class RoundedInFloat(FakeQuantize):
    """x rounded on a grid that no reader has kernels for, a scale for each row or head say, by float operators.

    A pair around a product would be an order to fuse it, which OpenVINO 2026.4 and ONNX Runtime 1.32 then refuse.
    """

    def forward(self, x: Tensor) -> Tensor:
        scale, zero = (beside(values, self.scheme, x.ndim) for values in (self.scale, self.zero_point.float()))
        return ((torch.round(x / scale) + zero).clamp(self.scheme.qmin, self.scheme.qmax) - zero) * scale


def _clip_bounds(params: QParams) -> tuple[Tensor, Tensor] | None:
    """The real values of qmin and qmax, shape of scale; None where the storage type ends there by itself."""
    scheme, storage = params.scheme, torch.iinfo(params.scheme.dtype)
    if (scheme.qmin, scheme.qmax) == (storage.min, storage.max):
        return None
    return params.scale * (scheme.qmin - params.zero_point), params.scale * (scheme.qmax - params.zero_point)


class DequantizedWeight(nn.Module):
    """A constant, stored in integers; the input that it is called with, the float weight, is not read.

    integers    [...] int8 or uint8
    scale       [], [channels], or integers.shape with one entry a block
    zero_point  shape of scale, dtype of integers; None for symmetric schemes
    axis        the axis of the channels or blocks
    """

    integers: Tensor
    scale: Tensor
    zero_point: Tensor | None

    def __init__(
        self, integers: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int | None, block: int | None
    ) -> None:
        super().__init__()
        self.axis, self.block = axis, block
        self.register_buffer("integers", integers)
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)

    def forward(self, _: Tensor) -> Tensor:
        attributes: dict[str, Any] = {} if self.axis is None else {"axis": self.axis}
        if self.block is not None:
            attributes["block_size"] = self.block
        inputs = (self.integers, self.scale, *(() if self.zero_point is None else (self.zero_point,)))
        return ops.symbolic(
            "DequantizeLinear",
            inputs,
            attributes,
            dtype=torch.float32,
            shape=self.integers.shape,
            version=OPSET,
        )


def quantized_weight(tensor: Tensor, params: QParams) -> DequantizedWeight:
    """`tensor` in integers, by `params`."""
    scheme = params.scheme
    return DequantizedWeight(
        quantize(tensor.detach(), params),
        params.scale.clone(),
        None if scheme.symmetric else params.zero_point.to(scheme.dtype),
        None if scheme.axis is None else scheme.axis % tensor.ndim,
        scheme.block,
    )
