"""Planning takes time in proportion to the graph, however deep it is and however often its branches meet again.

What the passes find in one walk is compared with its definition, by recursion over what is read, on small graphs.
"""

import random
import time
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph as FxGraph, GraphModule, Node

import octavo
from octavo.network.edit import emit, is_constant, is_floating
from octavo.network.graph import Graph
from octavo.network.join import joined
from octavo.network.operations import operands, operation, preserves_values
from octavo.network.outputs import _readers
from octavo.network.placement import make_plan
from octavo.network.residual import residual_additions
from octavo.network.share import _crossed, _is_part
from octavo.network.signs import never_negative
from octavo.network.target import TARGETS
from octavo.numerics import Scheme

aten = torch.ops.aten
STEPS, SECONDS = 2000, 5.0


class Grown:
    """A captured network made node by node, as torch.export takes minutes for thousands of them."""

    def __init__(self, *shape: int) -> None:
        self.root, self.graph, self.mode = nn.Module(), FxGraph(), FakeTensorMode()
        self.input = self.graph.placeholder("x")
        self.input.meta["val"] = self.mode.from_tensor(torch.randn(*shape))
        self.end = self.graph.output((self.input,))

    def parameter(self, name: str, tensor: Tensor) -> Node:
        self.root.register_parameter(name, nn.Parameter(tensor))
        with self.graph.inserting_before(self.end):
            node = self.graph.create_node("get_attr", name)
        node.meta["val"] = self.mode.from_tensor(tensor)
        return node

    def __call__(self, operator: Callable[..., object], *args: object) -> Node:
        return emit(self.end, operator, *args)

    def linear(self, x: Node, name: str) -> Node:
        return self(aten.linear.default, x, self.parameter(name, torch.randn(16, 16)))

    def conv(self, x: Node, name: str) -> Node:
        weight = self.parameter(name, torch.randn(16, 16, 1, 1))
        return self(aten.conv2d.default, x, weight)

    def returning(self, *outputs: Node) -> Graph:
        self.end.args = (outputs,)
        module = GraphModule(self.root, self.graph)
        example = torch.randn(*self.input.meta["val"].shape)
        return Graph(module=module, example_args=(example,), example_kwargs={}, dynamic_axes=())


STEP: dict[str, Callable[[Grown, Node], Node]] = {
    "a part of itself": lambda g, x: g(aten.add.Tensor, x, g(aten.mul.Tensor, x, 0.5)),
    "two branches": lambda g, x: g(aten.add.Tensor, g(aten.relu.default, x), g(aten.relu.default, x)),
    "itself flipped": lambda g, x: g(
        aten.slice.Tensor, g(aten.cat.default, [x, g(aten.flip.default, x, [1])], 1), 1, 0, 16
    ),
    "itself, and flipped": lambda g, x: g(aten.reshape.default, g(aten.stack.default, [x, x], 1), [-1, 16]),
    "one after another": lambda g, x: g(aten.relu.default, x),
    "moves": lambda g, x: g(
        aten.reshape.default, g(aten.transpose.int, g(aten.reshape.default, x, [-1, 4, 4]), 1, 2), [-1, 16]
    ),
    "parts and their sum": lambda g, x: g(
        aten.cat.default,
        [g(aten.add.Tensor, g(aten.slice.Tensor, x, 1, 0, 8), g(aten.slice.Tensor, x, 1, 8, 16))] * 2,
        1,
    ),
    "a linear and a residual": lambda g, x: g(aten.add.Tensor, x, g.linear(x, f"w{len(g.graph.nodes)}")),
}
GROWS = {"itself, and flipped"}  # twice as many rows at every step


@pytest.mark.parametrize("kind", STEP)
def test_two_thousand_steps_are_planned_in_seconds(kind):
    grown = Grown(2, 16)
    x = grown.linear(grown.input, "first")
    for _ in range(40 if kind in GROWS else STEPS):
        x = STEP[kind](grown, x)
    graph = grown.returning(grown.linear(x, "last"))
    for target in TARGETS:
        start = time.process_time()
        plan = make_plan(graph, target=target)
        assert time.process_time() - start < SECONDS
        assert plan.quantizers


