"""An ONNX file read without the package `onnx`: just the fields that the exporter writes, each of the type it has.

What protobuf would skip or merge is refused: fields that are not in `FIELDS`, of another wire type, or twice where one
is meant. So no reader sees anything in the file that was not seen here.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

from octavo_serve.errors import QuantizationError, refused

# Of a file, more than any network has. An empty one takes two bytes there, and hundreds when it is read.
FIELDS_AT_MOST = 500_000

VARINT, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5  # protobuf's wire types

Message = dict[str, Any]


@dataclass(frozen=True)
class Field:
    """A field of a message.

    kind  "int", "float", "text", "bytes", or the name of a message
    many  whether there may be several; numbers then lie in one piece, or each on its own
    """

    name: str
    kind: str
    many: bool = False


# {message: {number: field}}, as onnx.proto has them; what is left out, no exporter of ours writes.
FIELDS: Mapping[str, Mapping[int, Field]] = {
    "Model": {
        1: Field("ir_version", "int"),
        2: Field("producer_name", "text"),
        3: Field("producer_version", "text"),
        4: Field("domain", "text"),
        5: Field("model_version", "int"),
        6: Field("doc_string", "text"),
        7: Field("graph", "Graph"),
        8: Field("opset_import", "Opset", many=True),
    },
    "Opset": {1: Field("domain", "text"), 2: Field("version", "int")},
    "Graph": {
        1: Field("node", "Node", many=True),
        2: Field("name", "text"),
        5: Field("initializer", "Tensor", many=True),
        10: Field("doc_string", "text"),
        11: Field("input", "Value", many=True),
        12: Field("output", "Value", many=True),
    },
    "Node": {
        1: Field("input", "text", many=True),
        2: Field("output", "text", many=True),
        3: Field("name", "text"),
        4: Field("op_type", "text"),
        5: Field("attribute", "Attribute", many=True),
        6: Field("doc_string", "text"),
        7: Field("domain", "text"),
    },
    "Attribute": {
        1: Field("name", "text"),
        2: Field("f", "float"),
        3: Field("i", "int"),
        4: Field("s", "bytes"),
        5: Field("t", "Tensor"),
        7: Field("floats", "float", many=True),
        8: Field("ints", "int", many=True),
        9: Field("strings", "bytes", many=True),
        20: Field("type", "int"),
    },
    "Tensor": {
        1: Field("dims", "int", many=True),
        2: Field("data_type", "int"),
        8: Field("name", "text"),
        9: Field("raw_data", "bytes"),
        13: Field("external_data", "Entry", many=True),
        14: Field("data_location", "int"),
    },
    "Entry": {1: Field("key", "text"), 2: Field("value", "text")},
    "Value": {1: Field("name", "text"), 2: Field("type", "Type")},
    "Type": {1: Field("tensor_type", "TensorType")},
    "TensorType": {1: Field("elem_type", "int"), 2: Field("shape", "Shape")},
    "Shape": {1: Field("dim", "Dimension", many=True)},
    "Dimension": {1: Field("dim_value", "int"), 2: Field("dim_param", "text")},
}


def read_model(data: bytes) -> Message:
    """The file as nested dicts, in which what is not there is None or empty.

    raises  QuantizationError for a file with anything in it that the exporter does not write
    """
    try:
        return _message(data, "Model", count(1))
    except (IndexError, UnicodeDecodeError, struct.error) as error:
        raise refused("model.onnx", "it is no ONNX file that can be read") from error


def _message(data: bytes, kind: str, fields_read: Iterator[int]) -> Message:
    fields = FIELDS[kind]
    found: Message = {field.name: [] if field.many else None for field in fields.values()}
    for number, wire, value in _wires(data):
        if next(fields_read) > FIELDS_AT_MOST:
            raise refused("model.onnx", "it has more fields than any network has")
        field = fields.get(number)
        if field is None:
            raise _foreign(f"a field {number} in its {kind}")
        values = list(_values(field, wire, value, fields_read))
        if field.many:
            found[field.name] += values
        elif found[field.name] is not None or len(values) != 1:
            raise _foreign(f"two of the field {field.name} in its {kind}")
        else:
            (found[field.name],) = values
    return found


def _wires(data: bytes) -> Iterator[tuple[int, int, Any]]:
    """(field number, wire type, an integer or the bytes) of every field in `data`, in its order."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, at = _varint(data, at)
            yield number, wire, value
            continue
        if wire == BYTES:
            length, at = _varint(data, at)
        elif wire in (FOUR_BYTES, EIGHT_BYTES):
            length = 4 if wire == FOUR_BYTES else 8
        else:
            raise _foreign(f"the wire type {wire}")
        if at + length > len(data):
            raise _foreign("a field that ends beyond the file")
        yield number, wire, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(The integer at this place, the place behind it); of ten bytes at most, as protobuf has them."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (2**64 - 1), at
    raise _foreign("an integer of more than ten bytes")


def _values(field: Field, wire: int, value: Any, fields_read: Iterator[int]) -> Iterator[Any]:
    if field.kind == "int":
        yield from _integers(field, wire, value)
    elif field.kind == "float":
        if not (wire == FOUR_BYTES or (wire == BYTES and field.many and len(value) % 4 == 0)):
            raise _foreign(f"no number for {field.name}")
        yield from struct.unpack(f"<{len(value) // 4}f", value)
    elif wire != BYTES:
        raise _foreign(f"a number for {field.name}")
    elif field.kind in ("text", "bytes"):
        yield value.decode() if field.kind == "text" else value
    else:
        yield _message(value, field.kind, fields_read)


def _integers(field: Field, wire: int, value: Any) -> Iterator[int]:
    if wire == VARINT:
        yield _signed(value)
    elif wire == BYTES and field.many:
        at = 0
        while at < len(value):
            number, at = _varint(value, at)
            yield _signed(number)
    else:
        raise _foreign(f"no integer for {field.name}")


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


def _foreign(what: str) -> QuantizationError:
    return refused("model.onnx", f"there is {what}, which octavo.save does not write")


# ---- and written again


def write_model(message: Message) -> bytes:
    """The file of what `read_model` returned."""
    return b"".join(_written(message, "Model"))


def _written(message: Message, kind: str) -> Iterator[bytes]:
    for number, field in FIELDS[kind].items():
        values = message[field.name]
        for value in values if field.many else [] if values is None else [values]:
            if field.kind == "int":
                yield _as_varint(number << 3 | VARINT) + _as_varint(value % 2**64)
            elif field.kind == "float":
                yield _as_varint(number << 3 | FOUR_BYTES) + struct.pack("<f", value)
            else:
                inner = value.encode() if field.kind == "text" else value
                inner = b"".join(_written(inner, field.kind)) if field.kind in FIELDS else inner
                yield _as_varint(number << 3 | BYTES) + _as_varint(len(inner))
                yield inner


def _as_varint(number: int) -> bytes:
    found = bytearray()
    while number >= 0x80:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])
