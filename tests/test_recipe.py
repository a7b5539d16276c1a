"""The whole road on small networks: which stages it climbs, what it returns, and that nothing is measured twice."""

import json
from importlib.metadata import version

import pytest
import torch
from torch import nn

import octavo
from octavo.engines import available
from octavo.errors import QuantizationError
from octavo.network.rule import Rule
from octavo.workflow.calibration import first_inputs
from octavo.workflow.goal import Goal, Score, halves
from octavo.workflow.search import Budget, duration
from octavo.workflow.study import Study


class Classifier(nn.Module):
    """Eight linear layers; `scores` says how often a network agrees with it, sample by sample."""

    def __init__(self, layers: int = 8) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(nn.Linear(24, 24) for _ in range(layers - 1))
        self.head = nn.Linear(24, 6)

    def forward(self, x):
        for layer in self.hidden:
            x = x + torch.tanh(layer(x))
        return self.head(x)


class Scores:
    """1 where a network chooses the class that the float network chooses; counts the networks it is shown."""

    def __init__(self, model: nn.Module, samples: int = 400) -> None:
        self.inputs = torch.randn(samples, 24)
        with torch.no_grad():
            self.targets = model(self.inputs).argmax(1)
        self.calls = 0

    def __call__(self, network):
        self.calls += 1
        return (network(self.inputs).argmax(1) == self.targets).float()


@pytest.fixture
def case():
    model = Classifier().eval()
    return {"model": model, "calibration": [torch.randn(32, 24) for _ in range(3)], "evaluate": Scores(model)}


FAST = {"engine": "simulation", "progress": False}
FOUR_BITS = [Rule(role="input", bits=3), Rule("*", role="lhs", bits=3), Rule("*")]


def test_calibration_is_enough_for_an_easy_goal(case) -> None:
    result = octavo.quantize(**case, max_drop=0.2, **FAST)
    assert result.met
    assert [stage.stage for stage in result.stages] == ["ptq"]
    assert [trial.method for trial in result.trials] == ["max", "entropy", "99.99", "99.999"]
    assert case["evaluate"].calls == 5  # float once, and each candidate
    scores = [trial.metric for trial in result.trials]
    assert result.metric == max(scores) == pytest.approx(case["evaluate"](result.model).mean().item())
    assert result.coverage.quantized == result.coverage.total == 8
    assert "the stage ptq met the goal" in result.summary


def test_what_may_be_lost_is_the_same_however_it_is_said(case, tmp_path) -> None:
    once = {**FAST, "trials": 1}
    first, *others = [octavo.quantize(**case, max_drop=said, out=tmp_path, **once) for said in ("20%", 0.2, "0.2e2 %")]
    assert first.goal == Goal(max_drop=0.2, relative=True)
    assert "the goal allows a drop of 20 % of the float score, 0.2." in first.summary
    assert all(other.goal == first.goal and other.trials == first.trials for other in others)
    calls = case["evaluate"].calls
    found = octavo.quantize(**case, max_drop="0.2 points", out=tmp_path, **once)
    assert found.goal == Goal(max_drop=0.2, relative=False)
    assert case["evaluate"].calls > calls  # another goal
    assert "a drop of 0.2 points, in the metric's own unit: 20 % of the float score." in found.summary
    assert (found.record()["max_drop"], found.record()["relative"]) == (0.2, False)
    same = octavo.quantize(**case, max_drop=0.2, relative=False, out=tmp_path, **once)
    assert (same.goal, same.trials) == (found.goal, found.trials)


def test_the_model_is_left_alone(case) -> None:
    model = case["model"].train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    octavo.quantize(**case, max_drop=0.2, **FAST)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model._forward_hooks


