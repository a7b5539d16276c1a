"""What the paper claims, on real networks and labelled data (Wu et al. 2020). Minutes each: `make slow`."""

import math

import pytest

from octavo.engines import compile
from octavo.errors import QuantizationError
from octavo.network.calibrate import choose_params, observe
from octavo.network.graph import capture
from octavo.network.placement import make_plan
from octavo.network.rule import Rule
from octavo.network.simulate import simulate
from octavo.numerics import Scheme
from octavo.workflow.recipe import quantize
from octavo.zoo import Task, task

pytestmark = pytest.mark.slow

PAPER_METHODS = ("max", "entropy", "99.99", "99.999")


def loaded(name: str) -> Task:
    try:
        return task(name)
    except QuantizationError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    ("name", "points"),
    [("efficientnet_lite0", 1.0), ("resnet20", 0.5), ("ds_cnn_s", 1.0), ("lstm", 0.5), ("minilm", 0.7)],
)
@pytest.mark.timeout(1200)
def test_calibration_alone_keeps_the_accuracy(name: str, points: float) -> None:
    """§4: the best calibration, on the engine that would be deployed."""
    scored = loaded(name)
    model = scored.build()
    graph = capture(model, scored.example, dynamic_axes=scored.dynamic_axes)
    plan = make_plan(graph, target="openvino")
    stats = observe(plan, scored.calibration())
    reference = scored.score(scored.predict(model))
    networks = [compile(choose_params(plan, stats, method)) for method in PAPER_METHODS]
    assert reference - max(scored.score(scored.predict(network)) for network in networks) <= points


@pytest.mark.timeout(1200)
def test_folded_batch_norm_needs_one_scale_per_channel() -> None:
    """§4.1: of a depthwise network with batch-norm folded, one scale per weight tensor destroys the weights."""
    scored = loaded("efficientnet_lite0")
    model = scored.build()
    graph = capture(model, scored.example)
    reference = scored.score(scored.predict(model))
    drops = {}
    for axis in (0, None):
        plan = make_plan(graph, [Rule(role="weight", scheme=Scheme(axis=axis))], target="paper")
        net = choose_params(plan, {})
        drops[axis] = reference - scored.score(scored.predict(simulate(net)))
    assert drops[0] <= 1.0
    assert drops[None] >= 5.0


@pytest.mark.timeout(900)
def test_partial_quantization_mends_what_calibration_cannot() -> None:
    """§5.1: with four-bit activations ResNet-20 loses many points; a few layers in float bring them back."""
    scored = loaded("resnet20")
    rules = [Rule(role="input", bits=4), Rule(role="rhs", bits=4), Rule("*")]
    result = quantize(
        scored.build(),
        calibration=scored.calibration(),
        evaluate=lambda network: scored.score(scored.predict(network)),
        rules=rules,
        engine="simulation",
        min_int8=0.0,
        progress=False,
    )
    evaluations = {stage.stage: stage.trials for stage in result.stages}
    assert max(trial.metric for trial in result.trials if trial.stage == "ptq") < 0.97 * result.reference.metric
    assert result.met
    assert 1 <= len(result.kept_float) <= 10
    assert evaluations["partial"] <= 2 * math.log2(29) + 10
    assert scored.score(scored.predict(result.model)) == result.metric
