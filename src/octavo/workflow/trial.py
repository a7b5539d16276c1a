"""One candidate, from calibration to its score: what every stage of a search does, here or on another machine."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import safetensors.torch
from torch import nn

from octavo.engines import ENGINES, available
from octavo.engines.auto import AUTO
from octavo.engines.faults import compile_right
from octavo.errors import QuantizationError, reading
from octavo.former import REPAIRS_RENAMED
from octavo.machine import versions, versions_of
from octavo.network.calibrate import Stats, choose_params
from octavo.network.digest import source_of
from octavo.network.graph import Graph
from octavo.network.partial import keep_float
from octavo.network.placement import make_plan
from octavo.network.plan import Plan
from octavo.network.quantized import SIMULATION, Quantized
from octavo.network.simulate import simulate
from octavo.network.target import by_rows
from octavo.numerics.channels import ChannelHistogram
from octavo.numerics.histogram import Histogram
from octavo.numerics.scheme import Scheme
from octavo.recovery.repair import REPAIRS, changed_layers, repair
from octavo.recovery.trainable import trainable, trained
from octavo.workflow.goal import Evaluate, Goal, Score, score
from octavo.workflow.kept import tensors_of
from octavo.workflow.study import Trial, trial_key

Train = Callable[[nn.Module], object]
Keep = Callable[[str, Callable[[], bytes]], bytes]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A way to quantize the network.

    method      of calibration, a key of METHODS
    rows        whether linears and matmuls read every row on a scale of its own, taken while the network runs
    channels    whether depthwise convolutions read a scale for each channel, where the target has that
    repairs     names in REPAIRS, in the order in which they are made
    trained     whether it is then trained with rounding
    kept_float  layers left in float, in data-flow order
    """

    method: str
    repairs: tuple[str, ...] = ()
    trained: bool = False
    kept_float: tuple[str, ...] = ()
    rows: bool = False
    channels: bool = True

    def __str__(self) -> str:
        """As a person would say it."""
        repairs = "".join(f", {name.replace('_', ' ')}" for name in self.repairs)
        kept = f", {len(self.kept_float)} layers in float" if self.kept_float else ""
        scales = ", scales of rows" * self.rows + ", one scale a tensor" * (not self.channels)
        return f"{self.method} calibration{scales}{repairs}{', trained' if self.trained else ''}{kept}"


@dataclass(frozen=True, kw_only=True)
class Context:
    """All that candidates of one search share, and are measured by.

    batches      some of the calibration data, for repairs
    train        (trainable simulation) → trains it in place; None if there is no training
    keep         (name, make) → the bytes of that name in the study, made if there are none: what training cost
    done         what was repaired and trained already, to share
    engine       its name in ENGINES, or "simulation"
    reference    the float network's score
    model, data  digests: of the network, and of calibration data and float score
    """

    plan: Plan
    stats: Stats
    evaluate: Evaluate
    goal: Goal
    engine: str
    reference: Score
    model: str
    data: str
    batches: tuple[Any, ...] = ()
    train: Train | None = None
    keep: Keep = lambda _, make: make()
    done: dict[Candidate, Quantized] = field(default_factory=dict)

    @property
    def graph(self) -> Graph:
        """The float network."""
        return self.plan.graph


def quantized(context: Context, candidate: Candidate) -> Quantized:
    """The network as `candidate` has it. Repairs and training that candidates share are done once."""
    whole = replace(candidate, kept_float=())
    if whole not in context.done:
        context.done[whole] = _made(context, whole)
    net = context.done[whole]
    return keep_float(net, candidate.kept_float) if candidate.kept_float else net


def fitted(candidate: Candidate) -> bool:
    """Whether its weights or biases are fitted to their rounding."""
    return candidate.trained or not all(REPAIRS[name].keeps_function for name in candidate.repairs)


def repaired(context: Context, candidate: Candidate) -> dict[str, int]:
    """{repair: how many layers it changed}, in the order in which they were made."""
    names = candidate.repairs
    steps = [
        quantized(context, replace(candidate, trained=False, kept_float=(), repairs=names[:count]))
        for count in range(len(names) + 1)
    ]
    return {name: len(changed_layers(*pair)) for name, pair in zip(names, pairwise(steps), strict=True)}


def _made(context: Context, candidate: Candidate) -> Quantized:
    if candidate.trained:
        net = quantized(context, replace(candidate, trained=False))
        module, weights = trainable(net), weights_of(context, candidate)
        assert weights is not None
        state = tensors_of(weights)
        with reading(
            asked="use the study", seen="the weights that it keeps are others", remedy="search in another folder"
        ):
            module.load_state_dict(state)
        return trained(net, module)
    if candidate.repairs:
        net = quantized(context, replace(candidate, repairs=candidate.repairs[:-1]))
        return repair(net, context.batches, candidate.repairs[-1:])
    return choose_params(*placed(context, candidate), candidate.method)


