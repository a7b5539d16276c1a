"""Rows at run time: every row of a tensor rounded on a scale of its own, taken from its largest value (§3.2).

The scale of a row is a factor of every sum that runs along it, so integer products allow it (Wu et al. 2020, §3.2). It
costs a pass over the row, and nothing is calibrated: one token a hundred times larger than the others coarsens
no other.
"""

import torch
from torch import Tensor

from octavo.numerics.scheme import SMALLEST_SCALE, Scheme


def scale_of_rows(x: Tensor, axis: int, qmax: int) -> Tensor:
    """max|x| / qmax of every row along `axis`, float32, shape of x with 1 in place of its size; 1 of a row of zeros.

    As `params_from_tensor` finds it, without its checks, which depend on data: what is captured or trained calls this.
    No gradient passes. A row without entries has no scale: x must have some.
    """
    most = x.detach().float().abs().amax(axis, keepdim=True)
    return (most / qmax).clamp(min=SMALLEST_SCALE).masked_fill(most == 0, 1.0)


def round_rows(x: Tensor, scheme: Scheme) -> Tensor:
    """x with every row rounded on its scale, dtype of x; the gradient is 1 everywhere, as nothing is clipped (§5)."""
    if x.numel() == 0:
        return x
    scales = scale_of_rows(x, along(scheme), scheme.qmax)
    last, scale = (tensor.movedim(along(scheme), -1) for tensor in (x, scales))
    zeros = torch.zeros(scale.numel(), dtype=torch.int32, device=x.device)
    rows = torch.fake_quantize_per_channel_affine(
        last.reshape(-1, last.shape[-1]), scale.reshape(-1), zeros, 0, scheme.qmin, scheme.qmax
    )
    return rows.reshape(last.shape).movedim(-1, along(scheme))


def along(scheme: Scheme) -> int:
    """The axis along which a row lies."""
    return -1 if scheme.axis is None else scheme.axis