def test_two_thousand_convolutions_are_planned_in_seconds():
    """Everything that a target does about the outputs of convolutions, and about branches that can be fused."""
    grown = Grown(2, 16, 4, 4)
    x = grown.input
    for number in range(STEPS // 4):
        y = grown(aten.relu.default, grown.conv(x, f"a{number}"))
        x = grown(aten.add.Tensor, x, grown.conv(y, f"b{number}"))
    graph = grown.returning(x)
    for target in TARGETS:
        start = time.process_time()
        make_plan(graph, target=target)
        assert time.process_time() - start < SECONDS


def test_two_thousand_quantizers_are_joined_in_seconds():
    grown = Grown(2, 16)
    x, both = grown.input, []
    for number in range(STEPS // 2):
        x = grown.linear(x, f"w{number}")
        both.append(grown(aten.cat.default, [x, grown(aten.relu.default, x)], 1))
    graph = grown.returning(*both, x)
    plan = make_plan(graph)
    scale = octavo.QParams(scale=torch.tensor(0.1), zero_point=torch.tensor(0, dtype=torch.int32), scheme=Scheme())
    start = time.process_time()
    joined(plan, {q.name: scale for q in plan.quantizers}, {}, lambda quantizer, histogram: scale)
    assert time.process_time() - start < SECONDS


def test_six_hundred_steps_are_captured_calibrated_and_run_without_recursion():
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for _ in range(600):
                x = x + x * 0.001
            return self.last(x)

    graph = octavo.capture(Deep().eval(), x := torch.randn(2, 16))
    plan = make_plan(graph)
    net = octavo.choose_params(plan, octavo.observe(plan, [x]), "max")
    own = octavo.repair(net, [x], ["cross_layer_equalization", "correct_bias"])
    assert octavo.sqnr_db(graph(x), octavo.simulate(own)(x)) > 20
    assert octavo.compile(net, engine="reference")(x).shape == (2, 4)


# ---- definitions


def random_graph(chance: random.Random) -> Graph:
    """Moves, sums, activations and products that read one another at random."""
    grown = Grown(2, 16)
    known = [grown.linear(grown.input, "w0")]
    for number in range(chance.randint(4, 18)):
        x, y = chance.choice(known), chance.choice(known)
        known.append(
            chance.choice(
                [
                    lambda x=x: grown(aten.relu.default, x),
                    lambda x=x: grown(aten.flip.default, x, [1]),
                    lambda x=x: grown(aten.clamp.default, x, chance.choice([-1.0, 0.0])),
                    lambda x=x: grown(aten.mul.Tensor, x, chance.choice([-0.5, 0.5])),
                    lambda x=x, y=y: grown(aten.add.Tensor, x, y),
                    lambda x=x, y=y: grown(aten.slice.Tensor, grown(aten.cat.default, [x, y], 1), 1, 0, 16),
                    lambda x=x, n=number: grown.linear(x, f"w{n + 1}"),
                    lambda x=x: grown(aten.neg.default, x),
                ]
            )()
        )
    return grown.returning(*chance.sample(known, chance.randint(1, min(3, len(known)))))


def test_passes_find_what_their_definitions_say():
    for seed in range(150):  # fixed: the definitions are exponential, and every one of these graphs is small
        graph = random_graph(random.Random(seed))
        nodes = list(graph.module.graph.nodes)
        assert never_negative(nodes) == {node for node in nodes if is_never_negative(node)}, seed
        assert residual_additions(nodes) == [node for node in nodes if is_residual(node)], seed
        reads = [operand for node in nodes if operation(node) for operand in operands(node)]
        some = random.Random(seed).sample(reads, len(reads) // 2)
        wanted = {(one.source, one.node): Scheme() for one in some}
        for node, path in _crossed(nodes, Scheme(), wanted).items():
            assert is_crossable(node, wanted), seed
            assert list(path) == list(dict.fromkeys(edges(node, None, wanted))), seed
        assert set(_crossed(nodes, Scheme(), wanted)) == {node for node in nodes if is_crossable(node, wanted)}
        moving, returned = _readers(nodes, wanted)
        assert returned == {node for node in nodes if is_returned(node)}, seed
        assert moving == {node for node in nodes if moves_to_rounded(node, wanted)}, seed


@cache
def is_never_negative(node: Node) -> bool:
    if node.op != "call_function":
        return False
    if node.target is aten.relu.default:
        return True
    if node.target is aten.clamp.default:
        return node.args[1] >= 0
    if node.target is aten.neg.default or node.target is aten.linear.default:
        return False
    if node.target is aten.mul.Tensor and node.args[1] < 0:
        return False
    return all(is_never_negative(source) for source in node.all_input_nodes if is_floating(source))


def history(node: Node) -> set[Node]:
    if is_constant(node) or not isinstance(node.meta.get("val"), Tensor):
        return set()
    return {node}.union(*(history(source) for source in node.all_input_nodes))


def is_residual(node: Node) -> bool:
    if node.target is not aten.add.Tensor or not all(isinstance(x, Node) for x in node.args):
        return False
    left, right = map(history, node.args)
    return bool(left & right) and any(one.target is aten.linear.default for one in left ^ right)


def is_crossable(node: Node, wanted: dict[tuple[Node, Node], Scheme]) -> bool:
    if not preserves_values(node) or _is_part(node):
        return False
    return all((node, user) in wanted or is_crossable(user, wanted) for user in node.users)


def edges(source: Node, user: Node | None, wanted: dict[tuple[Node, Node], Scheme]) -> list[tuple[Node, Node | None]]:
    if not is_crossable(source, wanted):
        return [(source, user)]
    return [edge for before in source.all_input_nodes for edge in edges(before, source, wanted)]


def is_returned(node: Node) -> bool:
    return node.op == "output" or (preserves_values(node) and any(map(is_returned, node.users)))


def moves_to_rounded(node: Node, wanted: dict[tuple[Node, Node], Scheme]) -> bool:
    return preserves_values(node) and all((node, u) in wanted or moves_to_rounded(u, wanted) for u in node.users)
