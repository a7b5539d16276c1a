"""One int8 file by another tool, in the environment of the peers; for `check_peers.py`.

    python benchmarks/check_peers_tools.py TOOL ENGINE FOLDER

FOLDER holds the float network, `float.onnx` and `network.pt2`, both for any batch, and calibration batches
`NUMBER.npz`, arrays by the names of inputs; `scored.npz`, if it is there, has labelled samples. It adds the int8 file,
and prints its name and, of labelled samples, the accuracy of both on ENGINE, as its documentation calls it.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import onnx
import onnxruntime
import openvino as ov
import torch
import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
from torchao.quantization.pt2e import move_exported_model_to_eval
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

Predict = Callable[[dict[str, np.ndarray]], np.ndarray]
STEPS_OFF = 128  # of uint8 read as if it were int8


def batches(folder: Path) -> list[dict[str, np.ndarray]]:
    return [dict(np.load(file)) for file in sorted(folder.glob("0*.npz"))]


def nncf_ir(folder: Path) -> Path:
    """As NNCF's documentation does: the network from torch, to OpenVINO."""

    network = ov.convert_model(torch.export.load(folder / "network.pt2"))
    data = nncf.Dataset(
        [list(batch.values()) for batch in batches(folder)], lambda one: one if len(one) > 1 else one[0]
    )
    ov.save_model(nncf.quantize(network, data, subset_size=len(batches(folder))), folder / "int8.xml")
    return folder / "int8.xml"


def nncf_onnx(folder: Path) -> Path:

    data = nncf.Dataset(batches(folder))
    onnx.save(
        nncf.quantize(onnx.load(folder / "float.onnx"), data, subset_size=len(batches(folder))), folder / "int8.onnx"
    )
    return folder / "int8.onnx"


def ort_static(folder: Path, **options: Any) -> Path:
    """Its static quantizer as it is by default but for what is said; weights per channel unless it says otherwise."""

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        left = iter(batches(folder))

        def get_next(self) -> Any:
            return next(self.left, None)

    options = {"per_channel": True, "activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8} | options
    quantize_static(folder / "float.onnx", folder / "int8.onnx", Reader(), **options)
    return folder / "int8.onnx"


def ort_dynamic(folder: Path) -> Path:

    quantize_dynamic(folder / "float.onnx", folder / "int8.onnx", per_channel=True)
    return folder / "int8.onnx"


def ort_wrong_zero_point(folder: Path) -> Path:
    """What the first convolution reads is read with another zero-point than it was written with."""
    path = ort_static(folder)
    model = onnx.load(path)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    first = next(
        node for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] not in constants
    )
    zero = numpy_helper.to_array(constants[first.input[2]])
    wrong = np.asarray((zero.astype(np.int64) + STEPS_OFF) % 256, dtype=zero.dtype)
    model.graph.initializer.append(numpy_helper.from_array(wrong, "wrong_zero_point"))
    first.input[2] = "wrong_zero_point"
    onnx.save(model, path)
    return path


def torchao_pt2e(folder: Path) -> Path:
    """PT2E with the quantizer for x86, converted; the network that it returns has quantize and dequantize operators."""

    exported = torch.export.load(folder / "network.pt2")
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(exported.module(), quantizer)
    calibration = [[torch.from_numpy(array) for array in batch.values()] for batch in batches(folder)]
    for batch in calibration:
        prepared(*batch)
    converted = convert_pt2e(prepared)
    move_exported_model_to_eval(converted)
    shapes = tuple({0: torch.export.Dim.AUTO} for _ in calibration[0])
    program = torch.onnx.export(converted, tuple(calibration[0]), dynamo=True, dynamic_shapes=shapes, verbose=False)
    program.save(str(folder / "int8.onnx"))
    return folder / "int8.onnx"


TOOLS: dict[str, Callable[[Path], Path]] = {
    "nncf, openvino": nncf_ir,
    "nncf, onnx": nncf_onnx,
    "onnxruntime, static": ort_static,
    "onnxruntime, dynamic": ort_dynamic,
    "onnxruntime, static, wrong zero-point": ort_wrong_zero_point,
    "onnxruntime, static, per tensor": lambda folder: ort_static(folder, per_channel=False),
    "onnxruntime, static, mask rounded": ort_static,
    "torchao, pt2e": torchao_pt2e,
}


def predictor(path: Path, engine: str) -> Predict:
    """What runs the file, as its documentation does."""
    if engine == "openvino":
        compiled = ov.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return lambda batch: np.array(compiled(list(batch.values()))[0])

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda batch: np.asarray(session.run(None, batch)[0])


def accuracy(path: Path, scored: Path, engine: str) -> float:
    """Per cent of the labels that are met."""
    data = dict(np.load(scored))
    labels = data.pop("labels")
    predict = predictor(path, engine)
    places = range(0, len(labels), 50)
    chosen = [predict({k: array[place : place + 50] for k, array in data.items()}).argmax(-1) for place in places]
    return float(100 * (np.concatenate(chosen) == labels).mean())


def main(tool: str, engine: str, folder: Path) -> None:
    path, scored = TOOLS[tool](folder), folder / "scored.npz"
    found = {"file": path.name}
    if scored.exists():
        found |= {"float": accuracy(folder / "float.onnx", scored, engine), "int8": accuracy(path, scored, engine)}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
