"""docs/one_layer.py: its sums against Python integers, and what it returns against what Octavo's own engine does."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import octavo
from octavo import Rule

PATH = Path(__file__).parent.parent / "docs" / "one_layer.py"


@pytest.fixture(scope="module")
def one_layer():
    spec = importlib.util.spec_from_file_location("one_layer", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["normal", "zeros", "one input", "a dead output", "no zero in range"])
def layer(request, seed):
    """Weight [outputs, inputs], bias [outputs] and inputs [samples, inputs], float32."""
    rng, inputs = np.random.default_rng(seed), 1 if request.param == "one input" else 24
    weight, bias, x = (rng.normal(size=size).astype(np.float32) for size in [(5, inputs), (5,), (7, inputs)])
    if request.param == "zeros":
        x *= 0
    if request.param == "a dead output":
        weight[2] = 0
    if request.param == "no zero in range":
        x = np.abs(x) + 3
    return weight, bias, x


def quantized(one_layer, weight, bias, x):
    of_x = one_layer.calibrated(x)
    of_weight = one_layer.params_from_tensor(torch.from_numpy(weight), one_layer.WEIGHT)
    q_x, q_weight = one_layer.integers(x, of_x), one_layer.integers(weight, of_weight)
    q_bias = one_layer.integer_bias(bias, q_weight, of_x, of_weight)
    return of_x, of_weight, q_x, q_weight, q_bias


def test_its_sums_are_those_of_python_integers(one_layer, layer) -> None:
    _, bias, _ = layer
    of_x, of_weight, q_x, q_weight, q_bias = quantized(one_layer, *layer)
    zero = int(of_x.zero_point)
    step = [float(of_x.scale) * float(one) for one in of_weight.scale]
    expected = [
        [
            round(float(b) / s) + sum((int(q) - zero) * int(w) for q, w in zip(row, column, strict=True))
            for column, b, s in zip(q_weight, bias, step, strict=True)
        ]
        for row in q_x
    ]
    assert one_layer.integer_layer(q_x, q_weight, q_bias).tolist() == expected


def test_it_is_as_far_from_float_as_its_roundings_are(one_layer, layer) -> None:
    weight, bias, x = layer
    of_x, of_weight, q_x, q_weight, q_bias = quantized(one_layer, *layer)
    found = one_layer.real(one_layer.integer_layer(q_x, q_weight, q_bias), of_x, of_weight)
    s_x, s_w = float(of_x.scale), of_weight.scale.double().numpy()
    # An input moves by half a step, or by a whole one where rounding the zero-point has moved the range.
    bound = s_x * np.abs(weight).sum(1) + s_w / 2 * (np.abs(x).sum(1, keepdims=True) + s_x * x.shape[1]) + s_x * s_w
    assert (np.abs(found - one_layer.float_layer(x, weight, bias)) <= bound * (1 + 1e-6)).all()


def test_the_next_layer_reads_what_its_own_rounding_would_make_of_the_real_values(one_layer, layer) -> None:
    of_x, of_weight, q_x, q_weight, q_bias = quantized(one_layer, *layer)
    sums = one_layer.integer_layer(q_x, q_weight, q_bias)
    y = one_layer.real(sums, of_x, of_weight)
    of_y = one_layer.calibrated(y)
    found = one_layer.requantized(sums, of_x, of_weight, of_y).astype(np.int64)
    exact = y / float(of_y.scale)
    tie = np.abs(exact - np.floor(exact) - 0.5) < 1e-6
    expected = np.clip(np.rint(exact) + int(of_y.zero_point), -128, 127)
    assert (found == expected)[~tie].all()


def test_the_reference_engine_returns_the_same(one_layer, layer) -> None:
    weight, bias, x = layer
    linear = nn.Linear(weight.shape[1], 5).eval()
    linear.weight.data, linear.bias.data = torch.from_numpy(weight), torch.from_numpy(bias)
    graph = octavo.capture(linear, torch.from_numpy(x))
    rules = [Rule(role="weight", scheme=one_layer.WEIGHT), Rule(role="input", scheme=one_layer.ACTIVATION)]
    plan = octavo.make_plan(graph, rules, target="paper")
    net = octavo.choose_params(plan, octavo.observe(plan, [torch.from_numpy(x)]), "max")
    of_x, of_weight, q_x, q_weight, q_bias = quantized(one_layer, *layer)
    ours = one_layer.real(one_layer.integer_layer(q_x, q_weight, q_bias), of_x, of_weight)
    with torch.no_grad():
        theirs = octavo.compile(net, engine="reference")(torch.from_numpy(x)).numpy()
    assert np.abs(ours - theirs).max() <= 1e-5 * max(1.0, np.abs(theirs).max()) + _bias_step(of_x, of_weight)


def _bias_step(of_x, of_weight) -> float:
    """Half a step of the sums: the reference may add the bias in float."""
    return float(of_x.scale) * float(of_weight.scale.max()) / 2


def test_it_runs_and_says_how_far_it_is_from_float(one_layer, capsys) -> None:
    one_layer.main()
    said = capsys.readouterr().out
    assert "int32" in said
    assert math.isfinite(float(said.split("The output is ")[1].split(" dB")[0]))
    assert float(said.split("The output is ")[1].split(" dB")[0]) > 20
