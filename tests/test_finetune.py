"""Training with rounding: its gradient, its schedule, what it leaves behind, and that nothing of it is lost."""

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from octavo.errors import QuantizationError
from octavo.network.calibrate import choose_params, observe
from octavo.network.graph import capture
from octavo.network.placement import make_plan
from octavo.network.rule import Rule
from octavo.network.simulate import simulate
from octavo.recovery.finetune import finetune, fit
from octavo.recovery.objective import distance, divergence
from octavo.recovery.schedule import Schedule, paper_schedule
from octavo.recovery.trainable import LearnedRange, trainable, trained

THREE_BITS = [Rule("*", bits=3)]


def classifier():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def labelled(batches=8, size=16):
    xs = torch.randn(batches, size, 6)
    return [(x, (x[:, :4] + x[:, 1:5]).argmax(1)) for x in xs]


def cross_entropy(outputs, batch):
    return F.cross_entropy(outputs, batch[1])


def parts(model, batches, rules=THREE_BITS, **capturing):
    graph = capture(model, batches[0][:1] if isinstance(batches[0], tuple) else batches[0], **capturing)
    plan = make_plan(graph, rules, target="paper")
    return choose_params(plan, observe(plan, batches), "max")


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_gradient_is_one_inside_the_range_and_zero_outside(network) -> None:
    net = parts(network(lambda self, x: self.layer(x), layer=nn.Linear(3, 1, bias=False)), [torch.ones(2, 3)])
    graph = net.graph
    module = trainable(net)  # inputs on 7 integers, from −1 to 1
    x = torch.tensor([[0.4, 1.3, -1.2], [-0.9, 0.0, 0.99]], requires_grad=True)
    module(x).sum().backward()
    weight = module.quantizers.get_submodule(next(n for n, _ in module.quantizers.named_children() if "weight" in n))(
        graph.module.layer.weight
    )
    inside = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    assert torch.equal(x.grad, inside * weight)


@pytest.mark.parametrize("ranges", ["fixed", "learned"])
def test_gradient_is_that_of_the_network_that_clips_and_does_not_round(ranges) -> None:
    batches = [torch.randn(64, 6)]
    net = parts(classifier(), batches)
    x = (batches[0] * 1.5).requires_grad_()
    module = trainable(net, ranges=ranges, weights="fixed")
    module(x).sum().backward()
    scale, limit = net.values["0.input"].scale, 3.5  # rounding keeps what is less than half a step outside
    outside = (x / scale).abs() > limit
    assert outside.any()
    assert bool((x.grad[outside] == 0).all())
    assert bool((x.grad[~outside].abs() > 0).float().mean() > 0.5)


def test_schedule_is_the_papers() -> None:
    schedule = paper_schedule(100, 0.1)
    assert (schedule.epochs, schedule.learning_rate) == (10, pytest.approx(1e-3))
    assert schedule.rate(0, 101) == pytest.approx(1e-3)
    assert schedule.rate(50, 101) == pytest.approx((1e-3 + 1e-5) / 2)
    assert schedule.rate(100, 101) == pytest.approx(1e-5)
    assert schedule.rate(0, 1) == pytest.approx(1e-3)
    assert paper_schedule(3, 0.1).epochs == 1


def test_training_recovers_what_three_bits_lost(tmp_path) -> None:
    model, data = classifier(), labelled(16)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(30):
        for batch in data:
            optimizer.zero_grad()
            cross_entropy(model(batch[0]), batch).backward()
            optimizer.step()
    net = parts(model, data)
    graph = net.graph

    def accuracy(network) -> float:
        with torch.no_grad():
            return float(torch.cat([network(x).argmax(1) == y for x, y in data]).double().mean())

    before = state(graph.module), accuracy(simulate(net))
    found = finetune(
        net, train=data, loss=cross_entropy, schedule=Schedule(epochs=8, learning_rate=0.02),
        evaluate=accuracy, progress=False, out=tmp_path,
    )  # fmt: skip
    assert all(torch.equal(tensor, before[0][name]) for name, tensor in graph.module.state_dict().items())
    assert found.history.epochs[0].metric == before[1]
    assert accuracy(simulate(found.net)) == max(epoch.metric for epoch in found.history.epochs)
    assert accuracy(simulate(found.net)) > before[1]
    assert found.net.graph.module.state_dict().keys() == graph.module.state_dict().keys()
    record = json.loads((tmp_path / "last" / "history.json").read_text())
    assert [epoch["number"] for epoch in record] == list(range(9))


