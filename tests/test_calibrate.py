"""Observing and choosing: one pass, any batch size or order, exact numbers."""

import gc

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from octavo.errors import QuantizationError
from octavo.network.calibrate import choose_params, observe
from octavo.network.graph import capture, clone
from octavo.network.placement import make_plan
from octavo.network.quantized import Quantized
from octavo.network.rule import Rule
from octavo.numerics import AFFINE_UINT8, UINT8, Scheme
from octavo.numerics.ranges import METHODS, percentile


@pytest.fixture(scope="module")
def captured_once():
    return capture(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(2, 4))


@pytest.fixture
def two_layers(captured_once):
    graph = clone(captured_once)
    for parameter in graph.module.parameters():
        nn.init.normal_(parameter)
    return make_plan(graph, target="paper")


def test_histograms_of_every_activation_and_of_no_weight(two_layers) -> None:
    plan = two_layers
    batches = [torch.randn(5, 4), torch.randn(3, 4)]
    stats = observe(plan, batches)
    assert list(stats) == ["0.input", "2.input"]
    assert stats["0.input"].count == 8 * 4
    assert stats["2.input"].count == 8 * 8
    everything = torch.cat(batches)
    assert stats["0.input"].minimum == everything.min().item()
    assert stats["0.input"].maximum == everything.max().item()
    assert stats["2.input"].minimum == 0.0


def test_neither_batch_size_nor_order_matters() -> None:
    # One product at a time in float64 keeps the activations themselves independent of the batch.
    graph = capture(nn.Sequential(nn.Conv1d(1, 1, 1, bias=False), nn.ReLU(), nn.Conv1d(1, 1, 1)), torch.randn(2, 1, 6))
    plan = make_plan(graph, target="paper")
    data = torch.randn(24, 1, 6)
    reference = observe(plan, [data])
    for batches in (data.split(1), data.split(7), reversed(data.split(5)), [data[torch.randperm(24)]]):
        stats = observe(plan, batches)
        assert all(stats[name] == reference[name] for name in reference)


def test_statistics_are_those_of_the_float_network(two_layers) -> None:
    plan = two_layers
    graph = plan.graph
    x = torch.randn(16, 4)
    hidden = graph.module.get_submodule("0")
    inner = torch.relu(x @ hidden.weight.T + hidden.bias)
    assert observe(plan, [x])["2.input"].maximum == pytest.approx(inner.max().item(), rel=1e-6)


def test_a_shared_quantizer_sees_all_that_it_serves(network) -> None:
    model = network(lambda s, x: s.a(torch.cat([x.tanh(), x.exp()], 1)), a=nn.Linear(8, 2))
    graph = capture(model, torch.randn(2, 4))
    x = torch.randn(5, 4)
    histogram = observe(make_plan(graph, target="paper"), [x])["a.input"]
    assert histogram.count == 2 * 5 * 4
    assert histogram.minimum == x.tanh().min().item()
    assert histogram.maximum == x.exp().max().item()


def test_a_layer_called_twice_has_a_histogram_for_each_call(network) -> None:
    graph = capture(network(lambda s, x: s.a(s.a(x)), a=nn.Linear(4, 4)), torch.randn(2, 4))
    assert list(observe(make_plan(graph), [torch.randn(3, 4)])) == ["a.input", "a@1.input"]


def test_a_parameter_in_a_concat_is_observed(network) -> None:
    model = network(lambda s, x: s.a(torch.cat([s.token.expand(x.shape[0], -1), x], 1)), a=nn.Linear(8, 2))
    model.token = nn.Parameter(torch.full((1, 4), 7.0))
    graph = capture(model, torch.rand(2, 4))
    assert observe(make_plan(graph), [torch.rand(3, 4)])["a.input"].maximum == 7.0


LABELLED = {
    "loader of (input, label)": DataLoader(TensorDataset(torch.randn(6, 4), torch.arange(6)), batch_size=4),
    "list of lists": [[torch.randn(6, 4), torch.arange(6)]],
    "tuple with an index": [(torch.randn(6, 4), torch.arange(6), 3)],
}


@pytest.mark.parametrize("form", LABELLED)
def test_labels_are_ignored(form, two_layers) -> None:
    assert observe(two_layers, LABELLED[form])["0.input"].count == 6 * 4


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x, y=None):
        return self.a(x) if y is None else self.a(x + y)


