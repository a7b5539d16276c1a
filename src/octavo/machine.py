"""What measured numbers and compiled code depend on: the machine, and the versions of the packages."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("octavo", "torch", "openvino", "onnx", "onnxruntime", "numpy", "accelerate")
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "amx_bf16", "asimddp", "i8mm")


def machine() -> dict[str, Any]:
    """{"cpu", "cores", "threads", "flags"}: what a measured time depends on, and nothing that names the machine."""
    lines = _cpu_lines()
    present = set(lines.get("flags", lines.get("Features", "")).split())
    return {
        "cpu": lines.get("model name", platform.processor() or platform.machine()),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "flags": [flag for flag in FLAGS if flag in present],
    }


def adds_int8_pairs_in_16_bits() -> bool:
    """Whether int8 kernels of this CPU can overflow: x86 without VNNI multiplies by vpmaddubsw, which adds two products
    u8 · s8 and saturates at 2¹⁵. Weights within ±63 are safe, since 2 · 255 · 63 < 2¹⁵; those of eight bits are not.
    """
    flags = set(machine()["flags"])
    return "avx2" in flags and not flags & {"avx512_vnni", "avx_vnni", "amx_int8"}


def _cpu_lines(path: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    if not path.is_file():
        return {}
    pairs = (line.partition(":") for line in path.read_text().splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


def versions() -> dict[str, str]:
    """{"python": …, package: version} of the packages that the numbers depend on, where they are installed."""
    return {"python": platform.python_version(), **versions_of(*PACKAGES)}


def versions_of(*packages: str) -> dict[str, str]:
    """{package: version} of those that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
