"""What a drop means, however and wherever it is said."""

import math

import pytest

from octavo.errors import QuantizationError
from octavo.workflow.drop import drop_of, in_words
from octavo.workflow.goal import Goal, Score


@pytest.mark.parametrize(
    ("said", "drop", "relative"),
    [
        (0.01, 0.01, True),
        ("0.01", 0.01, True),
        ("1%", 0.01, True),
        (" 1 % ", 0.01, True),
        ("0.7%", 0.007, True),  # and not 0.006999…
        ("1e-2", 0.01, True),
        ("1E0%", 0.01, True),
        ("0", 0.0, True),
        ("100%", 1.0, True),
        ("0.3 points", 0.3, False),
        ("0.3points", 0.3, False),
        ("1 point", 1.0, False),
        (".5 Points", 0.5, False),
        (0.5, 0.5, True),  # typed as a number in Python it was a share of old, too
        (1, 1.0, True),
        ("-1%", -0.01, True),  # which Goal refuses
    ],
)
def test_what_is_said_is_what_is_meant(said, drop, relative) -> None:
    assert drop_of(said) == (drop, relative)


def test_a_number_with_relative_false_is_in_the_metrics_own_unit() -> None:
    assert drop_of(0.5, relative=False) == (0.5, False)
    assert drop_of("0.5", relative=False) == (0.5, False)
    assert drop_of("0.5", relative=True) == (0.5, True)
    assert drop_of("0.3 points", relative=False) == (0.3, False)


@pytest.mark.parametrize(("said", "relative"), [("1%", False), ("0.3 points", True)])
def test_a_unit_that_relative_contradicts(said, relative) -> None:
    with pytest.raises(QuantizationError, match=rf"max_drop: asked .*'{said}', but relative={relative} says something"):
        drop_of(said, relative)


@pytest.mark.parametrize(
    "said",
    [
        "little",
        "",
        "%",
        "1 percent",
        "1%%",
        "1 % points",
        "nan",
        "inf%",
        "0.1.2",
        "1,5%",
        "٣%x",
        "1 points of",
        "1e99999%",
        "1e" + "9" * 5000,
    ],
)
def test_other_text_is_no_drop(said) -> None:
    with pytest.raises(QuantizationError, match=r'neither a share nor points; write "1%" .* or "0.3 points"'):
        drop_of(said)


@pytest.mark.parametrize(
    ("said", "remedy"),
    [("0.5", '"50%" or "0.5 points"'), ("0.2", '"20%" or "0.2 points"'), ("1", '"100%" or "1 points"')],
)
def test_a_large_bare_number_was_in_the_metrics_own_unit_of_old(said, remedy) -> None:
    with pytest.raises(QuantizationError, match=f"of old it was in the metric's own unit; write {remedy}, whichever"):
        drop_of(said)
    assert drop_of("0.199") == (0.199, True)


def test_more_digits_than_a_float_has() -> None:
    with pytest.raises(QuantizationError, match="a drop is a number from 0 up"):
        Goal(max_drop=drop_of("1e999%")[0])
    assert drop_of("1e-999%") == (0.0, True)


def test_in_words() -> None:
    assert str(Goal()) == in_words(0.01, relative=True) == "1 % of the float score"
    assert str(Goal(max_drop=0.3, relative=False)) == "0.3 points, in the metric's own unit"
    assert str(Goal(max_drop=1.0, relative=False)) == "1 point, in the metric's own unit"


def test_what_is_allowed() -> None:
    assert Goal(max_drop=drop_of("0.5%")[0]).allowed(Score(metric=80.0)) == pytest.approx(0.4, rel=1e-15)
    drop, relative = drop_of("0.5 points")
    assert Goal(max_drop=drop, relative=relative).allowed(Score(metric=80.0)) == 0.5
    assert math.isclose(Goal(max_drop=0.01).allowed(Score(metric=-80.0)), 0.8)
