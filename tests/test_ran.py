"""What an engine made of a plan: named by the user's layers, read from what was compiled, nothing assumed."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from conftest import runs_here
from octavo.engines import available, compile, target_for
from octavo.engines.execution import Execution
from octavo.engines.ran import Ran, ran
from octavo.network.graph import capture
from octavo.network.placement import compute_heavy
from octavo.network.plan import Coverage, KeptFloat
from octavo.network.simulate import simulate
from octavo.network.target import TARGETS
from octavo.network.work import work_of_layers
from octavo.workflow.outcome import coverage_record

TOLD = ("openvino", "onnxruntime", "reference")


class Keywords(nn.Module):
    """An embedding, a recurrent layer, a product of two activations, and a linear that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.rnn = nn.Embedding(20, 8), nn.LSTM(8, 8, batch_first=True)
        self.mix, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, tokens):
        x = self.rnn(self.table(tokens))[0]
        x = self.mix(F.relu(self.mix(x)))
        return self.head((x @ x.mT).softmax(-1) @ x)


@pytest.mark.parametrize("engine", [name for name in TOLD if name in available()])
def test_every_compute_heavy_operation_is_told_by_its_name(engine, calibrated) -> None:
    target = runs_here(target_for(engine))
    net = calibrated(Keywords(), torch.randint(20, (4, 6)), target=target)
    graph = net.graph
    network = compile(net, engine=engine)
    assert list(network.executions()) == list(compute_heavy(graph, target).values())
    told = ran(network)
    assert told is not None
    assert told.engine == engine
    assert set(told.on_integers) | {"table", "rnn"} >= {"mix", "mix@1", "matmul", "matmul@1", "head"}
    assert "rnn" not in told.on_integers
    assert {*told.on_integers, *told.in_float} == set(net.plan.coverage.layers)


def test_openvino_tells_of_a_planned_product_that_it_computes_in_float(calibrated, network) -> None:
    """The plan said int8, and only the plan was told."""
    model = network(lambda self, a, x: a @ F.relu(self.l(x)), l=nn.Linear(16, 16))
    example = (torch.randn(3, 5, 16), torch.randn(3, 16, 16))
    net = calibrated(model, example, target=runs_here("openvino"))
    told = ran(compile(net, engine="openvino", threads=1))
    assert told is not None
    assert net.plan.coverage.quantized == 2
    assert (told.on_integers, told.in_float) == (("l",), ("matmul",))


PLANNED = Coverage(quantized=3, total=4, kept_float=(KeptFloat(site="d", reason="tabu"),), layers=("a", "b", "c"))
TOLD_OF = Ran(
    engine="there",
    planned=PLANNED,
    executions={
        "a": Execution(kernel="conv", precision="u8", implementation="fast_i8"),
        "b": Execution(kernel="gemm", precision="f32", implementation="slow_f32"),
    },
    work={"a": 600.0, "b": 300.0, "c": 60.0, "d": 40.0},
)


def test_an_operation_that_the_engine_does_not_tell_of_is_not_on_integers() -> None:
    assert (TOLD_OF.on_integers, TOLD_OF.in_float) == (("a",), ("b", "c"))
    assert str(TOLD_OF) == (
        "3 of 4 compute-heavy operations planned int8, 1 ran int8 on there, 60 % of the multiplications; "
        "in float: b (gemm), c (no kernel of its own)"
    )


@pytest.mark.parametrize(
    ("work", "said"),
    [
        ({"a": 1.0, "b": 0.0}, ", 100 % of the multiplications"),
        ({"a": 1e6, "b": 1.0}, ", more than 99.9 % of the multiplications"),  # all but one is not all
        ({"a": 1.0, "b": 1e6}, ", less than 0.1 % of the multiplications"),
        ({"a": 0.0, "b": 1e6}, ", 0 % of the multiplications"),
        ({"a": 0.0, "b": 0.0}, " on there;"),  # a table alone multiplies nothing
    ],
)
def test_the_share_of_the_multiplications_is_rounded_to_no_other_claim(work, said) -> None:
    assert said in str(replace(TOLD_OF, work=work))


class Worked(nn.Module):
    """One of each kind of operation that multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.alone = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.up, self.head = nn.ConvTranspose2d(8, 4, 2, stride=2), nn.Linear(4, 5)
        self.rnn = nn.LSTM(5, 6, batch_first=True, bias=False)

    def forward(self, x):
        x = self.up(F.relu(self.alone(F.relu(self.dense(x)))))
        rows = self.head(x.flatten(2).mT)
        return self.rnn(rows)[0], rows @ rows.mT


def test_multiplications_are_counted_as_by_hand() -> None:
    """Of a call with two images of 6 × 6; 12 × 12 behind the transposed convolution."""
    graph = capture(Worked().eval(), torch.randn(2, 3, 6, 6))
    found = work_of_layers(graph, compute_heavy(graph, TARGETS["paper"]))
    tokens = 2 * 144
    assert found == {
        "dense": 2 * 8 * 36 * 3 * 9,
        "alone": 2 * 8 * 36 * 9,
        "up": 2 * 36 * 8 * 4 * 4,
        "head": tokens * 4 * 5,
        "rnn": tokens * (5 + 6) * 4 * 6,
        "matmul": 2 * 144 * 144 * 5,
    }


def test_the_record_has_the_plan_and_what_ran() -> None:
    record = coverage_record(PLANNED, TOLD_OF)
    assert (
        json.loads(json.dumps(record))
        == record
        == {
            "quantized": 3,
            "total": 4,
            "kept_float": [{"site": "d", "reason": "tabu"}],
            "layers": ["a", "b", "c"],
            "per_tensor": [],
            "ran": {
                "engine": "there",
                "int8": 1,
                "share": 0.6,
                "in_float": [{"layer": "b", "kernel": "gemm"}, {"layer": "c", "kernel": "no kernel of its own"}],
            },
        }
    )
    assert coverage_record(PLANNED, None)["ran"] is None


def test_what_has_no_plan_has_nothing_to_tell(calibrated) -> None:
    net = calibrated(nn.Sequential(nn.Linear(4, 4)), torch.randn(3, 4))
    graph = net.graph
    assert ran(compile(graph, engine="openvino")) is None
    assert ran(simulate(net)) is None
    assert ran(nn.Linear(4, 4)) is None
