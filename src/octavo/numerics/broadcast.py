"""Scales and zero-points, shaped to broadcast against the tensors that they belong to."""

from torch import Tensor

from octavo.numerics.rows import along, scale_of_rows
from octavo.numerics.scheme import Scheme


def beside(values: Tensor, scheme: Scheme, rank: int) -> Tensor:
    """Scales or zero-points of `scheme`, shaped to broadcast against a tensor with `rank` axes.

    values  [], [channels], or one per block or row in the rank of the tensor
    """
    if scheme.axis is None or scheme.rows:
        return values
    if scheme.block is not None:
        return values.repeat_interleave(scheme.block, scheme.axis)
    return broadcast_along(values, scheme.axis, rank)


def broadcast_along(values: Tensor, axis: int, rank: int) -> Tensor:
    """`values`, one for each index of `axis`, shaped to broadcast against a tensor with `rank` axes."""
    return values.reshape([-1 if at == axis % rank else 1 for at in range(rank)])


def steps_beside(x: Tensor, scale: Tensor, scheme: Scheme) -> Tensor:
    """The real value of one integer, shaped to broadcast against x, which is to be rounded or was: by rows it tells."""
    return scale_of_rows(x, along(scheme), scheme.qmax) if scheme.rows else beside(scale, scheme, x.ndim)
