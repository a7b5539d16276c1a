"""An ONNX file from elsewhere: it may use any operator of the runtime, and no file but its own.

What ONNX Runtime or OpenVINO has an operator for is data. Refused are operators of other libraries, which nobody loads
here; EPContext, which names compiled code to be loaded; and tensors that lie outside the folder of the file. How much
memory and time a network takes is not bounded: run one that you do not trust where that does no harm (docs/trust.md).
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto

from octavo.errors import QuantizationError, reading

DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc"}
CODE = {"EPContext"}  # names a compiled blob, or a library, that an execution provider loads


def read_onnx(path: Path) -> onnx.ModelProto:
    """The model in the file `path`, without the tensors that lie beside it.

    raises  QuantizationError for what is no ONNX file, and for one that asks for more than its own files
    """
    with reading(asked=f"open {path.name}", seen="it is no ONNX file", remedy="pass a .onnx file", site=str(path)):
        model = onnx.load(path, load_external_data=False)
        if not model.ir_version or not model.graph.node:
            raise ValueError("it holds no network")
    own = {function.domain for function in model.functions}
    for node in _nodes(model):
        if node.domain not in DOMAINS | own or node.op_type in CODE:
            raise _refused(path, f"it calls {node.domain[:60]}:{node.op_type[:60]}, which is not the runtime's own")
    for tensor in external_tensors(model):
        _check_beside(path, {entry.key: entry.value for entry in tensor.external_data})
    return model


def external_files(path: Path, model: onnx.ModelProto) -> set[Path]:
    """The files beside `path` that hold its tensors."""
    places = ({entry.key: entry.value for entry in tensor.external_data} for tensor in external_tensors(model))
    return {path.parent / place["location"] for place in places}


def external_tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Every tensor of the model that lies elsewhere, in graphs inside of operators, too."""
    graphs = [model.graph, *(info.algorithm for info in model.training_info)]
    tensors = [tensor for graph in graphs for tensor in _stored(graph)]
    for node in _nodes(model):
        for attribute in node.attribute:
            tensors += [attribute.t, *attribute.tensors, *_parts(attribute.sparse_tensor)]
            tensors += [part for sparse in attribute.sparse_tensors for part in _parts(sparse)]
            tensors += [tensor for graph in _inner(attribute) for tensor in _stored(graph)]
    yield from (tensor for tensor in tensors if tensor.data_location == TensorProto.EXTERNAL)


def _stored(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from _parts(sparse)


def _parts(sparse: onnx.SparseTensorProto) -> tuple[TensorProto, TensorProto]:
    return sparse.values, sparse.indices


def _nodes(model: onnx.ModelProto) -> Iterator[NodeProto]:
    """All nodes: of the graph, of graphs inside of them, and of functions."""
    waiting = [*model.graph.node]
    for info in model.training_info:
        waiting += [*info.algorithm.node, *info.initialization.node]
    for function in model.functions:
        waiting += function.node
    while waiting:
        node = waiting.pop()
        yield node
        for attribute in node.attribute:
            for graph in _inner(attribute):
                waiting += graph.node


def _inner(attribute: AttributeProto) -> list[GraphProto]:
    return [attribute.g, *attribute.graphs]


def _check_beside(path: Path, place: dict[str, str]) -> None:
    """Refuse tensors that are not in a plain file in the folder of `path`, or beyond its end."""
    location = place.get("location", "")
    climbs = any(
        kind(location).is_absolute() or ".." in kind(location).parts for kind in (PurePosixPath, PureWindowsPath)
    )
    file, folder = path.parent / location, path.parent.resolve()
    if not location or "\0" in location or climbs or not file.resolve().is_relative_to(folder):
        raise _refused(path, f"its tensors lie in {location[:100]!r}, outside of its folder")
    if not file.is_file():
        raise _refused(path, f"its tensors lie in {location[:100]!r}, which is not there", "copy that file, too")
    try:
        end = int(place.get("offset", 0)) + int(place.get("length", 0))
        whole = min(int(place.get("offset", 0)), int(place.get("length", 0))) >= 0 and end <= file.stat().st_size
    except ValueError:
        whole = False
    if not whole:
        raise _refused(path, f"its tensors lie beyond the end of {location[:100]!r}", "copy that file again")


def _refused(path: Path, seen: str, remedy: str = "check a file that needs no more than itself") -> QuantizationError:
    return QuantizationError(asked=f"open {path.name}", seen=seen, remedy=remedy, site=str(path))
