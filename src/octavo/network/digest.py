"""Digests: SHA-256 of what determines a result, so that a study knows when it has seen it before."""

import hashlib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from octavo.errors import QuantizationError
from octavo.network.edit import attribute
from octavo.network.graph import Graph

DIGEST = 16  # bytes that name a sample: of 10⁹ samples two are alike by chance once in 10²⁰ times
PLAIN = (bool, int, float, complex, str, bytes, type(None))


def digest_of_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Hexadecimal SHA-256 of the names, dtypes, shapes and bytes, in this order; wherever the tensors are."""
    return digest_of_batch([[name, tensor] for name, tensor in tensors])


def digest_of_graph(graph: Graph) -> str:
    """Hexadecimal SHA-256 of what the network computes: its operations, and every tensor that they read by name."""
    module = graph.module
    reads = [node for node in module.graph.nodes if node.op == "get_attr"]  # constants are no parameters, nor buffers
    tensors = digest_of_tensors((str(node.target), attribute(module, node)) for node in reads)
    return digest_of_batch([module.code, str(module._in_spec), str(module._out_spec), tensors])


def digest_of_batch(batch: Any) -> str:
    """Hexadecimal SHA-256 of tensors, arrays and plain values in mappings, tuples and lists.

    The order of a mapping does not count, nor whether a sequence is a tuple or a list: networks read both alike.

    raises  QuantizationError for a value of any other type
    """
    digest = hashlib.sha256()
    for part in _parts(batch):
        size = part.nbytes if isinstance(part, memoryview) else len(part)
        digest.update(size.to_bytes(8, "little"))  # so that no two lists of parts look alike when joined
        digest.update(part)
    return digest.hexdigest()


def digests_of_samples(tensors: Iterable[tuple[str, Tensor]]) -> list[bytes]:
    """DIGEST bytes of a SHA-256 for each sample of these named tensors [N, …]: of its dtypes, shapes and bytes.

    Of a sequence of integers, [N, L], zeros at the end do not count, so what is padded with zeros is the same whatever
    it is padded to. That makes no two samples of one length the same.
    """
    found: list[Any] | None = None
    for name, tensor in tensors:
        head, rows = _rows(tensor)
        found = [hashlib.sha256() for _ in rows] if found is None else found
        for digest, row in zip(found, rows, strict=True):
            digest.update(f"{name} {head} {row.nbytes};".encode())
            digest.update(row.data)
    return [digest.digest()[:DIGEST] for digest in found or ()]


def _rows(tensor: Tensor) -> tuple[str, list[npt.NDArray[np.uint8]]]:
    """What the samples of a tensor have in common, and the bytes of each."""
    count, shape = len(tensor), list(tensor.shape[1:])
    size = tensor.element_size() * math.prod(shape)
    table = np.frombuffer(_bytes(tensor), dtype=np.uint8).reshape(count, size)
    if len(shape) != 1 or tensor.is_floating_point() or tensor.is_complex():
        return f"{tensor.dtype} {shape}", list(table)
    if not size:
        return f"{tensor.dtype}", list(table)
    filled = (tensor != 0).cpu().numpy()
    ends = shape[0] - filled[:, ::-1].argmax(1)
    ends[~filled.any(1)] = 0
    return f"{tensor.dtype}", [row[: end * tensor.element_size()] for row, end in zip(table, ends, strict=True)]


def source_of(function: Callable[..., Any] | None) -> str:
    """Its source code, so that a study knows a score by another function from its own; "" where there is none.

    Of a partial its function's, and what it fixes; of any other object with `__call__` its class's.
    """
    if isinstance(function, partial):
        return f"{source_of(function.func)}{function.args}{function.keywords}"
    has_source = function is None or inspect.isroutine(function) or inspect.isclass(function)
    try:
        return "" if function is None else inspect.getsource(function if has_source else type(function))
    except (OSError, TypeError):
        return ""


def _parts(value: Any) -> Iterable[bytes | memoryview]:
    match value:
        case Tensor():
            yield f"tensor {value.dtype} {list(value.shape)}".encode()
            yield _bytes(value)
        case np.ndarray() if value.dtype.kind in "biufc":
            yield from _parts(torch.as_tensor(value.copy()))
        case Mapping():
            yield f"mapping of {len(value)}".encode()
            for key in sorted(value, key=ascii):
                yield from _parts(key)
                yield from _parts(value[key])
        case tuple() | list():
            yield f"sequence of {len(value)}".encode()
            for item in value:
                yield from _parts(item)
        case _ if isinstance(value, PLAIN):
            yield f"{type(value).__name__} {value!a}".encode()
        case _:
            raise QuantizationError(
                asked="recognize a batch when it comes again",
                seen=f"it holds a {type(value).__name__}",
                remedy="give tensors, arrays and plain values, in dicts, tuples and lists",
            )


def _bytes(tensor: Tensor) -> memoryview:
    flat: npt.NDArray[np.uint8] = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return flat.data
