"""What a record says about the machine and the packages."""

from pathlib import Path

import pytest
import torch

import octavo.machine as machine_module
from octavo.machine import machine, versions


def test_machine_reads_what_the_kernel_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Abacus 3000\nflags\t\t: fpu avx2 amx_int8 avx512_vnni\n")
    lines = machine_module._cpu_lines(cpuinfo)
    monkeypatch.setattr(machine_module, "_cpu_lines", lambda: lines)
    facts = machine()
    assert facts["cpu"] == "Abacus 3000"
    assert facts["flags"] == ["avx2", "avx512_vnni", "amx_int8"]
    assert set(facts) == {"cpu", "cores", "threads", "flags"}
    assert facts["cores"] >= 1


def test_machine_without_cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine_module._cpu_lines(tmp_path / "absent") == {}
    monkeypatch.setattr(machine_module, "_cpu_lines", dict)
    assert machine()["flags"] == []


def test_versions_leave_out_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "PACKAGES", ("torch", "no-such-package"))
    found = versions()
    assert list(found) == ["python", "torch"]
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("avx2", True),
        ("avx2 avx512f", True),
        ("avx2 avx512f avx512_vnni", False),
        ("avx2 avx_vnni", False),
        ("avx2 avx512_vnni amx_int8", False),
        ("asimddp i8mm", False),
        ("", False),
    ],
)
def test_which_cpus_add_pairs_in_16_bits(flags: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "_cpu_lines", lambda: {"flags": flags})
    assert machine_module.adds_int8_pairs_in_16_bits() is expected
