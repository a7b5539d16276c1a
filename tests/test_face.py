"""The public face: every name has one home, and asking for one imports what it needs and no more."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import octavo
from octavo.former import RENAMED, TOOK_PAIRS

HEAVY = {
    "torch", "numpy", "numba", "onnx", "onnxscript", "onnxruntime", "openvino", "pydantic", "rich", "scipy", "sympy",
}  # fmt: skip
SLOW = ("numba", "onnx", "onnxscript", "onnxruntime", "openvino", "rich", "scipy", "sympy", "torch._dynamo")


def loaded_by(code: str) -> set[str]:
    """The modules that a fresh process has after `code`."""
    command = [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


def shown_to_type_checkers() -> dict[str, str]:
    """{name: module} of what `octavo/__init__.py` imports where only type checkers read."""
    (block,) = [
        node
        for node in ast.parse(Path(octavo.__file__).read_text()).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    found = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.asname == alias.name, f"{alias.name} is not exported"
            found[alias.name] = node.module or ""
    return found


def test_the_table_and_the_imports_for_type_checkers_are_the_same() -> None:
    assert shown_to_type_checkers() == octavo._MODULE
    assert sorted(octavo.__all__) == sorted(octavo._MODULE)


def test_importing_octavo_imports_no_package_that_is_slow() -> None:
    assert loaded_by("import octavo").isdisjoint(HEAVY)


def test_asking_for_quantize_imports_torch_and_none_of_what_runs_later() -> None:
    modules = loaded_by("from octavo import quantize")
    assert "torch" in modules
    assert modules.isdisjoint(SLOW)


@pytest.mark.parametrize("name", octavo.__all__)
def test_every_public_name_is_what_its_module_calls_so(name: str) -> None:
    found = getattr(import_module(octavo._MODULE[name]), name)
    public = getattr(octavo, name)
    assert (public.__wrapped__ is found) if name in TOOK_PAIRS else (public is found)
    assert name in dir(octavo)


@pytest.mark.parametrize("name", octavo._FLOORS)
def test_floors_are_there_without_an_import_of_their_own(name: str) -> None:
    assert getattr(octavo, name) is import_module(f"octavo.{name}")


def test_what_there_is_not_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'octavo' has no attribute 'quantise'"):
        _ = octavo.quantise


@pytest.mark.parametrize("name", RENAMED)
def test_former_names_are_the_new_ones(name: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"octavo.{name} is now octavo.{RENAMED[name]}"):
        assert getattr(octavo, name) is getattr(octavo, RENAMED[name])
