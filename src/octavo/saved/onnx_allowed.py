"""The ONNX part of a saved network: nothing but operators that the exporter writes, of sizes that are known beforehand.

    model ─▶ operators, attributes and tensors by an allow-list ─▶ its inputs and outputs those of the graph
          ─▶ the shape of every value, with the inputs of the example ─▶ what it takes

Whether it computes the graph is seen when it runs, beside the simulation (`octavo.load`).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import AttributeProto, NodeProto, TensorProto
from onnx.helper import make_graph, make_model, tensor_dtype_to_np_dtype
from onnx.numpy_helper import from_array, to_array
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from octavo.errors import QuantizationError, reason, refused
from octavo.saved.cost import RAISE, Limits
from octavo_serve.onnx_allowed import OPERATORS, OPSET

_ATTRIBUTES = {
    AttributeProto.FLOAT,
    AttributeProto.INT,
    AttributeProto.STRING,
    AttributeProto.TENSOR,
    AttributeProto.FLOATS,
    AttributeProto.INTS,
    AttributeProto.STRINGS,
}
# Of shapes and indices, which are computed here to know the shapes of other values.
_SIZES = """
Shape Size Gather Concat Add Sub Mul Div Mod Cast Squeeze Unsqueeze Slice Neg Floor Ceil Min Max Where Equal Range
Constant Identity Reshape ReduceProd Less Greater Not And Or
"""
_OF_SIZES = frozenset(_SIZES.split())
FEW = 4096  # entries of a shape, or of indices
ROUNDS = 8  # of knowing more shapes by what is computed of those that are known

Shapes = Mapping[str, tuple[int, ...]]


def check_onnx(model: onnx.ModelProto, inputs: Mapping[str, Tensor], outputs: Sequence[str], limits: Limits) -> None:
    """Raise QuantizationError for a model that is none of the exporter's, or takes more than `limits`.

    model    its large initializers still lie elsewhere
    inputs   {name: an example} of the graph that it is to compute
    outputs  the names of what that returns
    """
    _check_parts(model)
    names = [value.name for value in model.graph.input]
    if sorted(names) != sorted(inputs) or [value.name for value in model.graph.output] != list(outputs):
        raise _refused("its inputs and outputs are not those of the graph")
    for value in model.graph.input:
        kind, example = value.type.tensor_type, inputs[value.name]
        if len(kind.shape.dim) != example.ndim or _dtype(kind.elem_type) != example.numpy(force=True).dtype:
            raise _refused(f"its input {value.name[:100]} has another dtype or number of axes than that of the graph")
    _check_cost(model, _shapes(model, {name: tuple(tensor.shape) for name, tensor in inputs.items()}), limits)


def _check_parts(model: onnx.ModelProto) -> None:
    graph = model.graph
    opsets = {(entry.domain, entry.version) for entry in model.opset_import}
    for holds, seen in (
        (opsets == {("", OPSET)}, f"it is of the operator sets {sorted(opsets)[:5]}"),
        (not model.functions and not model.training_info, "it has functions or training information"),
        (not graph.sparse_initializer and not graph.quantization_annotation, "it has sparse tensors or annotations"),
        (all(node.op_type in OPERATORS and not node.domain for node in graph.node), "an operator is not allowed"),
    ):
        if not holds:
            raise _refused(seen)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type not in _ATTRIBUTES or attribute.ref_attr_name:
                raise _refused(f"{node.op_type} has a {attribute.name[:40]} that holds a graph or a reference")
            if attribute.type == AttributeProto.TENSOR:
                _check_tensor(attribute.t, elsewhere=False)
    for initializer in graph.initializer:
        _check_tensor(initializer, elsewhere=True)
    _check_order(graph)


def _check_order(graph: onnx.GraphProto) -> None:
    """Every value has a name of its own and is made before it is read: a circle kept OpenVINO busy for 2.6 s."""
    given = [each.name for each in (*graph.initializer, *graph.input)]
    made = set(given)
    if len(made) < len(given):
        raise _refused("two of its inputs and tensors have one name")
    for node in graph.node:
        early = [name for name in node.input if name and name not in made]
        if early:
            raise _refused(f"{node.op_type} reads {early[0][:100]!r}, which nothing before it gives")
        for name in filter(None, node.output):
            if name in made:
                raise _refused(f"{node.op_type} gives {name[:100]!r}, which is there already")
            made.add(name)


def _check_tensor(tensor: TensorProto, *, elsewhere: bool) -> None:
    if tensor.data_type in (TensorProto.STRING, TensorProto.UNDEFINED) or min(tensor.dims, default=0) < 0:
        raise _refused(f"the tensor {tensor.name[:100]} holds no numbers")
    if tensor.data_location != TensorProto.EXTERNAL:
        try:
            onnx.checker.check_tensor(tensor)
        except onnx.checker.ValidationError as error:
            raise _refused(f"the tensor {tensor.name[:100]} is damaged ({str(error)[:100]})") from error
    elif not elsewhere:
        raise _refused(f"the tensor {tensor.name[:100]} lies elsewhere")


def _shapes(model: onnx.ModelProto, inputs: Shapes) -> Shapes:
    """The shape of every value, with inputs of these shapes."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    del fixed.graph.value_info[:]
    for value in fixed.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, inputs[value.name], strict=True):
            dim.Clear()
            dim.dim_value = size
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    wanted = {name for node in fixed.graph.node for name in node.output if name}
    for _ in range(ROUNDS):
        known = _inferred(fixed)
        missing = wanted - known.keys()
        if not missing or not _compute_sizes(fixed, known):
            break
    if missing:
        raise _refused(f"the size of its value {min(missing)[:100]!r} cannot be told without running it")
    return known


