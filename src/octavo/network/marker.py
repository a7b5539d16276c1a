"""The marker `octavo::quantize(x, name)`: it stands in a planned graph wherever a tensor is rounded.

It says which quantizer rounds it, and computes nothing. Whatever is made of a plan translates it:

    Rounded       a function at every marker, node by node: to observe, to check, to compute on integers
    with_modules  a module at every marker: to simulate, to train, to export
    lowering      integers of the lowered graph (`octavo.engines.lowering`)
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from octavo.network import edit
from octavo.network.graph import Graph

_LIBRARY: Any = torch.library.Library("octavo", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define("quantize(Tensor x, str name) -> Tensor")
_LIBRARY.impl("quantize", lambda x, name: x.clone(), "CompositeImplicitAutograd")
QUANTIZE = torch.ops.octavo.quantize.default


class Mark(NamedTuple):
    """`user` reads `source` through the quantizer `name`: names of graph nodes."""

    name: str
    source: str
    user: str


def markers(graph: Graph) -> dict[str, list[Node]]:
    """{quantizer: its markers}, in the order of the graph; several where tensors that are joined have one scale."""
    found: dict[str, list[Node]] = {}
    for node in graph.module.graph.nodes:
        if is_marker(node):
            found.setdefault(quantizer_of(node), []).append(node)
    return found


def sources(graph: Graph) -> dict[str, list[Node]]:
    """{quantizer: what it rounds}."""
    return {name: [source_of(node) for node in nodes] for name, nodes in markers(graph).items()}


def is_marker(node: Any) -> bool:
    """Whether something is rounded here."""
    return isinstance(node, Node) and node.target is QUANTIZE


def quantizer_of(marker: Node) -> str:
    """The name of the quantizer that rounds here."""
    return str(marker.args[1])


def source_of(marker: Node) -> Node:
    """What is rounded here."""
    source = marker.args[0]
    assert isinstance(source, Node)
    return source


def marks(graph: Graph) -> Iterator[Mark]:
    """Who reads what through which marker: to mark another graph whose nodes have the same names."""
    for node in graph.module.graph.nodes:
        if is_marker(node):
            for user in node.users:
                yield Mark(quantizer_of(node), source_of(node).name, user.name)


def with_markers(graph: Graph, found: Iterable[Mark]) -> Graph:
    """A copy of `graph` that is marked so; it shares the parameters."""
    own = edit.copy_graph(graph.module)
    nodes = {node.name: node for node in own.nodes}
    made: dict[tuple[str, str], Node] = {}
    for mark in found:
        source, at = nodes[mark.source], (mark.name, mark.source)
        if at not in made:
            with own.inserting_after(source):
                made[at] = own.call_function(QUANTIZE, (source, mark.name))
            made[at].meta["val"] = source.meta["val"]
        nodes[mark.user].replace_input_with(source, made[at])
    return replace(graph, module=edit.with_graph(graph.module, own))


def without_markers(graph: Graph) -> Graph:
    """The float network: a copy in which readers read what is rounded for them; it shares the parameters."""
    own = edit.copy_graph(graph.module)
    for node in list(own.nodes):
        if is_marker(node):
            edit.replace(node, source_of(node))
    return replace(graph, module=edit.with_graph(graph.module, own))


def renamed(graph: Graph, names: Mapping[str, str]) -> Graph:
    """A marked graph whose quantizers have the other names that `names` gives some; several may have one then."""
    if all(old == new for old, new in names.items()):
        return graph
    own = edit.copy_graph(graph.module)
    first: dict[tuple[Any, ...], Node] = {}
    for node in [node for node in own.nodes if is_marker(node)]:
        node.args = (source_of(node), names.get(quantizer_of(node), quantizer_of(node)))
        if first.setdefault(node.args, node) is not node:  # a tensor is rounded once by one quantizer
            edit.replace(node, first[node.args])
    return replace(graph, module=edit.with_graph(graph.module, own))


class Rounded(Interpreter):
    """The module of a marked graph, called like the user's model, node by node: `at(name, x)` stands for every marker.

    One thread at a time may call it.
    at  (quantizer, what reaches it) → what its readers read
    """

    def __init__(self, module: GraphModule, at: Callable[[str, Tensor], Any]) -> None:
        super().__init__(module)
        self.extra_traceback = False  # our errors name the site themselves
        self.inputs_of, self.at = partial(edit.flat_inputs, module), at

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        out = self.run(*self.inputs_of(args, kwargs), enable_io_processing=False)
        return self.graph.process_outputs(out)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a node returns."""
        if target is QUANTIZE:
            x, name = args
            return self.at(name, x)
        return super().call_function(target, args, kwargs)


def with_modules(graph: Graph, modules: Mapping[str, nn.Module], *, own_parameters: bool = True) -> GraphModule:
    """A copy of a marked graph's module that calls the module of its quantizer where there was a marker.

    modules         {quantizer: module}; where they lie, `places` says
    own_parameters  copy the parameters too, so that training the result leaves those of the graph as they are; else
                    share them
    """
    module = edit.copy_module(graph.module, own_parameters=own_parameters)
    paths = places(graph, modules)
    for name, path in paths.items():
        module.add_submodule(path, modules[name])
    for node in list(module.graph.nodes):
        if is_marker(node):
            with module.graph.inserting_before(node):
                call = module.graph.call_module(paths[quantizer_of(node)], (source_of(node),))
            call.meta["val"] = node.meta["val"]
            edit.replace(node, call)
    module.graph.lint()
    module.recompile()
    return module


def places(graph: Graph, names: Iterable[str]) -> dict[str, str]:
    """{quantizer: the path of the module that `with_modules` puts there}, under a name that nothing of the user's has.

    names  of all quantizers, in the order of the plan
    """
    within = "quantizers"
    while hasattr(graph.module, within):
        within += "_"
    plain = str.maketrans(".@", "__")
    return {name: f"{within}.{number}_{name.translate(plain)}" for number, name in enumerate(names)}
