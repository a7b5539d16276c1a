"""NNCF's quantized network as one that is called like ours: its own environment makes it, OpenVINO runs it here."""

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from torch import nn
from torch.export import Dim, ShapesCollection
from torch.utils._pytree import tree_leaves, tree_map

from benchmarks.data_networks import Scored
from octavo import Graph
from octavo.engines.signature import Signature, signature_of
from octavo.network.graph import call_arguments
from octavo.recovery.stepwise import samples

SCRIPT = Path(__file__).parent / "nncf_peer.py"
PATIENCE_S = 1200
PRESETS = {"nncf": None, "nncf mixed": "mixed"}  # mixed: zero-points for activations, which NNCF advises after SiLU


class PeerError(Exception):
    """The peer has no network to show; the message says why."""


class PeerNetwork:
    """A network that OpenVINO compiled, called like the user's model."""

    def __init__(self, path: Path, signature: Signature) -> None:
        # As our own network is compiled: what is not on integers in float32, no other rounding.
        settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
        self.compiled, self.signature = ov.Core().compile_model(path, "CPU", settings), signature

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        arrays = list(self.signature.arrays(args, kwargs).values())
        results = [torch.from_numpy(result.copy()) for result in self.compiled(arrays).values()]
        return self.signature.unflatten(dict(zip(self.signature.tensors, results, strict=True)))


def quantized_by_nncf(model: nn.Module, graph: Graph, scored: Scored, name: str, python: Path) -> PeerNetwork:
    """The network that NNCF makes of the float one, calibrated with the samples that calibrate ours, one by one.

    graph   of the model, for the names and the order of its inputs
    name    one of PRESETS
    python  the interpreter of the peers
    raises  PeerError if it fails
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            _write(model, graph, scored, folder)
            facts = {"preset": PRESETS[name], "transformer": scored.transformer}
            (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
            command = [str(python), str(SCRIPT), str(folder)]
            subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
            return PeerNetwork(folder / "nncf.xml", signature_of(graph))
        except subprocess.CalledProcessError as error:
            raise PeerError(_last_line(error.stderr)) from error
        except (subprocess.TimeoutExpired, RuntimeError) as error:  # OpenVINO's are RuntimeErrors
            raise PeerError(_last_line(str(error))) from error


def _last_line(message: str) -> str:
    return (message.strip().splitlines() or ["no reason given"])[-1][:300]


def _write(model: nn.Module, graph: Graph, scored: Scored, folder: Path) -> None:
    """`network.pt2`, with the dynamic axes of the graph, and a file for each calibration sample."""
    batches, axes, number = scored.calibration(), scored.dynamic_axes, 0
    args, kwargs = call_arguments(batches[0])
    shapes = ShapesCollection()
    for tensor in tree_leaves((args, kwargs)):
        shapes[tensor] = dict.fromkeys(axes, Dim.AUTO)
    with torch.no_grad():
        torch.export.save(torch.export.export(model, args, kwargs, dynamic_shapes=shapes), folder / "network.pt2")
    signature = signature_of(graph)
    for batch in batches:
        for start in range(samples(graph, batch)):
            one = tree_map(lambda x, start=start: x.narrow(axes[0], start, 1), batch)
            np.savez(folder / f"{number:05}.npz", **signature.arrays(*call_arguments(one)))
            number += 1
