"""A few real inputs, kept beside what calibration saw: an engine is checked on them before anyone gets its network."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from octavo.network.graph import Graph

SAMPLES = 4
MEGABYTES = 1.5  # that they may take together, unless a single call takes more

Call = tuple[tuple[Any, ...], dict[str, Any]]  # positional and keyword arguments of one call


class Samples:
    """Keeps the first calls that it is shown, cut to SAMPLES samples together, as copies on the CPU."""

    def __init__(self, graph: Graph) -> None:
        self.calls: list[Call] = []
        self._sliceable = share_their_batch(graph)
        self._left, self._bytes = SAMPLES, int(MEGABYTES * 1e6)

    def show(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Keep what there is still room for of one call."""
        if self._left == 0:
            return
        call = (args, dict(kwargs))
        sizes = [leaf.shape[0] for leaf in tree_leaves(call) if isinstance(leaf, Tensor) and leaf.ndim]
        if self._sliceable and sizes and min(sizes) > 0:
            each = max(1, _size(call) // sizes[0])
            room = max(self._bytes // each, 0 if self.calls else 1)
            taken = min(self._left, sizes[0], room)
            call = tree_map(lambda leaf: leaf[:taken] if isinstance(leaf, Tensor) else leaf, call)
        else:
            taken = self._left if not self.calls or _size(call) <= self._bytes else 0
        if taken:
            self.calls.append(tree_map(lambda leaf: _copy(leaf) if isinstance(leaf, Tensor) else leaf, call))
            self._bytes -= _size(call)
        self._left = self._left - taken if taken else 0


def calls_of(graph: Graph, samples: tuple[Call, ...]) -> tuple[Call, ...]:
    """`samples`, or if there are none the example that `graph` was captured with."""
    return samples or ((graph.example_args, graph.example_kwargs),)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def _size(call: Call) -> int:
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(call) if isinstance(leaf, Tensor))


def share_their_batch(graph: Graph) -> bool:
    """Whether axis 0 of every tensor input has one and the same dynamic size: then it can be cut."""
    inputs = [node.meta["val"] for node in graph.module.graph.nodes if node.op == "placeholder"]
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    if not tensors or any(value.ndim == 0 for value in tensors):
        return False
    firsts = {str(value.shape[0]) for value in tensors}
    return len(firsts) == 1 and not isinstance(tensors[0].shape[0], int)
