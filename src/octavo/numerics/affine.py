"""Real values to integers and back: `real = scale · (q − zero_point)` (Wu et al. 2020, §3.1; their s is 1 / scale)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.arguments import check_fields
from octavo.errors import QuantizationError
from octavo.numerics.broadcast import beside
from octavo.numerics.rows import round_rows
from octavo.numerics.scheme import SMALLEST_SCALE, Scheme

# Two roundings below float32's largest number: the ends of a dequantized range stay finite.
LARGEST_REAL = torch.finfo(torch.float32).max * (1 - 2.0**-23)


@dataclass(frozen=True, kw_only=True, eq=False)
class QParams:
    """Scale and zero-point of one tensor; compared by identity, because a comparison of tensors has no single truth.

    They are on the CPU, wherever the tensor is: few numbers, which are also written to files.

    scale       float32, positive and finite; [] per tensor, [channels] per channel,
                x.shape with shape[axis] / block in place of shape[axis] per block, with 1 by rows; [] where the scales
                of rows are not known yet
    zero_point  int32, shape of scale, within [scheme.qmin, scheme.qmax]; all zero if the scheme is symmetric
    raises      QuantizationError if any of this does not hold
    """

    scale: Tensor
    zero_point: Tensor
    scheme: Scheme

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("scale", "zero_point"):
            object.__setattr__(self, name, getattr(self, name).cpu())
        seen = self._violation()
        if seen is not None:
            raise QuantizationError(
                asked=f"hold the parameters of {self.scheme}", seen=seen, remedy="make them with params_from_range"
            )

    def _violation(self) -> str | None:
        scale, zero_point, scheme = self.scale.detach(), self.zero_point, self.scheme
        if (scale.dtype, zero_point.dtype) != (torch.float32, torch.int32):
            return f"scale is {scale.dtype} and zero_point {zero_point.dtype}, not float32 and int32"
        if scale.shape != zero_point.shape:
            return f"scale is {list(scale.shape)} and zero_point {list(zero_point.shape)}"
        if not _rank_fits(scale.ndim, scheme):
            return f"scale is {list(scale.shape)}, while the scheme asks for {_expected_rank(scheme)}"
        if not bool((torch.isfinite(scale) & (scale > 0)).all()):
            return "a scale is zero, negative, infinite or NaN"
        smallest, largest = (0, 0) if scheme.symmetric else (scheme.qmin, scheme.qmax)
        if bool(((zero_point < smallest) | (zero_point > largest)).any()):
            return f"a zero_point lies outside [{smallest}, {largest}]"
        return None


def params_from_range(low: float | Tensor, high: float | Tensor, scheme: Scheme) -> QParams:
    """The parameters whose integers cover [low, high], widened to hold zero (Wu et al. 2020, eq. 1–2 and §3.1.2).

    low, high  float or any shape that fits the scheme's scale (see QParams); computed in float64

        symmetric  scale = max(|low|, |high|) / qmax               zero_point = 0
        affine     scale = (high − low) / (qmax − qmin)            zero_point = round(qmin − low / scale)

    Zero is exactly the integer zero_point. An all-zero range has scale 1; any other scale is at least SMALLEST_SCALE.
    raises     QuantizationError if a bound is NaN or infinite, low > high, the shapes do not fit, or low < 0 and the
               scheme is unsigned and symmetric
    """
    low, high = _checked_bounds(low, high, scheme)
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    steps = scheme.qmax if scheme.symmetric else scheme.qmax - scheme.qmin
    span = torch.maximum(-low, high) if scheme.symmetric else high - low
    scale = (span / steps).clamp(min=SMALLEST_SCALE).masked_fill(span == 0, 1.0)
    zero_point = torch.zeros_like(scale)
    if not scheme.symmetric:
        zero_point = torch.round(scheme.qmin - low / scale).clamp(scheme.qmin, scheme.qmax)
    farthest = torch.maximum(scheme.qmax - zero_point, zero_point - scheme.qmin)
    scale = torch.minimum(scale, LARGEST_REAL / farthest)
    return QParams(scale=scale.float(), zero_point=zero_point.int(), scheme=scheme)


def around_one_zero_point(low: Tensor, high: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Ranges that hold those given, [channels] each, and in which zero is the same integer of an affine scheme.

    Kernels that pad with zero have one integer for it. Of all integers the one is taken at which the steps grow least:
    with the smallest mean square of step beside the step that the channel would have alone.
    """
    low, high = low.double().clamp(max=0.0), high.double().clamp(min=0.0)
    steps = scheme.qmax - scheme.qmin
    below = torch.arange(steps + 1, dtype=torch.float64)[:, None]  # integers below zero, for each candidate
    wanted = torch.maximum((-low / below).nan_to_num(nan=0.0), (high / (steps - below)).nan_to_num(nan=0.0))  # 0 / 0
    alone = (high - low) / steps
    wanted, alone = (step.masked_fill(high == low, 1.0) for step in (wanted, alone))
    growth = (wanted / alone).square().mean(1)
    best = int(torch.argmin(growth))
    return -best * wanted[best], (steps - best) * wanted[best]


