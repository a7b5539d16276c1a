"""`quantize`: the paper's workflow in one call (Wu et al. 2020, §6), within a budget, never losing a trial.

    calibrate by several methods ─▶ repair ─▶ leave the most sensitive layers in float ─▶ train

Each stage is tried only if those before missed the goal; `stages.py` has them. The study in `out` keeps every trial: a
run that was killed and is started again goes on where it was.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from torch import nn

from octavo.arguments import checked, made_folder
from octavo.engines import target_for
from octavo.engines.auto import AUTO
from octavo.engines.ran import ran
from octavo.errors import QuantizationError
from octavo.files import said_of, scratch, sweep, write
from octavo.network.digest import digest_of_graph, source_of
from octavo.network.graph import capture
from octavo.network.placement import make_plan
from octavo.network.quantized import Quantized, origin_of
from octavo.network.ranks import alone, by_first, is_first, together
from octavo.network.rule import EVERYTHING, Rule
from octavo.network.target import Target
from octavo.network.work import share, work_of
from octavo.recovery.sensitivity import Sensitivity
from octavo.workflow.calibration import first_inputs, for_repairs, statistics
from octavo.workflow.cluster import measured_on
from octavo.workflow.drop import drop_of
from octavo.workflow.engine import engine_for
from octavo.workflow.goal import Evaluate, Goal, Verdict
from octavo.workflow.kept import pack_stats
from octavo.workflow.outcome import Result, stage_records
from octavo.workflow.overlap import Overlap, Reading, overlap_of
from octavo.workflow.reference import check_that_scores_say_something, float_score
from octavo.workflow.search import Budget, BudgetSpentError, Prefer, Search, duration, preference
from octavo.workflow.stages import walk
from octavo.workflow.study import Study, Trial, trial_key
from octavo.workflow.trial import (
    Candidate,
    Context,
    Keep,
    Train,
    candidate_of,
    engine_named,
    network_of,
    quantized,
    repaired,
    weights_of,
)
from octavo.workflow.view import View

INTERRUPTED = "it was interrupted"  # why a search ended that Ctrl-C ended


@checked
def quantize(
    model: nn.Module,
    *,
    calibration: Iterable[Any],
    evaluate: Evaluate,
    max_drop: str | float = 0.01,
    relative: bool | None = None,
    higher_is_better: bool = True,
    confidence: float = 0.95,
    min_int8: float = 0.9,
    example: Any = None,
    dynamic_axes: Sequence[int] = (0,),
    rules: Sequence[Rule] = (EVERYTHING,),
    target: Target | str | None = None,
    engine: str = "auto",
    prefer: Prefer = "accuracy",
    train: Train | None = None,
    budget: str | float | None = None,
    trials: int | None = None,
    trials_on: Literal["ray"] | None = None,
    out: str | Path | None = None,
    progress: bool = True,
) -> Result:
    """The best integer network that is found for `model`, whether or not it meets the goal. The model is never touched.

    calibration   batches in the form of `capture`'s example, with or without labels; read several times
    evaluate      (network) → one number or a sequence of per-sample scores; with a keyword `samples`, a slice, hopeless
                  candidates are abandoned half-way
    max_drop      "1%" or 0.01: of the float score; "0.3 points": in the metric's own unit, as a number is with
                  relative=False
    min_int8      the share of the multiplications that has to run on integers for the goal to be met; no more layers
                  are left in float than that allows
    example       by default the first calibration batch, without what `forward` does not take; where it takes more than
                  it needs, say here what the network is to read of a batch
    rules, target see `make_plan`; by default everything, for the engine
    engine        that candidates are scored on: "auto" measures which is the fastest here that is right
    prefer        what to spare when layers stay in float: "accuracy" leaves the fewest, "latency" the cheapest
    train         (module) → trains it in place, by `octavo.fit` or any loop: the last stage. The module is the network
                  with rounding in it, called like the model
    budget        "30m", or seconds; `trials`: how many. On reaching either, or on Ctrl-C, the best so far is returned
    trials_on     "ray": independent trials run side by side on a Ray cluster
    out           folder for the study and result.json; the same folder resumes. None keeps nothing
    raises        QuantizationError if there is nothing to quantize, and if not a single candidate could be scored
    """
    preference(prefer)
    drop, is_share = drop_of(max_drop, relative)
    goal = Goal(
        max_drop=drop,
        relative=is_share,
        higher_is_better=higher_is_better,
        confidence=confidence,
        min_int8=min_int8,
    )
    limit = Budget(seconds=None if budget is None else duration(budget), trials=trials)
    engine = engine_named(engine)
    with together(), _folder(out) as folder:
        batches = list(calibration) if isinstance(calibration, Iterator) else calibration
        graph = capture(model, first_inputs(model, batches) if example is None else example, dynamic_axes=dynamic_axes)
        some = by_first(lambda: for_repairs(graph, batches))
        reading = Reading.of(graph, model)
        reference, scored = by_first(lambda: float_score(folder, graph, model, evaluate, reading))
        goal.check(reference)
        if engine == AUTO:
            engine = engine_for(folder, graph, rules, target, some)
        plan = make_plan(graph, rules, target=target or target_for(engine))
        stats, calibrated = statistics(folder, plan, batches, reading, progress)
        done: dict[Candidate, Quantized] = {}

        def context(keep: Keep) -> Context:
            return Context(
                plan=plan,
                stats=stats,
                evaluate=evaluate,
                goal=goal,
                engine=engine,
                reference=reference,
                model=digest_of_graph(graph),
                data=trial_key(
                    stats=sha256(pack_stats(stats)).hexdigest(),
                    reference=asdict(reference),
                    evaluate=source_of(evaluate),
                ),
                batches=some,
                train=train,
                keep=keep,
                done=done,
            )

        def search() -> Findings:
            with (
                Study(folder) as study,
                View(progress, seconds=limit.seconds, trials=limit.trials) as view,
                measured_on(trials_on, model) as measure_all,
            ):
                found = Search(
                    context=context(study.once),
                    study=study,
                    budget=limit,
                    view=view,
                    measure_all=measure_all,
                    calibration=batches,
                    prefer=prefer,
                )
                findings = walked(found)
            check_that_scores_say_something(folder, graph, model, evaluate, goal, reference, findings.trials)
            return findings

        found = by_first(search)
        with alone():
            result = _result(found, context(lambda name, make: found.weights or make()), overlap_of(calibrated, scored))
        if out is not None and is_first():
            save_record(folder, result.record())
        return result


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a search found, without networks: it travels between processes.

    weights  what training made of those of the best, None if it is not trained
    """

    trials: tuple[Trial, ...]
    best: Trial
    verdict: Verdict
    too_few: bool
    samples_needed: int | None
    sensitivities: tuple[Sensitivity, ...]
    stopped: str
    weights: bytes | None = None


