"""`octavo check` on eight int8 files of other tools, three of them broken on purpose: verdicts and exit codes.

    python -m benchmarks.check_peers --python .peers/bin/python [--only WORD]

NNCF, ONNX Runtime's quantizer and torchao make the files, in the environment of the peers (`make peers`), of float
networks and calibration samples of our zoo; each is then checked as a user would, by the command. What is broken:

    wrong zero-point   what the first convolution reads, 128 steps off: uint8 taken for int8
    per tensor         one scale for all channels of a weight, of depthwise convolutions, too
    mask rounded       the −1e4 that hides the padding of a sentence, with all else: ONNX Runtime's default

The ninth check is of a sound file on the other runtime. Where there are labels, the accuracy of each file is beside the
record, as the runtime gives it without Octavo.
Writes benchmarks/results/check-peers.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from octavo import files
from octavo.machine import machine, versions
from octavo.network.graph import call_arguments
from octavo.zoo import task
from octavo.zoo.minilm import SentenceEncoder
from octavo.zoo.task import Task

SCRIPT = Path(__file__).parent / "check_peers_tools.py"
RESULT = Path(__file__).parent / "results" / "check-peers.json"
PATIENCE_S = 1500
HIDDEN = -1e4  # added to the scores of padding, as BERT's first code did
RECIPE = """
from octavo.zoo import task

TASK = task("minilm")
model, calibration = TASK.build, TASK.calibration


def evaluate(network):
    return TASK.score(TASK.predict(network))
"""


class Additive(nn.Module):
    """MiniLM with a mask that is added, and not a boolean one."""

    def __init__(self, encoder: SentenceEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.encoder.embeddings(input_ids)
        mask = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * HIDDEN
        for layer in self.encoder.layers:
            x = layer(x, mask)
        weight = attention_mask.unsqueeze(2).to(x.dtype)
        return nn.functional.normalize((x * weight).sum(1) / weight.sum(1), dim=1)


@dataclass(frozen=True, kw_only=True)
class File:
    """One int8 file.

    tool     a row of TOOLS in check_peers_tools.py
    network  of the zoo
    broken   whether it is, on purpose
    engine   that runs both
    batch    of calibration; small where the tool keeps every value
    """

    tool: str
    network: str
    broken: bool = False
    engine: str = "onnxruntime"
    batch: int = 16


FILES = (
    File(tool="nncf, openvino", network="ds_cnn_s", engine="openvino"),
    File(tool="nncf, onnx", network="resnet20"),
    File(tool="onnxruntime, static", network="resnet20"),
    File(tool="torchao, pt2e", network="resnet20"),
    File(tool="onnxruntime, dynamic", network="minilm"),
    File(tool="onnxruntime, static, wrong zero-point", network="resnet20", broken=True),
    File(tool="onnxruntime, static, per tensor", network="efficientnet_lite0", broken=True),
    File(tool="onnxruntime, static, mask rounded", network="minilm", broken=True),
    File(tool="nncf, onnx", network="resnet20", engine="openvino"),
)
BUILD: dict[str, Callable[[nn.Module], nn.Module]] = {"minilm": Additive}  # type: ignore[dict-item]
INPUTS = {"minilm": ("input_ids", "attention_mask")}


def prepare(row: File, folder: Path) -> list[str]:
    """Write the float network, calibration batches, and what it is scored on; the arguments that say the latter."""
    found = task(row.network)
    model = BUILD.get(row.network, lambda network: network)(found.build()).eval()
    args, kwargs = call_arguments(found.example)
    example = (*args, *kwargs.values())
    names = INPUTS.get(row.network, ("x",))
    shapes = tuple(dict.fromkeys(found.dynamic_axes, Dim.AUTO) for _ in example)
    with torch.no_grad():
        exported = torch.export.export(model, example, dynamic_shapes=shapes)
        torch.export.save(exported, folder / "network.pt2")
        program = torch.onnx.export(
            model, example, dynamo=True, dynamic_shapes=shapes, input_names=names, output_names=["y"], verbose=False
        )
    program.save(str(folder / "float.onnx"))
    _calibration(found, names, row.batch, folder)
    if row.network == "minilm":
        (folder / "recipe.py").write_text(RECIPE)
        return ["--data", str(folder / "recipe.py")]
    batches = [batch for batch in found.inputs() if isinstance(batch, Tensor)]
    np.savez(folder / "scored.npz", x=torch.cat(batches).numpy(), labels=found.targets.numpy())
    return ["--data", str(folder / "scored.npz")]


def _calibration(found: Task, names: tuple[str, ...], size: int, folder: Path) -> None:
    number = 0
    for batch in found.calibration():
        args, kwargs = call_arguments(batch)
        tensors = (*args, *kwargs.values())
        for start in range(0, len(tensors[0]), size):
            arrays = {name: one[start : start + size].numpy() for name, one in zip(names, tensors, strict=True)}
            np.savez(folder / f"{number:05}.npz", **arrays)
            number += 1


def checked(row: File, python: Path) -> dict[str, Any]:
    """Make the file, check it by the command, and say whether the verdict is right."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = prepare(row, folder)
        command = [str(python), str(SCRIPT), row.tool, row.engine, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        if done.returncode:
            return {
                "tool": row.tool,
                "network": row.network,
                "engine": row.engine,
                "error": done.stderr.strip().splitlines()[-1][:300],
            }
        made = json.loads(done.stdout.strip().splitlines()[-1])
        command = [
            sys.executable,
            "-m",
            "octavo.cli",
            "check",
            str(folder / "float.onnx"),
            str(folder / made.pop("file")),
        ]
        command += [*data, "--engine", row.engine, "--max-drop", "1%", "--no-bench", "--json", "-"]
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=PATIENCE_S, check=False)
        record = json.loads(ended.stdout)
    return {
        "tool": row.tool,
        "network": row.network,
        "engine": row.engine,
        "broken": row.broken,
        "verdict": record.get("verdict"),
        "exit_code": ended.returncode,
        "right": _is_right(row, made, record, ended.returncode),
        "accuracy_of_the_runtime": made or None,
        "record": record,
    }


