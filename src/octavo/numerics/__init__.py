"""§3 of the paper: real values as integers, and the ranges to choose for them. Knows tensors, no networks."""

from octavo.numerics.affine import (
    QParams,
    dequantize,
    fake_quantize,
    params_from_range,
    params_from_tensor,
    quantize,
)
from octavo.numerics.scheme import AFFINE_UINT8, INT8, INT8_PER_CHANNEL, UINT8, Scheme

__all__ = [
    "AFFINE_UINT8",
    "INT8",
    "INT8_PER_CHANNEL",
    "UINT8",
    "QParams",
    "Scheme",
    "dequantize",
    "fake_quantize",
    "params_from_range",
    "params_from_tensor",
    "quantize",
]