def params_from_tensor(x: Tensor, scheme: Scheme) -> QParams:
    """The parameters that cover x exactly, per tensor, channel or block: "max calibration" (Wu et al. 2020, §3.3–3.4).

    x       [...]  floating point, at least one entry in each group that shares a scale
    raises  QuantizationError if x is empty, holds NaN or inf, or has no axis or blocks as the scheme asks
    """
    if x.numel() == 0:
        raise QuantizationError(
            asked=f"take the range of a tensor {list(x.shape)}",
            seen="it has no entries",
            remedy="pass a tensor with data",
        )
    groups, shape = _groups(x.detach(), scheme)
    low, high = torch.aminmax(groups, dim=1)
    return params_from_range(low.reshape(shape), high.reshape(shape), scheme)


def params_of_rows(scheme: Scheme) -> QParams:
    """The parameters of rows whose scales are not known before the network runs: `params_from_tensor` finds them then.

    Their own scale, 1, says nothing: to quantize a tensor by it is refused.
    """
    return QParams(scale=torch.ones(()), zero_point=torch.zeros((), dtype=torch.int32), scheme=scheme)


def quantize(x: Tensor, params: QParams) -> Tensor:
    """Integers nearest to `x / scale + zero_point`, clipped to the scheme's range (Wu et al. 2020, §3.1).

    x        [...]  real values, rounded to float32 first
    params   scale and zero_point of shape [], [x.shape[axis]] or one per block
    returns  [...]  int8 or uint8; x / scale ties to even, as in ONNX QuantizeLinear; ±inf saturates
    raises   QuantizationError if x holds NaN or its shape does not fit the parameters
    """
    scale, zero_point = _spread(params, x)
    nans = int(torch.isnan(x).sum())
    if nans:
        raise QuantizationError(
            asked=f"quantize a tensor {list(x.shape)}",
            seen=f"{nans} of its {x.numel()} values are NaN",
            remedy="find the operation that made them: no integer stands for NaN",
        )
    rounded = torch.round(x.float() / scale) + zero_point
    return rounded.clamp(params.scheme.qmin, params.scheme.qmax).to(params.scheme.dtype)


def dequantize(q: Tensor, params: QParams) -> Tensor:
    """Real values `scale · (q − zero_point)` (Wu et al. 2020, §3.1).

    q        [...]  int8 or uint8
    returns  [...]  float32
    raises   QuantizationError if q's dtype is not the scheme's or its shape does not fit the parameters
    """
    if q.dtype != params.scheme.dtype:
        raise QuantizationError(
            asked=f"dequantize a tensor of {q.dtype}",
            seen=f"its parameters describe {params.scheme.dtype}",
            remedy="pass the parameters it was quantized with",
        )
    scale, zero_point = _spread(params, q)
    return (q.int() - zero_point).float() * scale


def fake_quantize(x: Tensor, params: QParams) -> Tensor:
    """`dequantize(quantize(x))` in floating point, differentiable (Wu et al. 2020, §5: straight-through estimator).

    The derivative is 1 where x falls on an integer of the scheme and 0 where it is clipped; parameters get none.
    ATen multiplies by the float32 reciprocal of scale where `quantize` divides: within 5e-5 steps of a tie the two may
    choose neighbouring integers, elsewhere they agree. x is not searched for NaN, and with one scale per channel ATen
    does not define values beyond 2^63 steps: a check that depends on data cannot run inside captured graphs.

    x        [...]  float32, or another float type that ATen's fake_quantize takes
    returns  [...]  dtype of x
    raises   QuantizationError if x's shape does not fit the parameters
    """
    _check_shape(params, x.shape)
    return round_by(x, params)


def round_by(x: Tensor, params: QParams) -> Tensor:
    """`fake_quantize` without its check of shapes, and by rows also where their scales are not known yet."""
    return round_through(x, params.scale.to(x.device), params.zero_point.to(x.device), params.scheme)


