"""How one tensor is represented in integers: the kinds of quantization in Wu et al. 2020, §3.1–3.3, as one value."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from octavo.arguments import check_fields
from octavo.errors import QuantizationError

# The product of two such scales is 2^-126, float32's smallest normal number: a matmul's scale never underflows.
SMALLEST_SCALE = 2.0**-63


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """The integers a tensor may take and how many of its entries share a scale.

    bits        2..8
    signed      int8 storage if True, uint8 if False
    symmetric   True: *scale quantization*, zero_point 0.  False: *affine quantization*, any zero_point
    full_range  signed symmetric only: also use -2^(bits-1), the integer at which ONNX QuantizeLinear saturates
    axis        None: one scale per tensor.  Otherwise one per index of this axis (may be negative)
    block       `block` consecutive entries along `axis` share a scale (ONNX blocked quantization); needs an axis
    rows        every row, a vector along `axis` (None: the last), has a scale of its own, taken from its largest value
                while the network runs: for what linears and matmuls read. Symmetric, without blocks

    | signed | symmetric | full_range | integers, b bits           |
    |--------|-----------|------------|----------------------------|
    | yes    | yes       | no         | -(2^(b-1)-1) … 2^(b-1)-1   |
    | yes    | yes       | yes        | -2^(b-1) … 2^(b-1)-1       |
    | yes    | no        | no         | -2^(b-1) … 2^(b-1)-1       |
    | no     | either    | no         | 0 … 2^b-1                  |

    raises  QuantizationError for a combination outside this table
    """

    bits: int = 8
    signed: bool = True
    symmetric: bool = True
    full_range: bool = False
    axis: int | None = None
    block: int | None = None
    rows: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        asked = f"describe a tensor by {self}"
        if not 2 <= self.bits <= 8:
            raise QuantizationError(
                asked=asked, seen=f"bits is {self.bits}", remedy="choose between 2 and 8 bits, storage is int8 or uint8"
            )
        if self.full_range and not (self.signed and self.symmetric):
            raise QuantizationError(
                asked=asked,
                seen="full_range is set on integers that already use every code",
                remedy="leave full_range out unless the scheme is signed and symmetric",
            )
        if self.block is not None and (self.axis is None or self.block < 1):
            raise QuantizationError(
                asked=asked,
                seen=f"block is {self.block} and axis is {self.axis}",
                remedy="give blocks a positive length and the axis they lie along",
            )
        if self.rows and (self.block is not None or not self.symmetric):
            raise QuantizationError(
                asked=asked,
                seen="the scales of rows are taken from their largest values, and zero is the integer 0 in all of them",
                remedy="leave rows out, or make the scheme symmetric and without blocks",
            )

    @property
    def qmin(self) -> int:
        """The smallest integer in use."""
        if not self.signed:
            return 0
        leave_out_lowest = self.symmetric and not self.full_range
        return -(1 << (self.bits - 1)) + int(leave_out_lowest)

    @property
    def qmax(self) -> int:
        """The largest integer in use."""
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def dtype(self) -> torch.dtype:
        """Storage of the integers, whatever `bits` is."""
        return torch.int8 if self.signed else torch.uint8

    def scale_shape(self, shape: Sequence[int]) -> list[int]:
        """The shape of the scale of a tensor of this shape: [], [channels], or `shape` with blocks in place of entries.

        Of rows it is `shape` with 1 in place of their length.
        raises  QuantizationError if the tensor has no such axis or the axis does not divide into blocks
        """
        if self.axis is None and not self.rows:
            return []
        axis = -1 if self.axis is None else self.axis
        if not -len(shape) <= axis < len(shape):
            raise QuantizationError(
                asked=f"quantize a tensor {list(shape)} along axis {axis}",
                seen=f"it has {len(shape)} axes",
                remedy=f"choose an axis between {-len(shape)} and {len(shape) - 1}" if shape else "use axis=None",
            )
        if self.rows:
            return [1 if at == axis % len(shape) else size for at, size in enumerate(shape)]
        size = shape[axis]
        if self.block is None:
            return [size]
        if size % self.block:
            raise QuantizationError(
                asked=f"quantize a tensor {list(shape)} in blocks of {self.block} along axis {self.axis}",
                seen=f"{size} is not a multiple of {self.block}",
                remedy="choose a block length that divides the axis",
            )
        blocks = list(shape)
        blocks[axis] //= self.block
        return blocks


INT8 = Scheme()
UINT8 = Scheme(signed=False)
INT8_PER_CHANNEL = Scheme(axis=0)
AFFINE_UINT8 = Scheme(signed=False, symmetric=False)
