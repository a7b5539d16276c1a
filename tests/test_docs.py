"""What the documents show, runs."""

import re
from pathlib import Path
from typing import Any

import pytest

import octavo

ROOT = Path(__file__).parent.parent


def examples(document: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), flags=re.DOTALL)


def test_the_readme_shows_one_screen_of_python() -> None:
    assert len(examples("README.md")) == 1


def test_the_readme_example_runs_and_says_what_it_promises(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = examples("README.md")
    exec(compile(code, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    coverage, sqnr = lines[-2:]
    assert any("The goal is met" in line for line in lines)
    assert coverage == "2 of 2 compute-heavy operations quantized"
    assert float(sqnr) > 25


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_example_of_training_runs() -> None:
    (code,) = examples("docs/recovery.md")
    found: dict[str, Any] = {}
    exec(compile(code, "docs/recovery.md", "exec"), found)
    x = found["batches"][0]
    assert octavo.sqnr_db(found["model"](x), found["int8"](x)) > 15


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "CONTRIBUTING.md",
        "docs/layout.md",
        "docs/quantization.md",
        "docs/workflow.md",
        "docs/engines.md",
        "docs/recovery.md",
    ],
)
def test_links_between_documents_lead_somewhere(document: str) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / document).read_text()):
        assert ((ROOT / document).parent / link).exists(), f"{document} links to {link}"


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_the_readme_names_the_commands_of_the_makefile(command: str) -> None:
    assert command in (ROOT / "README.md").read_text()
    assert f"\n{command.removeprefix('make ')}:" in (ROOT / "Makefile").read_text()
