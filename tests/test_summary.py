"""The paragraph that a search ends with: exact text, of results that are put together by hand."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

import octavo
from octavo.engines.execution import Execution
from octavo.network.quantized import Origin, Quantized, remember
from octavo.network.rule import Rule
from octavo.network.target import TARGETS
from octavo.numerics.scheme import Scheme
from octavo.workflow.goal import Goal, Score, Verdict
from octavo.workflow.outcome import Result, StageRecord
from octavo.workflow.overlap import Overlap
from octavo.workflow.study import Trial

EVERY = (Rule("*"),)
NO_VNNI = "this CPU has no VNNI: it adds pairs of int8 products in 16 bits, which weights of eight bits would overflow"


class Network:
    """Runs nothing, and tells how it would."""

    def __init__(self, executions: Mapping[str, Execution]) -> None:
        self.told = executions

    def __call__(self, x):
        return x

    def executions(self):
        return self.told


def on(kernel: str, layers: list[str]) -> dict[str, Execution]:
    arithmetic = "i8" if kernel == "int8" else "f32"
    return {layer: Execution(kernel=kernel, precision=arithmetic, implementation=f"x_{arithmetic}") for layer in layers}


def net_of(widths: list[int], rules=EVERY, bits: int = 8) -> Quantized:
    """Linears of these widths one after the other; a layer is called by its number."""
    model = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths))).eval()
    target = replace(TARGETS["openvino"], weight=Scheme(bits=bits, axis=0))
    plan = octavo.make_plan(octavo.capture(model, torch.randn(2, widths[0])), rules, target=target)
    return octavo.choose_params(plan, octavo.observe(plan, [torch.randn(8, widths[0])]))


def result_of(net: Quantized, executions=None, **changes) -> Result:
    network = Network(executions or {})
    if executions is not None:
        remember(network, Origin(net=net, engine="some"))
    best = {
        name: changes.pop(name) for name in ("repairs", "kept_float", "trained", "rows", "channels") if name in changes
    }
    trial = Trial(
        key="k", stage="ptq", method="max", engine="some", metric=0.915, scores=(0.9, 0.93), abandoned=False,
        error=None, seconds=1.0, versions={}, model="m", data="d", **{"kept_float": ()} | best,
    )  # fmt: skip
    certain = Verdict(drop=0.005, interval=(0.001, 0.008), met=True, certified=True, samples=500)
    return Result(
        **{
            "met": True, "int8_share": 1.0, "model": network, "net": net, "engine": "some", "goal": Goal(),
            "reference": Score(metric=0.92, samples=(0.9, 0.94)), "best": trial, "verdict": certain, "too_few": False,
            "samples_needed": None, "trials": (trial,), "sensitivities": (), "stopped": "the stage ptq met the goal",
            "stages": (StageRecord(stage="ptq", trials=1, best=0.915, seconds=1.0),),
        } | changes
    )  # fmt: skip


@pytest.fixture(scope="module")
def net() -> Quantized:
    return net_of([4, 8, 2])


def arithmetic(result: Result) -> str:
    """What the summary says after why the search ended."""
    _, _, found = result.summary.partition("met the goal. ")
    return found


def test_all_of_it(net) -> None:
    assert result_of(net, on("int8", ["0", "1"])).summary == (
        "The float network scores 0.92; the goal allows a drop of 1 % of the float score, 0.0092. "
        "Of 1 trial on the stage ptq the best is max calibration: 0.915, a drop of 0.005 (95 % interval 0.001 … 0.008) "
        "on the 500 samples that did not choose it, on the engine some. "
        "The goal is met, and certified; the search ended because the stage ptq met the goal. "
        "2 of 2 compute-heavy operations planned int8, 2 ran int8 on some, 100 % of the multiplications."
    )


POINTS = "points, in the metric's own unit"


@pytest.mark.parametrize(
    ("goal", "metric", "said"),
    [
        (Goal(), 0.92, "1 % of the float score, 0.0092."),
        (Goal(max_drop=0.3, relative=False), 0.92, f"0.3 {POINTS}: 32.6 % of the float score."),
        (Goal(max_drop=0.3, relative=False), 92.0, f"0.3 {POINTS}: 0.326 % of the float score."),
        (Goal(max_drop=1.0, relative=False), -50.0, "1 point, in the metric's own unit: 2 % of the float score."),
        (Goal(max_drop=0.3, relative=False), 0.0, f"0.3 {POINTS}."),
    ],
)
def test_a_drop_is_said_both_ways(net, goal, metric, said) -> None:
    result = result_of(net, goal=goal, reference=Score(metric=metric, samples=(1.0, 2.0)))
    assert result.summary.startswith(
        f"The float network scores {metric:g}; the goal allows a drop of {said} Of 1 trial "
    )


def test_repairs_by_name_with_the_layers_they_changed(net) -> None:
    repairs = ("cross_layer_equalization", "correct_bias", "adaround")
    changes = {"cross_layer_equalization": 2, "correct_bias": 1, "adaround": 0}
    result = result_of(net, repairs=repairs, repaired=changes, trained=True, kept_float=("0",))
    assert (
        "the best is max calibration, cross layer equalization (2 layers), correct bias (1 layer), "
        "adaround (0 layers), training with 1 layer left in float: 0.915," in result.summary
    )
    assert result.record()["repaired_layers"] == changes
    rows = result_of(net, repairs=("smoothquant",), rows=True, channels=False)  # nothing known of layers
    assert "max calibration, scales of rows, one scale a tensor, smoothquant: 0.915," in rows.summary


def test_what_is_planned_in_float_and_why() -> None:
    net = net_of([4, 8, 2, 2], rules=(Rule("1", skip=True), Rule("*")))
    rule = "1 (Rule('1', skip=True) leaves its input in float)"
    assert arithmetic(result_of(net)) == f"2 of 3 compute-heavy operations planned int8; in float: {rule}."
    left = "1 (the search left it in float)"
    assert (
        arithmetic(result_of(net, kept_float=("1",)))
        == f"2 of 3 compute-heavy operations planned int8; in float: {left}."
    )
    ran = "2 of 3 compute-heavy operations planned int8, 1 ran int8 on some, 61.5 % of the multiplications"
    assert arithmetic(result_of(net, on("int8", ["0"]) | on("gemm", ["2"]))) == (
        f"{ran}; in float: {rule}, 2 (planned int8, runs as gemm)."  # 16 products in one, 4 in the other, of 52
    )


def test_of_many_operations_in_float_the_heaviest_are_named() -> None:
    net = net_of([2, 2, 3, 4, 5, 6, 7, 8])
    named = ", ".join(f"{layer} (planned int8, runs as gemm)" for layer in "65432")
    assert arithmetic(result_of(net, on("gemm", list("0123456")))).endswith(f"; in float: {named} and 2 more.")
    assert arithmetic(result_of(net, on("int8", ["6", "5"]) | on("gemm", list("01234")))).endswith(
        "; in float: " + ", ".join(f"{layer} (planned int8, runs as gemm)" for layer in "43210") + "."
    )
    assert arithmetic(result_of(net, {})).count("runs as no kernel of its own") == 5


def test_weights_of_seven_bits_are_said_and_why(monkeypatch) -> None:
    net = net_of([4, 8, 2], rules=(Rule("1", bits=4), Rule("*")), bits=7)
    planned = "2 of 2 compute-heavy operations planned int8."
    monkeypatch.setattr("octavo.workflow.summary.adds_int8_pairs_in_16_bits", lambda: True)
    assert arithmetic(result_of(net)) == (
        f"{planned} 1 of 2 weights has 7 bits, because {NO_VNNI}. 1 of 2 weights has 4 bits."
    )
    asked_for = f"{planned} 2 of 2 weights have 4 bits."
    assert arithmetic(result_of(net_of([4, 8, 2], bits=4))) == asked_for  # whatever the CPU
    whole = net_of([4, 8, 2], bits=7)
    assert arithmetic(result_of(whole)) == f"{planned} 2 of 2 weights have 7 bits, because {NO_VNNI}."
    monkeypatch.setattr("octavo.workflow.summary.adds_int8_pairs_in_16_bits", lambda: False)
    assert arithmetic(result_of(whole)) == f"{planned} 2 of 2 weights have 7 bits."
    assert arithmetic(result_of(net_of([4, 8, 2]))) == planned


def test_what_makes_it_less_sure(net) -> None:
    doubts = (
        "2 of 2 compute-heavy operations planned int8. "
        "12 of the 48 calibration samples are among the scored ones: the score flatters the network; keep them apart. "
        "There are too few samples to certify 1 % of the float score: the interval of all of them reaches 0.008; "
        "about 900 would do."
    )
    overlap = Overlap(calibrated=48, scored_too=12)
    assert arithmetic(result_of(net, overlap=overlap, too_few=True, samples_needed=900)) == doubts
    alone = Verdict(drop=0.005, interval=None, met=True, certified=True)
    assert arithmetic(result_of(net, verdict=alone, reference=Score(metric=0.92))).endswith(
        "int8. evaluate returned one number, so there is no interval; per-sample scores would give one."
    )


def test_a_note(net) -> None:
    planned = "2 of 2 compute-heavy operations planned int8."
    assert arithmetic(result_of(replace(net, notes=("a",)))) == f"{planned} Noted: a."
    assert arithmetic(result_of(replace(net, notes=("a", "b", "c")))) == f"{planned} Noted: a (2 more in notes)."
