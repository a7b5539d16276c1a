"""Placement: which sites exist, what shares a quantizer, what each target leaves out, and what the coverage says."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import octavo
from conftest import edges
from octavo.engines import target_for
from octavo.errors import QuantizationError
from octavo.network.graph import capture
from octavo.network.operations import OPERATIONS, VALUE_PRESERVING, preserves_values
from octavo.network.placement import compute_heavy, make_plan
from octavo.network.rule import Rule
from octavo.network.simulate import simulate
from octavo.network.target import INT8_FULL, TARGETS, UINT8, Target, target_named
from octavo.numerics import AFFINE_UINT8, INT8, INT8_PER_CHANNEL, Scheme

aten = torch.ops.aten


def sites(plan) -> dict[str, list[str]]:
    """{quantizer: its sites}."""
    return {quantizer.name: [site.name for site in quantizer.sites] for quantizer in plan.quantizers}


def planned(model, example, *rules, target="paper", **capturing):
    return make_plan(capture(model, example, **capturing), rules or (Rule(),), target=target)


def named(plan, name):
    return next(quantizer for quantizer in plan.quantizers if name in [site.name for site in quantizer.sites])


# ---- one network for every row of the table

image, signal, volume, rows = (
    torch.randn(2, 4, 6, 6),
    torch.randn(2, 4, 6),
    torch.randn(2, 4, 5, 5, 5),
    torch.randn(2, 4),
)

ROWS = {
    "conv1d": (nn.Conv1d(4, 2, 3), signal, {"input": None, "weight": 0}),
    "conv2d": (nn.Conv2d(4, 2, 3), image, {"input": None, "weight": 0}),
    "conv3d": (nn.Conv3d(4, 2, 3), volume, {"input": None, "weight": 0}),
    "conv2d with string padding": (nn.Conv2d(4, 2, 3, padding="same"), image, {"input": None, "weight": 0}),
    "conv_transpose1d": (nn.ConvTranspose1d(4, 2, 3), signal, {"input": None, "weight": 1}),
    "conv_transpose2d": (nn.ConvTranspose2d(4, 2, 3), image, {"input": None, "weight": 1}),
    "conv_transpose3d": (nn.ConvTranspose3d(4, 2, 3), volume, {"input": None, "weight": 1}),
    "linear": (nn.Linear(4, 2), rows, {"input": None, "weight": 0}),
    "linear without bias": (nn.Linear(4, 2, bias=False), rows, {"input": None, "weight": 0}),
    "embedding": (nn.Embedding(5, 2), torch.randint(0, 5, (2, 3)), {"weight": 0}),
    "lstm": (nn.LSTM(4, 2, batch_first=True), torch.randn(2, 2, 4), {"input": None, "weight_ih": 0, "weight_hh": 0}),
    "gru": (nn.GRU(4, 2, batch_first=True), torch.randn(2, 2, 4), {"input": None, "weight_ih": 0, "weight_hh": 0}),
}


@pytest.fixture(scope="module")
def every_row():
    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.rows = nn.ModuleList(layer for layer, _, _ in ROWS.values())

        def forward(self, inputs):
            return [layer(x) for layer, x in zip(self.rows, inputs, strict=True)]

    return planned(Rows(), ([example for _, example, _ in ROWS.values()],))


@pytest.mark.parametrize("row", ROWS)
def test_sites_of_each_operation(row, every_row) -> None:
    layer, expected = f"rows.{list(ROWS).index(row)}", ROWS[row][2]
    quantizers = [quantizer for quantizer in every_row.quantizers if quantizer.sites[-1].layer == layer]
    assert {site.operation for quantizer in quantizers for site in quantizer.sites[-1:]} == {row.split(" ")[0]}
    assert {quantizer.sites[-1].name: quantizer.scheme.axis for quantizer in quantizers} == {
        f"{layer}.{role}": axis for role, axis in expected.items()
    }
    assert [quantizer.constant for quantizer in quantizers] == [axis is not None for axis in expected.values()]


def test_every_operation_of_the_table_is_covered(every_row) -> None:
    assert str(every_row.coverage) == f"{len(ROWS)} of {len(ROWS)} compute-heavy operations quantized"
    met = {site.operation for quantizer in every_row.quantizers for site in quantizer.sites}
    assert met | {"matmul", "add"} == {row.name for row in OPERATIONS.values()}


def test_sites_of_products(network) -> None:
    model = network(lambda s, x: (s.w @ x, x @ s.w, x @ x.mT), w=nn.Parameter(torch.randn(4, 4)))
    plan = planned(model, torch.randn(2, 4, 4))
    assert sites(plan) == {
        "matmul.weight": ["matmul.weight"],
        "matmul.rhs": ["matmul.rhs", "matmul@1.lhs", "matmul@2.lhs", "matmul@2.rhs"],
        "matmul@1.weight": ["matmul@1.weight"],
    }
    assert named(plan, "matmul.weight").scheme.axis == -2
    assert named(plan, "matmul@1.weight").scheme.axis == -1


def test_attention_is_its_two_products(network) -> None:
    attention = network(lambda s, q, k, v: F.scaled_dot_product_attention(s.q(q), k, v), q=nn.Linear(4, 4))
    plan = planned(network(lambda s, *x: s.att(*x), att=attention), tuple(torch.randn(2, 3, 4) for _ in range(3)))
    assert list(sites(plan))[2:] == ["att.matmul.lhs", "att.matmul.rhs", "att.matmul@1.lhs", "att.matmul@1.rhs"]
    assert plan.coverage.total == 3


def test_the_root_module_has_no_layer_name() -> None:
    assert list(sites(planned(nn.Conv2d(4, 2, 3), image))) == ["conv2d.input", "conv2d.weight"]
    assert list(sites(planned(nn.Sequential(nn.Linear(4, 2)), rows))) == ["0.input", "0.weight"]


def test_a_layer_called_twice_has_one_weight_and_numbered_inputs() -> None:
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

        def forward(self, x):
            return self.block(self.block(x))

    plan = planned(Twice(), rows)
    assert sites(plan) == {
        "block.0.input": ["block.0.input"],
        "block.0.weight": ["block.0.weight", "block.0@1.weight"],
        "block.0@1.input": ["block.0@1.input"],
    }


def test_tied_weights_share_a_quantizer_and_keep_their_layers() -> None:
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(10, 8), nn.Linear(8, 10, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids):
            return self.head(self.embed(ids).tanh())

    example = torch.randint(0, 10, (2, 5))
    assert sites(planned(Tied(), example)) == {
        "embed.weight": ["embed.weight", "head.weight"],
        "head.input": ["head.input"],
    }
    assert list(sites(planned(Tied(), example, Rule("embed", skip=True), Rule()))) == ["head.input", "head.weight"]


def test_quantizers_have_unique_names(basic_block) -> None:
    plan = planned(nn.Sequential(basic_block(), basic_block(downsample=True)), image)
    assert len(sites(plan)) == len(plan.quantizers)


# ---- sharing

PRESERVING = {
    "reshape": lambda x: x.reshape(x.shape[0], -1),
    "view": lambda x: x.view(x.shape[0], 2, -1),
    "flatten": lambda x: x.flatten(1),
    "unflatten": lambda x: x.unflatten(1, (2, 2)),
    "squeeze": lambda x: x[:, :1].squeeze(1),
    "squeeze all": lambda x: x[:, :1].squeeze(),
    "squeeze several": lambda x: x[:, :1, :1].squeeze((1, 2)),
    "unsqueeze": lambda x: x.unsqueeze(1),
    "permute": lambda x: x.permute(0, 3, 1, 2),
    "transpose": lambda x: x.transpose(1, 2),
    "movedim": lambda x: x.movedim(1, 2),
    "expand": lambda x: x[:, :1].expand(-1, 3, -1, -1),
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
    "slice": lambda x: x[:, 1:, ::2],
    "select": lambda x: x[:, 1],
    "narrow": lambda x: x.narrow(1, 1, 2),
    "flip": lambda x: x.flip(1),
    "roll": lambda x: x.roll(1, 2),
    "contiguous": lambda x: x.transpose(1, 2).contiguous(),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 2),
    "max_pool1d": lambda x: F.max_pool1d(x.flatten(1, 2), 2),
    "max_pool2d": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max_pool3d": lambda x: F.max_pool3d(x, 2),
    "zero padding": lambda x: F.pad(x, (1, 1, 1, 1)),
    "reflect padding": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "replicate padding": lambda x: F.pad(x, (1, 1, 1, 1), mode="replicate"),
    "circular padding": lambda x: F.pad(x, (1, 1, 1, 1), mode="circular"),
    "concat": lambda x: torch.cat([x, x.flip(1)], 1),
    "stack": lambda x: torch.stack([x, x.flip(1)], 1),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "nearest1d": lambda x: F.interpolate(x.flatten(1, 2), scale_factor=2),
    "nearest3d": lambda x: F.interpolate(x[:, None], scale_factor=2),
}


@pytest.fixture(scope="module")
def moves() -> tuple[set, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """The value-preserving operations of one network that makes every move, and {case: (before, after)}."""

    class Moves(nn.Module):
        def forward(self, x):
            return {case: move(x.tanh()) for case, move in PRESERVING.items()}

    graph = capture(Moves(), torch.randn(2, 4, 4, 4))
    x = torch.randn(3, 4, 4, 4)
    met = {node.target for node in graph.module.graph.nodes if preserves_values(node)}
    return met, {case: (x.tanh(), after) for case, after in graph(x).items()}


@pytest.mark.parametrize("case", PRESERVING)
def test_moves_really_preserve_values(case, moves) -> None:
    before, after = moves[1][case]
    values = set(before.flatten().tolist()) | ({0.0} if case == "zero padding" else set())
    assert set(after.flatten().tolist()) <= values


def test_every_value_preserving_operation_has_a_case_above(moves) -> None:
    """But for those that capture rewrites as another of them."""
    names = {str(operation).split(".")[1] for operation in VALUE_PRESERVING - moves[0]}
    rewritten = {"view", "_unsafe_view", "clone", "contiguous", "flatten", "unflatten", "movedim", "narrow"}
    assert names <= rewritten | {"t", "numpy_T", "pad", "constant_pad_nd"}


class Moved(nn.Module):
    def __init__(self, move):
        super().__init__()
        self.move, self.a, self.b = move, nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        y = self.move(self.a(x).tanh())
        return y.unsqueeze(-1) @ y.unsqueeze(-2)


CROSSED = {
    **{case: PRESERVING[case] for case in ("reshape", "permute", "max_pool2d", "zero padding", "slice", "expand")},
    "reflect padding with a value": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
}
NOT_CROSSED = {
    "padding with another value": lambda x: F.pad(x, (1, 1, 1, 1), value=2.0),
    "average pooling": lambda x: F.avg_pool2d(x, 2),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "cumulative sum": lambda x: x.cumsum(1),
}


def test_a_quantizer_crosses_what_preserves_values_to_where_the_tensor_is_produced() -> None:
    moves = nn.ModuleList([Moved(move) for move in (CROSSED | NOT_CROSSED).values()])
    plan = planned(Parallel(moves), torch.randn(2, 4, 4, 4))
    for i, case in enumerate(CROSSED | NOT_CROSSED):
        product = named(plan, f"branches.{i}.matmul.lhs")
        assert [site.role for site in product.sites] == (["lhs", "rhs"]), case
        sources = {edge.source for edge in edges(plan, product.name)}
        assert sources == {f"tanh_{i}" if i else "tanh"} if case in CROSSED else "tanh" not in str(sources), case


class Parallel(nn.Module):
    def __init__(self, branches):
        super().__init__()
        self.branches = branches

    def forward(self, x):
        return [branch(x) for branch in self.branches]


def test_readers_of_one_tensor_share_a_quantizer(network) -> None:
    model = network(lambda s, x: (s.a(x.relu()), s.b(x.relu())), a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    assert "b.input" in sites(planned(model, rows))  # two relus are two tensors
    model = network(lambda s, x: (lambda y: (s.a(y), s.b(y[:, None])))(x.relu()), a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    plan = planned(model, rows)
    assert sites(plan)["a.input"] == ["a.input", "b.input"]
    assert {edge.source for edge in edges(plan, "a.input")} == {"relu"}


def test_not_moved_through_a_reshape_that_another_reader_wants_in_float(network) -> None:
    def forward(s, x):
        y = x.tanh().reshape(-1, 2, 2)
        return s.a(y), y.exp()

    plan = planned(network(forward, a=nn.Linear(2, 2)), rows)
    (edge,) = edges(plan, "a.input")
    assert edge.source != "tanh"
    assert edge.user == "linear"


def test_a_skipped_reader_keeps_its_float_input(network) -> None:
    def forward(s, x):
        y = x.tanh().reshape(-1, 2, 2)
        return s.a(y), s.b(y)

    model = network(forward, a=nn.Linear(2, 2), b=nn.Linear(2, 2))
    plan = planned(model, rows, Rule("b", skip=True), Rule())
    assert [edge.user for edge in edges(plan, "a.input")] == ["linear"]
    both = planned(model, rows)
    assert {edge.source for edge in edges(both, "a.input")} == {"tanh"}


def test_readers_with_different_schemes_do_not_share(network) -> None:
    def forward(s, x):
        y = x.tanh()
        return s.a(y), s.b(y)

    model = network(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    plan = planned(model, rows, Rule("b", bits=4), Rule())
    assert named(plan, "a.input").scheme.bits == 8
    assert named(plan, "b.input").scheme.bits == 4
    assert sites(plan)["a.input"] == ["a.input"]


def test_a_concat_has_a_common_range_and_who_reads_a_part_alone_one_of_its_own(network) -> None:
    def forward(s, x):
        left, right = x.tanh(), x.exp()
        return s.a(torch.cat([left, right], 1)), s.b(left), s.c(left)

    plan = planned(network(forward, a=nn.Linear(8, 4), b=nn.Linear(4, 4), c=nn.Linear(4, 4)), rows)
    shared, own = edges(plan, "a.input"), edges(plan, "b.input")
    assert [(edge.source, edge.user) for edge in shared] == [("tanh", "cat"), ("exp", "cat")]
    assert [(edge.source, edge.user) for edge in own] == [("tanh", "linear_1"), ("tanh", "linear_2")]
    assert (sites(plan)["a.input"], sites(plan)["b.input"]) == (["a.input"], ["b.input", "c.input"])


def test_who_reads_a_concat_through_another_shares_its_rounding(network) -> None:
    """What both read is handed over by one edge, from the tensor to the first concat."""

    def forward(s, x):
        both = torch.cat([x.tanh(), x.exp()], 1)
        return s.a(both), s.b(torch.cat([both, x.sin()], 1))

    plan = planned(network(forward, a=nn.Linear(8, 4), b=nn.Linear(12, 4)), rows)
    assert {edge.source for edge in edges(plan, "a.input")} == {"tanh", "exp", "sin"}
    assert sites(plan)["a.input"] == ["a.input", "b.input"]


@pytest.fixture(scope="module")
def transformer():
    return capture(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True), torch.randn(2, 3, 8))


def test_parts_of_a_packed_projection_have_ranges_of_their_own(transformer) -> None:
    plan = make_plan(transformer, target="paper")
    products = [name for name in sites(plan) if "matmul" in name]
    assert products == [f"self_attn.{product}.{role}" for product in ("matmul", "matmul@1") for role in ("lhs", "rhs")]


def test_a_product_of_a_tensor_with_itself_has_one_quantizer_whatever_its_sides_ask_for(network, tmp_path) -> None:
    model = network(lambda s, x: (lambda y: y @ y)(s.a(x)), a=nn.Linear(4, 4))
    x = torch.randn(2, 4, 4)
    plan = planned(model, x, Rule(role="rhs", bits=7), Rule())
    assert sites(plan)["matmul.lhs"] == ["matmul.lhs", "matmul.rhs"]
    for same in (plan, copy.deepcopy(plan), pickle.loads(pickle.dumps(plan))):
        net = octavo.choose_params(same, octavo.observe(same, [x]))
        octavo.save(net, tmp_path / "net.octavo", engine="reference")
        torch.testing.assert_close(octavo.load(tmp_path / "net.octavo")(x), octavo.simulate(net)(x))


def test_a_plan_and_its_markers_are_of_one_graph(network) -> None:
    model = network(lambda s, x: s.a(x), a=nn.Linear(4, 4))
    plan, other = planned(model, rows), capture(model, rows)
    with pytest.raises(
        QuantizationError, match=r"its markers stand in a graph with another a\.weight; put the whole on"
    ):
        replace(plan, graph=other)


def test_split_parts_have_ranges_of_their_own(network) -> None:
    model = network(lambda s, x: (lambda q, k: q @ k.mT)(*s.a(x).chunk(2, -1)), a=nn.Linear(4, 8))
    plan = planned(model, torch.randn(2, 3, 4))
    assert [name for name in sites(plan) if "matmul" in name] == ["matmul.lhs", "matmul.rhs"]


# ---- residual additions


def additions(plan) -> dict[str, set[str]]:
    """{role of the addition: sources}."""
    found = {}
    for quantizer in plan.quantizers:
        for site in quantizer.sites:
            if site.operation == "add":
                found[site.name] = {edge.source for edge in edges(plan, site.name) if edge.user == site.node}
    return found


IDENTITY = {
    "paper": {"add.lhs": {"conv2d_1"}, "add.rhs": {"x"}},
    "tensorrt": {"add.rhs": {"x"}},
    "openvino": {"add.rhs": {"x"}},
    "onnxruntime": {"add.lhs": {"conv2d_1"}, "add.rhs": {"x"}},  # or its convolution would run in float
    "onednn": {"add.rhs": {"x"}},
}
DOWNSAMPLING = {
    "paper": {"add.lhs": {"conv2d_2"}, "add.rhs": {"conv2d"}},
    "tensorrt": {"add.rhs": {"conv2d"}},  # the convolution computed last is fused with the addition
    "openvino": {"add.rhs": {"conv2d"}},
    "onnxruntime": {"add.lhs": {"conv2d_2"}, "add.rhs": {"conv2d"}},
    "onednn": {"add.rhs": {"conv2d"}},
}


@pytest.mark.parametrize(("downsample", "expected"), [(False, IDENTITY), (True, DOWNSAMPLING)])
def test_basic_block(downsample, expected, basic_block) -> None:
    graph = capture(basic_block(downsample=downsample), image)
    assert {target: additions(make_plan(graph, target=target)) for target in TARGETS} == expected


def test_skip_and_convolution_of_a_block_share_one_quantizer(basic_block) -> None:
    plan = planned(basic_block(), image)
    assert sites(plan)["conv1.input"] == ["conv1.input", "add.rhs"]


def test_mobilenet_inverted_residual(network, trained) -> None:
    def forward(s, x):
        return x + s.project(s.depthwise(s.expand(x).clamp(0, 6)).clamp(0, 6))

    model = network(
        forward,
        expand=nn.Sequential(nn.Conv2d(4, 8, 1, bias=False), trained(nn.BatchNorm2d(8))),
        depthwise=nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), trained(nn.BatchNorm2d(8))),
        project=nn.Sequential(nn.Conv2d(8, 4, 1, bias=False), trained(nn.BatchNorm2d(4))),
    )
    assert additions(planned(model, image)) == {"add.lhs": {"inputs_0"}, "add.rhs": {"conv2d_2"}}
    assert additions(planned(model, image, target="openvino")) == {"add.lhs": {"inputs_0"}}


OUTPUTS = {
    "pooled": (lambda s, x: s.b(s.a(x).relu().mean((2, 3))), ["mean"]),
    "activated": (lambda s, x: s.b(F.silu(s.a(x)).mean((2, 3))), ["silu"]),
    "moved, then normalised": (lambda s, x: s.b(s.n(s.a(x).flatten(2)).mean(2)), ["view"]),
    "read by one and a mean": (lambda s, x: (s.c(s.a(x)), s.a(x).abs().mean()), ["abs_1"]),
    "read by a linear": (lambda s, x: s.b(s.a(x).flatten(2).mT), []),
    "returned": (lambda s, x: (s.a(x).relu().flatten(1), s.b(x.mean((2, 3)))), []),
    "returned, and read": (lambda s, x: (y := s.a(x), s.b(y.mean((2, 3)))), []),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_what_a_convolution_returns_is_rounded_for_every_reader_but_the_user(case, network) -> None:
    """ONNX Runtime convolves on integers only what it rounds at once."""
    forward, expected = OUTPUTS[case]
    children = {"a": nn.Conv2d(4, 4, 3), "b": nn.Linear(4, 2), "c": nn.Conv2d(4, 2, 1), "n": nn.LayerNorm(36)}
    graph = capture(network(forward, **children), torch.randn(2, 4, 8, 8))
    quantizers = make_plan(graph, target="onnxruntime").quantizers
    found = [site.node for quantizer in quantizers for site in quantizer.sites if site.role == "output"]
    assert found == expected
    assert not any(".output" in name for name in sites(make_plan(graph, target="openvino")))


def test_a_convolution_that_is_left_in_float_returns_real_values(network) -> None:
    model = network(lambda s, x: s.b(s.a(x).mean((2, 3))), a=nn.Conv2d(4, 4, 3), b=nn.Linear(4, 2))
    for rule in (Rule("a", role="weight", skip=True), Rule("a", skip=True)):
        plan = planned(model, torch.randn(2, 4, 8, 8), rule, Rule("*"), target="onnxruntime")
        assert not any(name.endswith(".output") for name in sites(plan))


def test_transformer_block(transformer) -> None:
    expected = {
        "paper": ["add.lhs", "add.rhs", "add@1.lhs", "add@1.rhs"],
        "openvino": [],  # a linear's sum goes to a layer-norm in float
        "onnxruntime": [],
        "tensorrt": [],
        "onednn": [],
    }
    assert {target: list(additions(make_plan(transformer, target=target))) for target in expected} == expected


def test_a_convolution_fuses_with_the_addition_through_a_reshape_of_dynamic_size(network) -> None:
    def forward(s, x):
        tokens = x.tanh()
        return tokens + s.conv(tokens.transpose(1, 2)).reshape(x.shape[0], 6, 4)

    plan = planned(network(forward, conv=nn.Conv1d(4, 4, 1)), torch.randn(2, 6, 4), target="openvino")
    assert list(additions(plan)) == ["add.lhs"]


NOT_RESIDUAL = {
    "mask": lambda s, x, mask: (s.a(x) @ s.a(x).mT + mask).softmax(-1),
    "position table": lambda s, x, mask: s.a(x + s.table),
    "position table looked up": lambda s, x, mask: s.a(x.tanh() + s.embed(torch.arange(3))),
    "number": lambda s, x, mask: s.a(x) + 1.0,
    "bias": lambda s, x, mask: s.a(x) + s.a.bias,
    "broadcast": lambda s, x, mask: s.a(x) + s.a(x).mean(-1, keepdim=True),
    "nothing heavy on either branch": lambda s, x, mask: s.a(x.tanh() + x.exp()),
    "from two inputs": lambda s, x, mask: s.a(x.tanh()) @ x.mT + mask.exp(),
    "difference": lambda s, x, mask: s.a(x) - x,
}


def test_other_additions_are_not_residual(network) -> None:
    cases = {}
    for i, forward in enumerate(NOT_RESIDUAL.values()):
        children = {"a": nn.Linear(4, 4), "table": nn.Parameter(torch.randn(3, 4)), "embed": nn.Embedding(3, 4)}
        cases[str(i)] = network(forward, **children)
    model = network(lambda s, x, mask: [case(x, mask) for case in s.cases.values()], cases=nn.ModuleDict(cases))
    graph = capture(model, (torch.randn(2, 3, 4), torch.randn(2, 3, 3)))
    assert sum(node.target is aten.add.Tensor for node in graph.module.graph.nodes) >= len(NOT_RESIDUAL) - 1
    assert additions(make_plan(graph, target="paper")) == {}


# ---- schemes and targets


def test_paper_quantizes_everything_signed(basic_block) -> None:
    plan = planned(basic_block(), image)
    assert {q.scheme for q in plan.quantizers if not q.constant} == {INT8}
    assert {q.scheme for q in plan.quantizers if q.constant} == {INT8_PER_CHANNEL}


NONNEGATIVE = {
    "relu": lambda x: x.relu(),
    "relu6": lambda x: F.relu6(x),
    "clamp": lambda x: x.clamp(0, 6),
    "clamp_min": lambda x: x.clamp_min(0.5),
    "hardtanh": lambda x: F.hardtanh(x, 0.0, 6.0),
    "sigmoid": lambda x: x.sigmoid(),
    "hardsigmoid": lambda x: F.hardsigmoid(x),
    "softmax": lambda x: x.softmax(-1),
    "relu, pooled": lambda x: F.avg_pool2d(x.relu(), 2),
    "relu, averaged": lambda x: x.relu().mean((2, 3), keepdim=True).expand(-1, -1, 4, 4),
    "relu, moved": lambda x: F.max_pool2d(F.pad(x.relu(), (1, 1, 1, 1)), 3, 1).transpose(2, 3),
    "sum of two": lambda x: x.relu() + x.exp(),
    "product of two": lambda x: x.relu() * x.sigmoid(),
    "scaled": lambda x: x.relu() * 0.5,
    "concat of two": lambda x: torch.cat([x.relu(), x.sigmoid()], 1)[:, :4],
}
MAYBE_NEGATIVE = {
    "the input": lambda x: x,
    "hardswish": lambda x: F.hardswish(x),
    "gelu": lambda x: F.gelu(x),
    "leaky_relu": lambda x: F.leaky_relu(x),
    "silu": lambda x: F.silu(x),
    "tanh": lambda x: x.tanh(),
    "clamp from below zero": lambda x: x.clamp(-1, 6),
    "clamp from above only": lambda x: x.clamp(max=6),
    "hardtanh": lambda x: F.hardtanh(x),
    "negative factor": lambda x: x.relu() * -0.5,
    "negative term": lambda x: x.relu() + -0.5,
    "difference": lambda x: x.relu() - x.sigmoid(),
    "subtracted by alpha": lambda x: torch.add(x.relu(), x.sigmoid(), alpha=-1),
    "negative padding": lambda x: F.pad(x.relu(), (1, 1, 1, 1), value=-1.0)[:, :, :4, :4],
    "concat with one that may be": lambda x: torch.cat([x.relu(), x], 1)[:, :4],
}


def schemes_after(functions) -> dict[str, Scheme]:
    class Many(nn.Module):
        def __init__(self):
            super().__init__()
            self.convs = nn.ModuleDict({str(i): nn.Conv2d(4, 4, 1) for i in range(len(functions))})
            self.before = nn.ModuleList([nn.Conv2d(4, 4, 1) for _ in functions])

        def forward(self, x):
            calls = zip(functions.values(), self.before, self.convs.values(), strict=True)
            return [conv(function(before(x))) for function, before, conv in calls]

    plan = planned(Many(), torch.randn(2, 4, 4, 4), Rule("convs"), target="openvino")
    return {case: named(plan, f"convs.{i}.input").scheme for i, case in enumerate(functions)}


def test_what_cannot_be_negative_gains_a_bit_where_the_target_can() -> None:
    assert schemes_after(NONNEGATIVE) == dict.fromkeys(NONNEGATIVE, UINT8)


def test_what_may_be_negative_and_is_convolved_has_a_zero_point() -> None:
    assert schemes_after(MAYBE_NEGATIVE) == dict.fromkeys(MAYBE_NEGATIVE, AFFINE_UINT8)


def test_what_may_be_negative_and_is_multiplied_stays_signed() -> None:
    plan = planned(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)), rows, target="openvino")
    assert named(plan, "0.input").scheme == named(plan, "2.input").scheme == INT8_FULL


def test_what_is_added_to_a_convolution_is_rounded_as_the_convolution_beside_it_reads_it(network) -> None:
    def forward(self, x):
        y = x.tanh()
        return y + self.b(F.relu(self.a(y)))

    plan = planned(network(forward, a=nn.Conv2d(4, 4, 1), b=nn.Conv2d(4, 4, 1)).eval(), image, target="openvino")
    assert named(plan, "a.input").scheme == AFFINE_UINT8
    additions = [q for q in plan.quantizers if any(site.operation == "add" for site in q.sites)]
    assert {q.scheme for q in additions} <= {AFFINE_UINT8}


def test_a_rules_own_scheme_is_not_second_guessed(network) -> None:
    model = network(lambda s, x: s.a(x.relu()), a=nn.Linear(4, 4))
    plan = planned(model, rows, Rule(role="input", scheme=INT8), Rule(), target="openvino")
    assert named(plan, "a.input").scheme == INT8
    plan = planned(model, rows, Rule(role="input", bits=4), Rule(), target="openvino")
    assert named(plan, "a.input").scheme == Scheme(signed=False, bits=4)


def test_rule_schemes() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ConvTranspose2d(4, 2, 1))
    plan = planned(model, image, Rule(role="weight", scheme=Scheme(axis=0, bits=4)), Rule(scheme=AFFINE_UINT8))
    assert named(plan, "0.weight").scheme == Scheme(axis=0, bits=4)
    assert named(plan, "1.weight").scheme == Scheme(axis=1, bits=4)  # axis 0 stands for the output channel
    assert named(plan, "0.input").scheme == AFFINE_UINT8
    per_tensor = planned(model, image, Rule(role="weight", scheme=INT8), Rule())
    assert {q.scheme for q in per_tensor.quantizers} == {INT8}


def test_per_channel_activations_raise() -> None:
    with pytest.raises(
        QuantizationError, match=r"^0\.input: .* axis 0, but its size is only known when the network runs"
    ):
        planned(nn.Sequential(nn.Linear(4, 4)), rows, Rule(scheme=INT8_PER_CHANNEL))


def test_weights_along_an_inner_axis_raise() -> None:
    with pytest.raises(QuantizationError, match=r"^0\.weight: .* axis 1, but the output channels .* lie along axis 0"):
        planned(nn.Sequential(nn.Linear(4, 4)), rows, Rule(role="weight", scheme=Scheme(axis=1)))


def test_unknown_target_lists_the_known_ones() -> None:
    with pytest.raises(
        QuantizationError, match="'abacus', but the known targets are paper, tensorrt, openvino, onnxruntime, onednn"
    ):
        target_named("abacus")


def test_a_target_of_ones_own() -> None:
    target = Target(name="mine", activation=AFFINE_UINT8, weight=INT8, float_operations={"linear": "linear is tabu"})
    model = nn.Sequential(nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(32, 2))
    plan = planned(model, image, target=target)
    assert plan.target is target
    assert list(sites(plan)) == ["0.input", "0.weight", "2.weight"]
    assert [(kept.site, kept.reason) for kept in plan.coverage.kept_float] == [("2", "linear is tabu")]


# ---- coverage and errors


def test_coverage_names_every_operation_left_in_float_and_why(network) -> None:
    def forward(s, x):
        y = s.head(s.body(x)) + s.stem(x)
        return torch.einsum("bi,bi->bi", y, y), F.bilinear(y, y, s.b), torch.cdist(y, y)

    children = {name: nn.Linear(4, 4) for name in ("stem", "body", "head")}
    model = network(forward, b=nn.Parameter(torch.randn(2, 4, 4)), **children)
    plan = planned(
        model, rows, Rule("head", skip=True), Rule("stem", role="weight", skip=True), Rule("stem"), Rule("body")
    )
    assert str(plan.coverage).splitlines() == [
        "1 of 6 compute-heavy operations quantized",
        "  head: float, Rule('head', skip=True) leaves its input in float",
        "  stem: float, Rule('stem', role='weight', skip=True) leaves its weight in float",
        "  einsum: float, this einsum is not one matrix product",
        "  bilinear: float, bilinear has no integer form",
        "  cdist: float, cdist has no integer form",
    ]


def test_coverage_of_sites_without_a_rule() -> None:
    plan = planned(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), rows, Rule("0"))
    assert [(kept.site, kept.reason) for kept in plan.coverage.kept_float] == [("1", "no rule matches its input")]
    assert (plan.coverage.quantized, plan.coverage.total) == (1, 2)


@torch.library.custom_op("octavo_tests::deformed", mutates_args=())
def deformed(x: torch.Tensor, weight: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x + offset, weight)


@deformed.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x + offset, weight)


def test_an_operator_of_another_library_that_reads_a_weight_is_counted(network) -> None:
    """Such as torchvision's deformable convolution: a detector's coverage said 100 % without it."""
    weight = nn.Parameter(torch.randn(2, 4, 3, 3))
    model = network(lambda s, x: deformed(s.a(x), s.w, x), a=nn.Conv2d(4, 4, 1), w=weight)
    coverage = planned(model, image).coverage
    assert (coverage.quantized, coverage.total) == (1, 2)
    assert [kept.reason for kept in coverage.kept_float] == ["octavo_tests.deformed has no integer form"]
    assert coverage.layers == ("a",)


def test_every_compute_heavy_operation_has_a_name_of_its_own(network) -> None:
    model = network(lambda s, x: torch.cdist(torch.cdist(s.a(s.a(x)), x), x), a=nn.Linear(4, 4))
    graph = capture(model, torch.randn(4, 4), dynamic_axes=())
    names = list(compute_heavy(graph, TARGETS["openvino"]).values())
    assert names == ["a", "a@1", "cdist", "cdist_1"]


def test_every_engine_has_the_target_that_it_runs_best() -> None:
    engines = ("openvino", "onnxruntime", "inductor", "reference", "simulation")
    assert [target_for(name).name for name in engines] == ["openvino", "onnxruntime", "onednn", "paper", "paper"]
    plan = make_plan(capture(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)), rows), target="onnxruntime")
    schemes = [quantizer.scheme for quantizer in plan.quantizers if "input" in quantizer.name]
    assert all(not scheme.signed and not scheme.symmetric for scheme in schemes)


def test_recurrent_layers_are_quantized_or_named() -> None:
    graph = capture(nn.Sequential(nn.LSTM(4, 3, 2, batch_first=True)), torch.randn(2, 2, 4))
    for target in TARGETS:
        plan = make_plan(graph, target=target)
        stored = ["0.weight_ih", "0.weight_hh", "0@1.weight_ih", "0@1.weight_hh"]
        assert [name for name in sites(plan) if "weight" in name] == stored
        kept = [kept.site for kept in plan.coverage.kept_float]
        assert kept == ([] if target == "paper" else ["0", "0@1"])


def test_cells_and_plain_recurrent_layers_are_named(network) -> None:
    model = network(
        lambda s, x: s.head(s.cell(x[:, 0])[0] + s.gru(x[:, 1]) + s.rnn(x)[0][:, -1]),
        head=nn.Linear(3, 2),
        cell=nn.LSTMCell(4, 3),
        gru=nn.GRUCell(4, 3),
        rnn=nn.RNN(4, 3, batch_first=True),
    )
    plan = planned(model, torch.randn(2, 2, 4))
    assert (plan.coverage.quantized, plan.coverage.total) == (1, 4)
    assert [kept.reason for kept in plan.coverage.kept_float] == [
        "a single cell has no integer form; use an LSTM",
        "a single cell has no integer form; use a GRU",
        "a plain RNN has no integer form; use an LSTM or GRU",
    ]


def test_quantizing_nothing_raises() -> None:
    with pytest.raises(QuantizationError, match="none of the 0 compute-heavy operations is left to quantize"):
        planned(nn.Sequential(nn.ReLU()), rows)
    with pytest.raises(QuantizationError, match=r"Rule\('\*', skip=True\), but none of the 1 compute-heavy"):
        planned(nn.Linear(4, 4), rows, Rule(skip=True))
    with pytest.raises(QuantizationError, match=r"\(cdist: cdist has no integer form\)"):
        planned(Distance(), rows)


class Distance(nn.Module):
    def forward(self, x):
        return torch.cdist(x, x)


def test_unused_rules_raise_from_make_plan() -> None:
    with pytest.raises(QuantizationError, match=r"matches none of the 4 sites \(layers 0, 2\)"):
        planned(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), rows, Rule("1", skip=True), Rule())


def test_the_plan_reads_the_graph_only(basic_block) -> None:
    graph = capture(basic_block(), image)
    before = str(graph.module.graph)
    make_plan(graph)
    assert str(graph.module.graph) == before


def test_a_size_in_the_graph_is_no_tensor(network) -> None:
    """view(x.size(0), …) behind what cannot be negative, and x + x.size(0): numbers among the arguments."""

    def forward(self, x):
        y = F.relu(self.first(x)).view(x.size(0), -1)
        z = (self.second(y) + y).relu().reshape(x.size(0), 4, 4).transpose(1, 2).flatten(1)
        return self.second(z.expand(x.size(0), -1) * x.size(0)) + x.size(0)

    graph = capture(network(forward, first=nn.Linear(8, 16), second=nn.Linear(16, 16)), torch.randn(3, 8))
    for target in TARGETS:
        assert make_plan(graph, target=target).coverage.total == 3


def test_the_second_factor_of_a_product_has_a_scheme_of_its_own(network) -> None:
    """Products and computed weights; not the right-hand side of a sum, and nothing where the target has none."""
    narrow = Scheme(bits=7, full_range=True)

    def forward(self, x, y):
        return F.linear(self.layer(x), y.mean(0)) @ y.sum(0).abs(), x @ x.transpose(1, 2)

    graph = capture(network(forward, layer=nn.Linear(8, 8)), (torch.randn(3, 4, 8), torch.randn(3, 8, 8)))
    plan = make_plan(graph, target=replace(TARGETS["openvino"], weight=Scheme(axis=0), factor=narrow))
    bits = {site.name: quantizer.scheme.bits for quantizer in plan.quantizers for site in quantizer.sites}
    assert {name for name, width in bits.items() if width == 7} == {"linear.weight", "matmul.rhs", "matmul@1.rhs"}
    plan = make_plan(graph, target=replace(TARGETS["openvino"], weight=Scheme(axis=0), factor=None))
    assert {quantizer.scheme.bits for quantizer in plan.quantizers} == {8}


def sizes(self, x):
    y = self.conv(x)
    y = y + F.relu(self.conv(x))
    return self.head(y.view(x.size(0), -1))


def expanded(self, x):
    y = self.conv(x).flatten(2)
    return self.linear(y.expand(x.size(0), y.size(1), y.size(2))[: x.shape[0]].reshape(x.shape[0] * 4, -1))


def of_halves(self, x):
    q, k = self.q(x), self.k(x)
    values = torch.cat([self.part(x), self.other(x)], -1)
    q, k, values = (t.view(x.size(0), x.size(1), 2, 8).transpose(1, 2) for t in (q, k, values))
    return F.scaled_dot_product_attention(q, k, values)


def of_a_stack(self, x):
    values = torch.stack([self.q(x), self.k(x)], 1)
    return (self.q(x) @ self.k(x).transpose(1, 2)).softmax(-1).unsqueeze(1) @ values


def of_a_parameter(self, x):
    return (self.q(x) @ self.k(x).transpose(1, 2)).softmax(-1) @ self.part.weight.t()[:6]


LAYERS = {"conv": nn.Conv2d(4, 4, 3, padding=1), "head": nn.Linear(64, 3), "linear": nn.Linear(16, 3)}
HEADS = {"q": nn.Linear(16, 16), "k": nn.Linear(16, 16), "part": nn.Linear(16, 8), "other": nn.Linear(16, 8)}
READS = {  # {name: (forward, its layers, an example)}
    "a view by a size of the input": (sizes, LAYERS, (2, 4, 4, 4)),
    "an expand, a slice and a reshape by sizes": (expanded, LAYERS, (2, 4, 4, 4)),
    "values that are a concat": (of_halves, HEADS, (2, 6, 16)),
    "values that are a stack": (of_a_stack, HEADS, (2, 6, 16)),
    "values that are a parameter": (of_a_parameter, HEADS, (2, 6, 16)),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", READS)
def test_what_reads_a_tensor_beside_sizes_and_lists_is_planned(name, target, network, calibrated) -> None:
    forward, layers, shape = READS[name]
    net = calibrated(network(forward, **layers), x := torch.randn(*shape), target=target)
    graph = net.graph
    assert octavo.sqnr_db(graph(x), simulate(net)(x)) > 20
