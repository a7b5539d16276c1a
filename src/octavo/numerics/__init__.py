"""§3 of the paper: real values as integers, and the ranges to choose for them. Knows tensors, no networks."""

from octavo.numerics.affine import QParams, dequantize, fake_quantize, params_from_range, params_from_tensor, quantize
from octavo.numerics.histogram import Buckets, Histogram
from octavo.numerics.ranges import METHODS, Range, RangeMethod, entropy, max_range, method, mse, percentile
from octavo.numerics.scheme import AFFINE_UINT8, INT8, INT8_PER_CHANNEL, UINT8, Scheme

__all__ = [
    "AFFINE_UINT8",
    "INT8",
    "INT8_PER_CHANNEL",
    "METHODS",
    "UINT8",
    "Buckets",
    "Histogram",
    "QParams",
    "Range",
    "RangeMethod",
    "Scheme",
    "dequantize",
    "entropy",
    "fake_quantize",
    "max_range",
    "method",
    "mse",
    "params_from_range",
    "params_from_tensor",
    "percentile",
    "quantize",
]
