"""`octavo run`: recipes, settings, errors, and what is left in the folder."""

import json
from pathlib import Path

import onnx
import pytest
import torch
from typer.testing import CliRunner

from octavo import load
from octavo.cli import app
from octavo.errors import QuantizationError
from octavo.saved.artifact import read
from octavo.workflow.run import load_recipe, settings_of

RECIPE = """
import torch
from torch import nn

torch.manual_seed(3)
NETWORK = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
INPUTS = torch.randn(200, 16)
TARGETS = NETWORK(INPUTS).argmax(1)


def model():
    return NETWORK


def calibration():
    return [(INPUTS[:50], TARGETS[:50])]


def evaluate(network):
    return (network(INPUTS).argmax(1) == TARGETS).float()
"""

INTERRUPTED = """
CALLS = []
scored = evaluate


def evaluate(network):
    CALLS.append(network)
    if len(CALLS) == {calls}:
        raise KeyboardInterrupt
    return scored(network)
"""


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "small.py"
    path.write_text(RECIPE)
    return path


def octavo(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # inside torch.compile
def test_a_recipe_to_a_result_and_again_from_the_folder(recipe, tmp_path) -> None:
    out = tmp_path / "runs" / "small"
    code, printed = octavo("run", recipe, "--max-drop", "10%", "--budget", "5m", "--out", out)
    assert code == 0, printed
    record = json.loads((out / "result.json").read_text())
    assert record["met"]
    assert record["model"] == "small"
    assert record["max_drop"] == 0.1
    assert {"torch_eager", "torch_compile", "openvino_fp32", "openvino_bf16", "int8"} == set(record["latency_ms"])
    assert all(milliseconds > 0 for milliseconds in record["latency_ms"].values())
    assert record["size_mb"]["int8"] > 0
    assert record["agreement"] >= 50
    assert record["sqnr_db"] > 10
    assert (record["exit_code"], record["stopped"]) == (0, "the stage ptq met the goal on the samples that choose")
    onnx.checker.check_model(onnx.load(out / "model.onnx"), full_check=True)
    assert load(out / "net.octavo")(torch.randn(3, 16)).shape == (3, 4)
    assert "The goal is met" in " ".join(printed.split())

    recipe.unlink()  # the folder alone resumes
    code, printed = octavo("run", out)
    assert code == 0, printed
    again = json.loads((out / "result.json").read_text())
    assert [trial["metric"] for trial in again["trials"]] == [trial["metric"] for trial in record["trials"]]
    assert [trial["seconds"] for trial in again["trials"]] == [trial["seconds"] for trial in record["trials"]]


@pytest.fixture
def untimed(monkeypatch) -> None:
    """torch.compile takes most of a run of so small a network."""
    monkeypatch.setattr("octavo.workflow.run.contestants", lambda graph, model, int8: {"int8": int8})


@pytest.mark.usefixtures("untimed")
@pytest.mark.parametrize(
    ("rows", "options", "code"),
    [(20, (), 3), (200, ("--min-int8", "1", "--max-drop", "30%"), 0), (200, ("--max-drop", "0.0001"), 3)],
)
def test_how_a_run_ends_and_what_it_leaves(recipe, tmp_path, rows, options, code) -> None:
    """Too few samples to tell are no goal that is missed; and net.octavo is there whatever came of it."""
    recipe.write_text(RECIPE.replace("200, 16", f"{rows}, 16"))
    found, printed = octavo(
        "run", recipe, "--out", tmp_path / "out", "--engine", "simulation", "--trials", "1", *options
    )
    assert found == code, printed
    assert json.loads((tmp_path / "out" / "result.json").read_text())["exit_code"] == code
    assert read(tmp_path / "out" / "net.octavo").engine == "reference"


@pytest.mark.usefixtures("untimed")
def test_a_goal_that_is_missed(recipe, tmp_path) -> None:
    """Two bits an activation lose much, in every sample."""
    recipe.write_text(
        RECIPE + "\nimport octavo\n\n\ndef options():\n    return {'rules': [octavo.Rule('*', bits=2)]}\n"
    )
    out = tmp_path / "out"
    assert octavo("run", recipe, "--out", out, "--engine", "simulation", "--trials", "1", "--max-drop", "4%")[0] == 1
    assert (out / "net.octavo").is_file()


@pytest.mark.usefixtures("untimed")
@pytest.mark.parametrize(("calls", "left"), [(1, False), (2, False), (3, True)])
def test_an_interrupted_run_ends_by_130_and_leaves_the_best_so_far(recipe, tmp_path, calls, left) -> None:
    """The float network is scored first, then candidates: before the first of them there is no best."""
    recipe.write_text(f"{RECIPE}\n{INTERRUPTED.format(calls=calls)}")
    out = tmp_path / "out"
    code, printed = octavo("run", recipe, "--out", out, "--engine", "simulation", "--max-drop", "0.0001")
    assert code == 130, printed
    assert (out / "net.octavo").exists() is left


def test_help_names_the_recipe_and_every_option() -> None:
    code, printed = octavo("run", "--help")
    assert code == 0
    for word in ("model()", "calibration()", "evaluate(model)", "--max-drop", "--budget", "--out", "resume"):
        assert word in printed


def test_a_recipe_that_is_not_there() -> None:
    code, printed = octavo("run", "nowhere.py")
    assert code == 2
    assert "there is no such file; pass a Python file with model(), calibration() and evaluate(model)" in printed


def test_a_recipe_that_lacks_a_function(recipe) -> None:
    recipe.write_text(RECIPE.replace("def evaluate", "def score"))
    with pytest.raises(QuantizationError, match=r"it does not define evaluate\(\); define model\(\), calibration\(\)"):
        load_recipe(recipe)


def test_a_folder_that_is_no_run(tmp_path) -> None:
    code, printed = octavo("run", tmp_path)
    assert code == 2
    assert "its run.json is missing or damaged" in " ".join(printed.split())


def test_what_may_be_lost_is_said_before_anything_is_written(recipe, tmp_path) -> None:
    code, printed = octavo("run", recipe, "--max-drop", "0.5", "--out", tmp_path / "out")
    assert code == 2
    assert 'write "50%" or "0.5 points", whichever is meant' in " ".join(printed.split())
    assert octavo("run", recipe, "--max-drop=-1%", "--out", tmp_path / "out")[0] == 2
    assert not (tmp_path / "out").exists()
    (tmp_path / "old").mkdir()  # a run of before, which meant half of the metric's own unit
    (tmp_path / "old" / "run.json").write_text(json.dumps({"recipe": str(recipe), "max_drop": "0.5"}))
    code, printed = octavo("run", tmp_path / "old")
    assert code == 2
    assert 'write "50%" or "0.5 points", whichever is meant' in " ".join(printed.split())
    assert settings_of(tmp_path / "old", max_drop="0.5 points").max_drop == "0.5 points"


@pytest.mark.parametrize("said", ["0.02", "2%", "0.3 points"])
def test_what_may_be_lost_is_said_to_quantize_in_the_same_words(recipe, tmp_path, monkeypatch, said) -> None:
    def quantize(*_, **arguments):
        assert "relative" not in arguments
        raise QuantizationError(asked=arguments["max_drop"], seen="it is enough", remedy="none")

    monkeypatch.setattr("octavo.workflow.run.quantize", quantize)
    code, printed = octavo("run", recipe, "--max-drop", said, "--out", tmp_path / "out")
    assert code == 2
    assert f"asked to {said}, but it is enough" in printed


def test_new_options_go_before_stored_ones(recipe, tmp_path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "run.json").write_text(settings_of(recipe, max_drop="2%", trials=3).model_dump_json())
    assert settings_of(out).trials == 3
    changed = settings_of(out, trials=9)
    assert (changed.trials, changed.max_drop, changed.recipe) == (9, "2%", str(recipe))


def test_recipes_may_import_what_lies_beside_them(recipe, tmp_path) -> None:
    (tmp_path / "beside_the_recipe.py").write_text("ANSWER = 42\n")
    recipe.write_text(RECIPE + "\nfrom beside_the_recipe import ANSWER\noptions = lambda: {'trials': ANSWER}\n")
    assert load_recipe(recipe).options() == {"trials": 42}


@pytest.mark.parametrize(
    ("command", "said"), [("run", "[default: 1%]"), ("run", "[default: 0.9]"), ("demo", "octavo[zoo]")]
)
def test_help_says_what_stands_in_brackets(command, said) -> None:
    """Brackets are markup to who prints the help."""
    _, printed = octavo(command, "--help")
    assert said in printed
