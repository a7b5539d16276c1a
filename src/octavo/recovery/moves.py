"""Moves of scale between tensors, of which those stay that help: judged together, and where that fails in halves.

A move leaves the float function as it is, so what the float network returned before judges the rounded one after it: at
the layers that read what was moved, and at the network's output. A layer whose own output was moved in turn is compared
with the move taken back. Between the two layers of a move nothing is compared: what is lost there shows at the second.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from octavo.network.calibrate import choose_params, method_of, observe
from octavo.network.graph import Graph, clone
from octavo.network.marker import is_marker, quantizer_of, source_of
from octavo.network.placement import make_plan
from octavo.network.quantized import Quantized
from octavo.network.ranks import gathered, together
from octavo.numerics.affine import round_by
from octavo.recovery.lockstep import held_out, relative_error
from octavo.recovery.stepwise import Values, call, values_of

MOST_TRIALS = 8  # of halves, quarters, …


@dataclass(frozen=True, kw_only=True, eq=False)
class Move:
    """One move.

    make     changes a graph in place: it finds the nodes by their names
    readers  the layers that read what is moved
    divided  {layer: what its output is divided by, in a shape that broadcasts against it}
    """

    make: Callable[[Graph], None]
    readers: tuple[str, ...]
    divided: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Trial:
    """A network with some of the moves, and its errors on what judges: the network's, and each layer's."""

    net: Quantized
    network: float
    layers: Mapping[str, float]

    def helps(self, before: "_Trial", move: Move) -> bool:
        """Whether the layers that read what this move moved are nearer to float than before."""
        return sum(self.layers[name] for name in move.readers) < sum(before.layers[name] for name in move.readers)


def keep_what_helps(net: Quantized, batches: Iterable[Any], moves: Sequence[Move]) -> Quantized:
    """`net` with those of `moves` that bring its rounded outputs nearer to float; what was given if none does.

    Ranges are calibrated on all batches by the method of `net`; the last quarter of them, at least one, judges (see
    `held_out`; a single batch does both). First all moves are tried, then those whose layers gained by that. If either
    brings the network nearer, and every layer concerned, that is all. Else halves are tried, on top of what was kept,
    and halves of those that did not help, MOST_TRIALS in all; what was not tried is not made. A trial costs one pass
    over the batches and a run of the rounded network on those that judge.

    raises  QuantizationError for a method that was not saved with `net`
    """
    with together():
        judge = _Judge.of(net, list(batches), moves)
        given = judge.trial((), given=True)
        tried = list(moves)
        for _ in range(2):
            found = judge.trial(tried)
            gained = [move for move in tried if found.helps(given, move)]
            if len(gained) == len(tried) and judge.nearer(found, given):
                return found.net
            if not 0 < len(gained) < len(tried):
                break
            tried = gained
        best = judge.in_halves(given, moves)
    return best.net


@dataclass(frozen=True, kw_only=True, eq=False)
class _Judge:
    """What judges moves.

    wanted  of the float network, for each batch that judges: what it returns, and the outputs of layers
    """

    net: Quantized
    batches: Sequence[Any]
    heard: Sequence[Any]
    wanted: Sequence[tuple[list[Tensor], dict[str, Tensor]]]

    @staticmethod
    def of(net: Quantized, batches: Sequence[Any], moves: Sequence[Move]) -> "_Judge":
        names, heard = {name for move in moves for name in move.readers}, batches[-held_out(len(batches)) :]
        wanted = [_values(net.graph, batch, names) for batch in heard]
        return _Judge(net=net, batches=batches, heard=heard, wanted=wanted)

    def trial(self, moves: Sequence[Move], *, given: bool = False) -> _Trial:
        """The network with these moves, and ranges for it; what was given as it is if `given`."""
        net = self.net if given else _moved(self.net, self.batches, moves)
        divided = {name: by for move in moves for name, by in move.divided.items()}
        network, names = 0.0, list(self.wanted[0][1])
        layers = [0.0] * len(names)
        for batch, (returned, outputs) in zip(self.heard, self.wanted, strict=True):
            found, values = _values(net, batch, outputs.keys())
            network += relative_error(returned, found)
            for number, name in enumerate(names):
                layers[number] += relative_error([outputs[name]], [values[name] * divided.get(name, 1.0)])
        # Under torchrun every rank has its own batches, and all must decide alike.
        network, *layers = map(math.fsum, zip(*gathered([network, *layers]), strict=True))
        return _Trial(net=net, network=network, layers=dict(zip(names, layers, strict=True)))

    def nearer(self, one: _Trial, other: _Trial) -> bool:
        """Whether the network of `one` is nearer to float; one that returns integers alone has no distance."""
        return one.network < other.network or not any(returned for returned, _ in self.wanted)

    def in_halves(self, best: _Trial, moves: Sequence[Move]) -> _Trial:
        """The best network that is found with some of `moves`, which did not help together."""
        kept: list[Move] = []
        waiting = deque(_halves(moves))
        for _ in range(MOST_TRIALS):
            if not waiting:
                break
            tried = waiting.popleft()
            found = self.trial([*kept, *tried])
            if all(found.helps(best, move) for move in tried) and self.nearer(found, best):
                best, kept = found, [*kept, *tried]
            else:
                waiting += _halves(tried)
        return best


def _halves(moves: Sequence[Move]) -> list[Sequence[Move]]:
    middle = len(moves) // 2
    return [moves[:middle], moves[middle:]] if len(moves) > 1 else []


def _moved(net: Quantized, batches: Iterable[Any], moves: Sequence[Move]) -> Quantized:
    """A copy with these moves, with scales for what it holds now by the same method; notes on the old ranges go."""
    own = clone(net.graph)
    for move in moves:
        move.make(own)
    own.module.graph.lint()
    own.module.recompile()
    plan = make_plan(own, net.plan.rules, target=net.plan.target)
    chosen = choose_params(plan, observe(plan, batches), method_of(net))
    kept = tuple(note for note in net.notes if note.partition(": range ")[0] not in net.values)
    return replace(chosen, notes=(*kept, *chosen.notes))


def _values(net: Quantized | Graph, batch: Any, names: Iterable[str]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """(the real numbers that the network returns, what these layers do) for one batch."""

    def call_one(node: Node, values: Values) -> Any:
        if isinstance(net, Quantized) and is_marker(node):
            return round_by(values[source_of(node)], net.values[quantizer_of(node)])
        return call(node, values)

    with torch.no_grad():
        known = values_of(net.plan.marked if isinstance(net, Quantized) else net, batch, call_one)
    by_name = {node.name: value for node, value in known.items()}
    leaves = by_name["output"]
    return [x for x in leaves if isinstance(x, Tensor) and x.is_floating_point()], {n: by_name[n] for n in names}
