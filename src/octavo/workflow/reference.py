"""The float network's score, which all candidates are compared with: on what samples, and whether it says anything.

Networks that are scored are copies: whatever hook or change they carry, the user's model has none of it.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from octavo.errors import QuantizationError
from octavo.network.digest import digest_of_graph, source_of
from octavo.network.export import private_copy
from octavo.network.graph import Graph
from octavo.workflow.goal import Evaluate, Goal, Score, score
from octavo.workflow.kept import parsed
from octavo.workflow.overlap import Reading, Watch
from octavo.workflow.study import Study, Trial, trial_key


def float_score(
    folder: Path, graph: Graph, model: nn.Module, evaluate: Evaluate, reading: Reading
) -> tuple[Score, bytes | None]:
    """(the float network's score, the digests of what it was called with), kept in the study.

    The digests are None if that cannot be told: see `octavo.workflow.overlap`.
    """
    key = _key(graph, evaluate)

    def measure() -> bytes:
        watch, network = Watch(reading), private_copy(model)
        watch.on(network)
        found = score(evaluate, network)
        watch.off(network)  # evaluate may have kept it
        if watch.digests is not None:
            study.keep(f"scored-{key}", watch.digests)  # before the score: whoever finds that finds both
        return json.dumps(asdict(found)).encode()

    with Study(folder) as study:
        return parsed(Score, study.once(f"reference-{key}", measure)), study.blob(f"scored-{key}")


def _negated(x: Tensor) -> Tensor:
    """Another class has the highest score, and another token is chosen; indices stay within those that there are."""
    if x.dtype is torch.bool:
        return ~x
    return -x if x.is_floating_point() or x.is_complex() or not x.numel() else x.max() - x


# What a network is made to return in place of its outputs. A metric may be blind to one of these, as a cosine is to
# signs, a class that comes first to zeros, and a threshold that nothing reaches to both: ones are beyond that. One that
# is blind to all, on all samples, sees nothing.
PROBES: Sequence[Callable[[Tensor], Tensor]] = (_negated, torch.zeros_like, torch.ones_like)


def check_that_scores_say_something(
    folder: Path,
    graph: Graph,
    model: nn.Module,
    evaluate: Evaluate,
    goal: Goal,
    reference: Score,
    trials: Sequence[Trial],
) -> None:
    """Raise QuantizationError for an evaluate that does not look at what a network returns.

    Only where every candidate has the very score of the float network is it asked, about networks with other outputs
    in their place (PROBES); whatever goes wrong then shows that it does look. The study keeps that it does. On Ctrl-C
    it is asked no more, and nothing is known.
    """
    if type(model).__call__ is not nn.Module.__call__:  # it may pass by `forward`, which is what is changed
        return
    found = [trial for trial in trials if trial.error is None]
    if any(trial.abandoned or (trial.metric, trial.scores) != (reference.metric, reference.samples) for trial in found):
        return

    def probe() -> bytes:
        if any(_differs(evaluate, model, goal, reference, change) for change in PROBES):
            return b"it does"
        raise QuantizationError(
            asked="compare networks by their scores",
            seen=f"every candidate scores {reference.metric:.6g}, as the float network does, and so does the float "
            f"network with its outputs negated, and with zeros or ones in their place",
            remedy="see that evaluate calls the network that it is given, and scores what that returns",
            site="evaluate",
        )

    with Study(folder) as study, suppress(KeyboardInterrupt):
        study.once(f"probed-{_key(graph, evaluate)}", probe)


def _differs(
    evaluate: Evaluate, model: nn.Module, goal: Goal, reference: Score, change: Callable[[Tensor], Tensor]
) -> bool:
    """Whether the float network scores otherwise with its outputs changed."""
    try:
        return score(evaluate, _answering(model, change), reference=reference, goal=goal) != reference
    except Exception:  # of whatever evaluate makes of such outputs: it looks at them
        return True


def _answering(model: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of `model` that returns its outputs changed."""
    network: Any = private_copy(model)
    forward = network.forward

    def changed(*args: Any, **kwargs: Any) -> Any:
        return tree_map(lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf, forward(*args, **kwargs))

    network.forward = changed
    return network  # type: ignore[no-any-return]


def _key(graph: Graph, evaluate: Evaluate) -> str:
    return trial_key(model=digest_of_graph(graph), evaluate=source_of(evaluate))
