"""The kernels of a test: made of every set of instructions, on every CPU; natively, or emulated where it lacks them."""

from typing import Any

import pytest
import torch

from octavo.engines.isa import ISAS, Isa
from octavo.engines.native import compiler, load_kernels

_chosen: list[Isa] = []


@pytest.fixture(autouse=True, params=[name for name in ISAS if name != "avx_vnni"])  # whose kernels are AVX2's
def _every_isa(request: pytest.FixtureRequest) -> None:
    """For `from kernels import *` of a file whose tests are about kernels: each runs with all instructions."""
    if compiler() is None:
        pytest.skip("the kernels need a C++ compiler")
    if ISAS[request.param].lacking and ISAS[request.param].emulated is None:
        pytest.skip(f"{request.param} is not of this kind of CPU")
    _chosen[:] = [ISAS[request.param]]


def instructions() -> Isa:
    """Those of this test."""
    return _chosen[0]


def operators(isa: Isa | None = None, *, emulated: bool = False) -> Any:
    """torch.ops.… of the kernels of this test, or of those named."""
    made_of = isa or instructions()
    name = f"octavo_{made_of.name}" + ("_emulated" if emulated else "")
    load_kernels(made_of=made_of, emulated=emulated, operators=name)
    return getattr(torch.ops, name)