def _is_right(row: File, accuracy: dict[str, float], record: dict[str, Any], code: int) -> bool:
    """Whether the verdict is that of the accuracy by the runtime alone: of a broken file, or one that loses more than
    1 % there, never "met"; of another never "not met". And whether code and score are those of the verdict."""
    word, score = record.get("verdict"), record.get("score") or {}
    lost = accuracy["float"] - accuracy["int8"] if accuracy else None
    ruined = row.broken or (lost is not None and lost > 0.01 * accuracy["float"])
    same = lost is None or abs(score["drop"] - lost) < 1e-6
    return (
        word != ("met" if ruined else "not met")
        and (word == "not met" or not row.broken)
        and same
        and (code == {"met": 0, "not met": 1, "could not tell": 3}[str(word)])
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", type=Path, required=True, help="the interpreter of the peers")
    parser.add_argument("--only", default="", help="check those again whose tool or network has this word")
    asked = parser.parse_args()
    rows = {_key(row): row for row in (json.loads(RESULT.read_text())["files"] if asked.only else [])}
    for row in FILES:
        if asked.only in f"{row.tool} {row.network}":
            found = checked(row, asked.python)
            rows[_key(found)] = found
            shown = {key: value for key, value in found.items() if key != "record"}
            print(json.dumps(shown), found.get("record", {}).get("reason", ""), flush=True)
    result = {"files": [*rows.values()], "peers": _peer_versions(asked.python), "versions": versions()}
    files.write(RESULT, json.dumps(result | {"machine": machine()}, indent=2, ensure_ascii=False) + "\n")


def _key(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["tool"], row["network"], row["engine"]


def _peer_versions(python: Path) -> dict[str, str]:
    names = "nncf", "onnxruntime", "openvino", "torchao", "torch", "onnx"
    code = f"import json, importlib.metadata as m; print(json.dumps({{n: m.version(n) for n in {names}}}))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


if __name__ == "__main__":
    main()
