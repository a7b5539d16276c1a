"""Octavo: a trained PyTorch network on eight-bit integers.

    graph  = octavo.capture(model, example)
    plan   = octavo.make_plan(graph)
    stats  = octavo.observe(graph, plan, batches)
    params = octavo.choose_params(graph, plan, stats, octavo.entropy)
    int8   = octavo.compile(graph, params)
"""

from octavo.engines import compile
from octavo.errors import QuantizationError
from octavo.network.calibrate import Params, Stats, choose_params, observe
from octavo.network.graph import Graph, capture, verify
from octavo.network.plan import Coverage, Plan, Quantizer, make_plan
from octavo.network.rule import Rule, Site
from octavo.network.simulate import simulate
from octavo.network.target import TARGETS, Target
from octavo.numerics import (
    METHODS,
    Histogram,
    QParams,
    Scheme,
    dequantize,
    entropy,
    fake_quantize,
    max_range,
    mse,
    params_from_range,
    percentile,
    quantize as quantize_tensor,
)

__version__ = "0.1.0"
