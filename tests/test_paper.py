"""What the paper claims, on real networks and labelled data (Wu et al. 2020). Minutes each: `make slow`."""

import pytest

from octavo.engines import compile
from octavo.errors import QuantizationError
from octavo.network.calibrate import choose_params, observe
from octavo.network.graph import capture
from octavo.network.plan import make_plan
from octavo.network.rule import Rule
from octavo.network.simulate import simulate
from octavo.numerics import Scheme
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
    stats = observe(graph, plan, scored.calibration())
    reference = scored.score(scored.predict(model))
    networks = [compile(graph, choose_params(graph, plan, stats, method)) for method in PAPER_METHODS]
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
        params = choose_params(graph, plan, {})
        drops[axis] = reference - scored.score(scored.predict(simulate(graph, params)))
    assert drops[0] <= 1.0
    assert drops[None] >= 5.0
