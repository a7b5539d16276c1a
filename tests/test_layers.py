"""The floors of the house: each file imports only from its own floor and those before it; what serves, from none."""

import ast
import sys
from pathlib import Path

import pytest

import octavo
import octavo_serve

SOURCE, SERVE = Path(octavo.__file__).parent, Path(octavo_serve.__file__).parent
FLOORS = [
    "errors",
    "exits",
    "former",
    "quiet",
    "arguments",
    "files",
    "machine",
    "numerics",
    "measure",
    "network",
    "engines",
    "recovery",
    "saved",
    "workflow",
    "gate",
    "zoo",
    "cli",
]
# Choose-one folders side by side on the same storey: neither may lean on the other.
STRANGERS = {("engines", "recovery")}
FILES = [path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py"]


def floor_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_floors(path: Path) -> set[str]:
    floors = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        floors |= {name.split(".")[1] for name in names if name.startswith("octavo.")}
    return floors


def test_every_file_stands_on_a_known_floor() -> None:
    assert {floor_of(path) for path in FILES} <= set(FLOORS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_upward_in_the_list(path: Path) -> None:
    here = floor_of(path)
    for other in imported_floors(path):
        assert FLOORS.index(other) <= FLOORS.index(here), f"{path.name} ({here}) imports from {other}"
        assert (other, here) not in STRANGERS, f"{path.name} ({here}) imports from {other}"


@pytest.mark.parametrize("path", sorted(SERVE.rglob("*.py")), ids=lambda path: path.name)
def test_what_serves_imports_numpy_and_an_engine_and_nothing_of_octavo(path: Path) -> None:
    """It is a distribution of its own; a torch that the caller has is looked up, or imported where there is one."""
    foreign = {name.partition(".")[0] for name in imported(path)} - sys.stdlib_module_names
    assert foreign <= {"numpy", "octavo_serve", path.stem.partition("_")[0], "torch"}
    assert "torch" not in foreign or path.name == "served.py"


def imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
