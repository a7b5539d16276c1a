"""Rows at run time: a scale for every row of what linears and products read, taken while the network runs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import octavo
from conftest import Network, transformer
from octavo.engines import available, target_for
from octavo.engines.onnx import export_onnx
from octavo.engines.onnx_rules import violations
from octavo.engines.rows import with_rows_scaled
from octavo.errors import QuantizationError
from octavo.network.calibrate import choose_params, observe
from octavo.network.graph import capture
from octavo.network.partial import keep_float
from octavo.network.placement import make_plan
from octavo.network.quantized import Quantized
from octavo.network.rule import EVERYTHING, Rule
from octavo.network.simulate import simulate
from octavo.network.target import TARGETS, by_rows
from octavo.numerics.affine import dequantize, params_from_tensor, params_of_rows, quantize, round_through
from octavo.numerics.rows import round_rows
from octavo.numerics.scheme import Scheme
from octavo.recovery.trainable import trainable, trained

ROWS = Scheme(rows=True)
ENGINES = [name for name in available() if name != "tensorrt"]


def planned(network: nn.Module, *inputs: Tensor, engine: str = "simulation", bits: int | None = None) -> Quantized:
    graph = capture(network, inputs)
    plan = make_plan(graph, [Rule("*", bits=bits)] if bits else (EVERYTHING,), target=by_rows(target_for(engine)))
    return choose_params(plan, observe(plan, [inputs]))


def nearness(wanted: Tensor, found: Tensor) -> float:
    wanted, found = wanted.detach().double(), found.detach().double()
    return 10 * float((wanted.square().sum() / (wanted - found).square().sum().clamp(min=1e-300)).log10())


# ---- numbers


@pytest.mark.parametrize("axis", [None, -1, 0, 1, -2])
@pytest.mark.parametrize("scheme", [ROWS, Scheme(rows=True, bits=4), Scheme(rows=True, signed=False)], ids=str)
def test_every_row_is_rounded_on_its_own_largest_value(scheme: Scheme, axis: int | None) -> None:
    scheme = replace(scheme, axis=axis)
    x = torch.randn(5, 7, 6) * torch.logspace(-3, 3, 5)[:, None, None]
    x = x if scheme.signed else x.abs()
    params = params_from_tensor(x, scheme)
    along = -1 if axis is None else axis
    wanted = np.abs(x.double().numpy()).max(axis=along, keepdims=True) / scheme.qmax
    assert params.scale.shape == wanted.shape
    np.testing.assert_array_equal(params.scale.numpy(), wanted.astype(np.float32))
    integers = np.rint(x.numpy() / wanted.astype(np.float32)).clip(scheme.qmin, scheme.qmax)
    np.testing.assert_array_equal(quantize(x, params).numpy(), integers)
    assert quantize(x, params).abs().amax(along).eq(scheme.qmax).all()
    apart = (round_rows(x, scheme) - dequantize(quantize(x, params), params)).abs() / params.scale
    assert float(apart.max()) < 1.01  # nearest neighbours, and those only where x lies at a tie
    assert float((apart > 1e-4).float().mean()) < 0.01


def test_rows_of_zeros_of_one_entry_and_none_at_all() -> None:
    assert torch.equal(round_rows(torch.zeros(3, 4), ROWS), torch.zeros(3, 4))
    x = torch.tensor([[5.0], [-1e-30], [1e30]])
    torch.testing.assert_close(round_rows(x, ROWS), torch.tensor([[5.0], [0.0], [1e30]]))  # a step is 2⁻⁶³ at least
    assert round_rows(torch.zeros(0, 4), ROWS).shape == (0, 4)
    assert params_from_tensor(torch.zeros(2, 3), ROWS).scale.tolist() == [[1.0], [1.0]]


def test_the_gradient_is_one_everywhere() -> None:
    x = (torch.randn(6, 9) * 50).requires_grad_()
    (round_through(x, torch.ones(()), torch.zeros((), dtype=torch.int32), ROWS) * 3).sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 3.0))


def test_scales_that_are_not_known_yet_quantize_nothing() -> None:
    with pytest.raises(QuantizationError, match="scale has shape"):
        quantize(torch.randn(3, 4), params_of_rows(ROWS))
    with pytest.raises(QuantizationError, match="NaN"):
        quantize(torch.tensor([[1.0, float("nan")]]), params_from_tensor(torch.tensor([[1.0, 2.0]]), ROWS))


@pytest.mark.parametrize("fields", [{"symmetric": False}, {"axis": 1, "block": 2}])
def test_rows_are_symmetric_and_whole(fields: dict[str, int]) -> None:
    with pytest.raises(QuantizationError, match="zero is the integer 0 in all of them"):
        Scheme(rows=True, **fields)  # type: ignore[arg-type]


# ---- placement


def test_only_inputs_of_linears_and_matmuls_have_rows() -> None:
    network = Network(
        lambda self, x, y: self.linear(self.conv(x).mean(-1)) @ y, conv=nn.Conv1d(4, 8, 3), linear=nn.Linear(8, 8)
    )
    graph = capture(network, (torch.randn(2, 4, 9), torch.randn(8, 5)))
    rules = [Rule("linear", role="input", scheme=ROWS), Rule("matmul", scheme=ROWS), EVERYTHING]
    plan = make_plan(graph, rules, target="paper")
    rows = {quantizer.name: quantizer.scheme.axis for quantizer in plan.quantizers if quantizer.scheme.rows}
    assert rows == {"linear.input": -1, "matmul.lhs": -1, "matmul.rhs": -2}
    for rule, reason in (
        (Rule("conv", role="input", scheme=ROWS), "a sum of this conv1d does not run along one row alone"),
        (Rule("linear", role="weight", scheme=ROWS), "it is a constant"),
        (Rule("linear", role="input", scheme=Scheme(rows=True, axis=0)), "runs along axis -1, not along axis 0"),
    ):
        with pytest.raises(QuantizationError, match=reason):
            make_plan(graph, [rule, EVERYTHING], target="paper")


def test_a_product_with_itself_has_one_scale() -> None:
    """Its rows on the left are its columns on the right: one tensor is rounded once."""
    network = Network(lambda self, x: x @ x)
    graph = capture(network, (torch.randn(6, 6),), dynamic_axes=())
    plan = make_plan(graph, target=by_rows(TARGETS["paper"]))
    assert [quantizer.scheme.rows for quantizer in plan.quantizers] == [False]


def test_what_moves_rows_is_not_crossed_and_readers_alike_share() -> None:
    net = planned(transformer(), torch.randn(2, 5, 32))
    rows = {quantizer.name: len(quantizer.sites) for quantizer in net.plan.quantizers if quantizer.scheme.rows}
    names = ["q.input", "matmul.lhs", "matmul.rhs", "matmul@1.lhs", "matmul@1.rhs", "o.input", "up.input", "down.input"]
    assert list(rows) == names
    assert rows["q.input"] == 3
    assert not any(quantizer.name.startswith("add") for quantizer in net.plan.quantizers)


# ---- engines


def vectors(self: nn.Module, x: Tensor) -> Tensor:
    """Products with a vector on the left, on the right, and on both sides."""
    y = x.mean(0)
    return torch.cat([y[0] @ x.sum(0), y @ y[1], (y[2] @ y[3])[None], (y[4] @ x).flatten()])


def odd_sizes(self: nn.Module, x: Tensor) -> Tensor:
    """Linears of one row a sample, few inputs, and few or many outputs; and a constant on the right of a product."""
    return torch.cat([self.few(x), self.many(x), x @ self.matrix], -1)


def masked(self: nn.Module, x: Tensor) -> Tensor:
    heads = x.view(x.shape[0], x.shape[1], 2, -1).transpose(1, 2)
    hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    scores = (heads @ heads.transpose(-1, -2) * 0.2).masked_fill(hidden, float("-inf"))
    return (scores.softmax(-1) @ (heads * 2)).transpose(1, 2).reshape(x.shape)


NETWORKS = {
    "transformer": lambda: (transformer(), torch.randn(3, 9, 32)),
    "vectors": lambda: (Network(vectors), torch.randn(3, 6, 6)),
    "masked attention": lambda: (Network(masked), torch.randn(2, 30, 32)),
    "odd sizes": lambda: (
        Network(odd_sizes, few=nn.Linear(7, 3), many=nn.Linear(7, 700), matrix=nn.Parameter(torch.randn(7, 20))),
        torch.randn(4, 7),
    ),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_engine_computes_rows_as_the_simulation_does(name: str, engine: str) -> None:
    network, x = NETWORKS[name]()
    x[1] *= 100
    net = planned(network, x, engine=engine)
    assert any(quantizer.scheme.rows for quantizer in net.plan.quantizers)
    wanted, compiled = simulate(net)(x).detach(), octavo.compile(net, engine=engine)
    assert nearness(wanted, compiled(x)) > 40
    assert nearness(network(x).detach(), wanted) > 25
    assert octavo.ran(compiled).in_float == ()


@pytest.mark.parametrize("engine", ENGINES)
def test_fewer_bits(engine: str) -> None:
    x = torch.randn(3, 9, 32)
    net = planned(transformer(), x, engine=engine, bits=4)
    assert {quantizer.scheme.bits for quantizer in net.plan.quantizers} == {4}
    # One value at a tie is the next of few integers in whatever follows.
    assert nearness(simulate(net)(x), octavo.compile(net, engine=engine)(x)) > 25


@pytest.mark.parametrize("engine", ENGINES)
def test_rows_of_some_layers_alone(engine: str) -> None:
    """A product of rows on the left and one scale on the right, and a linear whose result a static site rounds."""
    x = torch.randn(3, 9, 32)
    graph = capture(transformer(), (x,))
    rules = [Rule(role="lhs", operation="matmul", scheme=ROWS), Rule("up", role="input", scheme=ROWS), EVERYTHING]
    plan = make_plan(graph, rules, target=target_for(engine))
    net = choose_params(plan, observe(plan, [x]))
    assert nearness(simulate(net)(x), octavo.compile(net, engine=engine)(x)) > 40


def test_the_scales_around_products_leave_the_names_of_operations() -> None:
    net = planned(transformer(), torch.randn(2, 5, 32))
    graph = net.graph
    units = with_rows_scaled(net)
    scaled = units.graph
    names = [node.name for node in graph.module.graph.nodes]
    assert set(names) <= {node.name for node in scaled.module.graph.nodes}
    assert names == [node.name for node in graph.module.graph.nodes]  # what was given stays as it is
    assert not any(quantizer.scheme.rows for quantizer in units.plan.quantizers)
    x = torch.randn(2, 5, 32)
    assert nearness(simulate(net)(x), simulate(units)(x)) > 60
    static = make_plan(graph, target="paper")
    unchanged = choose_params(static, observe(static, [x]))
    assert with_rows_scaled(unchanged) is unchanged


# ---- what comes after calibration


@pytest.mark.parametrize(("ranges", "engine"), [("fixed", "reference"), ("learned", "openvino")])
def test_rows_are_trained_and_stored(ranges: str, engine: str, tmp_path) -> None:
    x = torch.randn(4, 9, 32)
    net = planned(transformer(), x, engine=engine)
    module = trainable(net, ranges=ranges)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-2)
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    module(x).square().mean().backward()
    optimizer.step()
    assert any(not torch.equal(before[name], parameter) for name, parameter in module.named_parameters())
    net = trained(net, module)
    octavo.save(net, tmp_path / "network", engine=engine)
    loaded = octavo.load(tmp_path / "network")
    assert nearness(simulate(net)(x), loaded(x)) > 40
    assert octavo.ran(loaded).in_float == ()


def test_layers_are_left_in_float_one_by_one() -> None:
    x = torch.randn(4, 9, 32)
    net = planned(transformer(), x)
    graph = net.graph
    part = keep_float(net, ["up", "matmul"])
    assert {quantizer.name for quantizer in net.plan.quantizers} - {q.name for q in part.plan.quantizers} == {
        "up.input", "up.weight", "matmul.lhs", "matmul.rhs"
    }  # fmt: skip
    assert nearness(graph.module(x), simulate(part)(x)) > nearness(graph.module(x), simulate(net)(x))


def test_tensorrt_reads_rows_as_arithmetic_around_a_product() -> None:
    x = torch.randn(4, 9, 32)
    net = planned(transformer(), x, engine="tensorrt")
    assert violations(export_onnx(net)) == []


@pytest.mark.parametrize(
    "name", ["correct_bias", "refine_ranges", "adaround", "cross_layer_equalization", "smoothquant"]
)
def test_repairs_leave_rows_to_the_network(name: str) -> None:
    batches = [torch.randn(4, 9, 32) for _ in range(4)]
    net = planned(transformer(), batches[0])
    found = octavo.repair(net, batches, [name])
    rows = [found.values[quantizer.name] for quantizer in found.plan.quantizers if quantizer.scheme.rows]
    assert rows
    assert all(values.scale.shape == () and float(values.scale) == 1 for values in rows)
    assert torch.isfinite(simulate(found)(batches[0])).all()


def test_nan_and_infinity_are_found_in_calibration() -> None:
    x = torch.randn(2, 5, 32)
    x[1, 2, 3] = float("nan")
    with pytest.raises(QuantizationError, match="NaN"):
        planned(transformer(), x)


@pytest.mark.parametrize("engine", ["reference", "openvino"])
def test_sites_are_compared_in_steps_of_their_rows(engine: str) -> None:
    x = torch.randn(3, 9, 32)
    x[:, 1] *= 100
    net = planned(transformer(), x, engine=engine)
    found = octavo.verify(simulate(net), octavo.compile(net, engine=engine), [x], sites=True)
    assert {site.name for site in found.sites} >= {"q.input", "matmul.rhs", "down.input"}
    assert all(site.most_steps <= 1 and site.differing < 0.02 for site in found.sites)


def test_tokens_a_hundred_times_larger_cost_nothing() -> None:
    """A classifier that reads four of eight tokens; the others are large, as the sinks of language models are."""
    centres = torch.randn(10, 4, 16)

    def samples(count: int) -> tuple[Tensor, Tensor]:
        label = torch.randint(0, 10, (count,))
        signal = centres[label] + 1.3 * torch.randn(count, 4, 16)
        return torch.cat([signal, 100 * torch.randn(count, 4, 16)], 1), label

    def classify(self: nn.Module, x: Tensor) -> Tensor:
        return self.head(self.hidden(nn.functional.gelu(self.first(x)))[:, :4].mean(1))

    network = Network(classify, first=nn.Linear(16, 32), hidden=nn.Linear(32, 32), head=nn.Linear(32, 10))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(200):
        x, label = samples(256)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), label).backward()
        optimizer.step()
    network.eval()
    scored, label = samples(20_000)

    def points(model) -> float:
        with torch.inference_mode():
            return 100 * float((model(scored).argmax(-1) == label).float().mean())

    graph = capture(network, (scored[:64],))
    found = {}
    for name, target in (("static", TARGETS["paper"]), ("rows", by_rows(TARGETS["paper"]))):
        plan = make_plan(graph, target=target)
        net = choose_params(plan, observe(plan, [samples(256)[0]]))
        found[name] = points(simulate(net))
    assert points(network) - found["static"] > 5
    assert abs(points(network) - found["rows"]) < 0.1  # −0.04 to 0.04 with sixteen seeds