def round_through(x: Tensor, scale: Tensor, zero_point: Tensor, scheme: Scheme) -> Tensor:
    """`fake_quantize` without its checks, which depend on data: what a module with these buffers runs at every call.

    By rows, x alone decides the scales, and those given are not read.
    """
    if scheme.rows:
        return round_rows(x, scheme)
    if scheme.axis is None and scheme.symmetric and x.dtype == torch.float32 and not _wants_gradient(x):
        # The same values, bit for bit, from vectorized operations: 23 ms against ATen's 61 ms for 9.6 million.
        return (x * scale.reciprocal()).round_().clamp_(scheme.qmin, scheme.qmax).mul_(scale)
    if scheme.axis is None:
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, scheme.qmin, scheme.qmax)
    if scheme.block is None:
        axis = scheme.axis % x.ndim
        return torch.fake_quantize_per_channel_affine(x, scale, zero_point, axis, scheme.qmin, scheme.qmax)
    last = x.movedim(scheme.axis, -1)
    scale, zero_point = (p.movedim(scheme.axis, -1).reshape(-1) for p in (scale, zero_point))
    blocks = torch.fake_quantize_per_channel_affine(
        last.reshape(-1, scheme.block), scale, zero_point, 0, scheme.qmin, scheme.qmax
    )
    return blocks.reshape(last.shape).movedim(-1, scheme.axis)


def _wants_gradient(x: Tensor) -> bool:
    return torch.is_grad_enabled() and x.requires_grad


def _checked_bounds(low: float | Tensor, high: float | Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Both bounds as float64 on one device, after every check that needs no scale."""
    device = next((b.device for b in (low, high) if isinstance(b, Tensor)), None)
    low, high = (torch.as_tensor(b, dtype=torch.float64, device=device).detach() for b in (low, high))
    seen = None
    if low.shape != high.shape:
        seen = f"low is {list(low.shape)} and high is {list(high.shape)}"
    elif not _rank_fits(low.ndim, scheme):
        seen = f"the bounds are {list(low.shape)}, while the scheme asks for {_expected_rank(scheme)}"
    elif not bool((torch.isfinite(low) & torch.isfinite(high)).all()):
        seen = "a bound is NaN or infinite"
    elif bool((low > high).any()):
        seen = "low is above high"
    elif scheme.symmetric and not scheme.signed and bool((low < 0).any()):
        seen = f"the range begins at {float(low.min()):g}, and these integers have no negative values"
    if seen is not None:
        shown = f"[{float(low):g}, {float(high):g}]" if low.numel() == high.numel() == 1 else "ranges"
        raise QuantizationError(
            asked=f"cover {shown} with {scheme}",
            seen=seen,
            remedy="pass finite low ≤ high in the shape of the scale, and a signed or affine scheme if low is negative",
        )
    return low, high


def _rank_fits(rank: int, scheme: Scheme) -> bool:
    if scheme.rows:
        return True
    if scheme.axis is None:
        return rank == 0
    return rank == 1 if scheme.block is None else rank >= 1


def _expected_rank(scheme: Scheme) -> str:
    if scheme.axis is None:
        return "one value, [], per tensor"
    return "[channels]" if scheme.block is None else "one value per block, in the rank of the tensor"


def _check_shape(params: QParams, shape: torch.Size) -> None:
    expected, found, axis = params.scheme.scale_shape(shape), list(params.scale.shape), params.scheme.axis
    if expected == found:
        return
    meant = [i for i, size in enumerate(shape) if [size] == found]
    hint = f", the size of axis {meant[0]}" if meant else ""
    raise QuantizationError(
        asked=f"quantize a tensor {list(shape)} along axis {axis}, which needs a scale of shape {expected}",
        seen=f"scale has shape {found}{hint}",
        remedy="make the parameters from this tensor, or correct the scheme's axis; "
        "Conv2d and Linear weights are quantized along axis 0",
    )


def _spread(params: QParams, x: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero_point in shapes that broadcast against `x`, on its device."""
    _check_shape(params, x.shape)
    scale, zero_point = (one.to(x.device) for one in (params.scale, params.zero_point))
    return beside(scale, params.scheme, x.ndim), beside(zero_point, params.scheme, x.ndim)


def _groups(x: Tensor, scheme: Scheme) -> tuple[Tensor, list[int]]:
    """x as [scales, entries that share one], and the shape of scale."""
    shape = scheme.scale_shape(x.shape)
    if scheme.rows:
        last = x.movedim(-1 if scheme.axis is None else scheme.axis, -1)
        return last.reshape(-1, last.shape[-1]), shape
    if scheme.axis is None:
        return x.reshape(1, -1), shape
    if scheme.block is None:
        return x.movedim(scheme.axis, 0).reshape(x.shape[scheme.axis], -1), shape
    axis = scheme.axis % x.ndim
    blocks = x.reshape(*x.shape[:axis], -1, scheme.block, *x.shape[axis + 1 :])
    return blocks.movedim(axis + 1, -1).reshape(-1, scheme.block), shape
