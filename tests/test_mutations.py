"""Wrong kernels are caught: a line of them is changed, and what `compile` checks an engine by does not hold.

What is to be changed must be there exactly once, and what is unchanged must pass: so each test can fail.

    python tests/test_mutations.py FOLDER     whether some networks agree with the simulation on the kernels in FOLDER
"""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from conftest import Network
from octavo.engines import ENGINES, native
from octavo.engines.check import agreement, moved, ran, simulated
from octavo.engines.inductor import lowered
from test_openvino import prepared


def attention(self, x):
    """Scores far from zero, a product that is no attention, and a linear."""
    q, k, v = self.q(x), self.k(x), self.v(x)
    near = (q @ k.transpose(1, 2) / 4).softmax(-1) @ v
    far = (self.o(x) @ k.transpose(1, 2) / 4 + torch.full((x.shape[1],), 300.0)).softmax(-1) @ q
    return near, far, q.relu() @ v.transpose(1, 2)


def convolutions(self, x):
    """Dense and depthwise, padded, behind activations that bound, in a chain; and a linear."""
    x = F.relu(self.one(x))
    x = self.three(F.relu6(self.two(x)))
    return (self.head(x.flatten(1)),)


def networks() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    return {
        "attention": (Network(attention, **{name: nn.Linear(16, 16) for name in "qkvo"}), torch.randn(3, 7, 16)),
        "convolutions": (
            Network(
                convolutions,
                one=nn.Conv2d(3, 64, 3, padding=1),
                two=nn.Conv2d(64, 64, 3, padding=1, groups=64),
                three=nn.Conv2d(64, 64, 1),
                head=nn.Linear(64 * 36, 8),
            ),
            torch.randn(3, 3, 6, 6),
        ),
    }


OUR_LINEAR = "our own linear without bias"  # which is used where oneDNN's is not exact

# {what is wrong: (file, what is there, what is there instead)}
KERNELS = {
    "nothing": ("int8.cpp", "// Octavo's integer kernels", "// Octavo's own integer kernels"),
    "a column's zero-points are forgotten": (
        "product.h",
        "start = static_cast<int32_t>(z_left * (k * c - start))",
        "start = 0",
    ),
    "a row's zero-point is forgotten": (
        "product.h",
        "c == 0 ? 0 : static_cast<int32_t>(-c",
        "c != 0 ? 0 : static_cast<int32_t>(-c",
    ),
    "softmax without its maximum": ("softmax.h", "of_row[row] = highest(most);", "of_row[row] = 0;"),
    "the scale of the values for that of the scores": (
        "int8.cpp",
        "by{static_cast<float>(score_scale) * LOG2_E",
        "by{static_cast<float>(value_scale) * LOG2_E",
    ),
    "a linear without bias": (
        "int8.cpp",
        '"onednn::qlinear_pointwise", x, x_scale, x_zero, packed, scales, zeros, bias,',
        '"onednn::qlinear_pointwise", x, x_scale, x_zero, packed, scales, zeros, c10::IValue(),',
    ),
    OUR_LINEAR: ("ending.h", "if (as.bias != nullptr) x = add", "if (as.bias == nullptr) x = add"),
    "the last columns of a product are missing": (
        "product.h",
        "for (int64_t column = 0; column < right.columns; column += PANEL)",
        "for (int64_t column = 0; column + PANEL < right.columns; column += PANEL)",
    ),
    "a convolution without bias": (
        "convolution.cpp",
        "load(stage.offsets + channel + j * LANES)",
        "every(0.0f)",
    ),
    "a convolution's zero-point is forgotten": (
        "convolution.cpp",
        "start = load(stage.starts + channel + j * LANES)",
        "start = every(int32_t(0))",
    ),
    "rounding downwards": (
        "convolution.cpp",
        "const F32 added = every(skip.scale);",
        "const F32 added = every(skip.scale); for (F32& x : real) x = floor(x);",
    ),
    "an activation's bounds are forgotten": (
        "convolution.cpp",
        "packed(real, every_byte(stage.low), every_byte(stage.high))",
        "packed(real, every_byte(0), every_byte(255))",
    ),
    "padded with the integer 0": (
        "convolution.cpp",
        "padding.assign(stage.width_in * C, static_cast<uint8_t>(stage.zero))",
        "padding.assign(stage.width_in * C, 0)",
    ),
}


def mutated(folder: Path, file: str, there: str, instead: str) -> None:
    """The kernels in `folder`, `there` in one of them replaced."""
    for path in native.SOURCES:
        text = path.read_text()
        if path.name == file:
            assert text.count(there) == 1, f"{there!r} is {text.count(there)} times in {file}"
            text = text.replace(there, instead)
        (folder / path.name).write_text(text)


@pytest.mark.parametrize("name", KERNELS)
def test_what_is_changed_is_there(name, tmp_path) -> None:
    """What runs once in a while must not find kernels that have moved on."""
    mutated(tmp_path, *KERNELS[name])


@pytest.mark.slow
@pytest.mark.skipif(native.compiler() is None, reason="the kernels need a C++ compiler")
@pytest.mark.parametrize("name", KERNELS)
def test_a_wrong_kernel_is_caught(name, tmp_path, seed) -> None:
    mutated(tmp_path, *KERNELS[name])
    environment = {**os.environ, "OCTAVO_SEED": str(seed), **({"OCTAVO_ISA": "plain"} if name == OUR_LINEAR else {})}
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert (False in found.values()) == (name != "nothing")


def main(folder: Path) -> None:
    native.SOURCES = sorted(folder.iterdir())
    native.FLAGS = tuple("-O1" if flag == "-O3" else flag for flag in native.FLAGS)
    torch.manual_seed(int(os.environ["OCTAVO_SEED"]))
    found = {}
    for target in ("paper", "onnxruntime"):  # signed activations, and affine ones
        for name, (net, example) in networks().items():
            params = prepared(net.eval(), example, target=target)
            module, _ = lowered(params)
            calls = params.samples
            draws = partial(moved, params, calls, ENGINES["inductor"].near_tie)
            found[f"{name}, {target}"] = agreement(simulated(params, calls), ran(module, calls), draws).holds
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