def test_dict_batches_and_labels_in_or_beside_them() -> None:
    graph = capture(Keywords(), {"x": torch.randn(2, 4), "y": torch.randn(2, 4)})
    plan = make_plan(graph)
    inputs = {"y": torch.ones(3, 4), "x": torch.ones(3, 4)}
    labels = torch.zeros(3)
    for batch in (inputs, {**inputs, "labels": labels}, (inputs, labels)):
        histogram = observe(plan, [batch])["a.input"]
        assert (histogram.count, histogram.minimum, histogram.maximum) == (12, 2.0, 2.0)


def test_an_empty_loader_raises(two_layers) -> None:
    used_up = iter([])
    for nothing in ([], used_up, DataLoader(TensorDataset(torch.zeros(0, 4)))):
        with pytest.raises(QuantizationError, match="asked to calibrate, but the calibration data is empty"):
            observe(two_layers, nothing)


@pytest.mark.parametrize(("bad", "seen"), [(torch.nan, "1 NaN and 0 infinite"), (torch.inf, "0 NaN and 1 infinite")])
def test_nan_and_infinity_name_the_site_and_the_batch(bad, seen, two_layers) -> None:
    poisoned = torch.randn(3, 4)
    poisoned[1, 2] = bad
    with pytest.raises(QuantizationError) as caught:
        observe(two_layers, [torch.randn(3, 4), torch.randn(3, 4), poisoned])
    assert str(caught.value).startswith("0.input: ")
    assert f"in batch 2 (counted from 0) {seen}" in str(caught.value)


def test_one_pass_serves_every_method(two_layers) -> None:
    plan = two_layers
    passes = 0

    def batches():
        nonlocal passes
        passes += 1
        yield torch.randn(64, 4)

    stats = observe(plan, batches())
    before = {name: histogram.state() for name, histogram in stats.items()}
    chosen = {name: choose_params(plan, stats, name) for name in METHODS}
    assert passes == 1
    assert {name: params.method for name, params in chosen.items()} == {
        name: getattr(method, "__name__", "") for name, method in METHODS.items()
    }
    assert chosen["99.9"].values["2.input"].scale < chosen["max"].values["2.input"].scale
    for name, histogram in stats.items():
        assert all(torch.equal(tensor, before[name][key]) for key, tensor in histogram.state().items())


def test_nothing_is_kept_of_a_batch(two_layers) -> None:
    alive = []

    def batches():
        for _ in range(8):
            gc.collect()
            alive.append(sum(type(thing) is torch.Tensor for thing in gc.get_objects()))
            yield torch.randn(64, 4)

    stats = observe(two_layers, batches())
    assert len(set(alive[1:])) == 1
    assert all(sum(tensor.nbytes for tensor in histogram.state().values()) <= 2**21 for histogram in stats.values())


def test_observing_changes_neither_graph_nor_model(two_layers) -> None:
    plan = two_layers
    graph = plan.graph
    before, code = {name: t.clone() for name, t in graph.module.state_dict().items()}, graph.module.code
    observe(plan, [torch.randn(3, 4)])
    assert graph.module.code == code
    assert list(graph.module.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in graph.module.state_dict().items())


def test_progress_bar(two_layers, capsys) -> None:
    observe(two_layers, [torch.randn(3, 4)] * 2, progress=True)
    assert "calibrating" in capsys.readouterr().out
    observe(two_layers, [torch.randn(3, 4)] * 2)
    assert capsys.readouterr().out == ""


