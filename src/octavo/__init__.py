"""Octavo: a trained PyTorch network on eight-bit integers.

result = octavo.quantize(model, calibration=batches, evaluate=score, max_drop="1%")

or one step at a time:

graph  = octavo.capture(model, example)
plan   = octavo.make_plan(graph)
stats  = octavo.observe(plan, batches)
net    = octavo.choose_params(plan, stats, octavo.entropy)
int8   = octavo.compile(net)
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from octavo.former import RENAMED, TOOK_PAIRS, former, with_pair

__version__ = "0.1.0"

# What `octavo.NAME` is, and where: nothing is imported before it is asked for, not even torch.
_PUBLIC = {
    "octavo.engines": ("available",),
    "octavo.engines.auto": ("choose_engine",),
    "octavo.engines.deploy": ("compile", "export"),
    "octavo.engines.ran": ("Ran", "ran"),
    "octavo.engines.verify": ("Difference", "verify"),
    "octavo.errors": ("QuantizationError",),
    "octavo.gate.check": ("check",),
    "octavo.gate.record": ("Check",),
    "octavo.measure": ("agreement", "latency_ms", "paired_interval", "size_mb", "sqnr_db"),
    "octavo.network.calibrate": ("Stats", "choose_params", "observe"),
    "octavo.network.graph": ("Graph", "capture"),
    "octavo.network.placement": ("make_plan",),
    "octavo.network.plan": ("Coverage", "Plan", "Quantizer"),
    "octavo.network.quantized": ("Quantized",),
    "octavo.network.rule": ("Rule", "Site"),
    "octavo.network.simulate": ("simulate",),
    "octavo.network.target": ("TARGETS", "Target", "by_rows"),
    "octavo.numerics": ("METHODS", "Histogram", "QParams", "Scheme", "entropy", "max_range", "mse", "percentile"),
    "octavo.recovery.finetune": ("Trained", "finetune", "fit"),
    "octavo.recovery.objective": ("distance", "divergence"),
    "octavo.recovery.repair": ("REPAIRS", "repair"),
    "octavo.recovery.schedule": ("Schedule",),
    "octavo.recovery.trainable": ("trainable", "trained"),
    "octavo.saved.artifact": ("load", "save"),
    "octavo.saved.cost": ("Limits",),
    "octavo.workflow.outcome": ("Result",),
    "octavo.workflow.recipe": ("quantize",),
}
_MODULE = {name: module for module, names in _PUBLIC.items() for name in names}
_FLOORS = (
    "arguments", "engines", "errors", "files", "gate", "machine", "measure", "network", "numerics", "quiet", "recovery",
    "saved", "workflow",
)  # fmt: skip

__all__ = list(_MODULE)

if TYPE_CHECKING:  # the same for type checkers and editors; tests/test_face.py compares the two
    from octavo.engines import available as available
    from octavo.engines.auto import choose_engine as choose_engine
    from octavo.engines.deploy import compile as compile, export as export
    from octavo.engines.ran import Ran as Ran, ran as ran
    from octavo.engines.verify import Difference as Difference, verify as verify
    from octavo.errors import QuantizationError as QuantizationError
    from octavo.gate.check import check as check
    from octavo.gate.record import Check as Check
    from octavo.measure import (
        agreement as agreement,
        latency_ms as latency_ms,
        paired_interval as paired_interval,
        size_mb as size_mb,
        sqnr_db as sqnr_db,
    )
    from octavo.network.calibrate import Stats as Stats, choose_params as choose_params, observe as observe
    from octavo.network.graph import Graph as Graph, capture as capture
    from octavo.network.placement import make_plan as make_plan
    from octavo.network.plan import Coverage as Coverage, Plan as Plan, Quantizer as Quantizer
    from octavo.network.quantized import Quantized as Quantized
    from octavo.network.rule import Rule as Rule, Site as Site
    from octavo.network.simulate import simulate as simulate
    from octavo.network.target import TARGETS as TARGETS, Target as Target, by_rows as by_rows
    from octavo.numerics import (
        METHODS as METHODS,
        Histogram as Histogram,
        QParams as QParams,
        Scheme as Scheme,
        entropy as entropy,
        max_range as max_range,
        mse as mse,
        percentile as percentile,
    )
    from octavo.recovery.finetune import Trained as Trained, finetune as finetune, fit as fit
    from octavo.recovery.objective import distance as distance, divergence as divergence
    from octavo.recovery.repair import REPAIRS as REPAIRS, repair as repair
    from octavo.recovery.schedule import Schedule as Schedule
    from octavo.recovery.trainable import trainable as trainable, trained as trained
    from octavo.saved.artifact import load as load, save as save
    from octavo.saved.cost import Limits as Limits
    from octavo.workflow.outcome import Result as Result
    from octavo.workflow.recipe import quantize as quantize


def __getattr__(name: str) -> Any:
    if name in RENAMED:
        former(f"octavo.{name}", f"octavo.{RENAMED[name]}")
        return getattr(sys.modules[__name__], RENAMED[name])
    if name in _FLOORS:
        return import_module(f"octavo.{name}")
    if name not in _MODULE:
        raise AttributeError(f"module 'octavo' has no attribute {name!r}")
    home = "octavo_serve" if name == "load" and not _has_torch() else _MODULE[name]
    found = getattr(import_module(home), name)
    globals()[name] = with_pair(found) if name in TOOK_PAIRS else found
    return globals()[name]


def _has_torch() -> bool:
    """Whether torch can be imported; without it, `load` serves what was saved (docs/serve.md)."""
    try:
        return find_spec("torch") is not None
    except (ImportError, ValueError):
        return False


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE, *_FLOORS})
