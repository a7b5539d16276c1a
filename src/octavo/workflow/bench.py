"""`octavo bench`: a saved network timed as it is deployed, beside its float counterparts. Never the simulation."""

import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.utils._pytree import tree_map

from octavo import files
from octavo.engines.ran import ran
from octavo.errors import QuantizationError
from octavo.machine import machine, versions
from octavo.measure import size_mb
from octavo.network.graph import Graph
from octavo.saved.artifact import compiled, read
from octavo.workflow.outcome import coverage_record
from octavo.workflow.table import speed
from octavo.workflow.timing import contestants, latency, latency_record


def bench(
    path: Path, console: Console, *, engine: str | None = None, batch: int = 1, rounds: int = 20
) -> dict[str, Any]:
    """Time the network saved at `path`, print a table, and return its record.

    The float networks have the rounded weights, as fast as the original ones: the artifact holds no others.
    engine   None is the one that it was saved for
    batch    size of the first dynamic axis; the inputs are random, in the ranges of the example it was captured with
    """
    artifact = read(path)
    inputs = batch_of(artifact.net.graph, batch)
    network = compiled(artifact, engine=engine)
    models = contestants(artifact.net.graph, artifact.net.graph.module, network)
    record = {
        "artifact": path.name,
        "engine": engine or artifact.engine,
        "method": artifact.net.method,
        "batch": batch,
        "size_mb": size_mb(path),
        **latency_record(*latency(models, inputs, rounds=rounds)),
        "coverage": coverage_record(artifact.net.coverage, ran(network)),
        "versions": versions(),
        "machine": machine(),
    }
    console.print(speed(record))
    for name, error in record["latency_errors"].items():
        console.print(f"{name} cannot run it: {error}", markup=False)
    told = ran(network) or artifact.net.coverage
    console.print(f"{path.name}: {record['size_mb']:.1f} MB, on {record['engine']}; {told}", markup=False)
    return record


def write(record: dict[str, Any], path: Path) -> None:
    """The record of `bench` as JSON."""
    files.write(path, json.dumps(record, indent=2) + "\n")


def batch_of(graph: Graph, size: int) -> Any:
    """The example of `graph` with `size` samples along its first dynamic axis."""
    if not graph.dynamic_axes:
        raise QuantizationError(
            asked=f"time a batch of {size}",
            seen="the network was captured without dynamic axes",
            remedy="capture it with dynamic_axes=(0,)",
        )
    axis = graph.dynamic_axes[0]

    def resized(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.ndim <= axis:
            return leaf
        return leaf.index_select(axis, torch.arange(size) % leaf.shape[axis])

    args, kwargs = tree_map(resized, (graph.example_args, graph.example_kwargs))
    return kwargs or args