def test_an_impossible_goal_climbs_every_rung_and_returns_the_best_seen(case) -> None:
    def never(network):
        """The float network scores 1, any other at most a half: nothing can meet the goal."""
        return 1.0 if isinstance(network, Classifier) else case["evaluate"](network).mean() / 2

    result = octavo.quantize(case["model"], calibration=case["calibration"], evaluate=never, **FAST)
    assert not result.met
    assert [stage.stage for stage in result.stages] == ["ptq", "ptq_more", "repair", "rows", "partial"]
    assert result.metric == max(trial.metric for trial in result.trials)
    assert "no stage is left to try" in result.summary
    assert "The goal is not met" in result.summary
    assert "evaluate returned one number" in result.summary


def test_partial_quantization_leaves_the_sensitive_layer_in_float(case) -> None:
    """Two bits in one layer break the network; leaving that one in float mends it."""
    rules = [Rule("hidden.3", bits=2), Rule("*")]
    result = octavo.quantize(**case, rules=rules, max_drop=0.08, relative=False, min_int8=0.5, **FAST)
    assert result.met
    assert result.stages[-1].stage == "partial"
    assert 0.5 <= result.int8_share < 1
    assert "hidden.3" in result.kept_float
    assert len(result.kept_float) <= 4  # of 15, additions among them: the samples are a random draw
    assert result.sensitivities[0].layer == "hidden.3"
    assert result.sensitivities[0].latency_ms > 0
    assert {kept.site for kept in result.coverage.kept_float} == {
        layer for layer in result.kept_float if "add" not in layer
    }


def test_no_more_is_left_in_float_than_the_goal_allows(case) -> None:
    rules = [Rule("hidden.3", bits=2), Rule("*")]
    result = octavo.quantize(**case, rules=rules, max_drop=0.08, relative=False, min_int8=1.0, **FAST)
    assert not result.met
    assert result.int8_share == 1
    assert not any(trial.kept_float for trial in result.trials)


def test_what_keeps_its_accuracy_by_staying_in_float_does_not_meet_the_goal(case) -> None:
    rules = [Rule("hidden", skip=True), Rule("*")]
    result = octavo.quantize(**case, rules=rules, max_drop=0.2, trials=1, **FAST)
    assert result.verdict.met
    assert (result.met, result.certified) == (False, False)
    linears = {name: layer for name, layer in case["model"].named_modules() if isinstance(layer, nn.Linear)}
    work = {name: layer.weight.numel() for name, layer in linears.items()}
    share = sum(count for name, count in work.items() if not name.startswith("hidden")) / sum(work.values())
    assert result.int8_share == pytest.approx(share)
    assert (
        f"not met: {100 * share:.3g} % of the multiplications run on integers, and 90 % are asked for" in result.summary
    )
    assert result.record()["int8_share"] == result.int8_share
    assert octavo.quantize(**case, rules=rules, max_drop=0.2, trials=1, min_int8=0.0, **FAST).met


def test_a_metric_that_falls_when_it_improves(case) -> None:
    def error(network):
        return 1 - case["evaluate"](network) + 0.5

    result = octavo.quantize(
        case["model"], calibration=case["calibration"], evaluate=error, higher_is_better=False, max_drop=0.2, **FAST
    )
    assert result.metric == min(trial.metric for trial in result.trials)
    _, others = halves(result.reference)  # that did not choose it
    lost = [result.best.scores[number] - result.reference.samples[number] for number in others]
    assert result.verdict.drop == pytest.approx(sum(lost) / len(lost))


def test_the_same_folder_resumes_without_measuring_again(case, tmp_path) -> None:
    first = octavo.quantize(**case, max_drop=0.2, out=tmp_path, **FAST)
    calls = case["evaluate"].calls
    calibration = [*case["calibration"]]

    class Watched(list):
        reads = 0

        def __iter__(self):
            for batch in super().__iter__():
                Watched.reads += 1
                yield batch

    case["calibration"] = Watched(calibration)
    again = octavo.quantize(**case, max_drop=0.2, out=tmp_path, **FAST)
    assert case["evaluate"].calls == calls
    assert Watched.reads <= 4  # the first batch, to recognize the data, and the two that repairs would use
    assert [trial.metric for trial in again.trials] == [trial.metric for trial in first.trials]
    assert [trial.scores for trial in again.trials] == [trial.scores for trial in first.trials]
    x = torch.randn(5, 24)
    assert torch.equal(again.model(x), first.model(x))


