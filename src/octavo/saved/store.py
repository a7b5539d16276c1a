"""Tensors for a file, each once, named after their content; an ONNX model can point at them instead of holding its own.

A safetensors file is a JSON header and then the bytes of all tensors: what ONNX calls external data, at an offset.
"""

import math
from hashlib import sha256

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx.helper import tensor_dtype_to_np_dtype
from onnx.numpy_helper import to_array
from safetensors.torch import save
from torch import Tensor

from octavo.errors import refused
from octavo_serve.onnx_allowed import SHARED
from octavo_serve.tensors import HEADER, places

SMALL = 256  # bytes: initializers up to this size stay inside the ONNX model


class TensorStore:
    """{key: tensor}, filled by `add`; equal tensors have one key."""

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}
        self._by_bytes: dict[bytes, str] = {}

    def add(self, tensor: Tensor) -> str:
        """The key of `tensor`."""
        tensor = tensor.detach().cpu().contiguous()
        raw = sha256(tensor.reshape(-1).view(torch.uint8).numpy().data).digest()
        facts = repr((str(tensor.dtype), tuple(tensor.shape))).encode()
        key = sha256(raw + facts).hexdigest()[:24]
        self._tensors.setdefault(key, tensor)
        self._by_bytes.setdefault(raw, key)
        return key

    def add_initializers(self, model: onnx.ModelProto, turned: set[str] | None = None) -> dict[str, str]:
        """{initializer of `model`: key of a tensor with its bytes}, for all that are not small.

        turned  gets the names of matrices whose transpose is there already, and has the key; None where none may be
        """
        keys = {}
        for initializer in model.graph.initializer:
            array = np.ascontiguousarray(to_array(initializer))
            if array.nbytes > SMALL and array.dtype.kind in "biuf":
                known = self._key_of(array)
                if known is None and turned is not None and array.ndim == 2:
                    known = self._key_of(array.T)
                    turned |= {initializer.name} if known else set()
                keys[initializer.name] = known or self.add(torch.from_numpy(array.copy()))
        return keys

    def _key_of(self, array: NDArray[np.generic]) -> str | None:
        return self._by_bytes.get(sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).digest())

    def serialized(self) -> bytes:
        """The safetensors file."""
        return save(self._tensors)

    def refer(self, model: onnx.ModelProto, keys: dict[str, str], file: bytes, location: str) -> onnx.ModelProto:
        """`model` with the initializers of `keys` in `file`, which will lie beside it at `location`."""
        header = places(file)
        for initializer in model.graph.initializer:
            if initializer.name in keys:
                place = header[keys[initializer.name]]
                initializer.ClearField("raw_data")
                initializer.data_location = onnx.TensorProto.EXTERNAL
                del initializer.external_data[:]
                facts = {"location": location, "offset": place.first, "length": place.last - place.first}
                for key, value in facts.items():
                    initializer.external_data.add(key=key, value=str(value))
        return model


def onnx_with_tensors(model: onnx.ModelProto, file: bytes) -> onnx.ModelProto:
    """`model` with the initializers that lie in `file` inside it again.

    raises  QuantizationError for one that lies elsewhere
    """
    total = 0
    for initializer in model.graph.initializer:
        if initializer.data_location == onnx.TensorProto.EXTERNAL:
            facts = {entry.key: entry.value for entry in initializer.external_data}
            offset, length = int(facts["offset"]), int(facts["length"])
            size = math.prod(initializer.dims) * tensor_dtype_to_np_dtype(initializer.data_type).itemsize
            total += size
            if not (
                HEADER <= offset <= offset + length <= len(file) and length == size and total <= SHARED * len(file)
            ):
                raise refused(initializer.name, "its ONNX model points outside its tensors")
            initializer.raw_data = file[offset : offset + length]
            initializer.data_location = onnx.TensorProto.DEFAULT
            del initializer.external_data[:]
    return model