def test_trained_network_is_the_one_that_was_trained() -> None:
    data = labelled()
    net = parts(classifier(), data)
    for options in ({}, {"weights": "fixed"}, {"ranges": "learned"}):
        module = trainable(net, **options)
        optimizer = torch.optim.SGD(module.parameters(), 0.1)
        cross_entropy(module(data[0][0]), data[0]).backward()
        optimizer.step()
        with torch.no_grad():
            torch.testing.assert_close(simulate(trained(net, module))(data[1][0]), module(data[1][0]))


def test_learned_ranges_learn(tmp_path) -> None:
    data = labelled()
    net = parts(classifier(), data)
    module = trainable(net, ranges="learned")
    learned = [part for part in module.modules() if isinstance(part, LearnedRange)]
    fit(module, train=data, loss=cross_entropy, schedule=Schedule(epochs=2, learning_rate=0.1), progress=False)
    found = trained(net, module)
    changed = [name for name in net.values if not torch.equal(net.values[name].scale, found.values[name].scale)]
    assert len(learned) == 2
    assert {"0.input", "2.input"} <= set(changed)


def norms(network, trained_norm):
    block = nn.Sequential(
        nn.Conv2d(3, 5, 3, bias=False), trained_norm(nn.BatchNorm2d(5)), nn.ReLU(), nn.Conv2d(5, 2, 1)
    )
    return block.eval()


