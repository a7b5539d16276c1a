"""Calibration samples among the scored ones: counted exactly, whoever calls the network how; and never guessed."""

import copy
import json
import pickle

import pytest
import torch
from torch import nn

import octavo
from octavo.network.digest import DIGEST, digests_of_samples
from octavo.workflow.overlap import Noted, NotedSized, Overlap, Reading, Watch, noted, overlap_of
from octavo.workflow.study import Study

FAST = {"engine": "simulation", "progress": False, "trials": 1}


def digests(*tensors) -> list[bytes]:
    return digests_of_samples([(f"input {number}", tensor) for number, tensor in enumerate(tensors)])


# ---- what tells one sample from another


def test_a_sample_is_the_same_in_any_batch() -> None:
    x, y = torch.randn(6, 3, 4, 4), torch.randn(6, 5)
    whole = digests(x, y)
    assert whole == [*digests(x[:2], y[:2]), *digests(x[2:], y[2:])] == digests(x.mT.contiguous().mT, y)
    assert len({*whole}) == 6
    assert {len(one) for one in whole} == {DIGEST}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.zeros(1, 4), torch.zeros(1, 5)),
        (torch.zeros(1, 4), torch.zeros(1, 2, 2)),
        (torch.zeros(1, 4), torch.zeros(1, 4, dtype=torch.float64)),
        (torch.zeros(1, 4), torch.zeros(1, 4, dtype=torch.int32)),
        (torch.zeros(1, 4), -torch.zeros(1, 4)),
        (torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0]])),  # zeros of real numbers are values
        (torch.tensor([[1, 0]]), torch.tensor([[1, 0]], dtype=torch.int32)),
        (torch.tensor([[0, 1]]), torch.tensor([[1]])),  # padding lies at the end
        (torch.tensor([[5, 6, 1, 1]]), torch.tensor([[5, 6]])),  # padded with ones: not recognized
        (torch.tensor([[[1], [0]]]), torch.tensor([[[1]]])),
    ],
)
def test_other_samples_are_other_samples(one, other) -> None:
    assert digests(one) != digests(other)
    assert digests(one) == digests(one.clone())


def test_padding_with_zeros_does_not_count() -> None:
    ids, mask = (
        torch.tensor([[7, 0, 9, 0, 0], [3, 0, 0, 0, 0], [0, 0, 0, 0, 0]]),
        torch.tensor([[True] * 3 + [False] * 2] * 3),
    )
    assert digests(ids, mask) == digests(ids[:, :3], mask[:, :3]) == digests(torch.cat([ids, 0 * ids], 1), mask)
    assert len({*digests(ids)}) == 3
    assert digests(ids[1:2]) == digests(torch.tensor([[3]]))
    assert digests(ids[2:]) == digests(torch.zeros(1, 1, dtype=torch.int64)) == digests(ids[2:, :0])


def test_of_one_length_no_two_sequences_are_the_same() -> None:
    every = torch.cartesian_prod(*[torch.arange(3)] * 4)
    assert len({*digests(every)}) == 81


def test_other_inputs_are_other_samples_where_their_bytes_in_a_row_are_the_same() -> None:
    a, b = torch.tensor([[1, 2]]), torch.tensor([[3]])
    assert digests(a, b) != digests(torch.tensor([[1]]), torch.tensor([[2, 3]]))
    assert digests(a, b) != digests(b, a)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.bool, torch.complex64, torch.uint8])
def test_any_dtype(dtype) -> None:
    x = (torch.arange(12).reshape(4, 3) % 5).to(dtype)
    assert digests(x)[1:3] == digests(x[1:3])


def test_nothing_has_no_samples() -> None:
    assert digests() == digests(torch.zeros(0, 3)) == digests(torch.zeros(0, 3, dtype=torch.int64)) == []
    assert len(digests(torch.zeros(2, 0))) == len(digests(torch.zeros(2))) == 2


def test_the_overlap_counts_calibration_samples_as_often_as_they_came() -> None:
    a, b, c = (bytes([n]) * DIGEST for n in range(3))
    assert overlap_of(a + b + b + c, b + c) == Overlap(calibrated=4, scored_too=3)
    assert overlap_of(a, b) == Overlap(calibrated=1, scored_too=0)
    assert overlap_of(None, a) is overlap_of(a, None) is None


def test_the_overlap_in_words() -> None:
    ending = "among the scored ones: the score flatters the network; keep them apart"
    assert str(Overlap(calibrated=48, scored_too=12)) == f"12 of the 48 calibration samples are {ending}"
    assert str(Overlap(calibrated=48, scored_too=0)) == "none of the 48 calibration samples is among the scored ones"
    assert str(Overlap(calibrated=48, scored_too=1)) == f"1 of the 48 calibration samples is {ending}"


