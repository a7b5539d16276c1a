"""The interchange: what the ONNX file holds, and that a second reader computes the same from it."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from octavo.engines.onnx import export_onnx
from octavo.errors import QuantizationError
from octavo.network.calibrate import choose_params, observe
from octavo.network.graph import capture
from octavo.network.placement import make_plan
from octavo.network.rule import EVERYTHING, Rule
from octavo.network.simulate import simulate
from octavo.numerics import Scheme, dequantize, quantize


def prepared(model, example, rules=(EVERYTHING,), target="openvino", **capturing):
    graph = capture(model, example, **capturing)
    plan = make_plan(graph, rules, target=target)
    return choose_params(plan, observe(plan, [example]))


def initializers(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def nodes(model: onnx.ModelProto, kind: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == kind]


def attributes(node: onnx.NodeProto) -> dict[str, object]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def sizes(value: onnx.ValueInfoProto) -> list[object]:
    return [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]


def run(model: onnx.ModelProto, *inputs: torch.Tensor) -> list[np.ndarray]:
    """ONNX Runtime, node by node as the file says: without its own fusions, which round in other places."""
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {value.name: x.numpy() for value, x in zip(model.graph.input, inputs, strict=True)}
    return session.run(None, feeds)


def assert_agrees(found: np.ndarray, want: torch.Tensor) -> None:
    """Ties apart (one integer step, see test_openvino) the two are equal up to float32 rounding."""
    errors = np.abs(found - want.detach().numpy()) / float(want.detach().abs().max())
    assert float(np.mean(errors)) <= 3e-4
    assert float(errors.max()) <= 3e-2


@pytest.fixture(scope="module")
def network_of_realistic_size():
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(1024, 100),
    )
    return prepared(model, torch.randn(4, 3, 32, 32))


@pytest.fixture(scope="module")
def exported(network_of_realistic_size):
    return export_onnx(network_of_realistic_size)


def test_the_model_is_valid_and_of_the_opset_that_knows_blocks(exported) -> None:
    onnx.checker.check_model(exported, full_check=True)
    assert [(entry.domain, entry.version) for entry in exported.opset_import] == [("", 21)]


def test_inputs_and_outputs_have_names_and_a_dynamic_batch(exported) -> None:
    assert [(value.name, sizes(value)) for value in exported.graph.input] == [("input", ["batch", 3, 32, 32])]
    assert [(value.name, sizes(value)) for value in exported.graph.output] == [("output", ["batch", 100])]


def test_the_operations_are_those_of_the_network_and_nothing_else(exported) -> None:
    """No Cast, no Shape, no duplicate pair: one quantizer is two nodes, a weight is one."""
    pair = ["QuantizeLinear", "DequantizeLinear"]
    activations = [node.op_type for node in exported.graph.node if node.input[0] not in initializers(exported)]
    convolutions = [*pair, "Conv", "Relu", *pair, "Conv", "Relu"]
    assert activations == [*convolutions, "AveragePool", *pair, "Reshape", "Gemm"]
    assert [node.name for node in exported.graph.node if node.op_type in ("Conv", "Gemm")] == ["0", "3", "7"]


def test_weights_are_the_integers_of_the_plan(network_of_realistic_size, exported) -> None:
    params = network_of_realistic_size
    graph = params.graph
    weights = dict(graph.module.named_parameters())
    tensors = initializers(exported)
    operations = [node for node in exported.graph.node if node.op_type in ("Conv", "Gemm")]
    for layer, node in zip(("0", "3", "7"), operations, strict=True):
        dequantized = next(n for n in exported.graph.node if node.input[1] in n.output)
        assert dequantized.op_type == "DequantizeLinear"
        assert attributes(dequantized)["axis"] == 0
        stored, scale = (tensors[name] for name in dequantized.input)
        assert stored.data_type == TensorProto.INT8
        wanted = quantize(weights[f"{layer}.weight"].detach(), params.values[f"{layer}.weight"])
        assert np.array_equal(numpy_helper.to_array(stored), wanted.numpy())
        assert np.array_equal(numpy_helper.to_array(scale), params.values[f"{layer}.weight"].scale.numpy())


def test_the_file_is_a_quarter_of_the_float_one(network_of_realistic_size, exported, tmp_path) -> None:
    params = network_of_realistic_size
    graph = params.graph
    export_onnx(graph, path=tmp_path / "float.onnx")
    export_onnx(params, path=tmp_path / "int8.onnx")
    ratio = (tmp_path / "int8.onnx").stat().st_size / (tmp_path / "float.onnx").stat().st_size
    assert ratio <= 0.3
    assert onnx.load(tmp_path / "int8.onnx").SerializeToString() == exported.SerializeToString()


def test_onnx_runtime_reads_the_same_network(network_of_realistic_size, exported) -> None:
    x = torch.randn(5, 3, 32, 32)
    assert_agrees(run(exported, x)[0], simulate(network_of_realistic_size)(x))


def test_exporting_leaves_the_graph_alone_and_prints_nothing(network_of_realistic_size, capfd) -> None:
    params = network_of_realistic_size
    graph = params.graph
    before = {name: tensor.clone() for name, tensor in graph.module.state_dict().items()}
    capfd.readouterr()
    export_onnx(params)
    assert capfd.readouterr() == ("", "")
    after = graph.module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("scheme", "bounds"),
    [
        (Scheme(), (-127, 127)),
        (Scheme(bits=4), (-7, 7)),
        (Scheme(full_range=True), None),
        (Scheme(signed=False, symmetric=False), None),
    ],
    ids=["paper", "4-bit", "full range", "affine"],
)
def test_activations_are_clipped_only_where_the_storage_goes_on(network, scheme, bounds) -> None:
    model = network(lambda self, x: self.layer(x), layer=nn.Linear(6, 4))
    net = prepared(model, torch.randn(32, 6), [Rule("*", role="input", scheme=scheme), Rule("*")])
    exported = export_onnx(net)
    scale = net.values["layer.input"].scale
    clips = nodes(exported, "Clip")
    tensors = initializers(exported)
    found = [tuple(float(numpy_helper.to_array(tensors[name])) for name in clip.input[1:]) for clip in clips]
    assert found == ([] if bounds is None else [tuple(float(scale * bound) for bound in bounds)])
    x = 10 * torch.randn(64, 6)
    assert_agrees(run(exported, x)[0], simulate(net)(x))


def test_every_value_has_a_name_of_its_own(network) -> None:
    """torch names outputs and inputs as it is told to: another value may be called so already."""

    def forward(self, mean, linear):
        x = self.layer(mean) + self.output
        return {"relu": torch.relu(x) + linear, "add": x.mean(1), "output": torch.relu(x.abs()) * self.output}

    model = network(forward, layer=nn.Linear(4, 4))
    model.register_buffer("output", torch.randn(4))
    inputs = (torch.randn(3, 4), torch.randn(3, 4))
    net = prepared(model, inputs)
    exported = export_onnx(net)
    onnx.checker.check_model(exported, full_check=True)
    assert [value.name for value in exported.graph.output] == ["relu", "add", "output"]
    for found, want in zip(run(exported, *inputs), simulate(net)(*inputs).values(), strict=True):
        assert_agrees(found, want)


def test_weights_in_blocks(network) -> None:
    model = network(lambda self, x: self.layer(x), layer=nn.Linear(32, 8))
    rules = [Rule("*", role="weight", scheme=Scheme(axis=1, block=8)), Rule("*")]
    net = prepared(model, torch.randn(16, 32), rules)
    exported = export_onnx(net)
    onnx.checker.check_model(exported, full_check=True)
    blocks = [attributes(node) for node in nodes(exported, "DequantizeLinear") if "block_size" in attributes(node)]
    assert blocks == [{"axis": 1, "block_size": 8}]
    x = torch.randn(20, 32)
    assert_agrees(run(exported, x)[0], simulate(net)(x))


def test_a_tied_weight_is_stored_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(40, 16)
            self.head = nn.Linear(16, 40, bias=False)
            self.head.weight = self.table.weight

        def forward(self, tokens):
            return self.head(torch.tanh(self.table(tokens)))

    net = prepared(Tied(), torch.randint(40, (4, 5)))
    exported = export_onnx(net)
    stored = [tensor for tensor in exported.graph.initializer if list(tensor.dims) in ([40, 16], [16, 40])]
    assert [tensor.data_type for tensor in stored] == [TensorProto.INT8]
    tokens = torch.randint(40, (7, 5))
    assert_agrees(run(exported, tokens)[0], simulate(net)(tokens))


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_recurrent_layer_is_one_operator_with_integer_weights(network, kind) -> None:
    layer = getattr(nn, kind)(6, 8, batch_first=True, bidirectional=True)
    model = network(lambda self, x: self.layer(x)[0], layer=layer)
    net = prepared(model, torch.randn(4, 5, 6), target="paper")
    exported = export_onnx(net)
    onnx.checker.check_model(exported, full_check=True)
    (operator,) = nodes(exported, kind)
    assert attributes(operator)["hidden_size"] == 8
    assert attributes(operator)["direction"] == b"bidirectional"
    gates = 4 if kind == "LSTM" else 3
    stored = sorted(list(t.dims) for t in exported.graph.initializer if t.data_type == TensorProto.INT8 and t.dims)
    assert stored == sorted(2 * [[1, gates * 8, 6]] + 2 * [[1, gates * 8, 8]])
    x = torch.randn(3, 5, 6)
    assert_agrees(run(exported, x)[0], simulate(net)(x))


def test_gates_move_from_torchs_order_to_onnxs(network) -> None:
    """i f g o in torch, i o f c in ONNX: the scales of the channels move with their rows."""
    layer = nn.LSTM(3, 2, batch_first=True)
    net = prepared(network(lambda self, x: self.layer(x)[0], layer=layer), torch.randn(4, 5, 3))
    tensors = initializers(export_onnx(net))
    (stored,) = (tensor for tensor in tensors.values() if list(tensor.dims) == [1, 8, 3])
    scale = numpy_helper.to_array(tensors[stored.name.replace("integers", "scale")])
    rows = [0, 1, 6, 7, 2, 3, 4, 5]
    values = net.values["layer.weight_ih"]
    weight = dequantize(quantize(layer.weight_ih_l0.detach(), values), values)
    assert np.array_equal(numpy_helper.to_array(stored)[0] * scale[:, None], weight[rows].numpy())


def test_a_projected_lstm_is_refused(network) -> None:
    layer = nn.LSTM(6, 8, proj_size=4, batch_first=True)
    net = prepared(network(lambda self, x: self.layer(x)[0], layer=layer), torch.randn(4, 5, 6))
    with pytest.raises(QuantizationError, match="ONNX's LSTM has none; use a recurrent layer without proj_size"):
        export_onnx(net)


def test_dicts_name_inputs_and_outputs_and_what_is_no_tensor_is_left_out() -> None:
    class Dicts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x, times=2, offset=None):
            y = self.layer(x) * times
            return {"y": y, "none": None, "offset": offset, "again": y}

    example = {"x": torch.randn(4, 4), "times": 3, "offset": torch.randn(4, 2)}
    net = prepared(Dicts(), example)
    exported = export_onnx(net)
    onnx.checker.check_model(exported, full_check=True)
    assert [value.name for value in exported.graph.input] == ["x", "offset"]
    assert [value.name for value in exported.graph.output] == ["y", "offset_output"]
    x, offset = torch.randn(2, 4), torch.randn(2, 2)
    y, same = run(exported, x, offset)
    assert_agrees(y, simulate(net)(x=x, times=3, offset=offset)["y"])
    assert np.array_equal(same, offset.numpy())


def test_two_dynamic_axes_have_two_names(network) -> None:
    model = network(lambda self, x: torch.softmax(self.layer(x) @ x.transpose(1, 2), -1), layer=nn.Linear(4, 4))
    net = prepared(model, torch.randn(3, 5, 4), dynamic_axes=(0, 1))
    exported = export_onnx(net)
    (value,) = exported.graph.input
    batch, length, width = sizes(value)
    assert (batch, width) == ("batch", 4)
    assert length == f"{value.name}_axis1"
    assert sizes(exported.graph.output[0]) == [batch, length, length]


def test_what_onnx_cannot_say_is_named(network) -> None:
    model = network(lambda self, x: torch.special.bessel_j0(self.layer(x)), layer=nn.Linear(4, 4))
    net = prepared(model, torch.randn(3, 4))
    with pytest.raises(QuantizationError, match=r"cannot translate one of its operations .*bessel_j0.*; rewrite that"):
        export_onnx(net)
