"""NNCF's post-training quantization of one network, in the environment of the peers.

    python benchmarks/nncf_peer.py FOLDER

FOLDER holds what `peer_networks.py` wrote: the float network `network.pt2`, the inputs of each calibration sample as
`NUMBER.npz`, and `facts.json`. It adds `nncf.xml`, the quantized network for OpenVINO. Everything is as NNCF has it by
default but the number of samples, which is that of all there are, the preset where the facts name one, and the type of
transformers, as its documentation asks. OpenVINO reads the network from torch, as its documentation does: in an ONNX
file with a dynamic batch NNCF sees neither biases nor the weights of grouped convolutions as constants.
"""

import json
import sys
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino as ov
import torch


def sample(file: Path) -> Any:
    """The inputs in their order; a single one as it is."""
    arrays = list(np.load(file).values())
    return arrays if len(arrays) > 1 else arrays[0]


def main(folder: Path) -> None:
    facts = json.loads((folder / "facts.json").read_text())
    files = sorted(folder.glob("*.npz"))
    quantized = nncf.quantize(
        ov.convert_model(torch.export.load(folder / "network.pt2")),
        nncf.Dataset(files, sample),
        subset_size=len(files),
        preset=nncf.QuantizationPreset(facts["preset"]) if facts["preset"] else None,
        model_type=nncf.ModelType.TRANSFORMER if facts["transformer"] else None,
    )
    ov.save_model(quantized, folder / "nncf.xml", compress_to_fp16=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
