"""The cache of compiled code: what it is named after, and that nothing which was cut short is ever loaded."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn

from octavo.engines import inductor, native
from octavo.engines.native import compiler, library

pytestmark = pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("FLAGS", ("-O0",)),
        ("LIBRARIES", ("-lomp",)),
        ("SOURCES", native.SOURCES[:1]),
        ("compiler_version", lambda: "g++ 99"),
        ("machine", lambda: {"cpu": "another", "flags": []}),
    ],
)
def test_kernels_are_named_after_all_that_they_depend_on(monkeypatch, name, other) -> None:
    monkeypatch.setattr(native, "built", lambda path, build: path)
    before = library()
    assert library() == before
    monkeypatch.setattr(native, name, other)
    assert library() != before


@pytest.mark.parametrize("what", ["threads", "settings", "compiler", "kernels", "weights"])
def test_packages_are_named_after_all_that_they_depend_on(monkeypatch, tmp_path, what) -> None:
    model, x = nn.Linear(4, 4), (torch.ones(2, 4),)
    monkeypatch.setattr(inductor, "library", lambda: tmp_path / "kernels.so")
    before = inductor._digest(torch.export.export(model, x))
    assert inductor._digest(torch.export.export(model, x)) == before
    threads = torch.get_num_threads()
    try:
        if what == "threads":
            torch.set_num_threads(threads + 1)
        elif what == "settings":
            monkeypatch.setattr(torch._inductor.config, "epilogue_fusion", not torch._inductor.config.epilogue_fusion)
        elif what == "compiler":
            monkeypatch.setattr(inductor, "compiler_version", lambda: "g++ 99")
        elif what == "kernels":
            monkeypatch.setattr(inductor, "library", lambda: tmp_path / "others.so")
        else:
            with torch.no_grad():
                model.weight[0, 0] += 1
        assert inductor._digest(torch.export.export(model, x)) != before
    finally:
        torch.set_num_threads(threads)


def test_a_compiler_says_its_version() -> None:
    command = compiler()
    assert command is not None
    assert native.compiler_version().startswith(f"{command} ")
    assert any(character.isdigit() for character in native.compiler_version())


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("left", [0, 0.5])
def test_kernels_that_were_cut_short_are_compiled_again(tmp_path, left) -> None:
    """dlopen of an empty file is an error, and of a truncated one a SIGBUS."""
    whole = library()
    for path in (whole, whole.with_name(f"{whole.name}.sha256")):
        shutil.copy(path, tmp_path / path.name)
    with (tmp_path / whole.name).open("r+b") as file:
        file.truncate(int(left * whole.stat().st_size))
    program = "from octavo.engines.native import load_kernels; load_kernels(); print('loaded')"
    command = [sys.executable, "-c", program]
    both = [
        subprocess.Popen(command, env=os.environ | {"OCTAVO_CACHE": str(tmp_path)}, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    assert [process.communicate(timeout=500)[0].decode().strip() for process in both] == ["loaded", "loaded"]
    assert (tmp_path / whole.name).stat().st_size == pytest.approx(whole.stat().st_size, rel=0.01)
