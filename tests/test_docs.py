"""What the documents show, runs."""

import os
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
import torch

import foreign_networks as foreign
import octavo
from octavo.exits import Exit

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


def test_the_example_of_serving_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(3600, 2))
    x = torch.randn(2, 3, 32, 32)
    plan = octavo.make_plan(octavo.capture(model.eval(), x), target="openvino")
    net = octavo.choose_params(plan, octavo.observe(plan, [x]))
    octavo.save(net, "net.octavo")
    (code,) = examples("docs/serve.md")
    found: dict[str, Any] = {}
    exec(compile(code, "docs/serve.md", "exec"), found)
    with_torch = octavo.load("net.octavo")(torch.zeros(1, 3, 32, 32))
    assert found["answer"].tolist() == with_torch.tolist()


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
        "docs/check.md",
        "docs/ci.md",
        "docs/serve.md",
        "docs/trust.md",
    ],
)
def test_links_between_documents_lead_somewhere(document: str) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / document).read_text()):
        assert ((ROOT / document).parent / link).exists(), f"{document} links to {link}"


@pytest.mark.parametrize(("int8", "count", "code", "said"), [
    ({}, 600, 0, "met"), ({"zero": 60}, 600, 1, "not met"), ({}, 20, 3, "could not tell"),
])  # fmt: skip
def test_the_workflow_fails_a_pull_request_whose_int8_lost_accuracy(int8, count, code, said, tmp_path) -> None:
    """The script in docs/ci.md, as GitHub runs it: by bash, which stops at the first command that fails."""
    pytest.importorskip("onnxruntime")
    (script,) = re.findall(r"run: \|\n((?: {10}.*\n)+)", (ROOT / "docs" / "ci.md").read_text())
    models, programs, summary = tmp_path / "models", tmp_path / "bin", tmp_path / "summary.md"
    models.mkdir(), programs.mkdir()
    foreign.float_linear(models / "float.onnx")
    foreign.int8_linear(models / "int8.onnx", **int8)
    x = foreign.samples(count, seed=11)
    sure = np.sort(x @ foreign.weight(), axis=1)
    kept = x[sure[:, -1] - sure[:, -2] > 0.1]  # no ties, at which rounding alone decides
    np.savez(models / "check.npz", x=kept, labels=(kept @ foreign.weight()).argmax(axis=1))
    (programs / "octavo").write_text(f'#!/bin/sh\nexec {sys.executable} -m octavo.cli "$@"\n')
    (programs / "octavo").chmod(0o755)
    places = {"PATH": f"{programs}:{os.environ['PATH']}", "GITHUB_STEP_SUMMARY": str(summary)}
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", dedent(script)]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | places, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert f"int8 check: {said}\n" in summary.read_text()
    assert octavo.Check.model_validate_json((tmp_path / "int8.json").read_text()).exit_code == code


def test_the_exit_codes_in_the_documents_are_those_of_the_table() -> None:
    rows = re.findall(r"^\| (\d+) \|", (ROOT / "docs" / "check.md").read_text(), flags=re.MULTILINE)
    assert [int(row) for row in rows] == [int(code) for code in Exit]


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_the_readme_names_the_commands_of_the_makefile(command: str) -> None:
    assert command in (ROOT / "README.md").read_text()
    assert f"\n{command.removeprefix('make ')}:" in (ROOT / "Makefile").read_text()
