"""Octavo's own integer kernels, `kernels/`: compiled once on each machine, cached, loaded on demand."""

import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from octavo.engines.isa import Isa, isa
from octavo.errors import QuantizationError, reason
from octavo.files import built
from octavo.machine import machine
from octavo_serve.cache import cache_folder as folder_of_user

SOURCES = sorted(Path(__file__).with_name("kernels").iterdir())
FLAGS = (
    "-O3",
    "-std=c++20",
    "-ffp-contract=off",  # a·b + c is rounded as it is written: so results are the same on every CPU
    "-fPIC",
    "-fopenmp",
    "-DAT_PARALLEL_OPENMP=1",
    "-w",
)
LIBRARIES = (
    "-ltorch_cpu",
    "-lc10",
    "-lgomp",
)  # torch's own OpenMP, which is in memory already: no second pool of threads


def compiler() -> str | None:
    """The C++ compiler: $CXX, or the first of g++ and clang++ that is installed."""
    return next(
        (found for name in (os.environ.get("CXX"), "g++", "clang++") if name and (found := shutil.which(name))), None
    )


@cache
def compiler_version() -> str:
    """Which it is, and what it says of its version: compiled code depends on both."""
    command = compiler()
    if command is None:
        return ""
    said = subprocess.run([command, "--version"], capture_output=True, text=True, check=False).stdout
    return f"{command} {said}"


def cache_folder() -> Path:
    """Where compiled code is kept: $OCTAVO_CACHE, or octavo/ in the user's cache folder.

    raises  QuantizationError for a user without a home, as in some containers
    """
    found = folder_of_user()
    if found is None:
        raise QuantizationError(
            asked="keep what was compiled",
            seen="this user has no home folder",
            remedy="set OCTAVO_CACHE to a folder that only this user can write to",
            site="OCTAVO_CACHE",
        )
    return found


@cache
def load_kernels(*, made_of: Isa | None = None, emulated: bool = False, operators: str = "octavo") -> None:
    """Make the operators of `SHAPES` callable as torch.ops.octavo.…; the first time on a machine, it compiles them.

    made_of    instructions; by default `isa()`
    emulated   even if this CPU has them
    operators  where they are to be found in torch.ops: of every name there is one set in a process
    raises     QuantizationError without a C++ compiler, or if it fails
    """
    path = library(made_of=made_of, emulated=emulated, operators=operators)
    try:
        torch.ops.load_library(str(path))  # type: ignore[no-untyped-call]
    except OSError as error:
        raise QuantizationError(
            asked="load Octavo's integer kernels",
            seen=reason(error),
            remedy="remove that file, so that it is compiled again, or use another engine",
            site=str(path),
        ) from error
    for name, shape in SHAPES.items():
        torch.library.register_fake(f"{operators}::{name}", shape)


def library(*, made_of: Isa | None = None, emulated: bool = False, operators: str = "octavo") -> Path:
    """The compiled kernels; named after all that they depend on, so that a cache may be shared by machines."""
    flags = (*FLAGS, *_flags(made_of or isa(), emulated=emulated), f"-DOCTAVO_OPERATORS={operators}")
    facts = (
        [path.read_text() for path in SOURCES],
        flags,
        LIBRARIES,
        torch.__version__,
        machine()["cpu"],
        machine()["flags"],
        compiler_version(),
    )
    path = cache_folder() / f"int8-{sha256(repr(facts).encode()).hexdigest()[:16]}.so"
    return built(path, lambda new: _compile(new, flags))


def _flags(made_of: Isa, *, emulated: bool) -> tuple[str, ...]:
    if not (emulated or made_of.lacking):
        return made_of.flags
    assert made_of.emulated is not None, f"{made_of.name} is not emulated"
    return made_of.emulated


