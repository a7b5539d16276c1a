"""The floors of the house: each file imports only from its own floor and those before it."""

import ast
from pathlib import Path

import pytest

import octavo

SOURCE = Path(octavo.__file__).parent
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
