"""Rules: which pattern covers which site, who decides, and what a rule that decides nothing raises."""

import pytest

from octavo.errors import QuantizationError
from octavo.network.rule import EVERYTHING, Rule, Site, decide
from octavo.numerics import INT8


def site(layer: str, operation: str = "conv2d", role: str = "input") -> Site:
    return Site(name=f"{layer}.{role}", layer=layer, operation=operation, role=role, node="node")


@pytest.mark.parametrize(
    ("pattern", "layer", "matches"),
    [
        ("*", "anything.at.all", True),
        ("layer1", "layer1", True),
        ("layer1", "layer1.0.conv1", True),
        ("layer1", "layer10.0.conv1", False),
        ("layer1", "stem.layer1", False),
        ("layer", "layer1", False),
        ("layer?", "layer1.0", True),
        ("layer[12]", "layer2.0", True),
        ("layer[12]", "layer3.0", False),
        ("layer1.0", "layer1.0.conv1", True),
        ("layer1.0", "layer1.01.conv1", False),
        ("layer1.*.conv1", "layer1.0.conv1", True),
        ("layer1.*.conv1", "layer1.0.conv10", False),
        ("layer1.*.conv1", "layer1.0.block.conv1", False),
        ("*.conv1", "layer1.conv1", True),
        ("*.conv1", "conv1", False),
        ("*.conv1", "layer1.0.conv1", False),
        ("**.conv1", "conv1", True),
        ("**.conv1", "layer1.0.conv1", True),
        ("**.conv1", "layer1.0.conv1.matmul", True),
        ("**.conv1", "layer1.0.conv12", False),
        ("layer1.**", "layer1", True),
        ("layer1.**", "layer1.0.conv1", True),
        ("layer1.**.conv1", "layer1.conv1", True),
        ("layer1.**.conv1", "layer1.0.0.conv1", True),
        ("layer1.**.conv1", "layer2.0.conv1", False),
        ("conv1", "conv1@2", True),
        ("conv1@2", "conv1@2", True),
        ("conv1@2", "conv1", False),
        ("conv1@2", "conv1@1", False),
        ("block.conv1", "block.conv1@1", True),
        ("*.CONV1", "layer1.conv1", False),
        ("layer1.0.conv1.extra", "layer1.0.conv1", False),
    ],
)
def test_patterns_match_whole_components(pattern, layer, matches) -> None:
    assert Rule(pattern).matches(site(layer)) is matches


@pytest.mark.parametrize(
    ("name", "layer", "matches"),
    [
        ("conv1", "conv1", True),
        ("conv1", "conv1@1", False),
        ("conv1", "conv10", False),
        ("conv1", "layer1.conv1", False),
        ("attention", "attention.matmul", False),
        ("conv1@1", "conv1@1", True),
        ("conv1@1", "conv1", False),
        ("layer[1]", "layer1", False),
        ("layer[1]", "layer[1]", True),
        ("*", "conv1", False),
    ],
)
def test_an_exact_rule_is_of_one_layer(name, layer, matches) -> None:
    assert Rule(name, exact=True).matches(site(layer)) is matches


def test_an_exact_rule_is_narrowed_like_any_other() -> None:
    rule = Rule("head", role="weight", exact=True)
    assert [rule.matches(site("head", role=role)) for role in ("weight", "input")] == [True, False]


def test_an_exact_star_is_the_name_of_a_layer_that_must_exist() -> None:
    with pytest.raises(QuantizationError, match=r"Rule\('\*', exact=True\), but it matches none of the 1 sites"):
        decide([site("head")], [Rule("*", exact=True)])


def test_operation_and_role_narrow_a_rule() -> None:
    rule = Rule("*", operation="linear", role="weight")
    assert rule.matches(site("a", "linear", "weight"))
    assert not rule.matches(site("a", "linear", "input"))
    assert not rule.matches(site("a", "conv2d", "weight"))


def test_the_first_match_decides() -> None:
    sites = [site("stem"), site("head"), site("head", role="weight")]
    skip, four, rest = Rule("head", role="input", skip=True), Rule("head", bits=4), Rule("*")
    assert decide(sites, [skip, four, rest]) == [rest, skip, four]


def test_a_site_that_no_rule_matches_is_decided_by_none() -> None:
    assert decide([site("stem"), site("head")], [Rule("head")]) == [None, Rule("head")]


def test_an_unused_rule_raises_and_shows_the_layers_there_are() -> None:
    sites = [site(f"layer{i}") for i in range(8)]
    with pytest.raises(QuantizationError) as caught:
        decide(sites, [Rule("nope", operation="linear", skip=True), Rule("*")])
    assert str(caught.value) == (
        "asked to apply Rule('nope', operation='linear', skip=True), but it matches none of the 8 sites (layers "
        "layer0, layer1, layer2, layer3, layer4, layer5, …); correct its pattern."
    )


def test_a_shadowed_rule_raises() -> None:
    with pytest.raises(
        QuantizationError, match=r"apply Rule\('head'\), but earlier rules match all of its sites; put it before"
    ):
        decide([site("stem"), site("head")], [Rule("*"), Rule("head")])


def test_a_rule_given_twice_raises() -> None:
    with pytest.raises(QuantizationError, match="earlier rules match all of its sites"):
        decide([site("stem"), site("head")], [Rule("head"), Rule("head"), Rule("*")])


def test_a_last_rule_for_everything_may_have_nothing_left() -> None:
    assert decide([site("head")], [Rule("head", skip=True), Rule("*")]) == [Rule("head", skip=True)]


def test_a_narrowed_rule_for_everything_must_decide_something() -> None:
    with pytest.raises(QuantizationError, match=r"Rule\('\*', role='input'\), but earlier rules"):
        decide([site("head")], [Rule("head", skip=True), Rule("*", role="input")])


def test_no_rules_decide_nothing() -> None:
    assert decide([site("head")], []) == [None]


def test_without_sites_no_rule_is_to_blame() -> None:
    assert decide([], [EVERYTHING]) == []


def test_a_rule_shows_what_it_says() -> None:
    assert str(Rule()) == "Rule('*')"
    assert str(Rule("a.*", role="weight", bits=4)) == "Rule('a.*', role='weight', bits=4)"
    assert str(Rule("a", skip=True, exact=True)) == "Rule('a', skip=True, exact=True)"
    assert str(Rule("a", scheme=INT8)).startswith("Rule('a', scheme=Scheme(bits=8")
