"""What is done on a GPU is what is done on the CPU: observing, ranges, the simulation, training, repairs."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import octavo
from conftest import separable, transformer
from octavo.engines import available, target_for
from octavo.network.calibrate import choose_params, observe
from octavo.network.graph import capture
from octavo.network.placement import make_plan
from octavo.network.quantized import Quantized
from octavo.network.rule import Rule
from octavo.network.simulate import simulate
from octavo.network.target import by_rows
from octavo.recovery.repair import REPAIRS, repair
from octavo.recovery.trainable import trainable

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(autouse=True)
def _exact_products() -> Iterator[None]:
    """TF32, which convolutions use unless told otherwise, has ten bits: no oracle."""
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield


NETWORKS = {
    "attention by rows": lambda: (transformer(), torch.randn(8, 20, 32)),
    "separable by channels": lambda: (separable(), torch.randn(8, 3, 12, 12)),
}


def planned(network: nn.Module, x: Tensor, method: str, bits: int = 8) -> Quantized:
    target = target_for("openvino")
    graph = capture(network, (x,))
    plan = make_plan(graph, [Rule("*", bits=bits)], target=by_rows(target) if x.ndim == 3 else target)
    return choose_params(plan, observe(plan, [x[:4], x[4:]]), method)


def nearness(wanted: Tensor, found: Tensor) -> float:
    wanted, found = wanted.detach().cpu().double(), found.detach().cpu().double()
    return 10 * float((wanted.square().sum() / (wanted - found).square().sum().clamp(min=1e-300)).log10())


@pytest.mark.parametrize("method", ["max", "entropy", "99.99"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_ranges_and_the_same_integers(name: str, method: str) -> None:
    network, x = NETWORKS[name]()
    net = planned(copy.deepcopy(network).cuda(), x.cuda(), method)
    wanted = planned(network, x, method)
    assert net.values.keys() == wanted.values.keys()
    for site, value in wanted.values.items():
        # A last bit of a product moves a value into the next bucket of its histogram, a percent away at most.
        torch.testing.assert_close(net.values[site].scale, value.scale, rtol=0.02, atol=0)
    found = simulate(net)(x.cuda())
    assert found.is_cuda
    assert nearness(simulate(net)(x), found) > 35  # a value at a tie is the next integer
    assert nearness(network(x), found) > 20


@pytest.mark.parametrize("name", NETWORKS)
def test_it_trains(name: str) -> None:
    network, x = NETWORKS[name]()
    net = planned(network.cuda(), x.cuda(), "max", bits=4)
    with torch.no_grad():
        wanted = network(x.cuda())
    student = trainable(net, ranges="learned")
    optimizer, losses = torch.optim.Adam(student.parameters(), lr=1e-3), []
    for _ in range(60):
        loss = (student(x.cuda()) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])


@pytest.mark.parametrize("name", REPAIRS)
def test_repairs_stay_on_the_device(name: str) -> None:
    network, x = NETWORKS["separable by channels"]()
    net = planned(network.cuda(), x.cuda(), "max")
    wanted, before = network(x.cuda()), simulate(net)(x.cuda())
    found = simulate(repair(net, [x.cuda()], [name]))(x.cuda())
    assert found.is_cuda
    assert nearness(wanted, found) > nearness(wanted, before) - 1


@pytest.mark.parametrize("engine", [name for name in available() if name != "tensorrt"])
@pytest.mark.parametrize("name", NETWORKS)
def test_what_was_calibrated_on_a_gpu_runs_on_every_engine_of_the_cpu(name: str, engine: str, tmp_path) -> None:
    network, x = NETWORKS[name]()
    net = planned(network.cuda(), x.cuda(), "max")
    graph = net.graph
    wanted = simulate(net)(x.cuda())
    assert nearness(wanted, octavo.compile(net, engine=engine)(x)) > 30
    octavo.save(net, tmp_path / "net.octavo", engine=engine)
    assert nearness(wanted, octavo.load(tmp_path / "net.octavo")(x)) > 30
    assert graph.device.type == "cuda"  # what was given stays where it is
