"""What is allowed, and how sure a score lets us be."""

import math

import numpy as np
import pytest
import torch

from octavo.errors import QuantizationError
from octavo.workflow.goal import Goal, Score, halves, in_order, score, unseen


def samples(values) -> Score:
    values = tuple(float(value) for value in values)
    return Score(metric=sum(values) / len(values), samples=values)


@pytest.mark.parametrize(
    ("goal", "reference", "metric", "met"),
    [
        (Goal(max_drop=0.01), 80.0, 79.2, True),
        (Goal(max_drop=0.01), 80.0, 79.19, False),
        (Goal(max_drop=0.01), -80.0, -80.8, True),  # of the size of the metric, whatever its sign
        (Goal(max_drop=0.5, relative=False), 80.0, 79.5, True),
        (Goal(max_drop=0.5, relative=False), 80.0, 79.4, False),
        (Goal(max_drop=0.01, higher_is_better=False), 4.0, 4.03, True),
        (Goal(max_drop=0.01, higher_is_better=False), 4.0, 4.05, False),
        (Goal(max_drop=0.0), 80.0, 80.0, True),
        (Goal(max_drop=0.0), 80.0, 79.999, False),
    ],
)
def test_one_number_is_compared_with_what_is_allowed(goal, reference, metric, met) -> None:
    verdict = goal.judge(Score(metric=reference), Score(metric=metric))
    sign = 1 if goal.higher_is_better else -1
    assert verdict.drop == pytest.approx(sign * (reference - metric))
    assert (verdict.met, verdict.certified, verdict.interval, verdict.noise) == (met, met, None, 0.0)


