"""A network that also returns what it rounds: to compare two executions of it place by place."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_structure, tree_unflatten

from octavo.engines.signature import codegen_returning
from octavo.network.edit import copy_module, tree_info
from octavo.network.graph import Graph
from octavo.network.marker import markers, quantizer_of, source_of, without_markers
from octavo.network.plan import Plan
from octavo.network.quantized import Quantized
from octavo.numerics.affine import QParams
from octavo.numerics.broadcast import steps_beside

Step = Callable[[Tensor], Tensor]  # what was rounded at a site → the real value of one integer, beside it


def returning_sites(net: Quantized) -> tuple[Quantized, dict[str, Step]]:
    """`net` returning {"output": as before, "sites": {name: value}}, and {name: its step}.

    The output of the network reads the markers of all activations, too, so each engine returns, by its own means, the
    values that it rounded. What the network returns in float already is left out.
    """
    marked = replace(net.plan.marked, module=copy_module(net.plan.marked.module, own_parameters=False))
    module = marked.module
    (output,) = module.graph.find_nodes(op="output")
    returned = list(output.args[0])
    extra: dict[str, Node] = {}
    shown = set(returned)  # a tensor may be rounded twice, for different readers: the first is shown
    for name, marker in rounded_at(net.plan, marked).items():
        if source_of(marker) not in shown:
            extra[name] = marker
            shown.add(source_of(marker))
    steps: dict[str, Step] = {name: partial(_step, net.values[quantizer_of(marker)]) for name, marker in extra.items()}
    inner = tree_unflatten(range(len(returned)), tree_info(module).out_spec)
    spec = tree_structure({"output": inner, "sites": dict.fromkeys(extra, 0)})
    output.args = ([*returned, *extra.values()],)
    module._out_spec = spec
    module.graph.set_codegen(codegen_returning(module, spec))
    module.recompile()
    return replace(net, plan=replace(net.plan, graph=without_markers(marked), marked=marked)), steps


def _step(params: QParams, rounded: Tensor) -> Tensor:
    """Of rows, the largest value is the largest integer: it tells the scale that they had."""
    return steps_beside(rounded, params.scale, params.scheme)


def rounded_at(plan: Plan, marked: Graph) -> dict[str, Node]:
    """{name of the site: marker} of all activations, in the order of the plan; several for tensors that are joined.

    marked  the graph of `plan`, or a copy of it
    """
    found = markers(marked)
    return {
        f"{quantizer.name}#{number}" if number else quantizer.name: marker
        for quantizer in plan.quantizers
        if not quantizer.constant
        for number, marker in enumerate(found[quantizer.name])
    }
