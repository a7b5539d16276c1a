"""The rules of TensorRT: every plan for it keeps them, and each of them notices the model that breaks it."""

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import octavo
from conftest import runs_here
from octavo.engines.onnx import export_onnx
from octavo.engines.onnx_rules import RULES, violations
from octavo.errors import QuantizationError
from octavo.numerics import Scheme
from test_onnxruntime import CASES


@pytest.mark.parametrize("name", CASES)
def test_plans_for_tensorrt_keep_every_rule(name, calibrated):
    build, inputs, axes = CASES[name]
    net = calibrated(build().eval(), inputs(2), target="tensorrt", dynamic_axes=axes)
    assert violations(export_onnx(net)) == []


@pytest.mark.parametrize("downsample", [False, True])
def test_residual_blocks_keep_every_rule(downsample, calibrated, basic_block, tmp_path):
    net = calibrated(basic_block(downsample=downsample).eval(), torch.randn(2, 4, 8, 8), target="tensorrt")
    octavo.export(net, tmp_path / "net.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "net.onnx"))


def test_other_targets_and_schemes_break_rules(calibrated, basic_block, tmp_path):
    x = torch.randn(2, 4, 8, 8)

    def broken(target="tensorrt", **rule):
        rules = [octavo.Rule(role="input", scheme=Scheme(**rule)), octavo.Rule()] if rule else [octavo.Rule()]
        net = calibrated(basic_block().eval(), x, rules, target)
        return {violation.rule for violation in violations(export_onnx(net))}

    assert broken("openvino") == {"integers are int8", "zero-points are 0"}
    assert broken(octavo.Target(name="both", zero_points=False, residual="both")) == {
        "one branch of a residual addition is quantized"
    }
    assert broken(signed=False, symmetric=False) == {"integers are int8", "zero-points are 0"}
    unsigned = octavo.Target(name="tensorrt", activation=Scheme(signed=False, symmetric=False))
    net = calibrated(basic_block().eval(), x, target=unsigned)
    with pytest.raises(QuantizationError, match=r"asked to write a model for TensorRT, but its"):
        octavo.export(net, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def model_of(nodes, **constants):
    """An ONNX model of `nodes` ("Op", inputs, output, attributes); constants by name."""
    made = [helper.make_node(op, ins.split(), [out], name=out, **attributes) for op, ins, out, attributes in nodes]
    kinds = {"f": TensorProto.FLOAT, "i": TensorProto.INT8}
    tensors = [
        helper.make_tensor(name, kinds["i" if name[0] in "wz" else "f"], shape, values)
        for name, (shape, values) in constants.items()
    ]
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y", nodes[-1][2])]
    return helper.make_model(helper.make_graph(made, "g", info[:2], info[2:], tensors))


Q, DQ = "QuantizeLinear", "DequantizeLinear"
S = {"s": ([], [0.5]), "z": ([], [0])}
W = {"w": ([2, 2], [1, 2, 3, 4]), "v": ([2], [0.5, 0.25])}
BREAKS = {
    "scales are positive": (((Q, "x s", "q", {}), (DQ, "q s", "d", {})), {"s": ([], [0.0])}),
    "zero-points are 0": (((Q, "x s z", "q", {}), (DQ, "q s z", "d", {})), S | {"z": ([], [3])}),
    "an activation has one scale": (((Q, "x v", "q", {"axis": 1}), (DQ, "q v", "d", {"axis": 1})), W),
    "QuantizeLinear is read by DequantizeLinear alone": (((Q, "x s", "q", {}), ("Cast", "q", "c", {"to": 1})), S),
    "a tensor is quantized once": (
        ((Q, "x s", "q", {}), (DQ, "q s", "d", {}), (Q, "d s", "q2", {}), (DQ, "q2 s", "d2", {})),
        S,
    ),
    "all inputs of an operation are quantized, or none": (
        ((Q, "x s", "q", {}), (DQ, "q s", "d", {}), ("MatMul", "d y", "m", {})),
        S,
    ),
    "weights have scales along their outputs": (
        ((Q, "x s", "q", {}), (DQ, "q s", "d", {}), (DQ, "w v", "dw", {"axis": 0}), ("MatMul", "d dw", "m", {})),
        S | W,
    ),
}


@pytest.mark.parametrize("rule", BREAKS)
def test_a_model_that_breaks_one_rule_breaks_that_alone(rule):
    nodes, constants = BREAKS[rule]
    assert {violation.rule for violation in violations(model_of(nodes, **constants))} == {rule}


def test_every_rule_is_seen_to_be_broken():
    assert {*BREAKS, "integers are int8", "one branch of a residual addition is quantized"} == set(RULES)


def test_layers_left_in_float_are_float_in_the_file(calibrated):
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    rules = [octavo.Rule("2", skip=True), octavo.Rule()]
    net = calibrated(model, torch.randn(3, 8), rules, "tensorrt")
    exported = export_onnx(net)
    assert violations(exported) == []
    stored = {
        tensor.name: tensor.data_type for tensor in exported.graph.initializer if list(tensor.dims) in ([8, 8], [4, 8])
    }
    assert sorted(stored.values()) == [TensorProto.FLOAT, TensorProto.INT8, TensorProto.INT8]
    assert sum(node.op_type == Q for node in exported.graph.node) == 2


@pytest.mark.parametrize(
    ("model", "axes", "captured", "other"),
    [
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
         (0, 2, 3), (2, 3, 16, 12), (5, 3, 9, 20)),
        (nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), (0, 1), (2, 6, 16), (3, 11, 16)),
        (nn.Sequential(nn.Conv1d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv1d(8, 4, 3)), (0, 2), (2, 4, 20), (1, 4, 33)),
    ],
    ids=["image size", "sequence length", "signal length"],
)  # fmt: skip
def test_axes_beyond_the_batch_are_dynamic_in_the_file(model, axes, captured, other, calibrated, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    from octavo_serve.onnxruntime import INVALID  # noqa: PLC0415

    net = calibrated(model.eval(), torch.randn(captured), target=runs_here("tensorrt"), dynamic_axes=axes)
    octavo.export(net, tmp_path / "net.onnx")
    session = runtime.InferenceSession(tmp_path / "net.onnx", disabled_optimizers=[INVALID])
    x = torch.randn(other)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        wanted = octavo.simulate(net)(x)
    assert octavo.sqnr_db(wanted, torch.from_numpy(found)) > 25
