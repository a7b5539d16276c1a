"""The ONNX part of a saved network, checked without the package `onnx`: nothing but what the exporter writes.

model ─▶ operators, attributes and tensors by an allow-list ─▶ every value made before it is read, under a name of
its own ─▶ inputs and outputs those of the network ─▶ tensors that lie beside it, in their file
"""

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from octavo_serve.errors import QuantizationError, refused
from octavo_serve.onnx_file import Message
from octavo_serve.tensors import AXES, HEADER

OPSET = 21  # the first with blocked DequantizeLinear

_OPERATORS = """
Abs Acos Acosh Add AffineGrid And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization BitShift
BitwiseAnd BitwiseNot BitwiseOr BitwiseXor BlackmanWindow Cast CastLike Ceil Celu CenterCropPad Clip Col2Im Compress
Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumProd CumSum DFT DepthToSpace DequantizeLinear Det Div
Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm GlobalAveragePool
GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization HammingWindow HannWindow HardSigmoid
HardSwish Hardmax Identity InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual
Log LogSoftmax LpNormalization LpPool MatMul Max MaxPool Mean MeanVarianceNormalization Min Mish Mod Mul Neg NonZero
Not OneHot Or PRelu Pad Pow QuantizeLinear RMSNormalization RNN Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum
ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize Round STFT
ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth
Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Where Xor
"""
OPERATORS = frozenset(_OPERATORS.split())
_ATTRIBUTES = {1: "f", 2: "i", 3: "s", 4: "t", 6: "floats", 7: "ints", 8: "strings"}  # {type: where its value is}
# {number of a type: (its name in numpy or None, bits of an entry)}; text is none.
TYPES: Mapping[int, tuple[str | None, int]] = {
    1: ("float32", 32), 2: ("uint8", 8), 3: ("int8", 8), 4: ("uint16", 16), 5: ("int16", 16), 6: ("int32", 32),
    7: ("int64", 64), 9: ("bool", 8), 10: ("float16", 16), 11: ("float64", 64), 12: ("uint32", 32), 13: ("uint64", 64),
    16: (None, 16), 21: (None, 4), 22: (None, 4),
}  # fmt: skip
EXTERNAL = 1
SHARED = 8  # times the file: what initializers that point at the same bytes may take together


def check_model(model: Message, inputs: Mapping[str, tuple[str, int]], outputs: Sequence[str]) -> None:
    """Raise QuantizationError for a model that is none of the exporter's.

    model    its large initializers still lie elsewhere
    inputs   {name: (dtype, number of axes)} of the network
    outputs  the names of what that returns
    """
    graph = model["graph"] or {}
    opsets = [(entry["domain"] or "", entry["version"]) for entry in model["opset_import"]]
    for holds, seen in (
        (bool(graph), "it has no graph"),
        (opsets == [("", OPSET)], f"it is of the operator sets {opsets[:5]}"),
        (not model["domain"], "it is of another domain"),
        (
            all(node["op_type"] in OPERATORS and not node["domain"] for node in graph["node"]),
            "an operator is not allowed",
        ),
    ):
        if not holds:
            raise _refused(seen)
    for node in graph["node"]:
        for attribute in node["attribute"]:
            _check_attribute(node["op_type"], attribute)
    for initializer in graph["initializer"]:
        _check_tensor(initializer, elsewhere=True)
    _check_order(graph)
    _check_signature(graph, inputs, outputs)


def _check_attribute(operator: str, attribute: Message) -> None:
    """One value, of the type that it says."""
    value = _ATTRIBUTES.get(attribute["type"])
    given = {name for name in _ATTRIBUTES.values() if attribute[name] not in (None, [])}
    if value is None or not given <= {value}:
        raise _refused(f"{operator} has a {str(attribute['name'])[:40]} that holds a graph, a reference or two values")
    if value == "t":
        _check_tensor(attribute["t"] or {"dims": [], "data_type": None}, elsewhere=False)


