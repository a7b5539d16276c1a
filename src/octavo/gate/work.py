"""How many multiplications a kernel of a runtime does, by the shapes of one call. See `network/work.py` for our graphs.

Each takes the shapes of what a kernel read, of what it returned, and of the weights that it holds.
"""

import math
from collections.abc import Sequence

Shape = tuple[int, ...]
Shapes = Sequence[Shape]


def conv(inputs: Shapes, outputs: Shapes, weights: Shapes) -> float:
    """Every output is a sum over one filter, of a weight [outputs, inputs of a group, …]."""
    return math.prod(outputs[0]) * math.prod(_weight(inputs, weights)[1:])


def transposed(inputs: Shapes, outputs: Shapes, weights: Shapes) -> float:
    """Every input meets all that follows its channel in the weight [inputs, outputs of a group, …]."""
    return math.prod(inputs[0]) * math.prod(_weight(inputs, weights)[1:])


def gemm(inputs: Shapes, outputs: Shapes, weights: Shapes) -> float:
    """A product of matrices, of which either may be given transposed."""
    return math.prod(outputs[0]) * (math.prod(inputs[0]) / outputs[0][0])


def last_axis(inputs: Shapes, outputs: Shapes, weights: Shapes) -> float:
    """A product of matrices, of which the left one lies as it is."""
    return math.prod(outputs[0]) * inputs[0][-1]


def recurrent(inputs: Shapes, outputs: Shapes, weights: Shapes) -> float:
    """Every step of every sample meets every weight."""
    return math.prod(inputs[0][:-1]) * sum(map(math.prod, weights[:2]))


def einsum(inputs: Shapes, outputs: Shapes, weights: Shapes) -> float:
    """All operands with all: no sum is larger."""
    return math.prod(map(math.prod, inputs))


def _weight(inputs: Shapes, weights: Shapes) -> Shape:
    """That of a kernel; one that is computed on the way is its second input."""
    return weights[0] if weights else inputs[1]
