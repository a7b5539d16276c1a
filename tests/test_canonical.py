"""Every spelling of a matrix product becomes `matmul`, and computes what torch computes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from octavo.errors import QuantizationError
from octavo.network.graph import capture
from octavo.network.placement import make_plan

aten = torch.ops.aten


def operations(graph) -> list[str]:
    return [str(node.target) for node in graph.module.graph.nodes if node.op == "call_function"]


def heavy(graph) -> list[str]:
    return [name for name in operations(graph) if name.startswith(("aten.matmul", "aten.einsum", "aten.linear"))]


def sized(sizes: dict[str, int], term: str, batch: int | None = None) -> torch.Tensor:
    shape = [sizes[letter] for letter in term]
    return torch.randn(batch or shape[0], *shape[1:])


SIZES = dict(zip("abchdijklmnoqtvw", (2, 4, 3, 2, 5, 3, 4, 5, 6, 2, 2, 7, 4, 5, 3, 3), strict=True))

PRODUCTS = {
    "plain": "bij,bjk->bik",
    "two batch letters, transposed rhs": "bhqd,bhkd->bhqk",
    "heads behind the sequence": "bqhd,bkhd->bhqk",
    "permuted output": "bhqk,bkhd->bqhd",
    "several summed letters": "bijd,bkjd->bik",
    "several row letters": "bijd,bkd->bijk",
    "several column letters": "bid,bjkd->bijk",
    "columns before rows": "bijc,bjkc->bki",
    "no rows and no columns": "bi,bi->b",
    "no columns": "bij,bj->bi",
    "batch moved last": "bij,bjk->kib",
    "output left out": "bij,bjk",
    "ellipsis in one operand": "b...j,bjk->b...k",
    "ellipsis in both": "b...ij,b...jk->b...ik",
    "spaces": "b i j , b j k -> b i k",
}


def terms_of(equation: str) -> list[str]:
    return equation.replace(" ", "").replace("...", "m").partition("->")[0].split(",")


def every_einsum(s, inputs):
    return {name: torch.einsum(s.equations[name], *operands) for name, operands in inputs.items()}


def test_einsums_that_are_one_product(network, assert_same) -> None:
    model = network(every_einsum, equations=PRODUCTS)

    def batch(n):
        return ({name: tuple(sized(SIZES, term, n) for term in terms_of(PRODUCTS[name])) for name in PRODUCTS},)

    graph = capture(model, batch(1))
    assert heavy(graph) == ["aten.matmul.default"] * len(PRODUCTS)
    assert_same(model, graph, batch(1), batch(7))


WEIGHTED = ["bi,ij->bj", "bi,oi->bo", "bij,hjk->bhik", "bthd,hdo->bto", "bchw,oc->bohw", "bi,i->b", "bctv,vw->bctw"]


def test_einsums_with_a_weight_find_it(network, assert_same) -> None:
    def forward(s, inputs):
        return [torch.einsum(equation, x, s.w[i]) for i, (equation, x) in enumerate(inputs.items())]

    weights = nn.ParameterList([nn.Parameter(sized(SIZES, terms_of(equation)[1])) for equation in WEIGHTED])
    model = network(forward, w=weights)

    def batch(n):
        return ({equation: sized(SIZES, terms_of(equation)[0], n) for equation in WEIGHTED},)

    graph = capture(model, batch(2))
    sites = [(q.sites[0].role, q.constant) for q in make_plan(graph, target="paper").quantizers]
    assert sites == [("lhs", False), ("weight", True)] * len(WEIGHTED)
    assert_same(model, graph, batch(1), batch(7))


NOT_PRODUCTS = {
    "element by element": "bi,bi->bi",
    "outer": "bi,bj->bij",
    "letters of one operand alone are summed": "bij,bkl->bil",
    "diagonal": "bii,bij->bij",
    "one operand": "bij->bji",
    "three operands": "bij,bjk,bkl->bil",
}


def test_einsums_that_are_no_product_stay_and_are_reported(network, assert_same) -> None:
    sizes = {**SIZES, "j": SIZES["i"]}
    model = network(lambda s, inputs, x: (every_einsum(s, inputs), s.a(x)), equations=NOT_PRODUCTS, a=nn.Linear(3, 3))

    def batch(n):
        sides = {name: terms_of(equation) for name, equation in NOT_PRODUCTS.items()}
        return {name: tuple(sized(sizes, term, n) for term in sides[name]) for name in sides}, torch.randn(n, 3)

    graph = capture(model, batch(2))
    assert heavy(graph) == ["aten.einsum.default"] * len(NOT_PRODUCTS) + ["aten.linear.default"]
    assert_same(model, graph, batch(2), batch(7))
    kept = make_plan(graph, target="paper").coverage.kept_float
    assert [k.reason for k in kept] == ["this einsum is not one matrix product"] * len(NOT_PRODUCTS)
    assert kept[0].site == "einsum"


def test_an_axis_of_size_one_that_einsum_repeats_is_no_product(network, assert_same) -> None:
    model = network(lambda s, x: torch.einsum("bij,bjk->bik", s.a(x)[:, :, :1], x.mT), a=nn.Linear(4, 4))
    graph = capture(model, torch.randn(2, 3, 4))
    assert "aten.einsum.default" in operations(graph)
    assert_same(model, graph, torch.randn(7, 3, 4))


def test_batch_and_sequence_may_both_be_dynamic(network, assert_same) -> None:
    model = network(lambda s, x, y: torch.einsum("bqhd,bkhd->bhqk", x, y))
    graph = capture(model, (torch.randn(2, 3, 2, 4), torch.randn(2, 3, 2, 4)), dynamic_axes=(0, 1))
    assert_same(model, graph, (torch.randn(1, 7, 2, 4), torch.randn(1, 7, 2, 4)))


SPELLINGS = {
    "@": lambda s, x: x @ s.w,
    "mm": lambda s, x: torch.mm(x, s.w),
    "bmm": lambda s, x: torch.bmm(x[:, None], x[:, :, None] * s.v[None]),
    "mv": lambda s, x: torch.mv(x, s.v[:, 0]),
    "addmv": lambda s, x: torch.addmv(x[:, 0], x, s.v[:, 0], alpha=0.5, beta=2),
    "inner": lambda s, x: torch.inner(x, s.w.T),
    "tensordot": lambda s, x: torch.tensordot(x, s.w, dims=([1], [0])),
    "tensordot of two axes": lambda s, x: torch.tensordot(x[:, None] * s.w.T, s.w, dims=([1, 2], [1, 0])),
    "chain": lambda s, x: torch.matmul(s.w.T, x.T),
}


def test_spellings_of_a_product(network, assert_same) -> None:
    weights = {"w": nn.Parameter(torch.randn(4, 5)), "v": nn.Parameter(torch.randn(4, 1))}
    model = network(lambda s, x: {name: spell(s, x) for name, spell in SPELLINGS.items()}, **weights)
    graph = capture(model, torch.randn(2, 4))
    assert heavy(graph) == ["aten.matmul.default"] * len(SPELLINGS)
    assert make_plan(graph, target="paper").coverage.quantized == len(SPELLINGS)
    assert_same(model, graph, torch.randn(1, 4), torch.randn(7, 4))


def test_addmm_and_baddbmm(network, assert_same) -> None:
    factors = [(1, 1), (2.5, 0.5), (0.125, 1), (2, 0)]

    def forward(s, bias, x, y):
        batched = [torch.baddbmm(bias, x, y, alpha=alpha, beta=beta) for alpha, beta in factors]
        return batched, [torch.addmm(s.b, x[:, 0], s.w, alpha=alpha, beta=beta) for alpha, beta in factors]

    model = network(forward, w=nn.Parameter(torch.randn(4, 6)), b=nn.Parameter(torch.randn(6)))
    batches = [(torch.randn(n, 3, 5), torch.randn(n, 3, 4), torch.randn(n, 4, 5)) for n in (2, 7)]
    graph = capture(model, batches[0])
    assert heavy(graph) == ["aten.matmul.default"] * 8
    assert_same(model, graph, *batches)


def test_beta_zero_ignores_even_nan(network) -> None:
    model = network(lambda s, bias, x, y: torch.baddbmm(bias, x, y, beta=0))
    graph = capture(model, (torch.randn(2, 3, 5), torch.randn(2, 3, 4), torch.randn(2, 4, 5)))
    x, y = torch.randn(2, 3, 4), torch.randn(2, 4, 5)
    torch.testing.assert_close(graph(torch.full((2, 3, 5), torch.nan), x, y), x @ y)


def query_key_value(n: int, heads: int = 4, key_heads: int = 4) -> tuple[torch.Tensor, ...]:
    return torch.randn(n, heads, 5, 8), torch.randn(n, key_heads, 6, 8), torch.randn(n, key_heads, 6, 3)


def some_allowed(n: int) -> torch.Tensor:
    allowed = torch.rand(n, 1, 5, 6) > 0.3
    allowed[..., 0] = True
    return allowed


MASKS = {
    "none": lambda n: None,
    "bool": some_allowed,
    "float": lambda n: torch.randn(n, 1, 5, 6),
    "minus infinity": lambda n: torch.zeros(n, 1, 5, 6).masked_fill(~some_allowed(n), -torch.inf),
}


def test_attention_with_masks(network, assert_same) -> None:
    def forward(s, q, k, v, masks):
        scaled = [F.scaled_dot_product_attention(q, k, v, mask, scale=0.3) for mask in masks.values()]
        return scaled, [F.scaled_dot_product_attention(q, k, v, mask) for mask in masks.values()]

    model = network(forward)
    batches = [(*query_key_value(n), {name: make(n) for name, make in MASKS.items()}) for n in (1, 2, 7)]
    graph = capture(model, batches[0])
    assert heavy(graph) == ["aten.matmul.default"] * 4 * len(MASKS)
    assert not any("scaled_dot" in name for name in operations(graph))
    assert_same(model, graph, *batches)


def test_causal_attention_between_unequal_lengths(network, assert_same) -> None:
    model = network(lambda s, q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True))
    graph = capture(model, query_key_value(1))
    assert_same(model, graph, query_key_value(2), query_key_value(7))


def test_causal_attention_with_a_dynamic_sequence(network, assert_same) -> None:
    model = network(lambda s, x: F.scaled_dot_product_attention(x, x, x, is_causal=True))
    graph = capture(model, torch.randn(1, 2, 4, 8), dynamic_axes=(0, 2))
    assert_same(model, graph, torch.randn(3, 2, 9, 8), torch.randn(1, 2, 1, 8))


def test_grouped_query_attention(network, assert_same) -> None:
    model = network(lambda s, q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True))
    graph = capture(model, query_key_value(1, 4, 2))
    assert_same(model, graph, query_key_value(2, 4, 2), query_key_value(7, 4, 2))


def test_attention_without_heads(network, assert_same) -> None:
    model = network(lambda s, x: F.scaled_dot_product_attention(x, x, x))
    assert_same(model, capture(model, torch.randn(2, 5, 8)), torch.randn(7, 5, 8))


def test_a_row_that_the_mask_blanks_out_gives_the_mean_of_the_values(network) -> None:
    model = network(lambda s, q, k, v, m: F.scaled_dot_product_attention(q, k, v, m))
    q, k, v = query_key_value(2)
    graph = capture(model, (q, k, v, some_allowed(2)))
    nowhere = torch.zeros(2, 1, 5, 6, dtype=torch.bool)
    torch.testing.assert_close(graph(q, k, v, nowhere), v.mean(2, keepdim=True).expand(-1, -1, 5, -1))


ATTENTION_LAYERS = {
    "encoder": lambda: nn.TransformerEncoderLayer(16, 4, 32, batch_first=True),
    "encoder, norm first, gelu": lambda: nn.TransformerEncoderLayer(
        16, 4, 32, batch_first=True, norm_first=True, activation="gelu"
    ),
}


@pytest.mark.parametrize("layer", ATTENTION_LAYERS)
def test_transformer_encoders(layer, assert_same) -> None:
    model = ATTENTION_LAYERS[layer]()
    graph = capture(model, torch.randn(1, 5, 16))
    assert_same(model, graph, *(torch.randn(n, 5, 16) for n in (1, 2, 7)))


def test_transformer_decoder(assert_same) -> None:
    model = nn.TransformerDecoderLayer(16, 4, 32, batch_first=True)
    graph = capture(model, (torch.randn(1, 5, 16), torch.randn(1, 7, 16)))
    assert_same(model, graph, (torch.randn(3, 5, 16), torch.randn(3, 7, 16)))


def test_multi_head_attention(network, assert_same) -> None:
    widths = {"kdim": 6, "vdim": 5}
    layers = [
        nn.MultiheadAttention(16, 4, batch_first=True, **options)
        for options in ({}, {"add_bias_kv": True, "bias": False}, widths)
    ]

    def forward(s, q, k, v):
        alike = [layer(q, q, q, need_weights=weights) for layer in s.layers[:2] for weights in (True, False)]
        return alike, s.layers[2](q, k, v, need_weights=False)

    model = network(forward, layers=nn.ModuleList(layers))
    batches = [(torch.randn(n, 5, 16), torch.randn(n, 7, 6), torch.randn(n, 7, 5)) for n in (1, 2, 7)]
    graph = capture(model, batches[0])
    assert heavy(graph).count("aten.matmul.default") == 2 * 5
    assert_same(model, graph, *batches)


@pytest.mark.parametrize(
    ("bidirectional", "batch_first", "bias"), [(True, True, True), (False, False, True), (True, False, False)]
)
@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU])
def test_stacked_recurrent_layers_become_single_ones(layer, bidirectional, batch_first, bias, assert_same) -> None:
    model = layer(4, 5, 2, dropout=0.5, bidirectional=bidirectional, batch_first=batch_first, bias=bias).train()
    batch_axis = 0 if batch_first else 1

    def inputs(n):
        return torch.randn(n, 2, 4).transpose(0, batch_axis)

    graph = capture(model, inputs(1), dynamic_axes=(batch_axis,))
    calls = [node for node in graph.module.graph.nodes if node.target in (aten.lstm.input, aten.gru.input)]
    assert [(node.args[4], node.args[7]) for node in calls] == [(1, bidirectional)] * 2
    assert_same(model, graph, inputs(1), inputs(2), inputs(7))
    name = layer.__name__.lower()
    directions = ("", "_reverse") if bidirectional else ("",)
    roles = ["input", *(f"weight_{part}{direction}" for direction in directions for part in ("ih", "hh"))]
    found = [site.name for quantizer in make_plan(graph, target="paper").quantizers for site in quantizer.sites]
    assert found == [f"{call}.{role}" for call in (name, f"{name}@1") for role in roles]


def test_initial_states_of_stacked_layers(assert_same) -> None:
    for model, states in ((nn.LSTM(4, 5, 2, batch_first=True), 2), (nn.GRU(4, 5, 2, batch_first=True), 1)):
        h = tuple(torch.randn(2, 3, 5) for _ in range(states))
        batch = (torch.randn(3, 2, 4), h if states == 2 else h[0])
        assert_same(model, capture(model, batch, dynamic_axes=()), batch)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_projected_lstm_has_a_third_weight(assert_same) -> None:
    model = nn.LSTM(4, 5, 2, proj_size=3, batch_first=True, bidirectional=True)
    graph = capture(model, torch.randn(1, 2, 4))
    assert_same(model, graph, torch.randn(3, 2, 4))
    roles = [q.sites[0].role for q in make_plan(graph, target="paper").quantizers if q.constant]
    one_layer = ["weight_ih", "weight_hh", "weight_hr"]
    assert roles == (one_layer + [role + "_reverse" for role in one_layer]) * 2


def test_time_first_networks_are_told_which_axis_is_the_batch() -> None:
    with pytest.raises(QuantizationError, match=r"dynamic_axes=\(1,\) if the batch is axis 1"):
        capture(nn.LSTM(4, 5), torch.randn(3, 2, 4))