@pytest.mark.parametrize("kept", ["fold", "keep"])
def test_batch_norm_is_the_same_function_after_training(network, trained, kept) -> None:
    from octavo.recovery.trainable import trained as convert  # noqa: PLC0415 (a fixture has its name)

    batches = [torch.randn(4, 3, 8, 8) for _ in range(3)]
    model = norms(network, trained)
    net = parts(model, batches, rules=[Rule("*", bits=4)], batch_norm=kept)
    module = trainable(net)
    buffers = state(module)
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], 0.05)
    for x in batches:
        module.train()
        optimizer.zero_grad()
        module(x).square().mean().backward()
        optimizer.step()
    module.eval()
    moved = [name for name, tensor in module.named_buffers() if not torch.equal(tensor, buffers[name])]
    assert bool(moved) == (kept == "keep")
    found = convert(net, module)
    assert not any("batch_norm" in str(node.target) for node in found.graph.module.graph.nodes)
    with torch.no_grad():
        x = batches[0]
        torch.testing.assert_close(simulate(found)(x), module(x), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(simulate(found)(x), model(x), atol=1e-3)


def test_live_batch_norm_refuses_weights_that_share_a_scale(network, trained) -> None:
    from octavo.numerics.scheme import Scheme  # noqa: PLC0415
    from octavo.recovery.trainable import trained as convert  # noqa: PLC0415

    batches = [torch.randn(4, 3, 8, 8)]
    rules = [Rule(role="weight", scheme=Scheme()), Rule("*")]
    net = parts(norms(network, trained), batches, rules=rules, batch_norm="keep")
    with pytest.raises(QuantizationError, match=r"0\.weight.*per channel"):
        convert(net, trainable(net))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of torch.compile, about itself
@pytest.mark.parametrize("how", ["plain", "autocast", "checkpointing", "compile"])
def test_any_loop_trains_it(how) -> None:
    data = labelled()
    net = parts(classifier(), data)
    module = trainable(net)
    module.train()
    assert {"0.weight", "0.bias", "2.weight", "2.bias"} <= dict(module.named_parameters()).keys()
    run = module
    if how == "compile":
        run = torch.compile(module)
    elif how == "checkpointing":
        run = lambda x: checkpoint(module, x, use_reentrant=False)  # noqa: E731
    optimizer, losses = torch.optim.AdamW(module.parameters(), 0.01), []
    for _ in range(5):
        for batch in data:
            with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
                loss = cross_entropy(run(batch[0]), batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert sum(losses[-8:]) < sum(losses[:8])


def test_mixed_precision_trains_and_leaves_the_module_in_its_own_precision() -> None:
    data = labelled()
    net = parts(classifier(), data)
    module = trainable(net)
    before = dict(vars(module))
    AcceleratorState._reset_state(reset_partial_state=True)  # one process has one precision
    try:
        accelerator = Accelerator(cpu=True, mixed_precision="bf16")
        schedule = Schedule(epochs=6, learning_rate=0.05)
        seen: list[torch.dtype] = []

        def loss(outputs, batch):
            seen.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32)
            return cross_entropy(outputs, batch)

        history = fit(module, train=data, loss=loss, schedule=schedule, accelerator=accelerator, progress=False)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert set(seen) == {torch.bfloat16}
    assert history.epochs[-1].loss < history.epochs[1].loss
    assert vars(module).keys() == before.keys()
    x = data[0][0]
    with torch.no_grad():
        torch.testing.assert_close(module(x), simulate(trained(net, module))(x))


@pytest.mark.parametrize("distill", [None, divergence])
def test_unlabelled_data_suffices(distill) -> None:
    torch.manual_seed(0)  # with three bits there are starts from which no step of this size leads anywhere better
    data = [x for x, _ in labelled()]
    net = parts(classifier(), data)
    graph = net.graph

    def nearness(network) -> float:
        with torch.no_grad():
            return -float(sum(distance(network(x), graph(x)) for x in data))

    before = nearness(simulate(net))
    schedule = Schedule(epochs=5, learning_rate=0.05)
    found = finetune(net, train=data, distill=distill, schedule=schedule, evaluate=nearness, progress=False)
    assert nearness(simulate(found.net)) > before


def test_killed_run_resumes_to_the_same_weights(tmp_path) -> None:
    data = labelled()
    loader = DataLoader(
        TensorDataset(torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])), 16, shuffle=True
    )
    net = parts(classifier(), data)
    calls = []

    def evaluate(network) -> float:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return float(len(calls))

    options = {"train": loader, "loss": cross_entropy, "schedule": Schedule(epochs=4, learning_rate=0.05)}
    options |= {"progress": False}
    whole = finetune(net, evaluate=lambda network: 0.0, out=tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        finetune(net, evaluate=evaluate, out=tmp_path / "cut", **options)
    torch.manual_seed(1)
    resumed = finetune(net, evaluate=evaluate, out=tmp_path / "cut", **options)
    assert [epoch.loss for epoch in resumed.history.epochs] == [epoch.loss for epoch in whole.history.epochs]
    assert (whole.history.best, resumed.history.best) == (0, 4)
    again = finetune(net, evaluate=evaluate, out=tmp_path / "cut", **options)
    for name, tensor in resumed.net.graph.module.state_dict().items():
        assert torch.equal(tensor, again.net.graph.module.state_dict()[name])


WORKER = """
import sys, torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from accelerate import Accelerator
import octavo
size, out = int(sys.argv[1]), sys.argv[2]
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
x, y = torch.randn(64, 6), torch.randint(4, (64,))
graph = octavo.capture(model, x[:2])
plan = octavo.make_plan(graph, [octavo.Rule("*", bits=4)], target="paper")
net = octavo.choose_params(plan, octavo.observe(plan, [x]), "max")
accelerator = Accelerator(cpu=True)
batches = DataLoader(TensorDataset(x, y), size) if sys.argv[3] == "loader" else [
    (x[i : i + size], y[i : i + size]) for i in range(0, 64, size)]
found = octavo.finetune(
    net, train=batches, loss=lambda outputs, batch: F.cross_entropy(outputs, batch[1]),
    schedule=octavo.Schedule(epochs=3, learning_rate=0.05), accelerator=accelerator, progress=False)
if accelerator.is_main_process:
    torch.save((found.net.graph.module.state_dict(), [e.loss for e in found.history.epochs]), out)
"""


@pytest.mark.parametrize("data", ["loader", pytest.param("list", marks=pytest.mark.slow)])
def test_two_processes_train_as_one_with_the_doubled_batch(tmp_path, data) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    one, two = tmp_path / "one.pt", tmp_path / "two.pt"
    subprocess.run([sys.executable, script, "16", one, data], env=env, check=True, timeout=120)
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*ranks, script, "8", two, data], env=env, check=True, timeout=180)
    (weights, losses), (others, other_losses) = torch.load(one), torch.load(two)
    assert losses[1:] == pytest.approx(other_losses[1:], abs=1e-5)
    for name, tensor in weights.items():
        torch.testing.assert_close(others[name], tensor, rtol=1e-4, atol=1e-5)


