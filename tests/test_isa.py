"""Kernels of all instructions are the same, bit for bit, emulated or not; and a network runs on each, on eight bits."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from kernels import operators
from octavo.engines.inductor import lowered
from octavo.engines.isa import ISAS, isa
from octavo.engines.lowering.packing import pack_dense, pack_depthwise
from octavo.engines.native import compiler
from octavo.errors import QuantizationError
from octavo.network.calibrate import choose_params, observe
from octavo.network.graph import capture
from octavo.network.placement import make_plan
from octavo.network.simulate import simulate

pytestmark = pytest.mark.skipif(compiler() is None, reason="the kernels need a C++ compiler")
VARIANTS = [
    *((name, False) for name, row in ISAS.items() if row.emulated is not None or not row.lacking),
    *(
        (name, True)
        for name, row in ISAS.items()
        if row.emulated is not None and row.needs and row.emulated != row.flags
    ),
]


@pytest.fixture
def chosen(monkeypatch):
    """Clears what was chosen, before and after."""
    isa.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    isa.cache_clear()


def test_the_fastest_that_the_cpu_has_is_chosen(chosen) -> None:
    chosen.delenv("OCTAVO_ISA", raising=False)
    for flags, name in (
        ({"avx2", "avx512f", "avx512_vnni", "avx_vnni"}, "avx512_vnni"),
        ({"avx2", "avx512f", "avx_vnni"}, "avx_vnni"),
        ({"avx2", "avx512f"}, "avx2"),
        ({"asimddp"}, "plain"),
    ):
        isa.cache_clear()
        chosen.setattr("octavo.engines.isa.machine", lambda flags=flags: {"flags": sorted(flags)})
        assert isa().name == name
        assert not isa().lacking


def test_instructions_are_chosen_by_name(chosen) -> None:
    for name in ISAS:
        isa.cache_clear()
        chosen.setenv("OCTAVO_ISA", name)
        assert isa().name == name
    isa.cache_clear()
    chosen.setenv("OCTAVO_ISA", "sse9")
    with pytest.raises(
        QuantizationError, match=r"OCTAVO_ISA: .*'sse9'.*the known ones are avx512_vnni, avx_vnni, avx2"
    ):
        isa()
    chosen.setenv("OCTAVO_ISA", "avx2")
    chosen.setattr("octavo.engines.isa.machine", lambda: {"flags": ["asimddp"]})
    with pytest.raises(QuantizationError, match="this CPU lacks them, and they are not emulated"):
        isa()


def results(name: str, *, emulated: bool) -> list[Tensor]:
    """Of every kernel, for the same random operands: what each returns."""
    made_of, ops = ISAS[name], operators(ISAS[name], emulated=emulated)
    x = torch.randint(0, 256, (2, 24, 9, 11), dtype=torch.uint8)
    skip = torch.randint(0, 256, (2, 70, 9, 11), dtype=torch.uint8)
    wide, deep, narrow = (
        torch.randint(-127, 128, size, dtype=torch.int8) for size in ((96, 24, 1, 1), (96, 1, 3, 3), (70, 96, 1, 1))
    )
    of_channel = [
        (torch.randint(-5000, 5000, (count,)).int(), torch.rand(count) * 1e-2, torch.randn(count) * 50)
        for count in (96, 96, 70)
    ]
    stages = [
        pack_dense(wide, of_channel[0], made_of, ordered=False),
        pack_depthwise(deep, of_channel[1], made_of),
        pack_dense(narrow, of_channel[2], made_of, ordered=False),
    ]
    geometry = [
        *(0, 96, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 3, 0, 255, 1),
        *(1, 96, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 7, 5, 250, 1),
        *(0, 70, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 9, 0, 255, 1),
    ]
    u, v = (torch.randint(0, 256, (2, 3, 21, width), dtype=torch.uint8) for width in (19, 37))
    real, bias = torch.randn(2, 3, 21, 19) * torch.logspace(-3, 3, 21)[:, None], torch.randn(2, 1, 21, 21)
    weight, scales, shift = torch.randint(-127, 128, (37, 19), dtype=torch.int8), torch.rand(37), torch.randn(37)
    ends = [("none", [], ""), ("relu", [], ""), ("hardtanh", [-1.0, 2.0], ""), ("swish", [], ""), ("hardswish", [], ""),
            ("tanh", [], ""), ("gelu", [], "none"), ("gelu", [], "tanh")]  # fmt: skip
    return [
        ops.int8_convolutions(x, skip, 0.3, *map(list, zip(*stages, strict=True)), geometry, False),
        ops.int8_matmul(u, 7, u.transpose(2, 3), 130, 0.7),
        ops.int8_attention(u, 7, u, 100, v, 9, bias, 1e-3, 1 / 255, 255, 0.1, 0.0, 0, 0, 0),
        ops.int8_attention(u, 7, u, 100, v, 9, bias, 1e-3, 1 / 255, 255, 0.1, 0.5, 128, 0, 255),
        ops.int8_attention_rows(real, real, real, bias, 0.3, 127, 127, 255, 127),
        ops.int8_linear_rows(real, weight, scales, shift, 127, True, "gelu"),
        *(ops.int8_linear_of_bytes(u, 1e-3, 7, weight, scales, shift, 0.05, 60, True, *end) for end in ends),
        *(ops.int8_linear_of_bytes(u, 1e-3, 7, weight, scales, shift, 1.0, 0, False, *end) for end in ends),
    ]


# Kernels of which others are made too: of AVX2's, beside oneDNN.
TWICE = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "emulated"), [pytest.param(*each, marks=TWICE if each[0] == "avx_vnni" else ()) for each in VARIANTS]
)
def test_every_kernel_returns_the_same_bits_as_in_plain_cpp(name, emulated, seed) -> None:
    wanted = results("plain", emulated=False)
    torch.manual_seed(seed)
    for number, (one, other) in enumerate(zip(results(name, emulated=emulated), wanted, strict=True)):
        assert torch.equal(one, other), number


class Layers(nn.Module):
    """Convolutions of every kind, linears with what may follow, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU6(),
            nn.Conv2d(16, 32, 1), nn.Conv2d(32, 32, 3, padding=2, dilation=2, groups=4), nn.SiLU(),
            nn.Conv2d(32, 32, 3, padding=2, dilation=2, groups=32), nn.Hardswish(), nn.Conv2d(32, 24, 2, 2), nn.GELU(),
        )  # fmt: skip
        self.along = nn.Sequential(nn.Conv1d(24, 24, 3, padding=1), nn.Tanh(), nn.Conv1d(24, 32, 1))
        self.linears = nn.Sequential(
            nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32), nn.Hardtanh(-0.5, 0.7), nn.Linear(32, 32), nn.Tanh(),
            nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 32), nn.Hardswish(), nn.Linear(32, 32), nn.GELU("tanh"),
        )  # fmt: skip
        self.q, self.k, self.v, self.head = (nn.Linear(32, 32) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.linears(self.along(self.convolutions(x).flatten(2)).transpose(1, 2))
        q, k, v = (part.unflatten(2, (4, 8)).transpose(1, 2) for part in (self.q(x), self.k(x), self.v(x)))
        x = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(x)


def report() -> dict[str, object]:
    """What became of `Layers` on the kernels of this process."""
    torch.manual_seed(int(os.environ["OCTAVO_SEED"]))
    x = torch.randn(2, 3, 24, 24)
    plan = make_plan(capture(Layers().eval(), (x,)), target="onednn")
    net = choose_params(plan, observe(plan, [(x,)]))
    module, executions = lowered(net)
    found, wanted = module(x).double(), simulate(net)(x).double()
    return {
        "decibels": float(10 * torch.log10(wanted.square().sum() / (found - wanted).square().sum())),
        "bits": sorted({net.values[q.name].scheme.bits for q in net.plan.quantizers if q.constant}),
        "float": sorted(name for name, row in executions.items() if not row.on_integers),
        "onednn": sorted(name for name, row in executions.items() if row.implementation == "onednn_i8"),
    }


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=TWICE if name == "avx_vnni" else ()) for name, emulated in VARIANTS if not emulated],
)
def test_a_network_runs_on_eight_bits_whatever_the_cpu_has(name, seed) -> None:
    environment = {**os.environ, "OCTAVO_ISA": name, "OCTAVO_SEED": str(seed)}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["decibels"] > 40
    assert said["bits"] == [8]
    assert said["float"] == []
    exact = ISAS[name].onednn and not ISAS[name].lacking
    assert bool(said["onednn"]) == exact  # and where that is not exact, nothing is left to it


if __name__ == "__main__":
    print(json.dumps(report()))
