"""OpenVINO's CPU plugin: reads the ONNX interchange and runs what lies between its pairs on integers.

What runs on integers is read from the compiled model, not assumed: see `OpenVINOModel.executions`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import onnx
import openvino as ov
import torch

from octavo.arguments import checked
from octavo.engines.dtypes import check_dtypes
from octavo.engines.execution import Execution
from octavo.engines.onnx import export_onnx
from octavo.engines.openvino_kernels import RECURRENT, chains, kernels_of
from octavo.engines.signature import Compiled, Signature, signature_of
from octavo.errors import QuantizationError
from octavo.network.graph import Graph
from octavo.network.placement import compute_heavy
from octavo.network.quantized import Quantized, graph_of, target_of
from octavo_serve.openvino import Requests, properties
from octavo_serve.openvino_repairs import repair


@checked
def compile_openvino(
    net: Quantized | Graph,
    *,
    threads: int | None = None,
    hint: Literal["latency", "throughput"] = "latency",
    precision: Literal["f32", "bf16"] = "f32",
    network: onnx.ModelProto | None = None,
) -> "OpenVINOModel":
    """The network, compiled for the CPU. Of a captured graph the float network: the baseline to compare with.

    threads    None leaves the number to OpenVINO
    hint       "latency": all threads work on one call; "throughput": calls from several threads run side by side
    precision  of what does not run on integers
    network    what `export_onnx` wrote of this network, if it is there already
    raises     QuantizationError if the network cannot be written as ONNX
    """
    graph, target = graph_of(net), target_of(net)
    check_dtypes(graph, "OpenVINO")
    core = ov.Core()
    network = network or export_onnx(net)
    serialized = network.SerializeToString()
    size_mb = len(serialized) / 1e6
    signature = signature_of(graph)
    try:
        model = core.read_model(serialized)
        repair(core, model)
        layers = _layers(model, network, list(compute_heavy(graph, target).values()))
        compiled = core.compile_model(model, "CPU", properties(threads=threads, hint=hint, precision=precision))
    except Exception as error:  # what its frontend, its shapes and its plugin raise shares no base but this
        raise QuantizationError(
            asked="compile for OpenVINO",
            seen=f"it failed ({_reason(str(error))})",
            remedy="use another engine"
            if target.name == "openvino"
            else 'make the plan with target="openvino", which knows what OpenVINO can express; or use another engine',
        ) from error
    return OpenVINOModel(compiled, size_mb=size_mb, layers=layers, signature=signature)


def _reason(message: str) -> str:
    """The last line of OpenVINO's message; of a conversion the operations and layers, and why the first failed."""
    lines = [line.strip() for line in message.splitlines() if line.strip()] or ["no reason given"]
    failed = [found for line in lines if (found := re.search(r"<Node\((\w+)\): (.+?)>': *(.*)", line))]
    if not failed:
        return lines[-1]
    return f"cannot convert {', '.join(f'{f[1]} {f[2]}' for f in failed)}: {failed[0][3][:200]}"


def _layers(model: ov.Model, network: onnx.ModelProto, known: Sequence[str]) -> dict[str, list[str]]:
    """{user's layer: OpenVINO's names for it, best first} of those of `known` that `model` has, in their order.

    OpenVINO reads one ONNX node as several operations, of which only the last keeps the name of the ONNX value. The
    kernel is named after any of them, or after the scaling and additions that it absorbs.
    """
    writers = {value: node.name for node in network.graph.node for value in node.output}
    layers: dict[str, list[str]] = {}
    for chain in chains(model):
        names = [_stem(part.get_friendly_name()) for part in chain]
        written = [writers[value] for part in chain for value in part.output(0).get_names() if value in writers]
        recurrent = [RECURRENT_KERNEL] * (chain[0].get_type_name() in RECURRENT)
        layers.setdefault(written[0] if written else names[0], names + recurrent)
    return {layer: layers[layer] for layer in known if layer in layers}


RECURRENT_KERNEL = "RNNSeq"  # OpenVINO takes a layer of two directions apart, under other names; all run alike


def _stem(name: str) -> str:
    """An operation's name without what OpenVINO's transformations add: "conv1/WithoutBiases"."""
    return name.partition("/")[0]


class OpenVINOModel(Compiled):
    """A compiled network, called like the user's model, with tensors on the CPU. May be called from several threads.

    size_mb  megabytes (10⁶ bytes) of the ONNX model that it was compiled from
    """

    def __init__(
        self,
        compiled: ov.CompiledModel,
        *,
        size_mb: float,
        layers: Mapping[str, list[str]],
        signature: Signature,
    ) -> None:
        self.compiled, self.size_mb = compiled, size_mb
        self._layers, self._signature = layers, signature
        self._run = Requests(compiled)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the user's model would return; inputs are read in place, outputs are new tensors."""
        outputs = map(torch.from_numpy, self._run(self._signature.arrays(args, kwargs)))
        return self._signature.unflatten(dict(zip(self._signature.tensors, outputs, strict=True)))

    def executions(self) -> dict[str, Execution]:
        """{user's layer: how it runs} for every compute-heavy operation, as OpenVINO reports after compilation.

        One kernel may compute several of them: both products of an attention and the softmax between, for example.
        What OpenVINO computes once and for all when it compiles is missing.
        """
        kernels = kernels_of(self.compiled, _stem)
        known = {layer: [name for name in names if name in kernels] for layer, names in self._layers.items()}
        return {layer: kernels[names[0]] for layer, names in known.items() if names}
