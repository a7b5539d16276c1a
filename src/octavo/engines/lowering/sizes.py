"""What is known about sizes, of which some are symbols: a kernel may rely on that alone, whatever the example was."""

from collections.abc import Iterable

from torch import SymInt
from torch.fx.experimental.symbolic_shapes import statically_known_true

Size = int | SymInt


def same_sizes(*shapes: Iterable[Size]) -> bool:
    """Whether all `shapes` are equal for every input that the network takes."""
    first, *others = map(tuple, shapes)
    return all(
        len(first) == len(other) and all(statically_known_true(a == b) for a, b in zip(first, other, strict=True))
        for other in others
    )
