"""A recipe's evaluate() of any network: called with tensors, like the user's own model."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_leaves, tree_structure, tree_unflatten

from octavo.errors import QuantizationError, reading
from octavo.gate.batches import outputs_of
from octavo.gate.data import Metric
from octavo.gate.measures import Measured
from octavo.gate.network import Opened
from octavo.gate.python import array_of
from octavo.workflow.goal import Score, score


class Called:
    """A network that is called with tensors, by position or by name.

    A network of arrays returns tensors in the form `like`; without one a tensor, or a tuple of them.
    like    the form of the last output of a torch network
    broken  whether it has returned NaN or infinity
    """

    def __init__(self, network: Opened, like: TreeSpec | None = None) -> None:
        self.network, self.like, self.broken = network, like, False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.network.network is None:
            found = self._of_arrays(args, kwargs)
        else:
            found = self.network.network(*args, **kwargs)
            self.like = tree_structure(found)
        tensors = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
        self.broken |= not all(bool(torch.isfinite(one).all()) for one in tensors)
        return found

    def _of_arrays(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = {str(number): value for number, value in enumerate(args)} | kwargs
        rows = outputs_of(self.network, {name: array_of(value) for name, value in given.items()})
        found = [torch.from_numpy(np.stack(list(one))) for one in rows.values()]
        if self.like is not None and self.like.num_leaves == len(found):
            return tree_unflatten(found, self.like)
        return found[0] if len(found) == 1 else tuple(found)


def by_recipe(metric: Metric, reference: Opened, other: Opened) -> Measured | None:
    """What the recipe says of both; None if the int8 network returns NaN or infinity where the float one does not.

    raises  QuantizationError for what is no score, and for what evaluate() raises
    """
    wanted, found = Called(reference), Called(other)
    score_of_reference = _scored(metric, wanted)
    found.like = wanted.like
    try:
        score_of_other = _scored(metric, found, score_of_reference)
    except QuantizationError:
        if found.broken:
            return None
        raise
    if found.broken and not wanted.broken:  # an evaluate() that takes the largest entry scores NaN, too
        return None
    return Measured(
        name="evaluate",
        output=None,
        why=f"{metric.source} has evaluate()",
        reference=score_of_reference,
        other=score_of_other,
        higher_is_better=metric.higher_is_better,
    )


def _scored(metric: Metric, network: Called, reference: Score | None = None) -> Score:
    with reading(
        asked=f"score {network.network.name} by {metric.source}",
        seen="its evaluate() failed",
        remedy="run it by itself on this network",
    ):
        return score(metric.evaluate, network, reference=reference)
