"""`octavo.check`: what is measured, what is judged, and what is refused, on small networks made by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

import foreign_networks as foreign
from octavo.engines import available
from octavo.errors import QuantizationError
from octavo.gate.check import check
from octavo.gate.measures import Measured
from octavo.gate.verdict import judged, worst
from octavo.workflow.goal import Goal, Score

pytest.importorskip("onnxruntime")
ENGINES = [engine for engine in ("onnxruntime", "openvino") if engine in available()]


@pytest.fixture
def pair(tmp_path) -> tuple[Path, Path]:
    return foreign.float_linear(tmp_path / "float.onnx"), foreign.int8_linear(tmp_path / "int8.onnx")


def checked(a, b, data, **options):
    return check(a, b, data=data, **{"bench": False} | options)


def labelled(x: np.ndarray) -> dict[str, np.ndarray]:
    """Labels that the float network gets right, but every tenth."""
    labels = (x @ foreign.weight()).argmax(axis=1)
    labels[::10] = (labels[::10] + 1) % foreign.CLASSES
    return {"x": x, "labels": labels}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_good_int8_network_meets_the_goal_by_its_labels(pair, engine) -> None:
    x = foreign.samples(800)
    found = checked(*pair, labelled(x), engine=engine, max_drop=0.03)
    _, logits = foreign.rounded(foreign.weight(), foreign.samples())
    data = labelled(x)
    made, _ = foreign.rounded(foreign.weight(), foreign.samples())
    read = np.clip(np.rint(x / made["x_scale"]), -128, 127).astype(np.float64)
    logits = read @ made["w"].astype(np.float64) * made["w_scale"].astype(np.float64)
    right = (logits.argmax(axis=1) == data["labels"]).mean()
    assert found.score is not None
    assert (found.score.measure, found.score.output, found.score.samples) == ("accuracy", "logits", 800)
    assert found.score.float_score == pytest.approx(90.0)
    assert found.score.int8_score == pytest.approx(100 * right)
    assert found.score.drop == pytest.approx(90.0 - 100 * right)
    assert found.score.allowed == pytest.approx(2.7)
    assert (found.verdict, found.exit_code, found.met) == ("met", 0, True)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_ran_is_told_by_the_runtime(pair, engine) -> None:
    found = checked(*pair, {"x": foreign.samples()}, engine=engine)
    float_ran, int8_ran = found.float_network.ran, found.int8_network.ran
    assert (float_ran.products, float_ran.on_integers, float_ran.share_of_multiplications) == (1, 0, 0.0)
    assert (int8_ran.products, int8_ran.on_integers, int8_ran.share_of_multiplications) == (1, 1, 1.0)
    names = {"onnxruntime": "head", "openvino": "logits"}  # OpenVINO calls an operation as the value that it gives
    assert [layer.layer for layer in float_ran.in_float] == [names[engine]]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_wrong_zero_point_does_not_meet_it(tmp_path, pair, engine) -> None:
    broken = foreign.int8_linear(tmp_path / "broken.onnx", zero=60)
    found = checked(pair[0], broken, labelled(foreign.samples()), engine=engine)
    assert (found.verdict, found.exit_code) == ("not met", 1)
    assert found.score is not None
    assert found.score.interval is not None
    assert found.score.interval[0] > found.score.allowed
    assert found.worst_samples
    assert all(row.float_class == row.label != row.int8_class for row in found.worst_samples)
    drops = [row.float_recall - row.int8_recall for row in found.worst_classes]
    assert drops == sorted(drops, reverse=True)
    assert drops[0] > 20


def test_without_labels_the_share_of_changed_decisions_is_judged(pair) -> None:
    x = foreign.samples()
    found = checked(*pair, {"x": x}, max_drop=0.05)
    _, logits = foreign.rounded(foreign.weight(), x)
    wanted = (x @ foreign.weight()).argmax(axis=1)
    same = 100 * (logits.argmax(axis=1) == wanted).mean()
    assert found.score is not None
    assert (found.score.measure, found.score.float_score, found.score.allowed) == ("agreement", 100.0, 5.0)
    assert found.score.int8_score == pytest.approx(same)
    assert "looks like scores of 4 classes" in found.score.why
    changed = np.flatnonzero(logits.argmax(axis=1) != wanted)
    assert {row.sample for row in found.worst_samples} <= set(changed.tolist())


def test_fidelity_is_the_variance_that_is_kept(pair) -> None:
    x = foreign.samples()
    found = checked(*pair, {"x": x}, measure="fidelity")
    wanted = x.astype(np.float64) @ foreign.weight().astype(np.float64)
    _, logits = foreign.rounded(foreign.weight(), x)
    kept = 1 - ((wanted - logits) ** 2).sum() / ((wanted - wanted.mean(axis=0)) ** 2).sum()
    assert found.score is not None
    assert found.score.int8_score == pytest.approx(100 * kept, abs=1e-3)
    (output,) = found.outputs
    sqnr = 10 * math.log10((wanted**2).sum() / ((wanted - logits) ** 2).sum())
    assert output.sqnr_db == pytest.approx(sqnr, abs=1e-2)
    assert output.fidelity == pytest.approx(100 * kept, abs=1e-3)
    assert output.largest_error == pytest.approx(np.abs(wanted - logits).max(), abs=1e-5)


def test_one_sample_cannot_tell(pair) -> None:
    found = checked(*pair, {"x": foreign.samples(1)})
    assert (found.verdict, found.exit_code) == ("could not tell", 3)
    assert found.score is not None
    assert found.score.interval is None


@pytest.mark.parametrize(("count", "verdict"), [(299, "could not tell"), (300, "met")])
def test_what_none_of_the_samples_shows_may_still_happen(tmp_path, count, verdict) -> None:
    """Three in n: 300 samples without a change are needed for 1 %, one fewer is too few; and it is said."""
    path = foreign.float_linear(tmp_path / "same.onnx")
    found = checked(path, path, {"x": foreign.samples(count)})
    assert found.verdict == verdict
    assert found.score is not None
    assert found.score.samples_needed == (300 if verdict == "could not tell" else None)


def measured(drops: list[float], reference: float = 100.0) -> Measured:
    floats = tuple(reference for _ in drops)
    found = tuple(reference - drop for drop in drops)
    scores = [Score(metric=sum(values) / len(values), samples=values) for values in (floats, found)]
    return Measured(name="accuracy", output="y", why="", reference=scores[0], other=scores[1])


@pytest.mark.parametrize(
    ("lost", "of", "word"),
    [
        (0, 1000, "met"),
        (2, 1000, "met"),
        (10, 1000, "could not tell"),
        (40, 1000, "not met"),
        (2, 20, "could not tell"),
    ],
)
def test_the_whole_interval_decides(lost, of, word) -> None:
    assert judged(Goal(max_drop=0.01), measured([100.0] * lost + [0.0] * (of - lost))).word == word


def test_no_number_of_samples_tells_that_nothing_at_all_is_lost() -> None:
    found = judged(Goal(max_drop=0.0), measured([0.0] * 1000))
    assert (found.word, found.samples_needed) == ("could not tell", None)


@pytest.mark.parametrize("count", [100, 150])
def test_as_many_samples_as_are_said_to_be_needed_would_tell(count) -> None:
    """Of a network that changes one decision in a hundred, where two may change; twice as many, to be sure."""
    few = judged(Goal(max_drop=0.02), measured([100.0 * (number % 100 == 0) for number in range(count)]))
    assert few.word == "could not tell"
    assert few.samples_needed is not None
    needed = 2 * few.samples_needed
    many = judged(Goal(max_drop=0.02), measured([100.0 * (number % 100 == 0) for number in range(needed)]))
    assert many.word == "met"


def test_one_number_is_met_or_not() -> None:
    for other, word in ((81.5, "met"), (79.0, "not met")):
        one = Measured(name="evaluate", output=None, why="", reference=Score(metric=82.0), other=Score(metric=other))
        assert judged(Goal(max_drop=0.01), one).word == word


def test_the_worst_output_counts() -> None:
    goal = Goal(max_drop=0.01)
    good, bad = (judged(goal, measured([drop] * 500)) for drop in (0.1, 3.0))
    assert worst([good, bad]) is worst([bad, good]) is bad


def test_nan_of_the_int8_network_is_not_met_and_of_the_float_one_an_error(tmp_path) -> None:
    """log(x) of −1 is NaN, |x| is not."""
    log, plain = foreign.elementwise(tmp_path / "log.onnx", "Log"), foreign.elementwise(tmp_path / "abs.onnx", "Abs")
    x = np.abs(foreign.samples()) + 0.1
    x[7, 3] = -1.0
    found = checked(plain, log, {"x": x})
    assert (found.verdict, found.exit_code, found.broken_samples, found.score) == ("not met", 1, [7], None)
    assert "NaN or infinity in 1 of 400 samples, first in 7" in found.reason
    with pytest.raises(QuantizationError, match="NaN or infinity, first in sample 7; see that it is the float network"):
        checked(log, plain, {"x": x})


def test_a_float_network_that_returns_the_same_for_everything_is_an_error(tmp_path) -> None:
    dead = foreign.float_linear(tmp_path / "dead.onnx", np.zeros_like(foreign.weight()))
    with pytest.raises(QuantizationError, match="it returns the same for all 400 samples"):
        checked(dead, dead, {"x": foreign.samples()})


def test_a_float_network_that_gets_nothing_right_is_an_error(pair) -> None:
    x = foreign.samples()
    wrong = ((x @ foreign.weight()).argmax(axis=1) + 1) % foreign.CLASSES
    with pytest.raises(QuantizationError, match="the float network scores 0"):
        checked(*pair, {"x": x, "labels": wrong})


def test_the_float_file_itself_meets_the_goal_and_it_is_said_that_nothing_is_int8(pair) -> None:
    found = checked(pair[0], pair[0], {"x": foreign.samples()})
    assert found.verdict == "met"
    assert found.notes == ["Nothing in `float.onnx` runs on integers."]
    assert found.outputs[0].identical
    asked = checked(pair[0], pair[0], {"x": foreign.samples()}, min_int8=0.5)
    assert (asked.verdict, asked.exit_code) == ("not met", 1)
    assert "0 % of it runs on integers, and 50 % are asked for" in asked.reason


def test_scales_that_are_taken_while_it_runs(tmp_path, pair) -> None:
    """Each sample on a scale of all that are in its batch."""
    made, _ = foreign.rounded(foreign.weight(), foreign.samples())
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("MatMulInteger", ["q", "w", "zero"], ["sums"], name="head"),
        helper.make_node("Cast", ["sums"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["scale", "w_scale"], ["factor"]),
        helper.make_node("Mul", ["real", "factor"], ["logits"]),
    ]
    ports = {"x": (TensorProto.FLOAT, ["n", 8])}, {"logits": (TensorProto.FLOAT, ["n", 4])}
    constants = {name: made[name] for name in ("w", "w_scale")}
    dynamic = foreign.save(tmp_path / "dynamic.onnx", nodes, *ports, constants)
    found = checked(pair[0], dynamic, {"x": foreign.samples()})
    assert found.int8_network.ran.on_integers == found.int8_network.ran.products == 1
    assert "`dynamic.onnx` takes scales from each batch while it runs" in found.notes[0]
    assert checked(pair[0], dynamic, {"x": foreign.samples()}, batch=400).outputs != found.outputs


def test_a_share_on_integers_is_kept(pair) -> None:
    assert checked(*pair, {"x": foreign.samples()}, max_drop=0.1, min_int8=1.0).verdict == "met"


def test_swapped_networks_are_an_error(pair) -> None:
    with pytest.raises(QuantizationError, match="swap them: the float network comes first"):
        checked(pair[1], pair[0], {"x": foreign.samples()})


def test_another_int8_network_in_place_of_the_float_one_is_noted(pair) -> None:
    found = checked(pair[1], pair[1], {"x": foreign.samples()})
    assert found.notes == ["`int8.onnx`, the float network, runs 1 of 1 products on integers."]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("count", [1, 4, 10])
def test_a_fixed_batch_is_filled_and_cut(tmp_path, pair, engine, count) -> None:
    fixed = foreign.int8_linear(tmp_path / "fixed.onnx", batch=4)
    x = foreign.samples(count)
    one, other = (checked(pair[0], path, {"x": x}, engine=engine) for path in (pair[1], fixed))
    assert one.outputs == other.outputs


def test_latency_is_of_both_in_one_run(pair) -> None:
    found = checked(*pair, {"x": foreign.samples(20)}, bench=True, rounds=3, batch=5)
    assert found.latency is not None
    assert (found.latency.batch, found.latency.rounds) == (5, 3)
    for times in (found.latency.float_times, found.latency.int8_times):
        assert 0 < times.p10_ms <= times.median_ms <= times.p90_ms


def test_a_call_of_another_number_of_samples_is_not_timed_beside_it(tmp_path) -> None:
    paths = [foreign.float_linear(tmp_path / f"{batch}.onnx", batch=batch) for batch in (2, 3)]
    assert checked(*paths, {"x": foreign.samples(12)}, bench=True, rounds=1).latency is None


def two_inputs(path: Path, names: tuple[str, str] = ("a", "b")) -> Path:
    ports = {name: (TensorProto.FLOAT, ["n", 8]) for name in names}, {"y": (TensorProto.FLOAT, ["n", 8])}
    return foreign.save(path, [helper.make_node("Sub", list(names), ["y"])], *ports, {})


def test_inputs_go_by_name_whatever_their_order(tmp_path) -> None:
    path = two_inputs(tmp_path / "sub.onnx")
    a, b = foreign.samples(), foreign.samples(seed=8)
    turned = foreign.save(
        tmp_path / "turned.onnx",
        [helper.make_node("Sub", ["a", "b"], ["y"])],
        {name: (TensorProto.FLOAT, ["n", 8]) for name in "ba"},
        {"y": (TensorProto.FLOAT, ["n", 8])},
        {},
    )
    for other in (path, turned):
        assert checked(path, other, {"b": b, "a": a}).outputs[0].identical


def test_inputs_of_other_names_go_in_order(tmp_path) -> None:
    paths = two_inputs(tmp_path / "a.onnx"), two_inputs(tmp_path / "c.onnx", ("first", "second"))
    assert checked(*paths, {"a": foreign.samples(), "b": foreign.samples(seed=8)}).outputs[0].identical


def test_names_in_another_place_are_not_taken_in_order(tmp_path) -> None:
    paths = two_inputs(tmp_path / "a.onnx"), two_inputs(tmp_path / "b.onnx", ("b", "c"))
    with pytest.raises(QuantizationError, match=r"fit neither by name nor in order; name the arrays after its inputs"):
        checked(*paths, {"a": foreign.samples(), "b": foreign.samples(seed=8)})


@pytest.mark.parametrize(
    ("array", "seen"),
    [
        (
            foreign.samples().astype(np.float64),
            "its input x does not fit: it has to be float32, and the array is float64",
        ),
        (foreign.samples()[:, :5], r"it has to be \[\*, 8\], and the array is \[400, 5\]"),
        (foreign.samples()[:, :, None], r"it has to be \[\*, 8\], and the array is \[400, 8, 1\]"),
    ],
)
def test_arrays_that_do_not_fit(pair, array, seen) -> None:
    with pytest.raises(QuantizationError, match=seen):
        checked(*pair, {"x": array})


def test_an_array_that_nothing_reads_is_noted(pair) -> None:
    found = checked(*pair, {"x": foreign.samples(), "y": foreign.samples()})
    assert "No network reads `y` of the data." in found.notes


def test_ids_of_language_models(tmp_path) -> None:
    """int64 in, a row of a table out."""
    table = np.random.default_rng(1).standard_normal((20, 6)).astype(np.float32)
    paths = [
        foreign.save(
            tmp_path / f"{number}.onnx",
            [helper.make_node("Gather", ["table", "ids"], ["hidden"])],
            {"ids": (TensorProto.INT64, ["n", "tokens"])},
            {"hidden": (TensorProto.FLOAT, ["n", "tokens", 6])},
            {"table": (table + number * 1e-3).astype(np.float32)},
        )
        for number in (0, 1)
    ]
    found = checked(*paths, {"ids": np.random.default_rng(2).integers(0, 20, (330, 5))})
    assert found.score is not None
    assert (found.score.measure, found.verdict) == ("fidelity", "met")
    assert found.outputs[0].shape == [5, 6]
    assert "does not look like scores of classes" in found.score.why
    assert "`1.onnx` has no convolution, matrix product or recurrent layer." in found.notes


def two_outputs(path: Path, noise: float, names: tuple[str, str] = ("scores", "sizes")) -> Path:
    """x @ w, and −x, whose first entry is off."""
    ports = {"x": (TensorProto.FLOAT, ["n", 8])}, {
        names[0]: (TensorProto.FLOAT, ["n", 4]), names[1]: (TensorProto.FLOAT, ["n", 8])
    }  # fmt: skip
    nodes = [helper.make_node("MatMul", ["x", "w"], [names[0]]), helper.make_node("Mul", ["x", "factor"], [names[1]])]
    return foreign.save(
        path, nodes, *ports, {"w": foreign.weight(), "factor": np.r_[-1 - noise, [-1] * 7].astype(np.float32)}
    )


def test_of_two_outputs_the_one_that_loses_counts(tmp_path) -> None:
    paths = two_outputs(tmp_path / "a.onnx", 0.0), two_outputs(tmp_path / "b.onnx", 0.5, ("s", "z"))
    found = checked(*paths, {"x": foreign.samples()})
    assert (found.verdict, found.score.output if found.score else None) == ("not met", "sizes")
    assert [output.name for output in found.outputs] == ["scores", "sizes"]
    assert found.outputs[0].identical


def test_labels_find_the_output_that_has_their_classes(tmp_path) -> None:
    path = two_outputs(tmp_path / "a.onnx", 0.0)
    found = checked(path, path, labelled(foreign.samples()))
    assert found.score is not None
    assert found.score.output == "scores"


def test_another_number_of_outputs_is_an_error(tmp_path, pair) -> None:
    with pytest.raises(QuantizationError, match="the float one returns scores, sizes and the int8 one logits"):
        checked(two_outputs(tmp_path / "a.onnx", 0.0), pair[1], {"x": foreign.samples()})


def test_other_shapes_of_outputs_are_an_error(tmp_path, pair) -> None:
    other = foreign.elementwise(tmp_path / "abs.onnx", "Abs")
    with pytest.raises(QuantizationError, match=r"float32 \[4\] and the int8 one float32 \[8\]"):
        checked(pair[0], other, {"x": foreign.samples()})


def positive(path: Path, limit: float) -> Path:
    """The places of the entries of x above a limit: as many as there are."""
    nodes = [
        helper.make_node("Greater", ["x", "limit"], ["above"]),
        helper.make_node("NonZero", ["above"], ["places"]),
        helper.make_node("Transpose", ["places"], ["found"], perm=[1, 0]),
    ]
    ports = {"x": (TensorProto.FLOAT, ["n", 8])}, {"found": (TensorProto.INT64, ["m", 2])}
    return foreign.save(path, nodes, *ports, {"limit": np.float32(limit)})


def test_outputs_of_varying_length_are_compared_sample_by_sample(tmp_path) -> None:
    path, other = positive(tmp_path / "a.onnx", 0.0), positive(tmp_path / "b.onnx", 0.2)
    found = checked(path, path, {"x": foreign.samples(40)})
    assert found.outputs[0].identical
    assert found.outputs[0].shape == [None, 2]
    with pytest.raises(QuantizationError, match=r"of a sample the float one returns int64 \[\d, 2\] and the int8 one"):
        checked(path, other, {"x": foreign.samples(40)})


@pytest.mark.parametrize(
    ("labels", "seen"),
    [
        (np.full(400, 4), "the label 4 of sample 0 is none of 4 classes; give labels from 0 to 3"),
        (np.r_[np.zeros(399, int), -1], "the label -1 of sample 399 is none of 4 classes"),
        (np.zeros(399, int), "there are 399 labels for 400 samples"),
        (np.zeros(400), r"labels is float64; give numbers of classes: labels.astype\('int64'\)"),
        (np.zeros((400, 2), int), r"no output has scores of classes for each of them: logits float32 \[8, 4\]"),
    ],
)
def test_labels_that_cannot_be_used(pair, labels, seen) -> None:
    with pytest.raises(QuantizationError, match=seen):
        checked(*pair, {"x": foreign.samples(), "labels": labels})


@pytest.mark.parametrize(
    ("data", "seen"),
    [
        ({}, "there are no samples in it"),
        ({"x": np.zeros((0, 8), np.float32)}, "there are no samples in it"),
        ({"x": np.float32(1)}, r"x is float32 \[\]"),
        ({"x": np.array(["a"])}, "x is <U1"),
        ({"x": np.zeros((3, 8)), "y": np.zeros((4, 8))}, "there are 3 of x, 4 of y"),
    ],
)
def test_data_that_cannot_be_used(pair, data, seen) -> None:
    with pytest.raises(QuantizationError, match=seen):
        checked(*pair, data)


def test_embeddings_of_length_1_are_no_class_scores(tmp_path) -> None:
    nodes = [helper.make_node("LpNormalization", ["x"], ["y"], axis=1, p=2)]
    ports = {"x": (TensorProto.FLOAT, ["n", 8])}, {"y": (TensorProto.FLOAT, ["n", 8])}
    path = foreign.save(tmp_path / "norm.onnx", nodes, *ports, {})
    found = checked(path, path, {"x": foreign.samples()})
    assert found.score is not None
    assert found.score.measure == "fidelity"
    assert "length 1: directions" in found.score.why


def test_scores_of_which_one_always_wins_are_not_judged_by_who_wins(tmp_path) -> None:
    """Agreement would be 100 % of a network that is ruined."""
    x = np.concatenate([np.full((400, 1), 50, np.float32), foreign.samples()[:, 1:]], axis=1)
    paths = foreign.elementwise(tmp_path / "a.onnx", "Identity"), foreign.elementwise(tmp_path / "b.onnx", "Round")
    found = checked(*paths, {"x": x})
    assert found.outputs[0].agreement == 100.0
    assert found.score is not None
    assert (found.score.measure, found.verdict) == ("fidelity", "not met")
    assert "one of them is the largest in every sample" in found.score.why
    with pytest.raises(QuantizationError, match="the largest entry is always the same one"):
        checked(*paths, {"x": x}, measure="agreement")


def test_torch_modules_and_functions_are_networks_too() -> None:
    w = foreign.weight()
    linear = torch.nn.Linear(8, 4, bias=False)
    linear.load_state_dict({"weight": torch.from_numpy(w.T.copy())})

    def rounded(x):
        return {"logits": np.round(x, 1) @ w}

    x = foreign.samples()
    found = checked(linear, rounded, {"images": x}, max_drop=0.2)
    wanted = (x @ w).argmax(axis=1) == (np.round(x, 1) @ w).argmax(axis=1)
    assert found.outputs[0].agreement == pytest.approx(100 * wanted.mean())
    assert (found.float_network.kind, found.int8_network.kind) == ("torch module", "Python function")
    assert found.int8_network.ran.products is None
    assert "What runs on integers in `rounded` is unknown" in found.notes[0]
    with pytest.raises(QuantizationError, match="what runs there is told by nothing: code does not tell"):
        checked(linear, rounded, {"images": x}, min_int8=0.5)


def test_labels_of_one_class_tell_nothing(tmp_path, pair) -> None:
    x = foreign.samples(4000)
    x = x[(x @ foreign.weight()).argmax(axis=1) == 0][:400]
    dead = foreign.float_linear(tmp_path / "dead.onnx", 0 * foreign.weight())  # by argmax its answer is always 0
    with pytest.raises(QuantizationError, match="all 400 labels are 0"):
        checked(pair[0], dead, {"x": x, "labels": np.zeros(400, np.int64)})


def test_outputs_that_labels_do_not_judge_are_named(tmp_path) -> None:
    def heads(path: Path, second: np.ndarray) -> Path:
        nodes = [helper.make_node("MatMul", ["x", name], [f"out_{name}"]) for name in ("a", "b")]
        ports = {f"out_{name}": (TensorProto.FLOAT, ["n", 4]) for name in ("a", "b")}
        constants = {"a": foreign.weight(), "b": second}
        return foreign.save(path, nodes, {"x": (TensorProto.FLOAT, ["n", 8])}, ports, constants)

    both = heads(tmp_path / "float.onnx", foreign.weight()), heads(tmp_path / "int8.onnx", -foreign.weight())
    found = checked(*both, labelled(foreign.samples()))
    assert found.verdict == "met"
    assert "The labels judge `out_a` alone: nothing is asked of `out_b`." in found.notes
    assert not any("alone" in note for note in checked(*both, {"x": foreign.samples()}).notes)


def test_too_few_integers_are_too_few_whatever_the_samples_tell(pair) -> None:
    found = checked(pair[0], pair[0], {"x": foreign.samples(20)}, min_int8=0.5)
    assert (found.verdict, found.exit_code) == ("not met", 1)
    assert "0 % of it runs on integers" in found.reason
    assert "is kept" not in found.reason


def paired(reference: list[float], other: list[float], goal: Goal):
    scores = [Score(metric=sum(one) / len(one), samples=tuple(one)) for one in (reference, other)]
    return judged(goal, Measured(name="accuracy", output="y", why="", reference=scores[0], other=scores[1]))


def test_a_better_int8_network_needs_only_the_samples_that_show_what_is_rare() -> None:
    found = paired([100.0, 0.0, 0.0, 0.0] * 150, [100.0] * 600, Goal(max_drop=0.25, relative=False))
    assert found.word == "could not tell"
    assert found.samples_needed == 1200  # 3 in n is 0.25 % of them


def test_of_one_sample_that_is_lost_nobody_knows_how_many_would_do() -> None:
    found = paired([100.0], [0.0], Goal())
    assert (found.word, found.samples_needed) == ("could not tell", None)
