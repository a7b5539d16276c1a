"""The engine that a search scores on, if it is not told one: the fastest that is right here, kept in the study."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from octavo.engines import target_for
from octavo.engines.auto import Choice, integer_engines, race
from octavo.machine import machine, versions
from octavo.measure import Latencies
from octavo.network.calibrate import choose_params, observe
from octavo.network.digest import digest_of_graph
from octavo.network.graph import Graph
from octavo.network.placement import make_plan
from octavo.network.quantized import SIMULATION
from octavo.network.ranks import by_first
from octavo.network.rule import Rule
from octavo.network.target import Target
from octavo.workflow.study import Study, trial_key

LOG = logging.getLogger("octavo")


def engine_for(
    folder: Path, graph: Graph, rules: Sequence[Rule], target: Target | str | None, batches: Iterable[Any]
) -> str:
    """The engine on which `graph` is fastest here and right, each with its own plan; the study keeps what was found.

    target   of every plan; None takes the engine's own
    batches  a few, to calibrate with: what is timed need not be accurate
    raises   QuantizationError if no engine runs the network as its simulation says
    """
    names = integer_engines()
    if len(names) == 1:
        return SIMULATION if names == ["reference"] else names[0]
    key = "engine-" + trial_key(
        model=digest_of_graph(graph),
        rules=[str(rule) for rule in rules],
        target=repr(target),
        engines=names,
        machine=machine(),
        versions=versions(),
    )

    def known() -> bytes | None:
        with Study(folder) as study:
            return study.blob(key)

    data = by_first(known)
    if data is None:

        def raced() -> bytes:
            plans = {name: make_plan(graph, rules, target=target or target_for(name)) for name in names}
            nets = {name: choose_params(plan, observe(plan, batches)) for name, plan in plans.items()}
            example = (graph.example_args, graph.example_kwargs)
            _, latencies, rejected = race(nets, example, check=True, rounds=15)
            winner = next(iter(latencies))
            LOG.info("%s", Choice(engine=winner, latencies=latencies, float_ms=Latencies(), rejected=rejected))
            with Study(folder) as study:
                study.keep(key, winner.encode())
            return winner.encode()

        data = by_first(raced)
    return str(data, errors="replace")  # whatever it is, it has to be the name of an engine
