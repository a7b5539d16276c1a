"""A network that also returns what it rounds: to compare two executions of it place by place."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_structure, tree_unflatten

from octavo.engines.signature import codegen_returning, tree_info
from octavo.network.edit import copy_module
from octavo.network.plan import Quantizer
from octavo.network.quantized import Quantized
from octavo.network.share import Edge
from octavo.numerics.affine import QParams
from octavo.numerics.broadcast import steps_beside

Step = Callable[[Tensor], Tensor]  # what was rounded at a site → the real value of one integer, beside it


def returning_sites(net: Quantized) -> tuple[Quantized, dict[str, Step]]:
    """`net` returning {"output": as before, "sites": {name: value}}, and {name: its step}.

    The output of the network is one more reader of every quantized activation, so each engine returns, by its own
    means, the values that it rounded. What the network returns in float already is left out.
    """
    module = copy_module(net.graph.module, own_parameters=False)
    nodes = {node.name: node for node in module.graph.nodes}
    (output,) = module.graph.find_nodes(op="output")
    returned = list(output.args[0])
    extra: dict[str, Node] = {}
    steps: dict[str, Step] = {}
    quantizers = []
    for quantizer in net.plan.quantizers:
        sources = {name: nodes[source] for name, source in sources_of(quantizer).items()}
        seen = {*returned, *extra.values()}  # a tensor may be rounded twice, for different readers: the first is shown
        sources = {name: source for name, source in sources.items() if source not in seen}
        extra |= sources
        steps |= dict.fromkeys(sources, partial(_step, net.values[quantizer.name]))
        edges = tuple(Edge(source=source.name, user=output.name) for source in sources.values())
        quantizers.append(replace(quantizer, edges=(*quantizer.edges, *edges)))
    inner = tree_unflatten(range(len(returned)), tree_info(module).out_spec)
    spec = tree_structure({"output": inner, "sites": dict.fromkeys(extra, 0)})
    output.args = ([*returned, *extra.values()],)
    module._out_spec = spec
    module.graph.set_codegen(codegen_returning(module, spec))
    module.recompile()
    plan = replace(net.plan, graph=replace(net.graph, module=module), quantizers=tuple(quantizers))
    return replace(net, plan=plan), steps


def _step(params: QParams, rounded: Tensor) -> Tensor:
    """Of rows, the largest value is the largest integer: it tells the scale that they had."""
    return steps_beside(rounded, params.scale, params.scheme)


def sources_of(quantizer: Quantizer) -> dict[str, str]:
    """{name of the site: node whose value is rounded there}; none for a weight, several for tensors that are joined."""
    sources = [] if quantizer.constant else list(dict.fromkeys(edge.source for edge in quantizer.edges))
    return {f"{quantizer.name}#{n}" if n else quantizer.name: source for n, source in enumerate(sources)}
