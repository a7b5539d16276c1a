"""Every recipe in examples/ loads, and meets its goal."""

from pathlib import Path

import pytest

from octavo.errors import QuantizationError
from octavo.workflow.recipe import quantize
from octavo.workflow.run import Recipe, load_recipe

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
NAMES = ["ds_cnn_s", "efficientnet_lite0", "lstm", "minilm", "resnet20"]


def loaded(path: Path) -> Recipe:
    try:
        return load_recipe(path)
    except QuantizationError as error:
        pytest.skip(str(error))


def test_there_is_one_for_each_network() -> None:
    assert [path.stem for path in EXAMPLES] == NAMES


@pytest.mark.parametrize("path", EXAMPLES, ids=NAMES)
def test_it_says_how_to_run_it(path) -> None:
    text = path.read_text()
    assert f"octavo run examples/{path.name} --max-drop 1%" in text
    for function in ("def model()", "def calibration()", "def evaluate("):
        assert function in text


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("default")  # transformers' own
@pytest.mark.parametrize("path", EXAMPLES, ids=NAMES)
def test_it_meets_one_per_cent(path) -> None:
    recipe = loaded(path)
    result = quantize(
        recipe.model(),
        calibration=list(recipe.calibration()),
        evaluate=recipe.evaluate,
        max_drop=0.01,
        progress=False,
        **recipe.options(),
    )
    assert result.met
    assert result.verdict.drop <= 0.01 * result.reference.metric
    assert result.engine == "openvino"