@pytest.mark.parametrize("change", ["weights", "data", "rules", "method of scoring"])
def test_what_changes_the_result_is_measured_anew(case, tmp_path, change) -> None:
    first = octavo.quantize(**case, max_drop=0.5, out=tmp_path, **FAST)
    if change == "weights":
        with torch.no_grad():
            case["model"].head.weight[0, 0] += 0.5
    elif change == "data":
        case["calibration"] = [2 * batch for batch in case["calibration"]]
    elif change == "rules":
        case["rules"] = [Rule("head", bits=4), Rule("*")]
    else:
        inner = case["evaluate"]
        case["evaluate"] = lambda network: inner(network) * 2
    second = octavo.quantize(**case, max_drop=0.5, out=tmp_path, **FAST)
    assert not {trial.key for trial in first.trials} & {trial.key for trial in second.trials}
    with Study(tmp_path) as study:
        assert len(study.trials()) == len(first.trials) + len(second.trials)


@pytest.mark.parametrize("package", ["octavo", "torch", "openvino"])
def test_another_version_of_what_computes_is_measured_anew(package, monkeypatch) -> None:
    from octavo.workflow import trial  # noqa: PLC0415 (its names are common ones)

    graph = octavo.capture(torch.nn.Linear(4, 4).eval(), torch.randn(2, 4))
    context = trial.Context(
        plan=octavo.make_plan(graph),
        stats=None,
        evaluate=None,
        goal=None,
        engine="openvino",
        reference=None,
        model="",
        data="",
    )
    before = trial.key_of(context, trial.Candidate(method="max"))
    monkeypatch.setattr("octavo.machine.version", lambda name: "9" if name == package else version(name))
    assert trial.key_of(context, trial.Candidate(method="max")) != before


@pytest.mark.parametrize("form", [lambda x: x.reshape(1), lambda x: x.reshape(()), lambda x: x.numpy(), float])
def test_one_number_in_any_form_makes_a_record(case, tmp_path, form) -> None:
    inner = case["evaluate"]
    case["evaluate"] = lambda network: form(torch.as_tensor(inner(network)).mean())
    result = octavo.quantize(**case, max_drop=0.5, out=tmp_path, **FAST)
    record = json.loads((tmp_path / "result.json").read_text())
    assert record["interval"] is None
    assert record["metric"]["int8"] == result.metric
    assert "one number, so there is no interval" in result.summary


@pytest.mark.parametrize(("score", "seen"), [(float("nan"), "NaN or infinity"), ("0.5", "a str"), (None, "a NoneType")])
def test_a_score_that_is_none_ends_it_before_anything_is_measured(case, monkeypatch, score, seen) -> None:
    monkeypatch.setattr("octavo.workflow.recipe.statistics", lambda *_: pytest.fail("it calibrates"))
    case["evaluate"] = lambda network: score
    with pytest.raises(QuantizationError, match=f"asked to score a network, but evaluate returned {seen}"):
        octavo.quantize(**case, **FAST)


def test_labels_of_any_type_may_stand_beside_the_inputs(case) -> None:
    class Label:
        pass

    case["calibration"] = [(batch, Label()) for batch in case["calibration"]]
    assert octavo.quantize(**case, max_drop=0.5, **FAST).met


def test_latency_spares_layers_that_cost_time(case) -> None:
    rules = [Rule("hidden.3", bits=2), Rule("*")]
    result = octavo.quantize(**case, rules=rules, max_drop=0.08, relative=False, min_int8=0.5, prefer="latency", **FAST)
    assert result.met
    assert "hidden.3" in result.kept_float


def test_another_preference_is_refused(case) -> None:
    with pytest.raises(QuantizationError, match=r"prefer='size', but prefer has to be 'accuracy' or 'latency'; pass"):
        octavo.quantize(**case, prefer="size", **FAST)