def test_refuses_what_cannot_be_trained(tmp_path) -> None:
    data = labelled(2)
    net = parts(classifier(), data)
    schedule = {"schedule": Schedule(epochs=1, learning_rate=0.1), "progress": False}
    with pytest.raises(QuantizationError, match="training data is empty"):
        finetune(net, train=[], loss=cross_entropy, **schedule)
    with pytest.raises(QuantizationError, match="does not know its length"):
        finetune(net, train=iter(data), loss=cross_entropy, **schedule)
    with pytest.raises(QuantizationError, match="no schedule"):
        finetune(net, train=data, loss=cross_entropy)
    with pytest.raises(QuantizationError, match="batch 0 in epoch 1 is nan"):
        finetune(net, train=data, loss=lambda outputs, batch: outputs.sum() * torch.nan, **schedule)
    with pytest.raises(QuantizationError, match="no rounding to train with"):
        fit(classifier(), train=data, loss=cross_entropy, **schedule)
    with pytest.raises(QuantizationError, match="made for the simulation"):
        fit(simulate(net), train=data, loss=cross_entropy, **schedule)


def test_the_users_model_stays_as_it_is() -> None:
    model, data = classifier().train(), labelled(2)
    before = copy.deepcopy(model.state_dict())
    net = parts(model, data)
    finetune(net, train=data, loss=cross_entropy, original_epochs=10, original_lr=1.0, progress=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training


def test_layers_called_twice_and_tied_weights_train(network) -> None:
    layer = nn.Linear(6, 6)
    model = network(
        lambda self, x: F.linear(torch.relu(self.layer(torch.relu(self.layer(x)))), self.layer.weight), layer=layer
    )
    data = [torch.randn(8, 6) for _ in range(3)]
    net = parts(model, data)
    graph = net.graph
    found = finetune(net, train=data, schedule=Schedule(epochs=2, learning_rate=0.01), progress=False)
    assert not torch.equal(found.net.graph.module.layer.weight, graph.module.layer.weight)


def test_checkpoints_stand_in_their_folder(tmp_path: Path) -> None:
    data = labelled(2)
    net = parts(classifier(), data)
    options = {"loss": cross_entropy, "schedule": Schedule(epochs=2, learning_rate=0.01), "progress": False}
    finetune(net, train=data, out=tmp_path, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "last"]
    again = finetune(net, train=data, out=tmp_path, **options)
    assert len(again.history.epochs) == 3


def other_loss(outputs, batch):
    return cross_entropy(outputs, batch) / 2


@pytest.mark.parametrize(
    ("changed", "seen"),
    [
        ({"loss": other_loss}, "functions"),
        ({"schedule": Schedule(epochs=2, learning_rate=0.02)}, "settings"),
        ({"seed": 1}, "settings"),
        ({"train": "fewer"}, "data"),
        ({"ranges": "learned"}, "network"),
        ({"graph": "another"}, "network"),
        ({"params": "others"}, "parameters"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused_and_kept(tmp_path, changed, seen) -> None:
    data = labelled(2)
    net = parts(classifier(), data)
    options = {"loss": cross_entropy, "schedule": Schedule(epochs=2, learning_rate=0.01), "train": data}
    options |= {"progress": False, "out": tmp_path}
    finetune(net, **options)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    if changed.pop("graph", None):
        net = parts(classifier(), data)
    if changed.pop("params", None):
        net = replace(net, values={n: replace(v, scale=v.scale * 2) for n, v in net.values.items()})
    if changed.get("train") == "fewer":
        changed["train"] = data[:1]
    with pytest.raises(
        QuantizationError, match=f"what is kept there was trained with other .*{seen}.*in another folder"
    ):
        finetune(net, **options | changed)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("damage", ["of.json", "history.json", "model.safetensors"])
def test_a_damaged_checkpoint_is_one_error(tmp_path, damage) -> None:
    data = labelled(2)
    net = parts(classifier(), data)
    options = {"schedule": Schedule(epochs=1, learning_rate=0.01), "train": data, "progress": False, "out": tmp_path}
    finetune(net, **options)
    file = tmp_path / "last" / damage
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(QuantizationError, match=r"asked to resume the state of a training, but .*; remove the folder"):
        finetune(net, **options)


class Runs:
    """Data that say they have four batches, and give two."""

    def __len__(self) -> int:
        return 4

    def __iter__(self):
        return iter(labelled(2))


def test_an_epoch_with_fewer_batches_than_it_says_is_an_error() -> None:
    net = parts(classifier(), labelled(2))
    with pytest.raises(QuantizationError, match="gave 2 batches in an epoch, and says that it has 4"):
        finetune(
            net,
            train=Runs(),
            loss=cross_entropy,
            schedule=Schedule(epochs=1, learning_rate=0.1),
            progress=False,
        )
