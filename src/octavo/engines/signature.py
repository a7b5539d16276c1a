"""How a network is called: the user's arguments as named tensors, and named tensors as the user's outputs.

Engines that are no torch modules work on flat lists of tensors; between them and the user stands a `Signature`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor
from torch.fx import Graph as FxGraph
from torch.fx import GraphModule, Node
from torch.utils._pytree import GetAttrKey, MappingKey, SequenceKey, TreeSpec, tree_flatten_with_path, tree_unflatten

from octavo.errors import QuantizationError
from octavo.network.graph import Graph
from octavo.network.inputs import Indices, Numbers, Sizes


@dataclass(frozen=True, kw_only=True)
class Signature:
    """The inputs and outputs of a captured network.

    entry    a module with the network's own forward signature that returns its inputs as a flat tuple; no parameters
    inputs   name of every input, None for one that is no tensor: those were fixed by the example
    dtypes   of every input that is a tensor
    outputs  for every leaf of the output, the name of a tensor or a `Constant`
    spec     how the leaves of the output are put together
    numbers, sizes, indices  what a call is checked against
    """

    entry: GraphModule
    inputs: tuple[str | None, ...]
    dtypes: Mapping[str, torch.dtype]
    outputs: "tuple[str | Constant, ...]"
    spec: TreeSpec
    numbers: Numbers
    sizes: Sizes
    indices: Indices

    def flatten(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        """The tensors of a call by name; torch's own error if the call does not fit the network.

        raises  QuantizationError for a tensor of another dtype or size than the network was captured with, for another
                number, and for an index of an embedding that has no such row
        """
        self.numbers.check(args, kwargs)
        leaves = self.entry(*args, **kwargs)
        tensors = {name: leaf for name, leaf in zip(self.inputs, leaves, strict=True) if name is not None}
        for name, tensor in tensors.items():
            if tensor.dtype != self.dtypes[name]:
                raise QuantizationError(
                    asked=f"run on {tensor.dtype}",
                    seen=f"the network was captured with {self.dtypes[name]}",
                    remedy=f"pass {name}.to({self.dtypes[name]})",
                    site=name,
                )
        self.sizes.check(tensors)
        self.indices.check(tensors)
        return tensors

    def arrays(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
        """`flatten` as arrays on the CPU, which share the memory of contiguous tensors there."""
        tensors = self.flatten(args, kwargs)
        return {name: tensor.detach().contiguous().numpy(force=True) for name, tensor in tensors.items()}

    def unflatten(self, tensors: Mapping[str, Tensor]) -> Any:
        """What the network returns, from its output tensors by name."""
        leaves = [leaf.value if isinstance(leaf, Constant) else tensors[leaf] for leaf in self.outputs]
        return tree_unflatten(leaves, self.spec)

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of the distinct tensors that the network returns, in order."""
        return tuple(dict.fromkeys(leaf for leaf in self.outputs if isinstance(leaf, str)))


@dataclass(frozen=True, kw_only=True)
class Constant:
    """A leaf of the output that is no tensor, such as None."""

    value: Any


def signature_of(graph: Graph) -> Signature:
    """How `graph` is called.

    raises  QuantizationError if the network returns a size that depends on its inputs
    """
    nodes = list(graph.module.graph.nodes)
    info = tree_info(graph.module)
    inputs = [node for node in nodes if node.op == "placeholder"]
    return Signature(
        entry=_entry(graph.module, inputs),
        inputs=tuple(str(node.target) if isinstance(node.meta["val"], Tensor) else None for node in inputs),
        dtypes={str(node.target): node.meta["val"].dtype for node in inputs if isinstance(node.meta["val"], Tensor)},
        outputs=_outputs(nodes[-1], info.out_spec, {str(node.target) for node in inputs}),
        spec=info.out_spec,
        numbers=Numbers(graph),
        sizes=Sizes(graph),
        indices=Indices(graph),
    )


def tree_info(module: GraphModule) -> Any:
    """How torch.export put the module's inputs and outputs together: orig_args, in_spec, out_spec."""
    codegen: Any = module.graph._codegen
    return codegen.pytree_info


def output_nodes(module: GraphModule) -> list[Node]:
    """The distinct nodes that the module returns, in the order of `Signature.tensors`."""
    (leaves,) = list(module.graph.nodes)[-1].args
    assert isinstance(leaves, list | tuple)
    return list(dict.fromkeys(leaf for leaf in leaves if isinstance(leaf, Node)))


def _entry(module: GraphModule, inputs: list[Node]) -> GraphModule:
    graph = FxGraph()
    leaves = tuple(graph.placeholder(str(node.target)) for node in inputs)
    graph.output(leaves)
    graph.set_codegen(codegen_returning(module, None))
    return GraphModule({"_in_spec": tree_info(module).in_spec}, graph)


def codegen_returning(module: GraphModule, spec: TreeSpec | None) -> Any:
    """What writes the forward of `module`, returning that structure in place of its own; None for a flat tuple."""
    codegen: Any = module.graph._codegen
    return type(codegen)(codegen.pytree_info._replace(out_spec=spec))


def _outputs(output: Node, spec: TreeSpec, taken: set[str]) -> tuple[str | Constant, ...]:
    (leaves,) = output.args
    assert isinstance(leaves, list | tuple)
    paths = [path for path, _ in tree_flatten_with_path(tree_unflatten(range(len(leaves)), spec))[0]]
    names: dict[Node, str] = {}
    found: list[str | Constant] = []
    for leaf, path in zip(leaves, paths, strict=True):
        if not isinstance(leaf, Node):
            found.append(Constant(value=leaf))
            continue
        if not isinstance(leaf.meta["val"], Tensor):
            raise QuantizationError(
                asked="hand this network to an engine",
                seen=f"it returns {leaf.name}, a size and not a tensor",
                remedy="return tensors only; the caller can read their sizes",
                site=leaf.name,
            )
        found.append(names.setdefault(leaf, _name(path, taken)))
    return tuple(found)


def _name(path: tuple[Any, ...], taken: set[str]) -> str:
    """ "output", "output_0" or the key of a dict; with "_output" behind it if an input has that name."""
    labels = [_label(key) for key in path]
    if not labels or not isinstance(path[0], MappingKey | GetAttrKey):
        labels = ["output", *labels]
    name = "_".join(labels)
    return f"{name}_output" if name in taken else name


def _label(key: Any) -> str:
    if isinstance(key, MappingKey):
        return str(key.key)
    return str(key.idx) if isinstance(key, SequenceKey) else str(key).strip(".")