def placed(context: Context, candidate: Candidate) -> tuple[Plan, Stats]:
    """The plan with the scales where `candidate` has them, and what calibration saw of what it rounds on fixed ones.

    Nothing is observed anew: histograms of channels add up to their tensor's, to 0.4 % (`ChannelHistogram.whole`).
    A tensor that was seen for two quantizers counts twice where they are one: as `join.py` counts it.
    """
    target = context.plan.target if candidate.channels else replace(context.plan.target, channels=False)
    target = by_rows(target) if candidate.rows else target
    if target == context.plan.target:
        return context.plan, context.stats
    plan = make_plan(context.graph, context.plan.rules, target=target)
    seen = {site.name: q.name for q in context.plan.quantizers for site in q.sites}
    fixed = [quantizer for quantizer in plan.quantizers if not quantizer.constant and not quantizer.scheme.rows]
    found = {}
    for quantizer in fixed:
        names = dict.fromkeys(seen[site.name] for site in quantizer.sites)  # of one quantizer, or of several
        found[quantizer.name] = _together(quantizer.scheme, [context.stats[name] for name in names])
    return plan, Stats(MappingProxyType(found), context.stats.samples)


def _together(scheme: Scheme, seen: Sequence[Histogram | ChannelHistogram]) -> Histogram | ChannelHistogram:
    if scheme.axis is not None:
        return seen[0]
    return reduce(Histogram.merge, (one.whole() if isinstance(one, ChannelHistogram) else one for one in seen))


def weights_of(context: Context, candidate: Candidate) -> bytes | None:
    """What training made of the weights of `candidate`, as safetensors; None if it is not trained."""
    if not candidate.trained:
        return None

    def make() -> bytes:
        return _train(context, trainable(quantized(context, replace(candidate, trained=False, kept_float=()))))

    return context.keep(key_of(context, replace(candidate, kept_float=())), make)


def network_of(net: Quantized, engine: str) -> Callable[..., Any]:
    """The quantized network on `engine`, called like the user's model; on one that agrees with the simulation."""
    return simulate(net) if engine == SIMULATION else compile_right(net, engine=engine)


def _train(context: Context, module: nn.Module) -> bytes:
    """Train `module`; the bytes of all that training changed."""
    assert context.train is not None
    context.train(module)
    return safetensors.torch.save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    )


_KEPT_AS = {new: old for old, new in REPAIRS_RENAMED.items()}  # studies of version 0.1 go on where they were


def candidate_of(trial: Trial) -> Candidate:
    """What `trial` measured."""
    return Candidate(
        method=trial.method,
        repairs=tuple(REPAIRS_RENAMED.get(name, name) for name in trial.repairs),
        trained=trial.trained,
        kept_float=trial.kept_float,
        rows=trial.rows,
        channels=trial.channels,
    )


def key_of(context: Context, candidate: Candidate) -> str:
    """What names the trial of `candidate`: everything that its score depends on."""
    return trial_key(
        model=context.model,
        data=context.data,
        target=repr(context.plan.target),
        rules=[str(rule) for rule in context.plan.rules],
        engine=context.engine,
        packages=versions_of(*(ENGINES[context.engine].decisive if context.engine in ENGINES else ())),
        method=candidate.method,
        repairs=[_KEPT_AS.get(name, name) for name in candidate.repairs],
        trained=source_of(context.train) if candidate.trained else None,
        kept_float=sorted(candidate.kept_float),
        goal=repr(context.goal),  # decides which candidates are abandoned half-way
        **({"rows": True} if candidate.rows else {}),
        **({} if candidate.channels else {"channels": False}),
    )


def measure(context: Context, candidate: Candidate, stage: str) -> Trial:
    """Quantize, compile and score. A candidate that the engine or the metric refuses is a trial with an error."""
    start = time.perf_counter()
    error = None
    try:
        network = network_of(quantized(context, candidate), context.engine)
        found = score(context.evaluate, network, reference=context.reference, goal=context.goal)
    except QuantizationError as refused:
        error, found = str(refused), Score(metric=-math.inf)
    return Trial(
        key=key_of(context, candidate),
        stage=stage,
        method=candidate.method,
        engine=context.engine,
        repairs=candidate.repairs,
        trained=candidate.trained,
        kept_float=candidate.kept_float,
        metric=found.metric,
        scores=found.samples,
        abandoned=found.abandoned,
        error=error,
        seconds=time.perf_counter() - start,
        versions=versions(),
        model=context.model,
        data=context.data,
        rules=tuple(map(str, context.plan.rules)),
        rows=candidate.rows,
        channels=candidate.channels,
    )


def engine_named(name: str) -> str:
    """`name` itself, if it is "auto", "simulation" or an engine that can be used here.

    raises  QuantizationError for a name that is none of these
    """
    choices = [*available(), SIMULATION]
    if name not in (*choices, AUTO):
        raise QuantizationError(
            asked=f"score candidates on the engine {name!r}",
            seen=f"those that can be used here are {', '.join(choices)}",
            remedy="choose one of them, or install the engine's package",
        )
    return name
