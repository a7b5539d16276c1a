"""One contestant of `latency.py`, in a process of its own: prepares, then times one turn for each line it is sent.

    python benchmarks/contestant.py NAME FOLDER

FOLDER holds what `latency.py` wrote for all contestants: `network.pt2`, the float network with the shapes of this run,
`network.onnx`, the same for any batch, and `inputs.pt`, what it is called with. It answers {"ready": …} or
{"error": …}, then {"ms": [...]} for every line. Peers are set up as their documentation says; what more is done for
them is said beside it.
"""

import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

CALLS = 3  # timed in one turn, after one that is not
THREADS = len(os.sched_getaffinity(0))

Run = Callable[[], Any]


def network(folder: Path) -> Any:
    return torch.export.load(folder / "network.pt2").module()


def inputs(folder: Path) -> tuple[torch.Tensor, ...]:
    return tuple(torch.load(folder / "inputs.pt"))


def octavo(folder: Path, engine: str, target: str, **options: Any) -> Run:
    from networks import NETWORKS

    from octavo import capture, choose_params, compile, make_plan, observe

    facts = json.loads((folder / "facts.json").read_text())
    row, example = NETWORKS[facts["network"]], inputs(folder)
    model = row.build()
    model.load_state_dict(torch.load(folder / "weights.pt"))
    graph = capture(model, example, dynamic_axes=row.dynamic_axes)
    plan = make_plan(graph, target=target)
    net = choose_params(plan, observe(plan, [example]), "max")
    compiled = compile(net, engine=engine, **options)
    return lambda: compiled(*example)


def torch_eager(folder: Path) -> Run:
    model, example = network(folder), inputs(folder)
    return lambda: model(*example)


def torch_compiled(folder: Path, *, bf16: bool) -> Run:
    import torch._inductor.config

    torch._inductor.config.freezing = True  # Inductor's own setting for inference on the CPU
    model, example = torch.compile(network(folder)), inputs(folder)

    def run() -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return model(*example)

    return run


def _openvino_model(folder: Path) -> Any:
    import openvino as ov

    return ov.convert_model(torch.export.load(folder / "network.pt2"))


def _openvino_run(model: Any, folder: Path, precision: str = "f32") -> Run:
    import openvino as ov

    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": THREADS}
    compiled = ov.Core().compile_model(model, "CPU", settings)
    request, arrays = compiled.create_infer_request(), [x.numpy() for x in inputs(folder)]
    return lambda: request.infer(arrays, share_inputs=True, share_outputs=True)


def nncf_openvino(folder: Path) -> Run:
    """Post-training quantization of the OpenVINO model; transformers with their own preset, as NNCF asks."""
    import nncf

    facts, arrays = json.loads((folder / "facts.json").read_text()), [x.numpy() for x in inputs(folder)]
    kind = nncf.ModelType.TRANSFORMER if facts["transformer"] else None
    data = nncf.Dataset([arrays if len(arrays) > 1 else arrays[0]])
    return _openvino_run(nncf.quantize(_openvino_model(folder), data, model_type=kind, subset_size=1), folder)


def onnxruntime_static(folder: Path, *, any_batch: bool = False) -> Run:
    """Its static quantizer after its pre-processing; activations in uint8, which are faster than int8 without AMX.

    any_batch  of a network whose batch is dynamic, as Octavo's is; else of one with the shapes of this run
    """
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    example = inputs(folder)
    paths = [str(folder / f"ort-{os.getpid()}-{name}.onnx") for name in ("float", "ready", "int8")]
    if any_batch:
        paths[0] = str(folder / "network.onnx")
    else:
        torch.onnx.export(torch.export.load(folder / "network.pt2"), dynamo=True, verbose=False).save(paths[0])
    quant_pre_process(paths[0], paths[1], skip_symbolic_shape=True)  # which fails on networks with attention
    session = onnxruntime.InferenceSession(paths[1], providers=["CPUExecutionProvider"])
    feed = {one.name: x.numpy() for one, x in zip(session.get_inputs(), example, strict=True)}

    class Once(CalibrationDataReader):  # type: ignore[misc]
        left = iter([feed])

        def get_next(self) -> Any:
            return next(self.left, None)

    quantize_static(
        paths[1], paths[2], Once(), activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, per_channel=True
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    quantized = onnxruntime.InferenceSession(paths[2], options, providers=["CPUExecutionProvider"])
    return lambda: quantized.run(None, feed)


def torchao_pt2e(folder: Path) -> Run:
    """PT2E with the X86 Inductor quantizer, lowered by torch.compile with freezing."""
    import torch._inductor.config
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.lowering import lower_pt2e_quantized_to_x86
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    torch._inductor.config.freezing = True
    example = inputs(folder)
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(network(folder), quantizer)
    prepared(*example)
    converted = convert_pt2e(prepared)
    move_exported_model_to_eval(converted)
    optimized = torch.compile(lower_pt2e_quantized_to_x86(converted, example))
    return lambda: optimized(*example)


def gemm_peak(_: Path) -> Run:
    """One square int8 product by oneDNN, 2048³ multiplications: what the machine can do at most."""
    side = 2048
    x = torch.randint(0, 255, (side, side), dtype=torch.uint8)
    weight = torch.ops.onednn.qlinear_prepack(torch.randint(-127, 128, (side, side), dtype=torch.int8), None)
    scales, zeros = torch.rand(side), torch.zeros(side, dtype=torch.int32)
    return lambda: torch.ops.onednn.qlinear_pointwise(
        x, 0.1, 128, weight, scales, zeros, None, 0.1, 128, torch.uint8, "none", [], ""
    )


CONTESTANTS: dict[str, tuple[str, Callable[[Path], Run]]] = {
    "octavo openvino": ("ours", lambda folder: octavo(folder, "openvino", "openvino", threads=THREADS)),
    "octavo inductor": ("ours", lambda folder: octavo(folder, "inductor", "onednn")),
    "octavo onnxruntime": ("ours", lambda folder: octavo(folder, "onnxruntime", "onnxruntime", threads=THREADS)),
    "nncf openvino int8": ("peer", nncf_openvino),
    "onnxruntime int8": ("peer", onnxruntime_static),
    "onnxruntime int8 any batch": ("peer", lambda folder: onnxruntime_static(folder, any_batch=True)),
    "torchao pt2e int8": ("peer", torchao_pt2e),
    "torch eager fp32": ("float", torch_eager),
    "torch.compile fp32": ("float", lambda folder: torch_compiled(folder, bf16=False)),
    "torch.compile bf16": ("float", lambda folder: torch_compiled(folder, bf16=True)),
    "openvino fp32": ("float", lambda folder: _openvino_run(_openvino_model(folder), folder)),
    "openvino bf16": ("float", lambda folder: _openvino_run(_openvino_model(folder), folder, "bf16")),
    "int8 GEMM peak": ("peak", gemm_peak),
}


def turn(run: Run) -> list[float]:
    """Milliseconds of each call."""
    times = []
    for _ in range(CALLS + 1):
        start = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - start))
    return times[1:]


def main(name: str, folder: Path) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes to the error stream

    def answer(**facts: Any) -> None:
        print(json.dumps(facts), file=answers, flush=True)

    torch.manual_seed(0)
    torch.set_num_threads(THREADS)
    warnings.simplefilter("ignore")
    with torch.inference_mode():
        try:
            run = CONTESTANTS[name][1](folder)
            run(), run()
        except Exception as error:
            lines = f"{type(error).__name__}: {error}".strip().splitlines()
            answer(error=lines[0][:300])
            return
        answer(ready=name)
        for _ in sys.stdin:
            answer(ms=turn(run))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
