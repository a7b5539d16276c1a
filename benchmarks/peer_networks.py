"""NNCF's quantized network as one that is called like ours: its own environment makes it, OpenVINO runs it here."""

import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import openvino as ov
from torch.utils._pytree import tree_map

from benchmarks.data_networks import Scored
from octavo import Graph
from octavo.engines.onnx import export_onnx
from octavo.engines.openvino import OpenVINOModel
from octavo.engines.signature import signature_of
from octavo.network.graph import call_arguments
from octavo.recovery.stepwise import samples

SCRIPT = Path(__file__).parent / "nncf_peer.py"
PATIENCE_S = 1200
PRESETS = {"nncf": None, "nncf mixed": "mixed"}  # mixed: zero-points for activations, which NNCF advises after SiLU


class PeerError(Exception):
    """The peer has no network to show; the message says why."""


def quantized_by_nncf(graph: Graph, scored: Scored, name: str, python: Path) -> OpenVINOModel:
    """The network that NNCF makes of the float one, calibrated with the samples that calibrate ours, one by one.

    name    one of PRESETS
    python  the interpreter of the peers
    raises  PeerError if it fails
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _write(graph, scored, name, folder)
        command = [str(python), str(SCRIPT), str(folder)]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        if ran.returncode:
            raise PeerError((ran.stderr.strip().splitlines() or ["no reason given"])[-1][:300])
        # As our own network is compiled: what is not on integers in float32, no other rounding.
        settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
        compiled = ov.Core().compile_model(folder / "nncf.xml", "CPU", settings)
        size_mb = (folder / "nncf.bin").stat().st_size / 1e6
    return OpenVINOModel(compiled, size_mb=size_mb, layers={}, signature=signature_of(graph))


def _write(graph: Graph, scored: Scored, name: str, folder: Path) -> None:
    export_onnx(graph, None, path=folder / "network.onnx")
    facts = {"preset": PRESETS[name], "transformer": scored.transformer}
    (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
    signature, axis, number = signature_of(graph), graph.dynamic_axes[0], 0
    for batch in scored.calibration():
        for start in range(samples(graph, batch)):
            one = tree_map(lambda x, start=start: x.narrow(axis, start, 1), batch)
            np.savez(folder / f"{number:05}.npz", **signature.arrays(*call_arguments(one)))
            number += 1
