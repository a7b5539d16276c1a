"""The search for the smallest set of layers to leave in float, against exhaustive search."""

import math
import random
from itertools import combinations

import pytest

from octavo.workflow.rungs import smallest_set


class Works:
    """Whether the losses of the layers left quantized stay within what is allowed; counts its calls."""

    def __init__(self, losses: dict[str, float], allowed: float) -> None:
        self.losses, self.allowed, self.calls = losses, allowed, []

    def __call__(self, kept) -> bool:
        self.calls.append(tuple(kept))
        return sum(loss for layer, loss in self.losses.items() if layer not in kept) <= self.allowed


def ranked(losses: dict[str, float]) -> list[str]:
    return sorted(losses, key=losses.__getitem__, reverse=True)


def exhaustive(works: Works) -> int:
    names = list(works.losses)
    return next(k for k in range(len(names) + 1) if any(works(kept) for kept in combinations(names, k)))


@pytest.mark.parametrize("attempt", range(20))
def test_with_losses_that_add_up_it_is_the_smallest_there_is(seed, attempt) -> None:
    source = random.Random(seed + attempt)
    losses = {f"layer{i}": source.expovariate(1.0) for i in range(12)}
    allowed = source.uniform(0.05, 0.95) * sum(losses.values())
    works = Works(losses, allowed)
    found = smallest_set(ranked(losses), works, trims=12)
    calls = len(works.calls)
    assert works(found)
    assert len(found) == exhaustive(works)
    assert calls <= math.ceil(math.log2(12)) + 12
    assert len(set(works.calls[:calls])) == calls, "nothing is asked twice"


@pytest.mark.parametrize("attempt", range(20))
def test_a_wrong_ranking_is_mended_by_putting_layers_back(seed, attempt) -> None:
    source = random.Random(seed + attempt)
    losses = {f"layer{i}": 1.0 if i < 3 else 0.01 for i in range(16)}
    order = ranked(losses)
    order.insert(source.randrange(4, 9), order.pop(0))  # one of the three that matter is ranked too low
    works = Works(losses, 0.2)
    found = smallest_set(order, works, trims=12)
    assert sorted(found) == ["layer0", "layer1", "layer2"]


def test_none_where_even_one_quantized_layer_is_too_many() -> None:
    works = Works(dict.fromkeys("abcdefgh", 1.0), 0.5)
    assert smallest_set(list("abcdefgh"), works, trims=5) is None
    assert len(works.calls) <= 3


def test_a_single_layer_in_float() -> None:
    works = Works({"a": 5.0, "b": 0.1, "c": 0.1}, 0.3)
    assert smallest_set(["a", "b", "c"], works, trims=5) == ("a",)


@pytest.mark.parametrize("layers", [[], ["only"]])
def test_a_network_of_one_layer_has_no_parts(layers) -> None:
    assert smallest_set(layers, lambda kept: True, trims=5) is None


def test_attempts_to_put_layers_back_are_limited() -> None:
    works = Works(dict.fromkeys(map(str, range(32)), 1.0), 8.0)
    found = smallest_set(list(works.losses), works, trims=3)
    assert len(found) == 24
    assert len(works.calls) == 5 + 3
