"""The simulation: exact numbers by hand, the straight-through gradient, and a copy that leaves the graph alone."""

import copy

import pytest
import torch
from torch import nn

import octavo
from octavo.network.calibrate import choose_params, observe
from octavo.network.graph import capture
from octavo.network.placement import make_plan
from octavo.network.quantized import Quantized
from octavo.network.rule import Rule
from octavo.network.simulate import FakeQuantize, simulate
from octavo.numerics import AFFINE_UINT8, INT8, QParams, Scheme, params_from_range


@pytest.fixture
def by_hand():
    """y = x Wᵀ + b with scales that are powers of two, so that every float32 result is exact."""
    model = nn.Sequential(nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.1, -2.0], [0.5, 0.26]]))
        model[0].bias.copy_(torch.tensor([10.0, 0.0]))
    graph = capture(model, torch.randn(2, 2))
    plan = make_plan(graph, target="paper")
    zero = torch.zeros(2, dtype=torch.int32)
    weight = QParams(scale=torch.tensor([0.25, 0.125]), zero_point=zero, scheme=Scheme(axis=0))
    activation = QParams(scale=torch.tensor(0.5), zero_point=zero[0], scheme=INT8)
    return Quantized(plan=plan, method="hand", values={"0.input": activation, "0.weight": weight})


@pytest.fixture(scope="module")
def captured_block(basic_block):
    return capture(basic_block(), torch.randn(2, 4, 6, 6))


@pytest.fixture
def block(captured_block):
    plan = make_plan(captured_block, target="paper")
    return choose_params(plan, observe(plan, [torch.randn(2, 4, 6, 6)]))


def test_one_layer_by_hand(by_hand) -> None:
    sim = simulate(by_hand)
    # x: 1.3 → 3·0.5, −0.74 → −1·0.5, 100 → 127·0.5 and −100 → −127·0.5 (clipped), 0.25 → 0 (tie to even)
    # w: 1.1 → 4·0.25, −2 → −8·0.25, 0.5 → 4·0.125, 0.26 → 2·0.125; bias as it is
    x = torch.tensor([[1.3, -0.74], [100.0, -100.0], [0.25, 0.0]])
    quantized = torch.tensor([[1.5, -0.5], [63.5, -63.5], [0.0, 0.0]])
    weight = torch.tensor([[1.0, -2.0], [0.5, 0.25]])
    assert torch.equal(sim(x), quantized @ weight.T + torch.tensor([10.0, 0.0]))


def test_the_gradient_passes_straight_through_inside_the_range_and_is_zero_outside(by_hand) -> None:
    sim = simulate(by_hand)
    x = torch.tensor([[1.3, 100.0], [-70.0, -0.74]], requires_grad=True)
    upstream = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    sim(x).backward(upstream)
    inside = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    quantized_x, quantized_w = torch.tensor([[1.5, 63.5], [-63.5, -0.5]]), torch.tensor([[1.0, -2.0], [0.5, 0.25]])
    assert torch.equal(x.grad, (upstream @ quantized_w) * inside)
    layer = sim.get_submodule("0")
    assert torch.equal(layer.weight.grad, upstream.T @ quantized_x)
    assert torch.equal(layer.bias.grad, upstream.sum(0))


def test_a_weight_beyond_its_range_gets_no_gradient(by_hand) -> None:
    net = by_hand
    graph = net.graph
    with torch.no_grad():
        graph.module.get_submodule("0").weight[0, 0] = 1000.0
    sim = simulate(net)
    sim(torch.ones(3, 2)).sum().backward()
    gradient = sim.get_submodule("0").weight.grad
    assert gradient[0, 0] == 0
    assert torch.all(gradient.flatten()[1:] != 0)


def test_parameters_keep_the_users_names_and_the_ranges_are_buffers(block) -> None:
    sim = simulate(block)
    assert {name for name, _ in sim.named_parameters()} == {"conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"}
    buffers = {name for name, _ in sim.named_buffers()}
    assert "quantizers.0_conv1_input.scale" in buffers
    assert all(name.endswith((".scale", ".zero_point")) for name in buffers)


def test_training_the_simulation_leaves_the_graph_alone(block) -> None:
    params, graph = block, block.graph
    before = copy.deepcopy(dict(graph.module.state_dict()))
    ranges = {name: value.scale.clone() for name, value in params.values.items()}
    sim = simulate(params).train()
    optimizer = torch.optim.SGD(sim.parameters(), lr=0.1)
    x = torch.randn(2, 4, 6, 6)
    losses = []
    for _ in range(3):
        loss = (sim(x) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for module in sim.modules():
        if isinstance(module, FakeQuantize):
            module.scale.mul_(2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in graph.module.state_dict().items())
    assert all(torch.equal(value.scale, ranges[name]) for name, value in params.values.items())


def test_state_dict_round_trip(block) -> None:
    net = block
    trained, fresh = simulate(net), simulate(net)
    with torch.no_grad():
        for tensor in trained.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(1.1)
    x = torch.randn(3, 4, 6, 6)
    assert not torch.equal(fresh(x), trained(x))
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh(x), trained(x))


