"""`executions()` of the inductor engine against the calls in the lowered graph, counted by what they are given."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import test_chain
import test_inductor
from conftest import Network
from octavo.engines import compile
from octavo.engines.inductor import lowered
from octavo.engines.lowering.embedding import gather
from octavo.engines.lowering.product import attend, multiply
from octavo.engines.native import compiler, load_kernels
from octavo.network.edit import attribute
from octavo.network.graph import capture
from octavo.network.operations import FLOAT_ONLY, OPERATIONS
from octavo.network.rule import EVERYTHING, Rule
from octavo.numerics import Scheme
from test_openvino import prepared

pytestmark = pytest.mark.skipif(compiler() is None, reason="the inductor engine needs a C++ compiler")


@pytest.fixture(autouse=True, scope="module")
def kernels() -> None:
    load_kernels()


class Everything(nn.Module):
    """Operations that have integer kernels and operations that have none, each in its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.image, self.volume = nn.Embedding(10, 8), nn.Conv2d(3, 8, 3), nn.Conv3d(1, 8, 2)
        self.up, self.both, self.gru = nn.ConvTranspose2d(8, 8, 2), nn.Bilinear(8, 8, 8), nn.GRU(8, 8)
        self.one, self.two, self.three = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, index, x):
        words = self.table(index)
        image = self.up(F.relu(self.image(x))).flatten(2).transpose(1, 2)
        volume = self.volume(x[:, None]).flatten(2).transpose(1, 2)
        both = self.both(words, words) + self.gru(words)[0]
        products = self.one(words) @ self.two(words).transpose(1, 2) @ self.three(words)
        return products, torch.einsum("bij,bkj,bik->bi", both, both, both @ words.transpose(1, 2)), image, volume


NETWORKS = {
    **test_inductor.CASES,
    "inverted residuals": (test_chain.Inverted(), (torch.randn(2, 3, 32, 32),)),
    "everything": (Everything(), (torch.randint(0, 10, (2, 5)), torch.randn(2, 3, 6, 6))),
}
WITH_PRODUCTS = ("attention", "causal", "products", "everything")
# {name: rules}: what is left to integers
RULES = {
    "all": (EVERYTHING,),
    "weights alone": (Rule("*", role="weight"),),
    "no activations of products": (Rule("*", role="rhs", skip=True), EVERYTHING),
    "weights with zero-points": (Rule("*", role="weight", scheme=Scheme(symmetric=False, axis=0)), EVERYTHING),
}


def counted(module) -> Counter:
    """{whether on integers: how many of the user's operations}, by the arguments of every call in the graph."""
    octavo, found = torch.ops.octavo, Counter()
    for node in module.graph.nodes:
        if node.target in (octavo.int8_linear.default, octavo.int8_linear_of_bytes.default):
            read_by = [user for user in node.users if user.target is torch.ops.aten.slice.Tensor]
            whole = attribute(module, node.args[3]).shape[0]
            parts = [user.args[3] - user.args[2] for user in read_by]
            found[True] += len(parts) if sum(parts) == whole else 1
        elif node.target is octavo.int8_convolutions.default:
            found[True] += len(node.args[3])
        elif node.target in (octavo.int8_convolution.default, multiply, gather):
            found[True] += 1
        elif node.target is attend:
            found[True] += 2
        elif node.target in {*OPERATIONS, *FLOAT_ONLY} - {torch.ops.aten.add.Tensor}:
            found[False] += 1
    return found


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("target", ["onednn", "paper"])
@pytest.mark.parametrize("name", NETWORKS)
def test_executions_are_the_calls(name, target, rules) -> None:
    model, example = NETWORKS[name]
    if rules == "no activations of products" and name in (
        "sequence",
        "convolutions",
        "inverted residuals",
        "twice",
        "mixed",
    ):
        pytest.skip("it has no such products")
    net = prepared(model.eval(), example, RULES[rules], target)
    module, executions = lowered(net)
    assert Counter(row.on_integers for row in executions.values()) == counted(module)
    assert len(executions) == net.plan.coverage.total
    assert all((row.precision == "u8") == row.on_integers for row in executions.values())
    kept = {row.site for row in net.plan.coverage.kept_float}
    assert not any(executions[layer].on_integers for layer in kept & set(executions))


def test_executions_have_the_users_names() -> None:
    model, example = NETWORKS["everything"]
    _, executions = lowered(prepared(model.eval(), example, target="onednn"))
    assert {name for name, row in executions.items() if row.on_integers} == {
        "table", "image", "one", "two", "three", "matmul", "matmul@1", "matmul@2",
    }  # fmt: skip
    in_float = {name for name, row in executions.items() if not row.on_integers}
    assert {"volume", "up", "gru"} < in_float
    assert {name.partition(".")[0] for name in in_float} == {"volume", "up", "gru", "both", "einsum"}


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_a_float_network_says_so(precision) -> None:
    def forward(self, x):
        return self.gru(self.two(self.one(x) @ x.transpose(1, 2)))[0]

    net = Network(forward, one=nn.Linear(8, 8), two=nn.Linear(5, 8), gru=nn.GRU(8, 4)).eval()
    graph = capture(net, torch.randn(2, 5, 8), dynamic_axes=())
    rows = compile(graph, engine="inductor", precision=precision).executions()
    said = {name: (row.kernel, row.precision) for name, row in rows.items()}
    assert said == {
        "one": ("linear", precision),
        "matmul": ("matmul", precision),
        "two": ("linear", precision),
        "gru": ("gru", "f32"),
    }
    assert not any(row.on_integers for row in rows.values())