def _compile(path: Path, flags: tuple[str, ...]) -> None:
    command = compiler()
    if command is None:
        raise QuantizationError(
            asked="compile Octavo's integer kernels",
            seen="there is no C++ compiler",
            remedy='install g++ (Debian: "apt install g++") or name one in CXX; or use another engine',
        )
    torch_folder = Path(torch.__file__).parent
    headers = [f"-I{torch_folder / path}" for path in ("include", "include/torch/csrc/api/include")]
    units = [path for path in SOURCES if path.suffix == ".cpp"]
    with TemporaryDirectory() as folder, ThreadPoolExecutor() as threads:  # a compiler for each unit
        objects = [str(Path(folder, f"{unit.stem}.o")) for unit in units]
        calls = [
            [command, *flags, *headers, "-c", str(unit), "-o", to] for unit, to in zip(units, objects, strict=True)
        ]
        list(threads.map(_call, calls))
        _call([command, "-shared", "-fopenmp", *objects, "-o", str(path), f"-L{torch_folder / 'lib'}", *LIBRARIES])


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["without a word"]
        said = next((line for line in lines if "error" in line), lines[0])[:200]
        raise QuantizationError(
            asked="compile Octavo's integer kernels",
            seen=f"{Path(command[0]).name} failed ({said})",
            remedy="name another compiler in CXX, or use another engine",
        )


def _linear(x: Tensor, x_scale: float, x_zero: int, weight: Tensor, scales: Tensor, bias: Tensor | None,
            out_scale: float, out_zero: int, to_uint8: bool, post: str, post_arguments: list[float],
            algorithm: str) -> Tensor:  # fmt: skip
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=torch.uint8 if to_uint8 else torch.float32)


def _convolution(x: Tensor, x_scale: float, x_zero: int, weight: Tensor, scales: Tensor, bias: Tensor | None,
                 stride: list[int], padding: list[int], dilation: list[int], groups: int, out_scale: float,
                 out_zero: int, to_uint8: bool, post: str, post_arguments: list[float]) -> Tensor:  # fmt: skip
    space = [
        (size + 2 * pad - far * (kernel - 1) - 1) // step + 1
        for size, pad, far, kernel, step in zip(x.shape[2:], padding, dilation, weight.shape[2:], stride, strict=True)
    ]
    out = x.new_empty((x.shape[0], *space, weight.shape[0]), dtype=torch.uint8 if to_uint8 else torch.float32)
    return out.movedim(-1, 1)


def _convolutions(x: Tensor, skip: Tensor | None, skip_scale: float, weights: list[Tensor], starts: list[Tensor],
                  scales: list[Tensor], offsets: list[Tensor], geometry: list[int],
                  to_float: bool) -> Tensor:  # fmt: skip
    facts = len(geometry) // len(weights)
    channels, height, width = x.shape[1:]
    for at in range(0, len(geometry), facts):
        _, channels, *sizes = geometry[at : at + facts]
        kernel, stride, dilation, before, behind = (sizes[i : i + 2] for i in (0, 2, 4, 6, 8))
        height, width = (
            (n + before[i] + behind[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
            for i, n in enumerate((height, width))
        )
    dtype = torch.float32 if to_float else torch.uint8
    return x.new_empty((x.shape[0], height, width, channels), dtype=dtype).movedim(-1, 1)


def _matmul(left: Tensor, z_left: int, right: Tensor, z_right: int, scale: float) -> Tensor:
    return left.new_empty((*left.shape[:-1], right.shape[-1]), dtype=torch.float32)


def _attention(q: Tensor, z_q: int, k: Tensor, z_k: int, v: Tensor, z_v: int, bias: Tensor | None, score_scale: float,
               weight_step: float, weight_highest: int, value_scale: float, out_step: float, out_zero: int,
               out_low: int, out_high: int) -> Tensor:  # fmt: skip
    batch, heads, queries, width = *q.shape[:3], v.shape[3]
    dtype = torch.float32 if out_step == 0 else torch.uint8
    return q.new_empty((batch, queries, heads, width), dtype=dtype).transpose(1, 2)


def _linear_rows(x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None, highest: int, is_signed: bool,
                 post: str = "none") -> Tensor:  # fmt: skip
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=torch.float32)


def _attention_rows(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, score_scale: float, q_highest: int,
                    k_highest: int, weight_highest: int, v_highest: int) -> Tensor:  # fmt: skip
    batch, heads, queries, width = *q.shape[:3], v.shape[3]
    return q.new_empty((batch, queries, heads, width), dtype=torch.float32).transpose(1, 2)


# What each operator returns, for who traces it: shape, dtype and order in memory.
SHAPES: dict[str, Callable[..., Tensor]] = {
    "int8_linear": _linear,
    "int8_linear_of_bytes": _linear,
    "int8_convolution": _convolution,
    "int8_convolutions": _convolutions,
    "int8_matmul": _matmul,
    "int8_attention": _attention,
    "int8_linear_rows": _linear_rows,
    "int8_attention_rows": _attention_rows,
}
