"""Bad inputs, walked through every public function: each is one error of ours that names it, never somebody else's."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bad_calls
import octavo
from bad_checks import gate
from bad_numbers import numbers, recovery, road
from bad_values import Case, Kit, cases, table
from octavo.engines import available, target_for


class Tiny(nn.Module):
    """One convolution and one linear."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv1d(channels, 6, 3, padding=1), nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.conv(x).relu().mean(2))


def kit_in(folder: Path) -> Kit:
    """A tiny network, all that is made of it, and another."""
    found = {}
    for name, channels in (("own", 4), ("other", 3)):
        model, example = Tiny(channels).eval(), torch.randn(2, channels, 8)
        if name == "other":
            model = nn.Sequential(model, nn.Linear(5, 4))
        graph = octavo.capture(model, example)
        plan = octavo.make_plan(graph, target=target_for("openvino"))
        stats = octavo.observe(plan, [example])
        found[name] = (model, example, graph, plan, stats, octavo.choose_params(plan, stats))
    model, example, graph, plan, stats, params = found["own"]
    octavo.save(params, folder / "net.octavo", engine="reference")
    other_stats = found["other"][4]
    return Kit(model=model, example=example, graph=graph, plan=plan, stats=stats, params=params,
               other_stats=other_stats, folder=folder)  # fmt: skip


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    torch.manual_seed(0)
    return kit_in(tmp_path_factory.mktemp("bad"))


def outcome(case: Case) -> str:
    """ "good", "refused", "unnamed" for an error that does not say which input it is about, or what was raised."""
    try:
        case.call()
    except octavo.QuantizationError as error:
        return "refused" if any(word in str(error) for word in case.named) else f"unnamed: {error}"
    except Exception as error:  # the very thing that is looked for
        return f"foreign {type(error).__name__}: {str(error)[:150]}"
    return "good"


def walk(found: dict[str, str]) -> None:
    """Print how many there were of which kind; fail with those that are neither good nor refused."""
    kinds = Counter(result.split(":")[0] for result in found.values())
    print(f"{len(found)} bad inputs: {dict(kinds)}")
    wrong = [f"{case} → {result}" for case, result in found.items() if result not in ("good", "refused")]
    assert not wrong, "\n".join(wrong)


TABLES = {"functions": table, "recovery": recovery, "numbers": numbers, "the whole road": road, "the gate": gate}


@pytest.mark.parametrize("rows", TABLES.values(), ids=TABLES)
def test_every_bad_argument_is_one_error_that_names_it(kit, rows):
    found = {str(case): outcome(case) for case in cases(rows(kit))}
    assert len(found) > 100
    walk(found)


@pytest.fixture(scope="module")
def networks(kit: Kit) -> dict[str, Any]:
    """The network on every engine, and all else that is called like it."""
    compiled = {engine: octavo.compile(kit.params, engine=engine) for engine in available()}
    simulated, training = octavo.simulate(kit.params), octavo.trainable(kit.params)
    return {**compiled, "simulation": simulated, "training": training, "graph": kit.graph}


@pytest.mark.filterwarnings(
    "ignore:Sparse CSR:UserWarning", "ignore:The PyTorch API of nested", "ignore:torch.quantize_per"
)
def test_every_bad_call_is_one_error_that_names_the_input(kit, networks):
    found = {str(case): outcome(case) for case in bad_calls.cases(networks, kit.example)}
    assert len(found) > 200
    walk(found)


def test_odd_calls_that_are_right(kit, networks):
    for name, network in networks.items():
        for odd, x in bad_calls.right(kit.example).items():
            plain = x.detach().contiguous().clone()
            assert torch.equal(network(x), network(plain)), f"{name}, {odd}"


def test_a_batch_of_nothing(kit, networks):
    for name, network in networks.items():
        assert network(kit.example[:0]).shape == (0, 5), name


def test_every_bad_score_is_one_error(kit):
    walk({str(case): outcome(case) for case in bad_calls.scores(kit.model, kit.example)})
