"""Whether engines tell the truth: what `executions()` says beside what the runtime itself counts, on every network.

    python -m benchmarks.coverage --json benchmarks/results/coverage.json

The count knows no names of layers, and takes nobody's word for what a kernel multiplies:

    openvino      kernels of the compiled graph that get integers on both sides; a fused attention has two products
    onnxruntime   kernels of integers in the profile of a call, which the session writes while it runs
    inductor      calls of integer kernels in the graph that is compiled, of an attention two, of a joined linear each
"""

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.networks import NETWORKS
from octavo import Quantized, capture, choose_params, make_plan, observe
from octavo.engines import compile, target_for
from octavo.engines.inductor import lowered
from octavo.engines.onnx import export_onnx
from octavo.engines.onnxruntime import session_of
from octavo.engines.ran import Ran
from octavo.engines.signature import signature_of
from octavo.machine import machine, versions

INTEGERS = {"i8", "u8"}
PROFILED = re.compile(r"QLinearConv|QLinearMatMul|QGemm|(Mat|Conv)\w*Integer\w*")


def by_openvino(net: Quantized) -> tuple[Any, int]:
    """(what `executions` says, products and convolutions that read integers on both sides)."""
    network = compile(net, engine="openvino", threads=1)
    count = 0
    for node in network.compiled.get_runtime_model().get_ordered_ops():  # type: ignore[attr-defined]
        kind = str(node.get_rt_info()["layerType"].astype(str))
        sides = [one.get_node().get_rt_info()["outputPrecisions"].astype(str) for one in node.input_values()[:2]]
        if kind == "Subgraph" and set(sides) <= INTEGERS:
            count += 2 * ("softmax" in str(node.get_rt_info()["originalLayersNames"].astype(str)))
        elif kind in {"Convolution", "Deconvolution", "FullyConnected", "MatMul"}:
            count += set(sides) <= INTEGERS
    return network.executions(), count  # type: ignore[attr-defined]


def by_onnxruntime(net: Quantized) -> tuple[Any, int]:
    """(what `executions` says, kernels of integers in the profile of one call)."""
    network = export_onnx(net)
    compiled = compile(net, engine="onnxruntime", threads=1, network=network)
    with tempfile.TemporaryDirectory() as folder:
        session, _ = session_of(network, threads=1, profile=str(Path(folder) / "profile"))
        graph = net.graph
        session.run(None, signature_of(graph).arrays(graph.example_args, graph.example_kwargs))
        events = json.loads(Path(session.end_profiling()).read_text())
    kernels = [event["args"]["op_name"] for event in events if event["name"].endswith("_kernel_time")]
    count = sum(PROFILED.fullmatch(kernel) is not None for kernel in kernels)
    return compiled.executions(), count  # type: ignore[attr-defined]


def by_inductor(net: Quantized) -> tuple[Any, int]:
    """(what `executions` says, calls of integer kernels in the lowered graph)."""
    module, executions = lowered(net)
    count = 0
    for node in module.graph.nodes:
        name = str(node.target)
        if "int8_linear" in name:
            slices = [user for user in node.users if user.target is torch.ops.aten.slice.Tensor]
            count += max(1, len(slices))  # query, key and value of one input are one call, and a slice each
        elif "int8_convolutions" in name:
            count += len(node.args[3])  # a chain
        elif "int8_convolution" in name or "multiply" in name:
            count += 1
        elif "attend" in name:
            count += 2
    return executions, count


ENGINES: dict[str, Callable[[Quantized], tuple[Any, int]]] = {
    "openvino": by_openvino,
    "onnxruntime": by_onnxruntime,
    "inductor": by_inductor,
}


def compared(name: str, engine: str) -> dict[str, Any]:
    """One row: what is planned, what `executions` says, and what the runtime counts, of products and convolutions."""
    torch.manual_seed(0)
    row = NETWORKS[name]
    example = row.inputs(2)
    graph = capture(row.build(), example, dynamic_axes=row.dynamic_axes)
    plan = make_plan(graph, target=target_for(engine))
    net = choose_params(plan, observe(plan, [example]), "max")
    executions, counted = ENGINES[engine](net)
    told = Ran(engine=engine, planned=plan.coverage, executions=executions)
    tables = {site.layer for quantizer in plan.quantizers for site in quantizer.sites if site.operation == "embedding"}
    said = len([layer for layer in told.on_integers if layer not in tables])  # looking up multiplies nothing
    planned = len([layer for layer in plan.coverage.layers if layer not in tables])
    print(f"{name:22} {engine:12} planned {planned:3}, said {said:3}, counted {counted:3}; {told}", flush=True)
    return {
        "network": name,
        "engine": engine,
        "planned": planned,
        "said": said,
        "counted": counted,
        "in_float": list(told.in_float),
    }


def main(
    json_out: Annotated[Path | None, typer.Option("--json", help="where the record goes")] = None,
    networks: Annotated[str, typer.Option(help="comma-separated")] = ",".join(NETWORKS),
    engines: Annotated[str, typer.Option(help="comma-separated")] = ",".join(ENGINES),
) -> None:
    """Count on every network and engine; ends with 1 where an engine says another number than its runtime counts."""
    rows = [compared(name, engine) for name in networks.split(",") for engine in engines.split(",")]
    if json_out is not None:
        json_out.write_text(json.dumps({"rows": rows, "machine": machine(), "versions": versions()}, indent=1) + "\n")
    if any(row["said"] != row["counted"] for row in rows):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
