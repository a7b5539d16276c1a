"""Calls of a network as data and named tensors, and back."""

import json
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from octavo.errors import QuantizationError
from octavo.network.samples import Call
from octavo.saved.structure import Structure, spec_of, structure_of


class CallRecord(BaseModel):
    """One call without its tensors: `values` are the leaves that are none, by number."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    arguments: Structure
    values: dict[int, bool | int | float | str | None]


def packed(calls: Sequence[Call]) -> tuple[list[CallRecord], dict[str, Tensor]]:
    """`calls` as data and tensors named "call.leaf"; those that cannot be written so are left out."""
    records: list[CallRecord] = []
    tensors: dict[str, Tensor] = {}
    for call in calls:
        leaves, spec = tree_flatten(call)
        values = {number: leaf for number, leaf in enumerate(leaves) if not isinstance(leaf, Tensor)}
        try:
            json.dumps(values)
            record = CallRecord(arguments=structure_of(spec), values=values)
        except (QuantizationError, TypeError, ValueError):
            continue
        own = {n: leaf for n, leaf in enumerate(leaves) if n not in values}
        tensors |= {f"{len(records)}.{n}": leaf.contiguous() for n, leaf in own.items()}
        records.append(record)
    return records, tensors


def unpacked(records: Sequence[CallRecord], tensors: Mapping[str, Tensor]) -> tuple[Call, ...]:
    """The calls that `packed` took apart."""
    calls = []
    for number, record in enumerate(records):
        spec = spec_of(record.arguments)
        leaves = [record.values[n] if n in record.values else tensors[f"{number}.{n}"] for n in range(spec.num_leaves)]
        args, kwargs = tree_unflatten(leaves, spec)
        calls.append((tuple(args), dict(kwargs)))
    return tuple(calls)
