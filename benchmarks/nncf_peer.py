"""NNCF's post-training quantization of one network, in the environment of the peers.

    python benchmarks/nncf_peer.py FOLDER

FOLDER holds what `ablation.py` wrote: `network.onnx` in float, `NUMBER.npz` with the named inputs of each calibration
sample, and `facts.json`. It adds `nncf.xml`, the quantized network for OpenVINO. Everything is as NNCF has it by
default but the number of samples, which is that of all there are, the preset where the facts name one, and the type of
transformers, as its documentation asks.
"""

import json
import sys
from pathlib import Path

import nncf
import numpy as np
import openvino as ov


def main(folder: Path) -> None:
    facts = json.loads((folder / "facts.json").read_text())
    files = sorted(folder.glob("*.npz"))
    quantized = nncf.quantize(
        ov.Core().read_model(folder / "network.onnx"),
        nncf.Dataset(files, lambda file: dict(np.load(file))),
        subset_size=len(files),
        preset=nncf.QuantizationPreset(facts["preset"]) if facts["preset"] else None,
        model_type=nncf.ModelType.TRANSFORMER if facts["transformer"] else None,
    )
    ov.save_model(quantized, folder / "nncf.xml", compress_to_fp16=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