def test_every_trial_says_by_which_rules(case, tmp_path) -> None:
    octavo.quantize(**case, max_drop=0.5, rules=[Rule("head", bits=4), Rule("*")], out=tmp_path, **FAST)
    with Study(tmp_path) as study:
        assert {trial.rules for trial in study.trials()} == {("Rule('head', bits=4)", "Rule('*')")}


def test_a_budget_of_trials_ends_the_search_with_the_best_so_far(case) -> None:
    result = octavo.quantize(**case, max_drop=0.0, rules=FOUR_BITS[2:], trials=2, **FAST)
    assert len(result.trials) == 2
    assert "the budget of 2 trials was spent" in result.summary
    assert result.metric == max(trial.metric for trial in result.trials)


def test_a_budget_that_is_spent_at_once_still_tries_once(case) -> None:
    result = octavo.quantize(**case, budget=0.0001, **FAST)
    assert len(result.trials) == 1
    assert "budget" in result.stopped


def test_ctrl_c_returns_the_best_so_far(case, tmp_path) -> None:
    inner = case["evaluate"]

    def evaluate(network):
        if inner.calls == 3:
            raise KeyboardInterrupt
        return inner(network)

    result = octavo.quantize(
        case["model"], calibration=case["calibration"], evaluate=evaluate, max_drop=0.0, out=tmp_path, **FAST
    )
    assert len(result.trials) == 2
    assert "it was interrupted" in result.summary
    assert json.loads((tmp_path / "result.json").read_text())["metric"]["int8"] == result.metric


def test_an_error_of_the_users_own_goes_through_and_loses_nothing(case, tmp_path) -> None:
    inner = case["evaluate"]

    def evaluate(network):
        if inner.calls == 3:
            inner.calls += 1
            raise RuntimeError("the disk of the user is full")
        return inner(network)

    arguments = {"calibration": case["calibration"], "evaluate": evaluate, "max_drop": 0.2, "out": tmp_path, **FAST}
    with pytest.raises(RuntimeError, match="the disk of the user is full"):
        octavo.quantize(case["model"], **arguments)
    with Study(tmp_path) as study:
        assert [trial.method for trial in study.trials()] == ["max", "entropy"]
    octavo.quantize(case["model"], **arguments)
    assert inner.calls == 6  # float, four candidates, and the one call that failed


def test_a_candidate_that_scores_nan_is_an_error_and_not_the_best(case) -> None:
    inner = case["evaluate"]

    def evaluate(network):
        scores = inner(network)
        return scores * float("nan") if inner.calls == 2 else scores

    result = octavo.quantize(case["model"], calibration=case["calibration"], evaluate=evaluate, max_drop=0.2, **FAST)
    assert "evaluate returned NaN" in result.trials[0].error
    assert result.best.error is None
    assert result.record()["trials"][0]["metric"] is None


def test_if_every_candidate_fails_the_first_reason_is_given(case) -> None:
    def evaluate(network):
        return 1.0 if isinstance(network, Classifier) else float("nan")

    with pytest.raises(QuantizationError, match=r"before a single candidate could be scored .*evaluate returned NaN"):
        octavo.quantize(case["model"], calibration=case["calibration"], evaluate=evaluate, **FAST)


def test_the_record_has_what_a_report_needs(case, tmp_path) -> None:
    octavo.quantize(**case, max_drop=0.2, out=tmp_path, **FAST)
    record = json.loads((tmp_path / "result.json").read_text())
    assert {"met", "max_drop", "interval", "stages", "trials", "kept_float", "metric", "coverage", "versions"} <= set(
        record
    )
    assert record["metric"].keys() == {"name", "float", "int8", "drop", "samples"}
    assert record["metric"]["samples"] == 400
    assert [trial["id"] for trial in record["trials"]] == [1, 2, 3, 4]
    assert record["stages"][0].keys() == {"stage", "trials", "best", "seconds"}


