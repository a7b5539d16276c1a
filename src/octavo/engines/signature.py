"""How a network is called: the user's arguments as named tensors, and named tensors as the user's outputs.

Engines that are no torch modules work on flat lists of tensors; between them and the user stands a `Signature`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils._pytree import GetAttrKey, MappingKey, SequenceKey, TreeSpec, tree_flatten_with_path, tree_unflatten

from octavo.errors import QuantizationError
from octavo.network.edit import tree_info
from octavo.network.graph import Graph
from octavo.network.inputs import Inputs


@dataclass(frozen=True, kw_only=True)
class Signature:
    """The inputs and outputs of a captured network.

    called   what a call is checked against
    outputs  for every leaf of the output, the name of a tensor or a `Constant`
    spec     how the leaves of the output are put together
    """

    called: Inputs
    outputs: "tuple[str | Constant, ...]"
    spec: TreeSpec

    def flatten(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        """The tensors of a call by name, contiguous on the CPU.

        raises  QuantizationError naming the input that the network cannot be called with
        """
        tensors = self.called.check(args, kwargs)
        return {name: _read_as_it_lies(tensor) for name, tensor in tensors.items()}

    def arrays(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
        """`flatten` as arrays, which share the memory of contiguous tensors on the CPU."""
        return {name: tensor.numpy(force=True) for name, tensor in self.flatten(args, kwargs).items()}

    def unflatten(self, tensors: Mapping[str, Tensor]) -> Any:
        """What the network returns, from its output tensors by name."""
        leaves = [leaf.value if isinstance(leaf, Constant) else tensors[leaf] for leaf in self.outputs]
        return tree_unflatten(leaves, self.spec)

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of the distinct tensors that the network returns, in order."""
        return tuple(dict.fromkeys(leaf for leaf in self.outputs if isinstance(leaf, str)))


class Compiled:
    """What every engine's network is: code of this machine and process, which no copy can take along."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise QuantizationError(
            asked=f"copy or pickle a {type(self).__name__}",
            seen="it is compiled for this machine, and cannot leave its process",
            remedy="octavo.save(net, path), and octavo.load(path) wherever it is needed",
        )


@dataclass(frozen=True, kw_only=True)
class Constant:
    """A leaf of the output that is no tensor, such as None."""

    value: Any


def _read_as_it_lies(tensor: Tensor) -> Tensor:
    """Engines read the memory: what torch negates or conjugates on reading has to lie there as it is."""
    return tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()


def signature_of(graph: Graph) -> Signature:
    """How `graph` is called.

    raises  QuantizationError if the network returns a size that depends on its inputs
    """
    nodes = list(graph.module.graph.nodes)
    info = tree_info(graph.module)
    inputs = [node for node in nodes if node.op == "placeholder"]
    return Signature(
        called=graph.inputs,
        outputs=_outputs(nodes[-1], info.out_spec, {str(node.target) for node in inputs}),
        spec=info.out_spec,
    )


def output_nodes(module: GraphModule) -> list[Node]:
    """The distinct nodes that the module returns, in the order of `Signature.tensors`."""
    (leaves,) = list(module.graph.nodes)[-1].args
    assert isinstance(leaves, list | tuple)
    return list(dict.fromkeys(leaf for leaf in leaves if isinstance(leaf, Node)))


def codegen_returning(module: GraphModule, spec: TreeSpec | None) -> Any:
    """What writes the forward of `module`, returning that structure in place of its own; None for a flat tuple."""
    codegen: Any = module.graph._codegen
    return type(codegen)(tree_info(module)._replace(out_spec=spec))


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
        found.append(names.setdefault(leaf, output_name(path, taken)))
    return tuple(found)


def output_name(path: tuple[Any, ...], taken: set[str]) -> str:
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
