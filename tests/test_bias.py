"""Biases as integers of the sums: the scale of a weight leaves room for them, and changes nothing else."""

import pytest
import torch
from torch import nn

import octavo
from octavo.network.bias import LARGEST_BIAS


def unit_of(params, layer):
    """What the sums of `layer` count, [channels] or []."""
    scales = {site.name: params.values[q.name].scale for q in params.plan.quantizers for site in q.sites}
    return scales[f"{layer}.input"].double() * scales[f"{layer}.weight"].double()


@pytest.mark.parametrize("target", ["paper", "openvino", "onnxruntime"])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(8, 6), (16, 8)),
        (nn.Conv1d(4, 6, 3), (16, 4, 9)),
        (nn.Conv2d(4, 6, 3, groups=2), (16, 4, 5, 5)),
        (nn.ConvTranspose2d(4, 6, 2), (16, 4, 5, 5)),
        (nn.ConvTranspose2d(4, 6, 2, groups=2), (16, 4, 5, 5)),
    ],
)
def test_a_bias_beside_almost_nothing_fits_into_int32(layer, shape, target, calibrated):
    with torch.no_grad():
        layer.weight.mul_(1e-12)
        layer.bias.copy_(torch.linspace(-7, 7, 6))
    net = calibrated(nn.Sequential(layer).eval(), torch.randn(shape), target=target)
    graph = net.graph
    unit = unit_of(net, "0").expand(6) if unit_of(net, "0").numel() in (1, 6) else unit_of(net, "0").repeat(2)
    assert bool((layer.bias.detach().double().abs() <= LARGEST_BIAS * (1 + 1e-6) * unit).all())
    x = torch.randn(shape)
    assert octavo.sqnr_db(graph(x), octavo.simulate(net)(x)) > 100


def test_scales_with_room_are_those_of_the_weights(calibrated):
    layer = nn.Linear(8, 6)
    net = calibrated(nn.Sequential(layer).eval(), torch.randn(16, 8), target="paper")
    (weight,) = (net.values[q.name] for q in net.plan.quantizers if q.constant)
    torch.testing.assert_close(weight.scale, layer.weight.detach().abs().amax(1) / 127, rtol=1e-6, atol=0)