def _inferred(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """The shapes that follow from those of the inputs."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, RuntimeError) as error:
        raise _refused(f"its operators do not fit together ({reason(error, most=120)})") from error
    found = {initializer.name: tuple(initializer.dims) for initializer in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
            found[value.name] = tuple(dim.dim_value for dim in kind.shape.dim)
    return found


def _compute_sizes(model: onnx.ModelProto, shapes: Shapes) -> bool:
    """Replace what computes with sizes by constants, as far as they are known; whether there was anything."""
    known = {
        tensor.name: to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_location != TensorProto.EXTERNAL and math.prod(tensor.dims) <= FEW
    }
    left: list[NodeProto] = []
    made: dict[str, npt.NDArray[Any]] = {}
    for node in model.graph.node:
        found = _computed(node, known, shapes)
        if found is None:
            left.append(node)
        else:
            known[node.output[0]] = made[node.output[0]] = found
    del model.graph.node[:]
    model.graph.node.extend(left)
    model.graph.initializer.extend(from_array(np.asarray(value), name) for name, value in made.items())
    return bool(made)


def _computed(node: NodeProto, known: Mapping[str, npt.NDArray[Any]], shapes: Shapes) -> npt.NDArray[Any] | None:
    """What `node` gives, if it computes with sizes that are known; None if not, or if that is much."""
    if node.op_type not in _OF_SIZES or len(node.output) != 1:
        return None
    if node.op_type == "Shape" and node.input[0] in shapes:
        between = {attribute.name: attribute.i for attribute in node.attribute}
        return np.asarray(shapes[node.input[0]][between.get("start") : between.get("end")], dtype=np.int64)
    if not all(name in known for name in node.input if name) or node.op_type in ("Shape", "Size"):
        return None
    values = [known[name] for name in node.input if name]
    if node.op_type == "Range" and not _is_short(*map(float, (value.reshape(-1)[0] for value in values))):
        return None
    graph = make_graph([node], "one", [], [onnx.helper.make_empty_tensor_value_info(node.output[0])])
    graph.initializer.extend(from_array(np.asarray(known[name]), name) for name in {*node.input} - {""})
    model = make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)])
    try:
        (found,) = ReferenceEvaluator(model).run(None, {})
    except Exception as error:  # whatever numpy says of sizes that do not fit
        raise _refused(f"{node.op_type} does not fit its sizes ({str(error)[:100]})") from error
    return np.asarray(found) if np.size(found) <= FEW else None


def _is_short(start: float, limit: float, step: float) -> bool:
    return step != 0 and abs((limit - start) / step) <= FEW


def _check_cost(model: onnx.ModelProto, shapes: Shapes, limits: Limits) -> None:
    """Refuse a value, or products together, beyond the limits; every number is taken for four bytes."""
    multiplied = 0.0
    for node in model.graph.node:
        sizes = [shapes.get(name, ()) for name in node.input]
        outputs = max((math.prod(shapes.get(name, ())) for name in node.output if name), default=0)
        multiplied += _multiplications(node.op_type, outputs, sizes)
        if 4.0 * outputs > limits.bytes or multiplied > limits.multiplications:
            seen = f"{node.name[:100] or node.op_type} gives {outputs} numbers, after {multiplied:.1e} multiplications"
            raise refused("model.onnx", seen, RAISE)


def _multiplications(operator: str, outputs: int, sizes: Sequence[tuple[int, ...]]) -> float:
    if operator in ("MatMul", "Gemm"):
        return float(outputs * max(sizes[0], default=1))
    if operator in ("Conv", "ConvTranspose"):
        return float(max(outputs, math.prod(sizes[0])) * math.prod(sizes[1]) / max(1, min(sizes[1][:2], default=1)))
    if operator in ("LSTM", "GRU", "RNN"):
        return float(math.prod(sizes[0][:2]) * (math.prod(sizes[1]) + math.prod(sizes[2])))
    return math.prod(map(math.prod, sizes), start=1.0) if operator == "Einsum" else 0.0


def _dtype(kind: int) -> Any:
    try:
        return tensor_dtype_to_np_dtype(kind)
    except KeyError as error:
        raise _refused(f"an input of it is of the unknown type {kind}") from error


def _refused(seen: str) -> QuantizationError:
    return refused("model.onnx", seen)