def walked(search: Search) -> Findings:
    """Try stage after stage, to the last, to the end of the budget, or until Ctrl-C.

    raises  QuantizationError if not a single candidate could be scored; KeyboardInterrupt if it came before the first
    """
    try:
        stages = list(walk(search))
        where = "" if search.context.reference.samples is None or search.too_few() else " on the samples that choose"
        stopped = f"the stage {stages[-1]} met the goal{where}" if search.settled() else "no stage is left to try"
    except BudgetSpentError as spent:
        stopped = str(spent)
    except KeyboardInterrupt:
        stopped = INTERRUPTED
    best = search.best()
    if best is None and stopped == INTERRUPTED:
        raise KeyboardInterrupt
    if best is None:
        raise QuantizationError(
            asked="find an integer network that keeps its accuracy",
            seen=f"{stopped} before a single candidate could be scored"
            + "".join(f" ({trial.error})" for trial in search.trials[:1]),
            remedy='see what the first candidate failed at, or try engine="simulation"',
        )
    return Findings(
        trials=tuple(search.trials),
        best=best,
        verdict=search.certificate(best),
        too_few=search.too_few(),
        samples_needed=search.samples_needed(best),
        sensitivities=search.sensitivities,
        stopped=stopped,
        weights=weights_of(search.context, candidate_of(best)),
    )


def _result(found: Findings, context: Context, overlap: Overlap | None) -> Result:
    net = quantized(context, candidate_of(found.best))
    network = network_of(net, context.engine)
    origin = origin_of(network)
    net = origin.net if origin is not None and isinstance(origin.net, Quantized) else net  # less, on some engines
    told = ran(network)
    on_integers = told.share if told is not None else share(work_of(net.plan), net.coverage.layers)
    return Result(
        met=found.verdict.met and on_integers >= context.goal.min_int8,
        int8_share=on_integers,
        model=network,
        net=net,
        engine=context.engine,
        goal=context.goal,
        reference=context.reference,
        best=found.best,
        verdict=found.verdict,
        too_few=found.too_few,
        samples_needed=found.samples_needed,
        trials=found.trials,
        stages=stage_records(found.trials, higher_is_better=context.goal.higher_is_better),
        sensitivities=found.sensitivities,
        stopped=found.stopped,
        overlap=overlap,
        repaired=repaired(context, candidate_of(found.best)),
    )


def save_record(folder: Path, record: dict[str, Any]) -> None:
    """Write result.json whole or not at all."""
    write(folder / "result.json", json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def _folder(out: str | Path | None) -> Iterator[Path]:
    if out is None:
        with scratch() as temporary:
            yield temporary
    else:
        with said_of(Path(out)):
            folder = made_folder(out)
        sweep(folder)
        yield folder