def test_many_samples_certify_and_few_do_not() -> None:
    def pair(number: int, worse: int) -> tuple[Score, Score]:
        """Float gets 90 % right; the candidate differs on every twentieth sample and is worse on `worse` of them."""
        reference = np.ones(number)
        reference[: number // 10] = 0
        candidate = reference.copy()
        differing = np.arange(0, number, 20)
        candidate[differing] = 1 - candidate[differing]
        candidate[differing] = reference[differing]
        flips = differing[: 2 * worse]
        candidate[flips[:worse]], candidate[flips[worse:]] = 1 - reference[flips[:worse]], 1 - reference[flips[worse:]]
        return samples(reference), samples(candidate)

    certain = Goal(max_drop=0.02).judge(*pair(20_000, 20))
    assert (certain.met, certain.certified) == (True, True)
    low, high = certain.interval
    assert low <= certain.drop <= high <= 0.018
    assert certain.noise == high - certain.drop

    few = Goal(max_drop=0.001).judge(samples([1, 1, 0, 1] * 20), samples([1, 1, 1, 1, 1, 0, 0, 1] * 10))
    assert few.drop == 0
    assert (few.met, few.certified) == (True, False)
    assert few.noise > 0.001


def test_a_candidate_that_meets_the_goal_by_luck_is_not_certified() -> None:
    reference, candidate = np.ones(10_000), np.ones(10_000)
    candidate[:95] = 0  # 0.95 % lost of 1 % allowed: the interval reaches beyond, but is narrower than the goal
    verdict = Goal(max_drop=0.01).judge(samples(reference), samples(candidate))
    assert (verdict.met, verdict.certified) == (True, False)
    assert 0 < verdict.noise < 0.01


def test_equal_scores_are_certified() -> None:
    verdict = Goal(max_drop=0.0).judge(samples([1, 0, 1]), samples([1, 0, 1]))
    assert (verdict.drop, verdict.interval, verdict.certified) == (0.0, (0.0, 0.0), True)


def test_halves_share_what_float_gets_right_and_the_classes_of_sorted_data() -> None:
    right = torch.rand(1001) < 0.7
    first, second = halves(samples(right))
    assert sorted([*first, *second]) == list(range(1001))
    assert abs(len(first) - len(second)) <= 1
    share = [float(right[list(half)].float().mean()) for half in (first, second)]
    assert abs(share[0] - share[1]) < 0.01
    for start in range(0, 1000, 100):  # a class that lies together
        assert 40 <= sum(start <= number < start + 100 for number in first) <= 60
    assert halves(Score(metric=0.5)) is None
    assert halves(samples([1, 0, 1])) is None


def test_what_certifies_does_not_turn_a_candidate_down() -> None:
    reference = samples(torch.ones(1000))
    choosing, certifying = halves(reference)
    lost = torch.zeros(1000)
    for half, hopeless in ((certifying, False), (choosing, True)):
        found = lost.clone()
        found[list(half)] = 1.0
        seen = [1.0 - float(found[place]) for block in in_order(1000)[:32] for place in range(block.start, block.stop)]
        assert Goal().hopeless(reference, seen) == hopeless


def test_what_no_sample_shows_may_still_happen() -> None:
    assert unseen(samples([1, 1, 1]), samples([1, 1, 1])) == 1.0
    assert unseen(samples([0.5] * 300), samples([0.25] * 300)) == pytest.approx(3 * 0.5 / 300)
    assert unseen(samples([-2.0, 1.0] * 50)) == pytest.approx(3 * 3.0 / 100)


def test_a_verdict_of_some_samples_is_that_of_their_scores_alone() -> None:
    reference, candidate = torch.rand(40), torch.rand(40)
    of = (3, 8, 9, 20, 21, 39)
    alone = Goal(max_drop=0.1, relative=False).judge(samples(reference[list(of)]), samples(candidate[list(of)]))
    found = Goal(max_drop=0.1, relative=False).judge(samples(reference), samples(candidate), of)
    assert (found, found.samples) == (alone, 6)


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_share_that_is_none_is_refused(share) -> None:
    with pytest.raises(QuantizationError, match=r"min_int8: asked to run a share of .* from 0 to 1; pass min_int8=0.9"):
        Goal(min_int8=share)


def test_a_share_of_nothing_is_no_goal() -> None:
    for reference in (Score(metric=0.0), samples([0, 0, 0])):
        with pytest.raises(QuantizationError, match=r"at most 1 % of the float score, but .* scores 0; see"):
            Goal().check(reference)
        Goal(relative=False).check(reference)
    Goal().check(Score(metric=-1e-9))
    Goal(max_drop=0.0).check(Score(metric=0.0))  # no loss at all is a share of nothing, too


@pytest.mark.parametrize(
    ("value", "metric", "number"),
    [
        (0.5, 0.5, None),
        (np.float32(0.25), 0.25, None),
        (torch.tensor(3), 3.0, None),
        ([1, 0, 1, 1], 0.75, 4),
        (torch.tensor([True, False]), 0.5, 2),
        (np.ones((3, 1)), 1.0, 3),
        ((2.0,), 2.0, None),  # a single one is one number: no interval can be said of it
        (torch.tensor([0.5]), 0.5, None),
        (torch.tensor([[0.5]]), 0.5, None),
        (np.array([0.5]), 0.5, None),
        (np.array(0.5), 0.5, None),
        (np.float64(0.5), 0.5, None),
        (np.int64(2), 2.0, None),
        (True, 1.0, None),
        ([torch.tensor(1.0), torch.tensor(0.0)], 0.5, 2),
    ],
)
def test_scores_in_every_form(value, metric, number) -> None:
    found = score(lambda _: value, None)
    assert found.metric == metric
    assert (None if found.samples is None else len(found.samples)) == number


@pytest.mark.parametrize("value", [math.nan, [1.0, math.inf], torch.tensor([math.nan])])
def test_a_score_that_is_no_number_is_refused(value) -> None:
    with pytest.raises(
        QuantizationError, match="asked to score a network, but evaluate returned NaN or infinity; return"
    ):
        score(lambda _: value, None)


@pytest.mark.parametrize("value", [None, "0.5", {"accuracy": 0.5}, object(), 1j, [[1.0], [1.0, 2.0]]])
def test_what_is_no_score_is_refused(value) -> None:
    with pytest.raises(QuantizationError, match=r"asked to score a network, but evaluate returned a .*; return one"):
        score(lambda _: value, None)


def test_an_interval_of_one_sample_is_none() -> None:
    verdict = Goal(max_drop=0.1).judge(samples([1.0]), samples([0.95]))
    assert (verdict.interval, verdict.met, verdict.noise) == (None, True, 0.0)


def test_no_scores_are_refused() -> None:
    with pytest.raises(QuantizationError, match="evaluate returned no scores; return one number"):
        score(lambda _: [], None)


@pytest.mark.parametrize(("value", "seen"), [([1, 1], "2 scores now"), (0.5, "one number now")])
def test_another_number_of_samples_is_refused(value, seen) -> None:
    with pytest.raises(QuantizationError, match=f"evaluate returned 3 scores for the float network and {seen}; score"):
        score(lambda _: value, None, reference=samples([1, 0, 1]))


def test_no_gradients_are_kept_while_scoring() -> None:
    weight = torch.ones(3, requires_grad=True)
    kept = []

    def evaluate(_):
        kept.append(weight * 2)
        return kept[-1]

    score(evaluate, None)
    assert not kept[0].requires_grad


class Slices:
    """An `evaluate` that can be called on a slice, and remembers on which it was."""

    def __init__(self, scores) -> None:
        self.scores, self.asked = scores, []

    def __call__(self, _, samples=slice(None)):
        self.asked.append(samples)
        return self.scores[samples]


def test_a_hopeless_candidate_is_left_half_way() -> None:
    reference = samples(np.ones(1600))
    evaluate = Slices((torch.rand(1600) > 0.7).float())
    found = score(evaluate, None, reference=reference, goal=Goal(max_drop=0.05))
    assert found.abandoned
    assert evaluate.asked == list(in_order(1600)[:8])
    assert len(found.samples) == 200
    verdict = Goal(max_drop=0.05).judge(reference, found)
    assert (verdict.met, verdict.certified) == (False, False)


def test_every_sample_is_scored_once_whatever_their_number() -> None:
    for total in (1, 2, 63, 64, 65, 1601):
        places = [place for block in in_order(total) for place in range(total)[block]]
        assert sorted(places) == list(range(total))
        assert in_order(total) == in_order(total)


def test_sorted_data_make_no_good_candidate_hopeless() -> None:
    """Of ten classes that lie one behind the other one is lost: nine tenths are as before."""
    for lost in range(10):
        scores = torch.ones(10000)
        scores[1000 * lost : 1000 * (lost + 1)] = 0
        found = score(Slices(scores), None, reference=samples(np.ones(10000)), goal=Goal(max_drop=0.12))
        assert not found.abandoned
        assert found.metric == 0.9
        assert found.samples == tuple(scores.tolist())


def test_a_part_of_the_samples_is_compared_with_the_same_samples() -> None:
    """Reference scores that differ widely from sample to sample, sorted: the loss is the same in all of them."""
    reference = samples(np.linspace(0, 100, 1600))
    evaluate = Slices(torch.tensor(reference.samples, dtype=torch.float64) - 7)
    goal = Goal(max_drop=1.0, relative=False)
    found = score(evaluate, None, reference=reference, goal=goal)
    assert found.abandoned
    assert goal.judge(reference, found).drop == pytest.approx(7)


def test_another_number_of_scores_than_asked_for_is_refused() -> None:
    def evaluate(_, samples=slice(0, 640)):
        return torch.ones(640)[: samples.stop]

    with pytest.raises(QuantizationError, match=r"evaluate returned \d+ scores for samples=slice"):
        score(evaluate, None, reference=samples(np.ones(640)), goal=Goal())


def test_a_promising_candidate_is_scored_to_the_end() -> None:
    scores = torch.ones(1601)
    scores[::100] = 0
    evaluate = Slices(scores)
    found = score(evaluate, None, reference=samples(np.ones(1601)), goal=Goal(max_drop=0.05))
    assert not found.abandoned
    assert evaluate.asked == list(in_order(1601))
    assert found.samples == tuple(scores.tolist())


def test_where_lower_is_better_a_rising_score_is_hopeless() -> None:
    reference = samples(torch.rand(1600).tolist())
    worse = torch.tensor(reference.samples) + 1
    goal = Goal(max_drop=0.05, higher_is_better=False)
    assert score(Slices(worse), None, reference=reference, goal=goal).abandoned
    assert not score(Slices(worse - 2), None, reference=reference, goal=goal).abandoned


def test_without_a_reference_everything_is_scored_at_once() -> None:
    evaluate = Slices(torch.zeros(100))
    assert score(evaluate, None).metric == 0
    assert evaluate.asked == [slice(None)]


@pytest.mark.parametrize("max_drop", [-0.1, math.nan, math.inf])
def test_a_goal_is_a_number_from_zero_up(max_drop) -> None:
    with pytest.raises(QuantizationError, match="a drop is a number from 0 up"):
        Goal(max_drop=max_drop)
