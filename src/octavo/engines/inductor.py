"""The inductor engine: integer kernels for what the plan quantizes, and Inductor's own code for all that lies between.

    planned graph ─▶ lowered, operation by operation (`lowering/`) ─▶ torch.export ─▶ ahead-of-time compilation

The compiled package is kept in a cache, named after all that it depends on: the next process loads it in milliseconds.
"""

from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from octavo.arguments import checked
from octavo.engines import target_for
from octavo.engines.execution import Execution
from octavo.engines.lowering import lower
from octavo.engines.lowering.build import Lowering
from octavo.engines.lowering.executions import executions, in_float, is_compute_heavy
from octavo.engines.native import cache_folder, compiler_version, library, load_kernels
from octavo.engines.retrace import exported_again
from octavo.engines.signature import Compiled, Signature, signature_of
from octavo.errors import QuantizationError, reason
from octavo.files import built
from octavo.network.edit import attribute, copy_module, emit, emit_parameter, value
from octavo.network.graph import Graph
from octavo.network.operations import operation
from octavo.network.placement import layer_names
from octavo.network.quantized import Quantized, graph_of
from octavo.quiet import quiet


@checked
def compile_inductor(net: Quantized | Graph, *, precision: Literal["f32", "bf16"] = "f32") -> "InductorModel":
    """The network, compiled for the CPU. Of a captured graph the float network: the baseline to compare with.

    precision  of the compute-heavy operations of the float network, as torch.autocast has it

    It runs on torch's threads (`torch.set_num_threads`). The first compilation of a network takes from seconds to a
    minute; the package is kept in the cache (`OCTAVO_CACHE`, by default ~/.cache/octavo), and so is not made again.
    raises  QuantizationError if the network cannot be traced again, or Inductor refuses it
    """
    load_kernels()
    module, ran = _float(net, precision) if isinstance(net, Graph) else lowered(net)
    try:
        with torch.no_grad(), quiet("torch._inductor"):
            package = _package(exported_again(graph_of(net), module))
            run = torch._inductor.aoti_load_package(str(package)).loader.run  # by flat lists: the signature is ours
    except QuantizationError:
        raise
    except Exception as error:  # of whatever torch met
        raise QuantizationError(
            asked="compile with Inductor",
            seen=f"it failed ({reason(error)})",
            remedy="use another engine",
        ) from error
    return InductorModel(
        run, executions=ran, size_mb=package.stat().st_size / 1e6, signature=signature_of(graph_of(net))
    )


def lowered(net: Quantized) -> tuple[GraphModule, dict[str, Execution]]:
    """(`net` on integer kernels, called like the user's model; how each of its compute-heavy operations runs)."""
    load_kernels()
    layers = layer_names(net.graph, net.plan.target)
    module = copy_module(net.plan.marked.module, own_parameters=False)
    lowering = Lowering(module, layers, net.values)
    for node in module.graph.nodes:
        lower(lowering, node)
    lowering.graph.set_codegen(module.graph._codegen)
    lowering.graph.eliminate_dead_code()
    return GraphModule(module, lowering.graph), executions(lowering.graph)  # with the constants that are still read


def _float(graph: Graph, precision: str) -> tuple[GraphModule, dict[str, Execution]]:
    """(`graph` in float; how each of its compute-heavy operations runs)."""
    module = copy_module(graph.module, own_parameters=False)
    heavy = [node for node in module.graph.nodes if is_compute_heavy(node)]
    halved = {node for node in heavy if precision == "bf16" and _has_bfloat16(node)}
    ran = in_float(module, layer_names(graph, target_for("inductor")), lambda node: "bf16" if node in halved else "f32")
    for node in halved:
        _in_bfloat16(module, node)
    module.recompile()
    return module, ran


def _has_bfloat16(node: Node) -> bool:
    """Recurrent layers return tuples, and Inductor has float kernels alone for them; and so for what has no row."""
    return operation(node) is not None and isinstance(value(node), Tensor) and bool(value(node).is_floating_point())


def _in_bfloat16(module: GraphModule, node: Node) -> None:
    """Let `node` compute in bfloat16, with constants rounded once and for all, and return float32 as before."""
    for source in node.all_input_nodes:
        if isinstance(value(source), Tensor) and value(source).is_floating_point():
            if source.op == "get_attr":
                rounded = attribute(module, source).detach().bfloat16()
                node.replace_input_with(source, emit_parameter(module, node, f"{source.target}_bf16", rounded))
            else:
                node.replace_input_with(source, emit(node, torch.ops.aten.to.dtype, source, torch.bfloat16))
    with node.graph.inserting_after(node):
        back = node.graph.call_function(torch.ops.aten.to.dtype, (node, torch.float32))
    back.meta["val"] = value(node)
    node.replace_all_uses_with(back, delete_user_cb=lambda user: user is not back)


def _package(program: ExportedProgram) -> Path:
    """The compiled package of `program`, from the cache if it is there."""
    path = cache_folder() / f"inductor-{_digest(program)}.pt2"
    return built(path, lambda new: torch._inductor.aoti_compile_and_package(program, package_path=str(new)))


def _digest(program: ExportedProgram) -> str:
    """Of the operations, all inputs and constants, and what compiled code depends on.

    That is the machine, torch and its settings, the compiler, our kernels, and how many threads Inductor divides loops
    for: code for two does not use eight.
    """
    inputs = [node.meta["val"] for node in program.graph.find_nodes(op="placeholder")]
    layouts = [str((val.dtype, val.shape, val.stride())) for val in inputs if isinstance(val, Tensor)]
    compiler = (torch.__version__, torch._inductor.config.get_hash(), torch.get_num_threads(), compiler_version())
    facts = (str(program.graph), str(program.range_constraints), layouts, library().name, compiler)
    found = sha256(repr(facts).encode())
    for name, tensor in sorted({**program.state_dict, **program.constants}.items()):
        if isinstance(tensor, Tensor):
            found.update(repr((name, tensor.dtype, tuple(tensor.shape), tensor.stride())).encode())
            found.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:24]


class InductorModel(Compiled):
    """A compiled network, called like the user's model, with tensors on the CPU.

    size_mb  megabytes (10⁶ bytes) of the compiled package
    """

    def __init__(self, run: Any, *, executions: dict[str, Execution], size_mb: float, signature: Signature) -> None:
        self._run, self._executions, self._signature = run, executions, signature
        self.size_mb = size_mb

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the user's model would return; inputs are only read, outputs are new tensors."""
        tensors = self._signature.flatten(args, kwargs)
        outputs = self._run(list(tensors.values()))
        return self._signature.unflatten(dict(zip(self._signature.tensors, outputs, strict=True)))

    def executions(self) -> dict[str, Execution]:
        """{user's layer: how it runs} for every compute-heavy operation; those in float name the operator."""
        return dict(self._executions)
