"""Networks as other tools write them: small ONNX files, made by hand, and data for them."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES, WIDTH = 4, 8
Array = np.ndarray


def samples(count: int = 400, *, seed: int = 7) -> Array:
    return np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)


def weight(*, seed: int = 3) -> Array:
    return np.random.default_rng(seed).standard_normal((WIDTH, CLASSES)).astype(np.float32)


def rounded(w: Array, x: Array) -> tuple[dict[str, Array], Array]:
    """(scales and integers of the int8 network with this weight, calibrated on x; what it computes, in float64)."""
    scales = {"x": np.float32(np.abs(x).max() / 127), "w": (np.abs(w).max(axis=0) / 127).astype(np.float32)}
    integers = np.clip(np.rint(w / scales["w"]), -127, 127).astype(np.int8)
    read = np.clip(np.rint(x / scales["x"]), -128, 127).astype(np.float64)
    logits = (read @ integers.astype(np.float64)) * (float(scales["x"]) * scales["w"].astype(np.float64))
    return {"x_scale": scales["x"], "w_scale": scales["w"], "w": integers}, logits


def save(
    path: Path,
    nodes: list[Any],
    inputs: dict[str, tuple[int, list[Any]]],
    outputs: dict[str, tuple[int, list[Any]]],
    constants: dict[str, Array],
    *,
    domains: tuple[str, ...] = (),
) -> Path:
    """An ONNX file of these nodes."""
    ports = [
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in side.items()]
        for side in (inputs, outputs)
    ]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "network", ports[0], ports[1], tensors)
    opsets = [helper.make_opsetid("", 20), *(helper.make_opsetid(domain, 1) for domain in domains)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def float_linear(path: Path, w: Array | None = None, *, batch: Any = "n", name: str = "x", out: str = "logits") -> Path:
    """x [batch, 8] → logits [batch, 4]."""
    return save(
        path,
        [helper.make_node("MatMul", [name, "w"], [out], name="head")],
        {name: (TensorProto.FLOAT, [batch, WIDTH])},
        {out: (TensorProto.FLOAT, [batch, CLASSES])},
        {"w": weight() if w is None else w},
    )


def int8_linear(
    path: Path, x: Array | None = None, *, zero: int = 0, batch: Any = "n", name: str = "x", out: str = "logits"
) -> Path:
    """The same with QuantizeLinear and DequantizeLinear, as ONNX Runtime's and NNCF's tools write them.

    zero  the zero-point that x is read with; it is written with 0
    """
    made, _ = rounded(weight(), samples() if x is None else x)
    nodes = [
        helper.make_node("QuantizeLinear", [name, "x_scale", "x_zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "x_scale", "x_read"], ["dq"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["dw"], axis=1),
        helper.make_node("MatMul", ["dq", "dw"], [out], name="head"),
    ]
    constants = made | {"x_zero": np.int8(0), "x_read": np.int8(zero), "w_zero": np.zeros(CLASSES, np.int8)}
    ports = {name: (TensorProto.FLOAT, [batch, WIDTH])}, {out: (TensorProto.FLOAT, [batch, CLASSES])}
    return save(path, nodes, *ports, constants)


def elementwise(path: Path, operator: str, *, kind: int = TensorProto.FLOAT, shape: Any = ("n", WIDTH)) -> Path:
    """y = operator(x), of the same shape and type."""
    ports = {"x": (kind, list(shape))}, {"y": (kind, list(shape))}
    return save(path, [helper.make_node(operator, ["x"], ["y"])], *ports, {})
