"""Octavo: a trained PyTorch network on eight-bit integers.

result = octavo.quantize(model, calibration=batches, evaluate=score, max_drop="1%")

or one step at a time:

graph  = octavo.capture(model, example)
plan   = octavo.make_plan(graph)
stats  = octavo.observe(plan, batches)
net    = octavo.choose_params(plan, stats, octavo.entropy)
int8   = octavo.compile(net)
"""

from typing import Any

from octavo.engines import available
from octavo.engines.auto import choose_engine
from octavo.engines.deploy import compile, export
from octavo.engines.ran import Ran, ran
from octavo.engines.verify import Difference, verify
from octavo.errors import QuantizationError
from octavo.former import RENAMED, former, takes_pairs
from octavo.gate.check import check
from octavo.gate.record import Check
from octavo.measure import agreement, latency_ms, paired_interval, size_mb, sqnr_db
from octavo.network.calibrate import Stats, choose_params, observe
from octavo.network.graph import Graph, capture
from octavo.network.placement import make_plan
from octavo.network.plan import Coverage, Plan, Quantizer
from octavo.network.quantized import Quantized
from octavo.network.rule import Rule, Site
from octavo.network.simulate import simulate
from octavo.network.target import TARGETS, Target, by_rows
from octavo.numerics import METHODS, Histogram, QParams, Scheme, entropy, max_range, mse, percentile
from octavo.recovery.finetune import Trained, finetune, fit
from octavo.recovery.objective import distance, divergence
from octavo.recovery.repair import REPAIRS, repair
from octavo.recovery.schedule import Schedule
from octavo.recovery.trainable import trainable, trained
from octavo.saved.artifact import load, save
from octavo.saved.cost import Limits
from octavo.workflow.outcome import Result
from octavo.workflow.recipe import quantize

takes_pairs(globals())

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "REPAIRS",
    "TARGETS",
    "Check",
    "Coverage",
    "Difference",
    "Graph",
    "Histogram",
    "Limits",
    "Plan",
    "QParams",
    "QuantizationError",
    "Quantized",
    "Quantizer",
    "Ran",
    "Result",
    "Rule",
    "Schedule",
    "Scheme",
    "Site",
    "Stats",
    "Target",
    "Trained",
    "agreement",
    "available",
    "by_rows",
    "capture",
    "check",
    "choose_engine",
    "choose_params",
    "compile",
    "distance",
    "divergence",
    "entropy",
    "export",
    "finetune",
    "fit",
    "latency_ms",
    "load",
    "make_plan",
    "max_range",
    "mse",
    "observe",
    "paired_interval",
    "percentile",
    "quantize",
    "ran",
    "repair",
    "save",
    "simulate",
    "size_mb",
    "sqnr_db",
    "trainable",
    "trained",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in RENAMED:
        former(f"octavo.{name}", f"octavo.{RENAMED[name]}")
        return globals()[RENAMED[name]]
    raise AttributeError(f"module 'octavo' has no attribute {name!r}")