def worked_example():
    """y = W x with W = [[1, −2], [0.5, 0.25]], x up to 4: scales known by hand."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0], [0.5, 0.25]]))
    return capture(model, torch.randn(2, 2)), [torch.tensor([[4.0, -1.0], [0.5, 2.0]]), torch.tensor([[-3.0, 3.0]])]


def test_max_by_hand() -> None:
    graph, data = worked_example()
    plan = make_plan(graph, target="paper")
    net = choose_params(plan, observe(plan, data), "max")
    assert torch.equal(net.values["0.input"].scale, torch.tensor(4 / 127))
    assert torch.equal(net.values["0.weight"].scale, torch.tensor([2 / 127, 0.5 / 127]))
    assert torch.equal(net.values["0.weight"].zero_point, torch.tensor([0, 0], dtype=torch.int32))
    assert net.method == "max"


def test_affine_and_unsigned_by_hand() -> None:
    graph, data = worked_example()
    plan = make_plan(graph, [Rule(role="input", scheme=AFFINE_UINT8), Rule(bits=4)], target="paper")
    values = choose_params(plan, observe(plan, data), "max").values
    assert torch.equal(values["0.input"].scale, torch.tensor(7 / 255))
    assert values["0.input"].zero_point == 109  # round(3 / (7 / 255)) = round(109.29)
    assert torch.equal(values["0.weight"].scale, torch.tensor([2 / 7, 0.5 / 7]))
    plan = make_plan(graph, [Rule(role="input", scheme=UINT8), Rule()], target="paper")
    stats = observe(plan, [batch.abs() for batch in data])
    assert torch.equal(choose_params(plan, stats).values["0.input"].scale, torch.tensor(4 / 255))


def test_a_method_may_be_a_function() -> None:
    graph, data = worked_example()
    plan = make_plan(graph, target="paper")
    stats = observe(plan, data)

    def half(histogram, scheme):
        return histogram.minimum / 2, histogram.maximum / 2

    net = choose_params(plan, stats, half)
    assert torch.equal(net.values["0.input"].scale, torch.tensor(2 / 127))
    assert net.method == "half"
    assert choose_params(plan, stats, percentile(50)).method == "50"


def test_an_unknown_method_raises(two_layers) -> None:
    plan = two_layers
    with pytest.raises(QuantizationError, match="'magic'"):
        choose_params(plan, observe(plan, [torch.randn(3, 4)]), "magic")


def test_statistics_of_another_plan_raise(two_layers) -> None:
    plan = two_layers
    graph = plan.graph
    stats = observe(make_plan(graph, [Rule("0")]), [torch.randn(3, 4)])
    with pytest.raises(
        QuantizationError, match=r"^2\.input: .* the statistics hold no value of this site; observe with this"
    ):
        choose_params(plan, stats)


def test_a_site_that_saw_nothing_raises(two_layers) -> None:
    plan = two_layers
    stats = observe(plan, [torch.zeros(0, 4)])
    with pytest.raises(QuantizationError, match=r"^0\.input: .* hold no value of this site"):
        choose_params(plan, stats)


def test_parameters_of_another_plan_raise(two_layers) -> None:
    plan = two_layers
    net = choose_params(plan, observe(plan, [torch.randn(3, 4)]))
    with pytest.raises(QuantizationError, match=r"^2\.input: .* 2 of its quantizers have none"):
        Quantized(
            plan=plan,
            method="max",
            values={name: value for name, value in net.values.items() if not name.startswith("2")},
        )


def test_a_range_that_the_scheme_cannot_hold_names_the_site() -> None:
    graph, data = worked_example()
    plan = make_plan(graph, [Rule(role="input", scheme=UINT8), Rule()])
    with pytest.raises(QuantizationError, match=r"^0\.input: .* these integers have no negative values"):
        choose_params(plan, observe(plan, data))


def test_a_weight_that_does_not_divide_into_blocks_names_the_site(two_layers) -> None:
    plan = make_plan(two_layers.graph, [Rule(role="weight", scheme=Scheme(axis=1, block=3)), Rule()])
    with pytest.raises(QuantizationError, match=r"^0\.weight: .* 4 is not a multiple of 3"):
        choose_params(plan, observe(plan, [torch.randn(3, 4)]))


def test_a_weight_with_nan_names_the_site(two_layers) -> None:
    plan = two_layers
    graph = plan.graph
    with torch.no_grad():
        graph.module.get_submodule("2").weight[0, 0] = torch.nan
    stats = dict(observe(plan, [torch.randn(3, 4)]))
    with pytest.raises(QuantizationError, match=r"^2\.weight: "):
        choose_params(plan, stats)


def test_dead_channels_and_all_zero_data_have_usable_scales(two_layers) -> None:
    plan = two_layers
    graph = plan.graph
    with torch.no_grad():
        graph.module.get_submodule("0").weight[1] = 0
    net = choose_params(plan, observe(plan, [torch.zeros(3, 4)]))
    assert net.values["0.input"].scale == 1.0
    assert net.values["0.weight"].scale[1] == 1.0
