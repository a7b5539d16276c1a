"""A network that `octavo.save` wrote, on its engine: data, read as `octavo.load` reads it."""

from pathlib import Path

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from octavo.engines.ran import ran
from octavo.engines.signature import signature_of
from octavo.gate.network import Array, Arrays, Opened, Port, Product, Told
from octavo.gate.python import array_of, tensor
from octavo.measure import size_mb
from octavo.network.quantized import Network
from octavo.saved.artifact import compiled, read


def open_artifact(path: Path, name: str, engine: str | None) -> Opened:
    """The saved network `path` on `engine`, or on that it was saved for.

    raises  QuantizationError as `octavo.load`
    """
    artifact = read(path)
    network = compiled(artifact, engine=engine)
    graph = artifact.net.graph
    signature = signature_of(graph)
    examples = signature.flatten(graph.example_args, graph.example_kwargs)
    leaves, spec = tree_flatten((graph.example_args, graph.example_kwargs))

    def call(arrays: Arrays) -> dict[str, Array]:
        given = iter([tensor(arrays[key]) for key in examples])
        args, kwargs = tree_unflatten([next(given) if isinstance(one, Tensor) else one for one in leaves], spec)
        with torch.inference_mode():
            found = network(*args, **kwargs)
        kept = [one for one in tree_flatten(found)[0] if isinstance(one, Tensor)]
        names = [one for one in signature.outputs if isinstance(one, str)]
        return {key: array_of(one) for key, one in zip(names, kept, strict=True)}

    return Opened(
        name=name,
        kind="Octavo artifact",
        runtime=f"Octavo, {engine or artifact.engine}",
        inputs=tuple(_port(key, one, graph.dynamic_axes) for key, one in examples.items()),
        call=call,
        told=lambda arrays: _told(network, engine or artifact.engine),
        network=network,
        size_mb=size_mb(path),
    )


def _port(name: str, example: Tensor, dynamic: tuple[int, ...]) -> Port:
    shape = tuple(None if axis in dynamic else size for axis, size in enumerate(example.shape))
    return Port(name=name, dtype=example.numpy().dtype, shape=shape)


def _told(network: Network, engine: str) -> Told:
    """What ran, of the operations that are planned in integers, and of the others."""
    found = ran(network)
    if found is None:
        return Told(by=f"nothing: the engine {engine} does not tell")
    integers = set(found.on_integers)
    products = tuple(
        Product(layer=layer, kernel=found.kernel(layer), on_integers=layer in integers, multiplications=work)
        for layer, work in found.work.items()
    )
    return Told(by=f"the engine {engine}", products=products)
