"""`octavo check` as a command: exit codes, the JSON record and its schema, the card, and what fits on a screen."""

import io
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from jsonschema import Draft202012Validator
from onnx import helper
from rich.console import Console
from typer.testing import CliRunner

import foreign_networks as foreign
from octavo.cli import app
from octavo.gate.card import card
from octavo.gate.check import check
from octavo.gate.record import Check, Failed, schema
from octavo.gate.table import show

pytest.importorskip("onnxruntime")
ROOT = Path(__file__).parent.parent


@pytest.fixture
def folder(tmp_path) -> Path:
    foreign.float_linear(tmp_path / "float.onnx")
    foreign.int8_linear(tmp_path / "good.onnx")
    foreign.int8_linear(tmp_path / "bad.onnx", zero=60)
    x = foreign.samples(600)
    np.savez(tmp_path / "data.npz", x=x, labels=(x @ foreign.weight()).argmax(axis=1))
    np.savez(tmp_path / "few.npz", x=x[:20])
    return tmp_path


def octavo(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of `octavo check`, run in `folder`."""
    paths = [str(folder / one) if (folder / one).exists() else one for one in arguments]
    result = CliRunner().invoke(app, ["check", *paths], env={"COLUMNS": "100"})
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize(
    ("int8", "data", "code", "word"),
    [
        ("good.onnx", "data.npz", 0, "met"),
        ("bad.onnx", "data.npz", 1, "not met"),
        ("good.onnx", "few.npz", 3, "could not tell"),
    ],
)
def test_a_verdict_is_an_exit_code(folder, int8, data, code, word) -> None:
    found, printed, _ = octavo(folder, "float.onnx", int8, "--data", data, "--max-drop", "3%", "--no-bench")
    assert found == code
    assert printed.splitlines()[-1] or printed
    assert any(line.startswith(word) for line in printed.splitlines())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["float.onnx", "nowhere.onnx", "--data", "data.npz"], "there is nothing at this path"),
        (["float.onnx", "data.npz", "--data", "data.npz"], "a file .npz is none of those known"),
        (["good.onnx", "float.onnx", "--data", "data.npz"], "swap them"),
        (
            ["float.onnx", "good.onnx", "--data", "data.npz", "--max-drop", "little"],
            "but it is neither a share nor points",
        ),
        (["float.onnx", "good.onnx", "--data", "data.npz", "--evaluate", "data.npz"], "it is no recipe"),
        (["float.onnx", "good.onnx", "--data", "data.npz", "--engine", "tensorrt"], "cannot be run on tensorrt"),
        (["float.onnx", "good.onnx"], "Missing option '--data'"),
        (["float.onnx", "good.onnx", "--data", "data.npz", "--measure", "luck"], "Invalid value for '--measure'"),
    ],
)
def test_what_is_used_wrongly_ends_by_2_and_says_so(folder, arguments, said) -> None:
    code, printed, more = octavo(folder, *arguments)
    assert code == 2
    assert said in " ".join((printed + more).replace("│", " ").split())


def test_the_record_goes_to_standard_output_and_the_tables_elsewhere(folder) -> None:
    code, printed, more = octavo(
        folder, "float.onnx", "good.onnx", "--data", "data.npz", "--json", "-", "--rounds", "2"
    )
    record = json.loads(printed)
    assert record["exit_code"] == code
    assert "on integers" in more
    assert Check.model_validate(record).model_dump(mode="json") == record


def test_an_error_takes_the_place_of_a_former_record_and_card(folder) -> None:
    out, text = folder / "out.json", folder / "card.md"
    asked = ["--data", str(folder / "data.npz"), "--no-bench", "--json", str(out), "--card", str(text)]
    assert octavo(folder, "float.onnx", "good.onnx", "--max-drop", "3%", *asked)[0] == 0
    assert json.loads(out.read_text())["verdict"] == "met"
    assert text.read_text().startswith("## ✅ int8 check: met\n")
    assert octavo(folder, "float.onnx", "nowhere.onnx", *asked)[0] == 2
    failed = Failed.model_validate_json(out.read_text())
    assert (failed.exit_code, failed.seen) == (2, "there is nothing at this path")
    assert text.read_text().startswith("## ⚠️ int8 check: could not be made\n")


def test_places_that_cannot_be_written_are_an_error(folder) -> None:
    """An exit code of 1 would be a verdict."""
    for option in ("--json", "--card"):
        code, printed, _ = octavo(folder, "float.onnx", "good.onnx", "--data", "data.npz", option, str(folder))
        assert code == 2
        assert "asked to write" in printed


def test_a_check_that_is_interrupted_leaves_no_former_record(folder, monkeypatch) -> None:
    out, text = folder / "out.json", folder / "card.md"
    for path in (out, text):
        path.write_text("met")
    monkeypatch.setattr("octavo.gate.check.read_samples", interrupted)
    monkeypatch.setattr("octavo.exits._leave", lambda: None)
    asked = ["--data", "data.npz", "--json", str(out), "--card", str(text)]
    assert octavo(folder, "float.onnx", "good.onnx", *asked)[0] == 130
    assert not out.exists()
    assert not text.exists()


def interrupted(data):
    raise KeyboardInterrupt


def test_the_schema_in_the_documents_is_that_of_the_record() -> None:
    written = json.loads((ROOT / "docs" / "check.schema.json").read_text())
    assert written == schema(), "python -m octavo.gate.record > docs/check.schema.json"


def test_every_record_is_what_the_schema_says(folder) -> None:
    validator = Draft202012Validator(schema())
    for int8, data in (("good.onnx", "data.npz"), ("bad.onnx", "data.npz"), ("good.onnx", "few.npz")):
        _, printed, _ = octavo(folder, "float.onnx", int8, "--data", data, "--json", "-", "--rounds", "1")
        assert not list(validator.iter_errors(json.loads(printed)))
    _, printed, _ = octavo(folder, "float.onnx", "nowhere.onnx", "--data", "data.npz", "--json", "-")
    assert not list(validator.iter_errors(json.loads(printed)))
    assert list(validator.iter_errors({"verdict": "met"}))


LONG = "a/very/long/name/of/a/layer/" * 6 + "](http://x)<b>|`\x1b[31m\n@everyone"


def test_names_of_a_file_are_no_markup_and_fit(tmp_path) -> None:
    """A file can call its outputs and layers as it likes."""
    path = foreign.float_linear(tmp_path / "float.onnx", out=LONG)
    other = foreign.int8_linear(tmp_path / ("q" * 80 + ".onnx"), out=LONG)
    found = check(path, other, data={"x": foreign.samples()}, rounds=1)
    assert found.outputs[0].name == LONG
    text = card(found)
    assert found.card == text
    assert all(len(line) <= 100 for line in text.splitlines() if line.startswith("|"))
    outside = "".join("\n".join(text.splitlines()).split("`")[::2])  # not in backticks, where nothing is markup
    assert text.count("`") % 2 == 0
    for markup in ("http", "<b>", "everyone", "very/long"):
        assert markup not in outside
    assert "\x1b" not in text
    console = Console(width=160, record=True, file=io.StringIO())
    show(found, console)
    printed = console.export_text()
    assert all(len(line) <= 100 for line in printed.splitlines())
    assert "\x1b" not in printed


def test_the_card_says_what_ran_and_what_is_worst(folder) -> None:
    path = foreign.float_linear(folder / "wide.onnx")
    model = onnx.load(folder / "good.onnx")
    model.graph.node.append(helper.make_node("MatMul", ["x", "more"], ["unread"], name="beside"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(foreign.weight(), "more"))
    model.graph.node.append(helper.make_node("Sub", ["unread", "unread"], ["nothing"]))
    model.graph.node[3].output[0] = "first"
    model.graph.node.append(helper.make_node("Max", ["first", "nothing"], ["larger"]))
    model.graph.node.append(helper.make_node("Min", ["first", "nothing"], ["smaller"]))
    model.graph.node.append(helper.make_node("Add", ["larger", "smaller"], ["logits"]))
    onnx.save(model, folder / "mixed.onnx")
    data = dict(np.load(folder / "data.npz"))
    found = check(path, folder / "mixed.onnx", data=data, bench=False)
    ran = found.int8_network.ran
    assert (ran.products, ran.on_integers, ran.share_of_multiplications) == (2, 1, 0.5)
    text = card(found)
    assert "| on integers | 0 of 1, 0 % of the work | 1 of 2, 50 % of the work |" in text
    assert "In float: `beside` (`MatMul`)." in text
    assert "| worst samples | float | int8 | SQNR | label: chosen |" in text
    assert "| worst classes | samples | float | int8 |" in text


@pytest.mark.parametrize("option", ["--json", "--card"])
@pytest.mark.parametrize("name", ["float.onnx", "good.onnx", "data.npz", "recipe.py"])
def test_what_is_checked_is_not_written_over(folder, option, name) -> None:
    (folder / "recipe.py").write_text("")
    before = (folder / name).read_bytes()
    asked = ("float.onnx", "good.onnx", "--data", "data.npz", "--evaluate", "recipe.py", option, name)
    code, printed, _ = octavo(folder, *asked)
    assert code == 2
    assert "the check reads" in " ".join(printed.split())
    assert (folder / name).read_bytes() == before


def test_the_card_and_the_record_are_two_files(folder) -> None:
    out = str(folder / "out")
    code, printed, _ = octavo(folder, "float.onnx", "good.onnx", "--data", "data.npz", "--json", out, "--card", out)
    assert code == 2
    assert "both" in printed
    assert not (folder / "out").exists()


def test_what_python_files_print_is_not_in_the_record(folder) -> None:
    code = "def f(x):\n    print('loading')\n    return x[:, :4]\n"
    (folder / "loud.py").write_text(code)
    network = f"{folder / 'loud.py'}:f"
    found, printed, errors = octavo(folder, network, network, "--data", "data.npz", "--no-bench", "--json", "-")
    assert json.loads(printed)["exit_code"] == found
    assert "loading" in errors
