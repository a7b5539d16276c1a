"""Which calibration samples are among the scored ones: a network is flattered by a score on what calibrated it.

Samples are known by digests, taken on the way while the network is calibrated and while the float network is scored;
nothing else of them is kept. What cannot be told is None, and never 0.
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten_with_path

from octavo.network.digest import DIGEST, digests_of_samples
from octavo.network.graph import Graph, network_inputs
from octavo.network.samples import share_their_batch


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """How many samples calibrated, and how many of those are among the scored ones."""

    calibrated: int
    scored_too: int

    def __str__(self) -> str:
        if self.scored_too == 0:
            return f"none of the {self.calibrated} calibration samples is among the scored ones"
        verb = "is" if self.scored_too == 1 else "are"
        return (
            f"{self.scored_too} of the {self.calibrated} calibration samples {verb} among the scored ones: the score "
            f"flatters the network; keep them apart"
        )


def overlap_of(calibrated: bytes | None, scored: bytes | None) -> Overlap | None:
    """What samples with these digests, one after the other, have in common; None if either are not known."""
    if calibrated is None or scored is None:
        return None
    known, own = set(_each(scored)), list(_each(calibrated))
    return Overlap(calibrated=len(own), scored_too=sum(one in known for one in own))


def _each(digests: bytes) -> Iterator[bytes]:
    return (digests[start : start + DIGEST] for start in range(0, len(digests), DIGEST))


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the samples of a call are told apart, whether it names its inputs or not.

    signature  of the model
    names      of the inputs that the captured network reads
    cut        whether axis 0 counts samples; else a call is one sample
    """

    signature: inspect.Signature
    names: frozenset[str]
    cut: bool

    @staticmethod
    def of(graph: Graph, model: nn.Module) -> "Reading":
        """The reading of what `graph` was captured from."""
        signature = inspect.signature(model.forward)
        names = frozenset(_named(signature, graph.example_args, graph.example_kwargs))
        return Reading(signature=signature, names=names, cut=share_their_batch(graph))

    def digests(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[bytes]:
        """One for each sample."""
        given = _named(self.signature, args, kwargs)
        read = {name: value for name, value in given.items() if name in self.names}
        leaves = [(keystr(path), leaf) for path, leaf in tree_flatten_with_path(read)[0] if isinstance(leaf, Tensor)]
        sizes = {leaf.shape[:1] for _, leaf in leaves}
        whole = not self.cut or len(sizes) != 1 or torch.Size() in sizes
        tensors = [(name, leaf[None] if whole else leaf) for name, leaf in leaves]
        return digests_of_samples(sorted(tensors, key=lambda pair: pair[0]))


def _named(signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """{name: value} of a call, those of *args by their number, too."""
    found: dict[str, Any] = {}
    for name, value in signature.bind(*args, **kwargs).arguments.items():
        match signature.parameters[name].kind:
            case inspect.Parameter.VAR_POSITIONAL:
                found |= {f"{name}_{number}": one for number, one in enumerate(value)}
            case inspect.Parameter.VAR_KEYWORD:
                found |= value
            case _:
                found[name] = value
    return found


class Watch:
    """A forward pre-hook that keeps the digests of all samples that a module is called with, and changes nothing.

    It may be copied and pickled with its module; a copy in this process adds to the same digests. Once the module is
    compiled, traced, scripted or recorded all is unknown, since what results is called without it.
    """

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self._seen: set[bytes] = set()
        self._failed = False

    def __deepcopy__(self, _: Any) -> "Watch":
        return self

    def on(self, module: nn.Module) -> None:
        """Watch `module`, until `off`."""
        module.register_forward_pre_hook(self, with_kwargs=True)
        module.__dict__["__prepare_scriptable__"] = partial(self._scripted, module)

    def off(self, module: nn.Module) -> None:
        """Leave `module` as it was."""
        for number in [number for number, hook in module._forward_pre_hooks.items() if hook is self]:
            del module._forward_pre_hooks[number], module._forward_pre_hooks_with_kwargs[number]
        module.__dict__.pop("__prepare_scriptable__", None)

    def _scripted(self, module: nn.Module) -> Any:
        """What TorchScript asks for in place of `module`: it would compile the hook, too, which is no TorchScript."""
        self._failed = True
        self.off(module)
        own = getattr(module, "__prepare_scriptable__", None)
        return module if own is None else own()

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Look at one call; where values cannot be read, while it is compiled, traced or recorded, at none."""
        if torch.compiler.is_compiling() or torch._C._is_tracing() or _records():
            self._failed = True
            return
        try:
            self._seen.update(self.reading.digests(args, kwargs))
        except Exception:  # of whatever the module is called with: it is for the module to refuse it
            self._failed = True

    @property
    def digests(self) -> bytes | None:
        """Of all samples, each once; None if there are none, or if a call could not be read."""
        return None if self._failed or not self._seen else b"".join(sorted(self._seen))


def _records() -> bool:
    """Whether calls on a GPU are recorded, and values cannot be read."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


class Noted:
    """Batches that are read as they are, while the digests of their samples are kept: those of the last reading."""

    def __init__(self, reading: Reading, graph: Graph, batches: Iterable[Any]) -> None:
        self._reading, self._graph, self._batches = reading, graph, batches
        self._digests: list[bytes] | None = []

    def __iter__(self) -> Iterator[Any]:
        self._digests = []
        for batch in self._batches:
            self._note(batch)
            yield batch

    def _note(self, batch: Any) -> None:
        try:
            found = self._reading.digests(*network_inputs(self._graph, batch))
        except Exception:  # of whatever the batch holds: who reads it says what is wrong
            self._digests = None
        if self._digests is not None:
            self._digests += found

    @property
    def digests(self) -> bytes | None:
        """Of every sample, as often as it came; None if a batch could not be read."""
        return None if self._digests is None else b"".join(self._digests)


class NotedSized(Noted):
    """The same of batches whose number is known."""

    def __len__(self) -> int:
        assert isinstance(self._batches, Sized)
        return len(self._batches)


def noted(reading: Reading, graph: Graph, batches: Iterable[Any]) -> Noted:
    """`batches`, whose samples are noted while they are read."""
    return (NotedSized if isinstance(batches, Sized) else Noted)(reading, graph, batches)