def test_too_few_samples_are_said_to_be_too_few(case) -> None:
    case["evaluate"] = Scores(case["model"], samples=40)
    inner = case["evaluate"]

    def evaluate(network):
        scores = inner(network)
        if not isinstance(network, Classifier):  # one right for one wrong: no drop, and no certainty
            scores = scores.clone()
            scores[:4] = 0
        else:
            scores[4:8] = 0
        return scores

    result = octavo.quantize(case["model"], calibration=case["calibration"], evaluate=evaluate, max_drop=0.05, **FAST)
    assert result.met
    assert "too few samples to certify 5 %" in result.summary


def test_where_the_samples_could_certify_the_goal_a_lucky_candidate_does_not_end_the_search(case) -> None:
    """Of 10 000 samples, calibration loses 95 where 100 are allowed, too near to be sure; the next stage loses 10."""
    lost = iter([0, 95, 95, 95, 95, 10, 10, 10])

    def evaluate(network):
        scores = torch.ones(10_000)
        scores[: next(lost)] = 0
        return scores

    result = octavo.quantize(case["model"], calibration=case["calibration"], evaluate=evaluate, **FAST)
    assert [stage.stage for stage in result.stages] == ["ptq", "ptq_more"]
    assert result.verdict.certified
    assert result.metric == 0.999


def test_what_chooses_a_candidate_does_not_certify_it(case) -> None:
    """All lose nothing on the samples that choose; on the others each loses one in ten, and that is what is said."""
    first, second = halves(Score(metric=1.0, samples=(1.0,) * 4000))

    def evaluate(network):
        scores = torch.ones(4000)
        if not isinstance(network, Classifier):
            scores[list(second[::10])] = 0
        return scores

    result = octavo.quantize(case["model"], calibration=case["calibration"], evaluate=evaluate, **FAST)
    assert [stage.stage for stage in result.stages] == ["ptq"]  # where they were chosen they were certain
    assert (result.met, result.certified, result.too_few) == (False, False, False)
    assert "the stage ptq met the goal on the samples that choose" in result.summary
    assert result.verdict.drop == pytest.approx(0.1)
    assert result.verdict.samples == len(second) == len(first) == 2000
    assert "on the 2000 samples that did not choose it" in result.summary
    assert "The goal is not met on the samples that did not choose it" in result.summary
    record = result.record()
    assert (record["met"], record["certified"], record["certified_on"]) == (False, False, 2000)


def ones(case, number):
    """Scores by which networks that are near the float one agree with it on so many samples."""
    inputs = case["evaluate"].inputs[:8]
    wanted = case["model"](inputs).detach()
    return lambda network: torch.full((number,), float((network(inputs) - wanted).norm() < wanted.norm() / 2))


@pytest.mark.parametrize("number", [2, 3, 4, 60, 300])
def test_few_samples_on_which_networks_agree_certify_nothing(case, number) -> None:
    """Of 60 samples none may show what happens to one in twenty."""
    result = octavo.quantize(**case | {"evaluate": ones(case, number)}, trials=1, **FAST)
    assert (result.met, result.certified, result.too_few) == (True, False, True)
    assert result.record()["certified_on"] is None
    assert "that did not choose it" not in result.summary


def test_many_samples_on_which_networks_agree_do(case) -> None:
    result = octavo.quantize(**case | {"evaluate": ones(case, 700)}, trials=1, **FAST)
    assert (result.met, result.certified, result.samples_needed) == (True, True, None)