# ---- what a call reads


class Pair(nn.Module):
    """Two inputs, and a third that is not read where it is not captured."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(self, a, b, scale=None):
        return self.head(a + b["more"][0]) * (1 if scale is None else scale)


def pair(number):
    return torch.randn(number, 4), {"more": (torch.randn(number, 4),)}


def test_a_call_is_read_alike_by_position_and_by_name_and_without_what_was_not_captured() -> None:
    model, (a, b) = Pair().eval(), pair(3)
    reading = Reading.of(octavo.capture(model, (a, b)), model)
    wanted = reading.digests((a, b), {})
    assert len({*wanted}) == 3
    assert reading.digests((), {"b": b, "a": a}) == wanted
    assert reading.digests((a,), {"b": {"more": [b["more"][0]]}, "scale": torch.ones(3, 1)}) == wanted
    assert reading.digests((b["more"][0], {"more": (a,)}), {}) != wanted


def test_inputs_of_any_number() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 2)

        def forward(self, *inputs):
            return self.head(inputs[0] + inputs[1])

    x, y = torch.randn(3, 4), torch.randn(3, 4)
    reading = Reading.of(octavo.capture(Sum().eval(), (x, y)), Sum())
    assert reading.digests((x, y), {}) != reading.digests((y, x), {})
    assert reading.digests((x, y, x), {}) == reading.digests((x, y), {})


def test_where_no_axis_counts_samples_a_call_is_one() -> None:
    model = nn.Linear(4, 2).eval()
    reading = Reading.of(octavo.capture(model, torch.randn(3, 4), dynamic_axes=()), model)
    x = torch.randn(3, 4)
    assert len(reading.digests((x,), {})) == 1
    assert reading.digests((x,), {}) != reading.digests((x[:2],), {})


# ---- the hook


def watched(model, example):
    watch = Watch(Reading.of(octavo.capture(model, example), model))
    watch.on(model)
    return model, watch


@pytest.fixture
def linear():
    return watched(nn.Linear(4, 2).eval(), torch.randn(3, 4))


def test_what_was_never_called_is_unknown(linear) -> None:
    assert linear[1].digests is None


def test_each_sample_is_kept_once_whatever_the_batches(linear) -> None:
    network, watch = linear
    x = torch.randn(5, 4)
    for batch in (x[:2], x[2:], x):
        assert torch.equal(network(batch), nn.functional.linear(batch, network.weight, network.bias))
    assert len(watch.digests) == 5 * DIGEST
    assert overlap_of(b"".join(digests_of_samples([("['input']", x[3:])])), watch.digests).scored_too == 2


def test_a_call_that_cannot_be_read_makes_all_unknown_and_fails_as_without(linear) -> None:
    network, watch = linear
    network(torch.randn(2, 4))
    with pytest.raises(TypeError, match="unexpected keyword argument 'x'"):
        network(x=torch.randn(2, 4))
    assert watch.digests is None


def test_copies_and_pickles_of_a_watched_network_run(linear) -> None:
    network, watch = linear
    x = torch.randn(2, 4)
    copy.deepcopy(network)(x)
    assert len(watch.digests) == 2 * DIGEST  # a copy adds to the same
    assert torch.equal(pickle.loads(pickle.dumps(network))(x), network(x))


@pytest.mark.parametrize(
    "compiled",
    [
        lambda network, x: torch.compile(network, backend="eager", fullgraph=True),
        lambda network, x: torch.export.export(network, (x,)).module(),
        lambda network, x: torch.func.vmap(network),
    ],
)
def test_what_is_compiled_works_and_is_unknown(linear, compiled) -> None:
    network, watch = linear
    x = torch.randn(3, 4)
    assert torch.allclose(compiled(network, x)(x), nn.functional.linear(x, network.weight, network.bias))
    assert watch.digests is None


@pytest.mark.filterwarnings("ignore:.torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize(
    "compiled",
    [
        lambda network, x: torch.jit.script(network),
        lambda network, x: torch.jit.script(nn.Sequential(network)),
        lambda network, x: torch.jit.script(copy.deepcopy(network)),
        lambda network, x: torch.jit.trace(network, x),
        lambda network, x: torch.jit.trace(nn.Sequential(network), x),
        lambda network, x: torch.compile(network, backend="eager", fullgraph=True),
        lambda network, x: torch.export.export(network, (x,)).module(),
    ],
)
def test_what_is_called_before_it_is_compiled_is_not_all_of_it(linear, compiled) -> None:
    network, watch = linear
    x, other = torch.randn(3, 4), torch.randn(3, 4)
    network(other)  # to warm up, say
    assert torch.allclose(compiled(network, other)(x), nn.functional.linear(x, network.weight, network.bias))
    assert watch.digests is None


@pytest.mark.filterwarnings("ignore:.torch.jit.*:DeprecationWarning")
def test_what_a_network_has_for_torchscript_in_its_place_still_stands_there() -> None:
    class Prepared(nn.Linear):
        def __prepare_scriptable__(self):
            return nn.Identity()

    x = torch.randn(3, 4)
    network, watch = watched(Prepared(4, 2).eval(), x)
    assert torch.equal(torch.jit.script(network)(x), x)
    assert watch.digests is None


def test_a_network_that_is_watched_no_more_is_as_it_was() -> None:
    network = nn.Linear(4, 2).eval()
    network.register_forward_pre_hook(print, with_kwargs=True)
    before = {name: copy.copy(value) for name, value in vars(network).items()}
    watch = Watch(Reading.of(octavo.capture(nn.Linear(4, 2), torch.randn(3, 4)), network))
    watch.on(network)
    assert vars(network) != before
    watch.off(network)
    watch.off(network)
    assert vars(network) == before


def test_batches_pass_through_unchanged_and_keep_their_number(linear) -> None:
    graph = octavo.capture(linear[0], torch.randn(3, 4))
    reading = Reading.of(graph, linear[0])
    batches = [(torch.randn(2, 4), torch.zeros(2)), (torch.randn(3, 4), torch.zeros(3))]
    found = noted(reading, graph, batches)
    assert type(found) is NotedSized
    assert len(found) == 2
    for _ in range(2):  # read again, the samples are not more
        assert [one is batch for one, batch in zip(found, batches, strict=True)] == [True, True]
        assert found.digests == b"".join(one for batch, _ in batches for one in reading.digests((batch,), {}))
    assert type(noted(reading, graph, iter(batches))) is Noted
    broken = noted(reading, graph, ["text", batches[0]])
    assert list(broken) == ["text", batches[0]]
    assert broken.digests is None


# ---- the whole road


@pytest.fixture
def case():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    inputs = torch.randn(600, 8)
    targets = model(inputs).argmax(1)

    def evaluate(network):
        return torch.cat([network(some).argmax(1) for some in inputs.split(70)]) == targets

    return {"model": model, "evaluate": evaluate, "max_drop": "10%"}, inputs


def test_calibration_samples_among_the_scored_ones_are_counted(case, tmp_path) -> None:
    arguments, inputs = case
    batches = [torch.cat([torch.randn(20, 8), inputs[:5]]), torch.cat([inputs[590:597], torch.randn(16, 8)])]
    result = octavo.quantize(**arguments, calibration=batches, **FAST, out=tmp_path)
    assert result.overlap == Overlap(calibrated=48, scored_too=12)
    sentence = (
        "12 of the 48 calibration samples are among the scored ones: the score flatters the network; keep them apart."
    )
    assert sentence in result.summary
    assert json.loads((tmp_path / "result.json").read_text())["overlap"] == {"calibrated": 48, "scored_too": 12}
    again = octavo.quantize(**arguments, calibration=batches, **FAST, out=tmp_path)
    assert again.overlap == result.overlap
    with Study(tmp_path) as study:
        study._execute("DELETE FROM blobs WHERE name LIKE 'scored-%'")  # as a study of before has none
    unknown = octavo.quantize(**arguments, calibration=batches, **FAST, out=tmp_path)
    assert (unknown.overlap, unknown.record()["overlap"]) == (None, None)
    assert "calibration samples" not in unknown.summary


def test_samples_kept_apart_are_not_mentioned(case) -> None:
    arguments, _ = case
    model = arguments["model"]
    result = octavo.quantize(**arguments, calibration=[torch.randn(20, 8)], **FAST)
    assert result.overlap == Overlap(calibrated=20, scored_too=0)
    assert "calibration samples" not in result.summary
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.filterwarnings("ignore:.torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("compiled", [lambda network: torch.compile(network, backend="eager"), torch.jit.script])
def test_an_evaluate_that_compiles_the_float_network_is_unknown(case, compiled) -> None:
    arguments, inputs = case
    inner = arguments["evaluate"]

    def evaluate(network):
        return inner(compiled(network) if isinstance(network, nn.Sequential) else network)

    result = octavo.quantize(**arguments | {"evaluate": evaluate}, calibration=[inputs[:9]], **FAST)
    assert result.overlap is None
