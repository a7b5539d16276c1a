"""A quantized network on an engine, or as a file for others: what is handed out was compared with the simulation."""

import logging
import math
import warnings
from os import PathLike
from pathlib import Path
from typing import Any

from octavo import engines
from octavo.arguments import checked
from octavo.engines import available
from octavo.engines.auto import AUTO, choose_engine
from octavo.engines.check import ENOUGH_DB, nearness, ran
from octavo.engines.faults import EngineFaultError, compile_right
from octavo.errors import QuantizationError
from octavo.files import write
from octavo.network.device import on_cpu
from octavo.network.graph import Graph
from octavo.network.quantized import Network, Quantized, target_of
from octavo.network.samples import calls_of

LOG = logging.getLogger("octavo")


@checked
def compile(net: Quantized | Graph, *, engine: str = "openvino", check: bool = True, **options: Any) -> Network:
    """The quantized network, ready to be called like the user's model: on the CPU, wherever it was calibrated.

    engine   "auto" compiles, checks and times all that can be used here and takes the fastest: see `choose_engine`.
             What it found is logged, and is the `choice` of the network that comes back
    net      of a captured graph the float network is compiled, where the engine can: the baseline to compare with
    check    hand out the network only after it agreed with the simulation on the samples that calibration kept; a layer
             that the engine computes wrongly is left in float there, with a warning. See docs/engines.md
    options  go to the engine's own function (`compile_openvino`, …); "auto" takes none
    raises   QuantizationError for an unknown engine, one whose package is not installed, and one that computes
             something else than the network
    """
    if engine == AUTO:
        return _fastest(net, check, options)
    if isinstance(net, Graph):
        return _float(net, engine, check, options)
    return (compile_right if check else engines.compile)(net, engine=engine, **options)


def _fastest(net: Quantized | Graph, check: bool, options: dict[str, Any]) -> Network:
    if isinstance(net, Graph) or options:
        given = f"options were given: {', '.join(options)}"
        raise QuantizationError(
            asked='compile with engine="auto"',
            seen="a captured graph is the float network" if isinstance(net, Graph) else given,
            remedy=f"name one of the engines {', '.join(available())}",
        )
    compiled, choice = choose_engine(net, check=check)
    vars(compiled)["choice"] = choice
    LOG.info("%s", choice)
    if choice.fastest != "int8":
        warnings.warn(str(choice), UserWarning, stacklevel=3)
    return compiled


def _float(graph: Graph, engine: str, check: bool, options: dict[str, Any]) -> Network:
    """The float network; in float32 there is nothing to round, and it has to be the user's."""
    graph = on_cpu(graph)
    network = engines.compile(graph, engine=engine, **options)
    if not check or options.get("precision", "f32") != "f32":
        return network
    calls = calls_of(graph, ())
    near = min(nearness(ran(graph.module, calls), ran(network, calls)), default=math.inf)
    if near < ENOUGH_DB:
        raise EngineFaultError(
            asked=f"compile the float network for {engine}",
            seen=f"on the captured example it is {near:.1f} dB from the network itself",
            remedy="use another engine, or pass check=False to have it as it is; and report the network",
        )
    return network


@checked
def export(net: Quantized | Graph, path: str | PathLike[str]) -> None:
    """Write the network as one ONNX model with QuantizeLinear and DequantizeLinear, for any engine that reads them.

    Dynamic axes are those of the graph; what the plan leaves in float is float there. With a plan for the target
    "tensorrt" the model is checked against the rules that TensorRT documents (`octavo.engines.onnx_rules`).
    net     a captured graph is written as the float network
    raises  QuantizationError for an operation that ONNX cannot express, or a rule that is broken
    """
    from octavo.engines.onnx import export_onnx  # noqa: PLC0415 (the exporter takes seconds to import)
    from octavo.engines.onnx_rules import check_tensorrt  # noqa: PLC0415

    path = Path(path)
    if path.is_dir():
        raise QuantizationError(
            asked="write an ONNX model", seen="this path is a folder", remedy="name a file in it", site=str(path)
        )
    model = export_onnx(net)
    if target_of(net).name == "tensorrt":
        check_tensorrt(model)
    write(path, model.SerializeToString())