def test_how_many_samples_would_do(case) -> None:
    """As many as it says certify the goal; with a quarter of them, it is not."""

    def outcome(number):
        def evaluate(network):
            scores = torch.ones(number)
            if not isinstance(network, Classifier):
                scores[::40] = 0  # 2.5 % lost in turn, and others won
                scores[20::40] = 1
            else:
                scores[20::40] = 0
            return scores

        return octavo.quantize(
            case["model"], calibration=case["calibration"], evaluate=evaluate, max_drop=0.02, trials=1, **FAST
        )

    few = outcome(400)
    assert (few.too_few, few.met, few.certified) == (True, True, False)
    assert f"about {few.samples_needed} would do" in few.summary
    enough = outcome(int(1.2 * few.samples_needed))
    assert (enough.too_few, enough.samples_needed) == (False, None)
    assert outcome(few.samples_needed // 2).too_few


def test_a_network_that_scores_nothing_is_not_searched(case) -> None:
    with pytest.raises(QuantizationError, match="the float network scores 0; see that evaluate"):
        octavo.quantize(case["model"], calibration=case["calibration"], evaluate=lambda network: 0.0, **FAST)


def test_on_the_engine_that_is_deployed(case) -> None:
    result = octavo.quantize(**case, max_drop=0.2, progress=False)
    assert result.engine in {*available()} - {"reference"}  # which one is fastest here is measured
    assert type(result.model) is type(octavo.compile(result.net, engine=result.engine))


def test_an_unknown_engine_lists_those_there_are(case) -> None:
    with pytest.raises(QuantizationError, match="'tensorflow', but those that can be used here are openvino, "):
        octavo.quantize(**case, engine="tensorflow")


@pytest.mark.parametrize(
    ("batch", "inputs"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 3)),
        ((torch.zeros(2, 3), torch.ones(2)), (torch.zeros(2, 3),)),
        (({"x": torch.zeros(2, 3)}, torch.ones(2)), {"x": torch.zeros(2, 3)}),
        ({"x": torch.zeros(2, 3)}, {"x": torch.zeros(2, 3)}),
    ],
)
def test_labels_are_no_inputs(batch, inputs) -> None:
    found = first_inputs(nn.Linear(3, 3), [batch])
    assert type(found) is type(inputs)
    assert str(found) == str(inputs)


class Masked(nn.Module):
    """A linear, and a mask that may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(24, 6)

    def forward(self, x, mask=None):
        return self.head(x if mask is None else x * mask)


def test_a_label_is_never_taken_for_an_optional_input() -> None:
    model = Masked().eval()
    x, mask = torch.randn(8, 24), torch.ones(8, 1)
    arguments = {"calibration": [(x, mask)], "evaluate": lambda network: float(network(x).norm()), **FAST}
    with pytest.raises(QuantizationError, match=r"calibration: .* needs 1 and takes 2: .*; pass example="):
        octavo.quantize(model, **arguments)
    assert octavo.quantize(model, example=x, **arguments).model(x).shape == (8, 6)
    arguments["evaluate"] = lambda network: float(network(x, mask).norm())
    assert octavo.quantize(model, example=(x, mask), **arguments).model(x, mask).shape == (8, 6)
    assert first_inputs(model, [(x,)]) == (x,)
    with pytest.raises(QuantizationError, match="needs 0 and takes any number"):
        first_inputs(nn.Module(), [(x, mask)])  # whose forward takes *anything


def test_an_iterator_is_read_once_and_kept(case) -> None:
    case["calibration"] = iter(case["calibration"])
    assert octavo.quantize(**case, max_drop=0.5, **FAST).met


def test_empty_calibration(case) -> None:
    case["calibration"] = []
    with pytest.raises(QuantizationError, match="the calibration data is empty"):
        octavo.quantize(**case, **FAST)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("1.5d", 129600), (45, 45), ("10", 10)]
)
def test_lengths_of_time(text, seconds) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-3m", "0", "1..2h", "nan"])
def test_what_is_no_length_of_time(text) -> None:
    with pytest.raises(QuantizationError, match="it is no length of time; write seconds, or 90s, 30m, 2h"):
        duration(text)


def test_the_budget_that_runs_out_first_counts() -> None:
    budget = Budget(seconds=10, trials=3)
    assert budget.spent(9.9, 2) is None
    assert budget.spent(1, 3) == "the budget of 3 trials was spent"
    assert budget.spent(10, 1) == "the budget of 10 seconds was spent"
