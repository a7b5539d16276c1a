"""A score that does not depend on the network is an error; one that is perfect, or blind to a probe, is none."""

import pytest
import torch
from torch import nn

import octavo
from octavo.errors import QuantizationError
from octavo.workflow.goal import Goal, Score
from octavo.workflow.reference import check_that_scores_say_something
from octavo.workflow.study import Study

SAYS_NOTHING = (
    r"evaluate: asked to compare networks by their scores, but every candidate scores {}, as the float network does, "
    r"and so does the float network with its outputs negated, and with zeros or ones in their place; see that "
    r"evaluate calls"
)


@pytest.fixture
def case():
    """Classes that lie far apart: whatever the rounding, int8 is right about all of them."""
    model = nn.Linear(4, 4, bias=False).eval()
    model.load_state_dict({"weight": torch.eye(4)})
    return model, torch.eye(4).repeat(100, 1), torch.arange(4).repeat(100)


def search(model, evaluate, inputs, **options):
    options = {"engine": "simulation", "progress": False} | options
    return octavo.quantize(model, calibration=[inputs[:32]], evaluate=evaluate, **options)


def counted(evaluate):
    calls = []

    def counting(network):
        calls.append(network)
        return evaluate(network)

    return counting, calls


def test_a_constant_is_an_error(case) -> None:
    model, inputs, _ = case
    for evaluate in (lambda network: 0.7, lambda network: torch.full((400,), 0.7)):
        with pytest.raises(QuantizationError, match=SAYS_NOTHING.format("0.7")):
            search(model, evaluate, inputs)


def test_a_score_of_another_network_than_the_one_given_is_an_error(case) -> None:
    model, inputs, targets = case
    with pytest.raises(QuantizationError, match=SAYS_NOTHING.format("1")):
        search(model, lambda network: (model(inputs).argmax(1) == targets).float(), inputs)


def test_outputs_that_are_never_read_are_an_error(case) -> None:
    model, inputs, _ = case
    with pytest.raises(QuantizationError, match=SAYS_NOTHING.format("0.5")):
        search(model, lambda network: network(inputs[:200]).new_full((2,), 0.5), inputs)


def test_every_sample_right_is_no_error_and_asked_about_once(case) -> None:
    model, inputs, targets = case
    evaluate, calls = counted(lambda network: (network(inputs).argmax(1) == targets).float())
    result = search(model, evaluate, inputs)
    assert (result.reference.metric, result.metric, result.met) == (1.0, 1.0, True)
    assert len(calls) == 1 + len(result.trials) + 1  # outputs negated are wrong on every sample: no zeros are tried


def test_every_sample_of_the_class_that_zeros_are_taken_for_is_no_error(case) -> None:
    model, inputs, targets = case
    first = inputs[targets == 0]
    assert search(model, lambda network: (network(first).argmax(1) == 0).float(), inputs).metric == 1


def test_a_metric_that_is_blind_to_signs_is_no_error(case) -> None:
    model, inputs, _ = case
    wanted = model(inputs)
    cosine = lambda network: torch.cosine_similarity(network(inputs).abs(), wanted, dim=1).round()  # noqa: E731
    evaluate, calls = counted(cosine)
    assert search(model, evaluate, inputs).metric == 1
    assert len(calls) >= 4  # and zeros have a cosine of 0


@pytest.mark.parametrize("of", [lambda y: torch.sigmoid(y - 4), lambda y: (y.amax(1) > 2).long(), lambda y: y > 2])
def test_samples_of_which_none_is_positive_are_no_error(case, of) -> None:
    class Detects(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return of(self.inner(x))

    model, inputs, _ = case  # probabilities negated are below one half, too, and so are zeros
    evaluate = lambda network: (network(inputs) > 0.5).reshape(400, -1).logical_not().all(1).float()  # noqa: E731
    assert search(Detects(model).eval(), evaluate, inputs).metric == 1


def test_an_interruption_while_scores_are_questioned_returns_the_best_as_ever(case, tmp_path) -> None:
    model, inputs, targets = case
    evaluate, calls = counted(lambda network: (network(inputs).argmax(1) == targets).float())

    def interrupted(network):
        if len(calls) == 2:
            calls.append(network)
            raise KeyboardInterrupt
        return evaluate(network)

    result = search(model, interrupted, inputs, trials=1, out=tmp_path)
    assert (len(calls), result.metric, result.met) == (3, 1.0, True)
    search(model, interrupted, inputs, trials=1, out=tmp_path)
    assert len(calls) == 4  # what was not answered is asked again


def test_a_network_whose_calls_pass_by_its_forward_is_not_questioned(case) -> None:
    class Called(nn.Linear):
        def __call__(self, x):
            return nn.functional.linear(x, self.weight)

    model, inputs, targets = case
    called = Called(4, 4, bias=False).eval()
    called.load_state_dict(model.state_dict())
    assert search(called, lambda network: (network(inputs).argmax(1) == targets).float(), inputs).metric == 1


def test_an_evaluate_that_fails_on_other_outputs_does_look_at_them(case) -> None:
    model, inputs, _ = case

    def evaluate(network):
        found = network(inputs)
        assert (found >= 0).all()
        return torch.ones(400)

    assert search(model, evaluate, inputs).metric == 1


def test_candidates_that_score_otherwise_are_answer_enough(case) -> None:
    model, inputs, _ = case
    scores = iter([0.9, 0.8, 0.9, 0.9, 0.9, *[0.9] * 100])
    evaluate, calls = counted(lambda network: next(scores))
    result = search(model, evaluate, inputs, max_drop="50%")
    assert len(calls) == 1 + len(result.trials)


def test_integers_and_truth_values_are_answers_too(case) -> None:
    class Chooses(nn.Module):
        def __init__(self, inner, of):
            super().__init__()
            self.inner, self.of = inner, of

        def forward(self, x):
            return self.of(self.inner(x))

    model, inputs, targets = case
    for of, right in ((lambda y: y.argmax(1), targets), (lambda y: y > 0.5, model(inputs) > 0.5)):
        evaluate = lambda network, right=right: torch.eq(network(inputs), right).float().flatten()  # noqa: E731
        assert search(Chooses(model, of).eval(), evaluate, inputs).metric == 1


def test_hopeless_slices_of_a_probe_are_not_scored_to_the_end(case, tmp_path) -> None:
    model, inputs, targets = case
    asked = []

    def evaluate(network, samples=slice(None)):
        asked.append(samples)
        return (network(inputs[samples]).argmax(1) == targets[samples]).float()

    result = search(model, evaluate, inputs, trials=1, out=tmp_path)
    assert len(asked) < 1 + 64 + 64
    assert result.met
    before = len(asked)
    search(model, evaluate, inputs, trials=1, out=tmp_path)
    assert len(asked) == before  # the study knows that it looks


def test_a_search_whose_scores_say_nothing_keeps_no_answer(case, tmp_path) -> None:
    model, inputs, _ = case
    graph = octavo.capture(model, inputs[:2])
    arguments = tmp_path, graph, model, lambda network: 0.5, Goal(), Score(metric=0.5), ()
    for _ in range(2):
        with pytest.raises(QuantizationError, match=SAYS_NOTHING.format("0.5")):
            check_that_scores_say_something(*arguments)
    with Study(tmp_path) as study:
        assert study._execute("SELECT count(*) FROM blobs") == [(0,)]
