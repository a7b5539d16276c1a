"""One candidate, from calibration to its score: what every rung of the road does, here or on another machine."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from octavo.engines import available, compile
from octavo.errors import QuantizationError
from octavo.machine import versions
from octavo.network.calibrate import Params, Stats, choose_params
from octavo.network.graph import Graph
from octavo.network.origin import SIMULATION
from octavo.network.partial import keep_float
from octavo.network.plan import Plan
from octavo.network.simulate import simulate
from octavo.workflow.goal import Evaluate, Goal, Score, score
from octavo.workflow.study import Trial, trial_key


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A way to quantize the network.

    method      of calibration, a key of METHODS
    kept_float  layers left in float, in data-flow order
    """

    method: str
    kept_float: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Bench:
    """All that candidates of one search share, and are measured by.

    engine       its name in ENGINES, or "simulation"
    reference    the float network's score
    model, data  digests: of the network, and of calibration data and float score
    """

    graph: Graph
    plan: Plan
    stats: Stats
    evaluate: Evaluate
    goal: Goal
    engine: str
    reference: Score
    model: str
    data: str


def params_of(graph: Graph, plan: Plan, stats: Stats, candidate: Candidate) -> Params:
    """The scales of `candidate`."""
    params = choose_params(graph, plan, stats, candidate.method)
    return keep_float(graph, params, candidate.kept_float) if candidate.kept_float else params


def network_of(graph: Graph, params: Params, engine: str) -> Callable[..., Any]:
    """The quantized network on `engine`, called like the user's model."""
    return simulate(graph, params) if engine == SIMULATION else compile(graph, params, engine=engine)


def key_of(bench: Bench, candidate: Candidate) -> str:
    """What names the trial of `candidate`: everything that its score depends on."""
    return trial_key(
        model=bench.model,
        data=bench.data,
        target=repr(bench.plan.target),
        rules=[str(rule) for rule in bench.plan.rules],
        engine=bench.engine,
        method=candidate.method,
        kept_float=sorted(candidate.kept_float),
        goal=repr(bench.goal),  # decides which candidates are abandoned half-way
    )


def measure(bench: Bench, candidate: Candidate, rung: str) -> Trial:
    """Quantize, compile and score. A candidate that the engine or the metric refuses is a trial with an error."""
    start = time.perf_counter()
    error = None
    try:
        params = params_of(bench.graph, bench.plan, bench.stats, candidate)
        network = network_of(bench.graph, params, bench.engine)
        found = score(bench.evaluate, network, reference=bench.reference, goal=bench.goal)
    except QuantizationError as refused:
        error, found = str(refused), Score(metric=-math.inf)
    return Trial(
        key=key_of(bench, candidate),
        rung=rung,
        method=candidate.method,
        engine=bench.engine,
        kept_float=candidate.kept_float,
        metric=found.metric,
        scores=found.samples,
        abandoned=found.abandoned,
        error=error,
        seconds=time.perf_counter() - start,
        versions=versions(),
        model=bench.model,
        data=bench.data,
        rules=tuple(map(str, bench.plan.rules)),
    )


def engine_named(name: str) -> str:
    """`name`, or for "auto" the fastest engine that is installed, else "simulation".

    raises  QuantizationError for a name that is none of these
    """
    choices = [*available(), SIMULATION]
    if name == "auto":
        return next(engine for engine in choices if engine != "reference")
    if name not in choices:
        raise QuantizationError(
            asked=f"score candidates on the engine {name!r}",
            seen=f"those that can be used here are {', '.join(choices)}",
            remedy="choose one of them, or install the engine's package",
        )
    return name