def _check_tensor(tensor: Message, *, elsewhere: bool) -> None:
    if len(tensor["dims"]) > AXES:
        raise _refused(f"the tensor {str(tensor.get('name'))[:100]} has {len(tensor['dims'])} axes")
    known = TYPES.get(tensor["data_type"])
    if known is None or min(tensor["dims"], default=0) < 0:
        raise _refused(f"the tensor {str(tensor.get('name'))[:100]} holds no numbers")
    external = tensor["data_location"] == EXTERNAL
    if (external and not elsewhere) or external == (tensor["raw_data"] is not None):
        raise _refused(f"the tensor {str(tensor['name'])[:100]} lies elsewhere")
    if not external and len(tensor["raw_data"]) != length_of(tensor):
        raise _refused(f"the tensor {str(tensor['name'])[:100]} is damaged")


def length_of(tensor: Message) -> int:
    """The bytes that it takes."""
    return -(-math.prod(tensor["dims"]) * TYPES[tensor["data_type"]][1] // 8)


def _check_order(graph: Message) -> None:
    """Every value has a name of its own and is made before it is read: a circle keeps an engine busy for seconds."""
    given = [each["name"] for each in (*graph["initializer"], *graph["input"])]
    made = set(given)
    if len(made) < len(given) or None in made:
        raise _refused("two of its inputs and tensors have one name, or none")
    for node in graph["node"]:
        early = [name for name in node["input"] if name and name not in made]
        if early:
            raise _refused(f"{node['op_type']} reads {early[0][:100]!r}, which nothing before it gives")
        for name in filter(None, node["output"]):
            if name in made:
                raise _refused(f"{node['op_type']} gives {name[:100]!r}, which is there already")
            made.add(name)
    missing = [value["name"] for value in graph["output"] if value["name"] not in made]
    if missing:
        raise _refused(f"it returns {str(missing[0])[:100]!r}, which nothing gives")


def _check_signature(graph: Message, inputs: Mapping[str, tuple[str, int]], outputs: Sequence[str]) -> None:
    given = [value["name"] for value in graph["input"]]
    if sorted(given) != sorted(inputs) or [value["name"] for value in graph["output"]] != list(outputs):
        raise _refused("its inputs and outputs are not those of the network")
    for value in graph["input"]:
        kind = (value["type"] or {}).get("tensor_type") or {}
        dims = (kind.get("shape") or {}).get("dim", [])
        if (TYPES.get(kind.get("elem_type", 0), (None,))[0], len(dims)) != inputs[value["name"]]:
            raise _refused(f"its input {value['name'][:100]} has another dtype or number of axes than the network's")


def put_tensors(model: Message, file: bytes, location: str, turned: Collection[str]) -> None:
    """Put the initializers that lie in `file` into `model`.

    location  what the model calls the file
    turned    names of those that are the transpose of what lies there
    raises    QuantizationError for one that lies elsewhere
    """
    total = 0
    for tensor in model["graph"]["initializer"]:
        if tensor["data_location"] == EXTERNAL:
            facts = {entry["key"]: entry["value"] for entry in tensor["external_data"]}
            offset, length, size = int(facts["offset"]), int(facts["length"]), length_of(tensor)
            total += size
            inside = HEADER <= offset <= offset + length <= len(file)
            if facts["location"] != location or not inside or length != size or total > SHARED * len(file):
                raise refused(tensor["name"], "its ONNX model points outside its tensors")
            data = file[offset : offset + length]
            tensor["raw_data"] = _turned(data, tensor) if tensor["name"] in turned else data
            tensor["external_data"], tensor["data_location"] = [], None


def _turned(data: bytes, tensor: Message) -> bytes:
    """The bytes of the matrix `tensor`, whose transpose `data` holds."""
    name, dims = TYPES[tensor["data_type"]][0], tensor["dims"]
    if name is None or len(dims) != 2:
        raise refused(tensor["name"], "it is no matrix, and lies turned")
    return np.frombuffer(data, name).reshape(dims[1], dims[0]).T.tobytes()


def _refused(seen: str) -> QuantizationError:
    return refused("model.onnx", seen)