def test_train_and_eval_may_be_called(block) -> None:
    params, graph = block, block.graph
    sim, x = simulate(params), torch.randn(2, 4, 6, 6)
    assert torch.equal(sim.train()(x), sim.eval()(x))
    graph.module.eval()


def test_every_reader_of_a_tensor_reads_one_quantized_value(network, calibrated) -> None:
    model = network(lambda s, x: (lambda y: (s.a(y), s.b(y)))(x.relu()), a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    sim = simulate(calibrated(model, torch.randn(2, 4)))
    calls = [node for node in sim.graph.nodes if node.op == "call_module"]
    readers = {str(node.target): len(node.users) for node in calls}
    assert readers == {"quantizers.0_a_input": 2, "quantizers.1_a_weight": 1, "quantizers.2_b_weight": 1}


def test_a_float_reader_beside_a_quantized_one_reads_float(network, calibrated) -> None:
    model = network(lambda s, x: (s.a(x), x * 1), a=nn.Linear(4, 4))
    sim = simulate(calibrated(model, torch.randn(2, 4)))
    x = torch.randn(3, 4)
    assert torch.equal(sim(x)[1], x)


def test_dynamic_batch_and_the_users_way_of_calling(calibrated) -> None:
    class Keywords(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x, y):
            return {"out": self.a(x) + y}

    sim = simulate(calibrated(Keywords(), {"x": torch.randn(1, 4), "y": torch.randn(1, 4)}))
    for n in (1, 2, 7):
        assert sim(x=torch.randn(n, 4), y=torch.randn(n, 4))["out"].shape == (n, 4)


def test_skipped_layers_are_exact(calibrated) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    net = calibrated(model, torch.randn(2, 4), [Rule("0", skip=True), Rule("1", role="weight")])
    sim, x = simulate(net), torch.randn(3, 4)
    quantize = FakeQuantize(net.values["1.weight"])
    assert torch.equal(sim(x), nn.functional.linear(model[0](x), quantize(model[1].weight), model[1].bias))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_error_shrinks_with_bits_as_the_step_does(bits, calibrated) -> None:
    """Signal to quantization noise of a sum of many products: about 6 dB a bit; within 4 dB of the formula."""
    model, x = nn.Sequential(nn.Linear(256, 64, bias=False)).eval(), torch.rand(64, 256) * 2 - 1
    nn.init.uniform_(model[0].weight, -1, 1)
    net = calibrated(model, x, [Rule(role="input", bits=bits), Rule(skip=True)])
    noise = simulate(net)(x) - model(x)
    sqnr = 10 * torch.log10(model(x).square().mean() / noise.square().mean()).item()
    levels = 2 ** (bits - 1) - 1
    assert sqnr == pytest.approx(10 * torch.log10(torch.tensor(4.0 * levels**2)).item(), abs=1.0)


def test_affine_activations(calibrated) -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False)).eval()
    nn.init.ones_(model[0].weight)
    net = calibrated(model, torch.randn(2, 1, 1, 7), [Rule(role="input", scheme=AFFINE_UINT8), Rule()])
    values = {**net.values, "0.input": params_from_range(-1.0, 1.55, AFFINE_UINT8)}  # steps of 0.01, zero is 100
    sim = simulate(Quantized(plan=net.plan, method="hand", values=values))
    x = torch.tensor([-2.0, -1.0, -0.004, 0.0, 0.014, 1.0, 9.0]).reshape(1, 1, 1, 7)
    expected = torch.tensor([-1.0, -1.0, 0.0, 0.0, 0.01, 1.0, 1.55])
    torch.testing.assert_close(sim(x).flatten(), expected, rtol=1e-6, atol=1e-7)


def test_the_simulation_runs_without_gradients(block) -> None:
    with torch.inference_mode():
        assert torch.isfinite(simulate(block)(torch.randn(3, 4, 6, 6))).all()


NAMED = {
    "a parameter": lambda: nn.Parameter(torch.randn(8)),
    "a buffer": lambda: nn.Buffer(torch.randn(8)),
    "a layer": lambda: nn.Linear(8, 8),
    "layers": lambda: nn.ModuleList([nn.Linear(8, 8)]),
}


@pytest.mark.parametrize("kind", NAMED)
def test_anything_of_the_users_may_be_called_quantizers(kind, network, calibrated) -> None:
    def forward(self, x):
        own = self.quantizers
        x = own(x) if kind == "a layer" else own[0](x) if kind == "layers" else x + own
        return self.head(x)

    model = network(forward, quantizers=NAMED[kind](), head=nn.Linear(8, 3)).eval()
    net = calibrated(model, x := torch.randn(5, 8))
    graph = net.graph
    simulation = simulate(net)
    assert octavo.sqnr_db(model(x), simulation(x)) > 20
    assert set(graph.module.state_dict()) <= set(simulation.state_dict())
    again = octavo.trained(net, octavo.trainable(net))
    assert octavo.sqnr_db(simulation(x), simulate(again)(x)) > 60
