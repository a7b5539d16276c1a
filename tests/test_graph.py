import copy
import logging
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from octavo.errors import QuantizationError
from octavo.network.export import export, private_copy
from octavo.network.graph import PASSES, Graph, call_arguments, capture, check_graph, clone


def seen_in(caught: pytest.ExceptionInfo[QuantizationError]) -> str:
    return str(caught.value)


class Mixed(nn.Module):
    """Optional arguments, nested inputs, and outputs of every kind."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x, y=None, *, scale=1.0, nested=None):
        r = self.a(x) * scale
        if y is not None:
            r = r + self.a(y)
        if nested is not None:
            r = r + nested["p"] + nested["q"]["r"]
        return {"r": r, "several": (self.b(r), [r.sum(), x, 3, None])}


INPUTS = {
    "tensor": lambda n: torch.randn(n, 8),
    "tuple": lambda n: (torch.randn(n, 8), torch.randn(n, 8)),
    "list": lambda n: [torch.randn(n, 8), torch.randn(n, 8)],
    "tuple with None": lambda n: (torch.randn(n, 8), None),
    "keywords": lambda n: {"x": torch.randn(n, 8), "scale": 2.5},
    "keywords in another order": lambda n: {"y": torch.randn(n, 8), "x": torch.randn(n, 8)},
    "nested": lambda n: {"x": torch.randn(n, 8), "nested": {"p": torch.randn(n, 8), "q": {"r": torch.randn(n, 8)}}},
}


@pytest.mark.parametrize("form", INPUTS)
def test_inputs_and_outputs_keep_their_form_for_any_batch(form, assert_same) -> None:
    model, make = Mixed(), INPUTS[form]
    graph = capture(model, make(1))
    assert_same(model, graph, make(1), make(2), make(7))


def test_output_structure_is_the_users() -> None:
    result = capture(Mixed(), torch.randn(2, 8))(torch.randn(3, 8))
    assert list(result) == ["r", "several"]
    assert isinstance(result["several"], tuple)
    assert result["several"][1][2:] == [3, None]


def test_one_input_that_is_a_dict_goes_in_a_tuple(assert_same) -> None:
    class OneDict(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(8, 8)

        def forward(self, batch):
            return self.a(batch["x"]) + batch["y"]

    model = OneDict()
    graph = capture(model, ({"x": torch.randn(1, 8), "y": torch.randn(1, 8)},))
    assert_same(model, graph, ({"x": torch.randn(5, 8), "y": torch.randn(5, 8)},))


def test_star_arguments(assert_same) -> None:
    class Star(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(8, 8)

        def forward(self, first, *others, last):
            return self.a(first) + others[0] * others[1] - last

    def batch(n):
        return torch.randn(n, 8)

    class Positional(Star):
        def forward(self, *inputs):
            return super().forward(*inputs[:3], last=inputs[3])

    model = Positional()
    graph = capture(model, tuple(batch(1) for _ in range(4)))
    assert_same(model, graph, tuple(batch(5) for _ in range(4)))


def test_one_tensor_given_for_two_inputs_does_not_make_them_one(network, assert_same) -> None:
    x = torch.randn(2, 4)
    model = network(lambda s, a, b: s.a(a) - 2 * b, a=nn.Linear(4, 4))
    graph = capture(model, (x, x))
    assert_same(model, graph, (torch.randn(3, 4), torch.randn(3, 4)))


def test_named_tuple_outputs(assert_same) -> None:
    class Pair(NamedTuple):
        first: torch.Tensor
        second: torch.Tensor

    class Two(nn.Module):
        def forward(self, x):
            return Pair(x + 1, x * 2)

    graph = capture(Two(), torch.randn(2, 3))
    assert isinstance(graph(torch.randn(4, 3)), Pair)


def test_call_arguments() -> None:
    assert call_arguments({"x": 1}) == ((), {"x": 1})
    assert call_arguments((1, 2)) == ((1, 2), {})
    assert call_arguments([1, 2]) == ((1, 2), {})
    assert call_arguments(5) == ((5,), {})


def test_dynamic_axes_batch_and_sequence(network, assert_same) -> None:
    model = network(lambda s, x: s.layer(x), layer=nn.TransformerEncoderLayer(16, 4, 32, batch_first=True))
    graph = capture(model, torch.randn(1, 1, 16), dynamic_axes=(0, 1))
    assert graph.dynamic_axes == (0, 1)
    assert_same(model, graph, torch.randn(1, 7, 16), torch.randn(7, 1, 16), torch.randn(2, 3, 16))


def test_no_dynamic_axes_allows_hard_coded_sizes(network, assert_same) -> None:
    model = network(lambda s, x: s.a(x.view(2, 2, 4)), a=nn.Linear(4, 3))
    graph = capture(model, torch.randn(4, 4), dynamic_axes=())
    assert_same(model, graph, torch.randn(4, 4))


def test_hard_coded_batch_raises(network) -> None:
    model = network(lambda s, x: s.a(x.view(2, 2, 4)), a=nn.Linear(4, 3))
    with pytest.raises(QuantizationError) as caught:
        capture(model, torch.randn(4, 4))
    assert "axis 0 of the inputs dynamic" in seen_in(caught)
    assert "works for size 4 only" in seen_in(caught)
    assert "dynamic_axes=()" in seen_in(caught)


@pytest.mark.parametrize(
    "forward",
    [lambda s, x: torch.stack([s.a(row) for row in x]), lambda s, x: s.a(x) + s.a.bias.expand(len(x), -1)],
    ids=["loop", "len(x)"],
)
def test_python_numbers_of_the_batch_raise(forward, network) -> None:
    model = network(forward, a=nn.Linear(4, 3))
    with pytest.raises(QuantizationError, match="works for size 3 only"):
        capture(model, torch.randn(3, 4))


def test_a_fixed_mask_beside_a_dynamic_batch_is_fine(network, assert_same) -> None:
    model = network(lambda s, x, mask: s.a(x) @ s.a(x).mT + mask, a=nn.Linear(4, 4))
    graph = capture(model, (torch.randn(2, 5, 4), torch.randn(5, 5)))
    mask = torch.randn(5, 5)
    assert_same(model, graph, (torch.randn(7, 5, 4), mask), (torch.randn(1, 5, 4), mask))


def test_training_mode_and_storage_are_untouched(basic_block) -> None:
    model = nn.Sequential(basic_block(), nn.Dropout(), basic_block(downsample=True)).train()
    before = copy.deepcopy(model.state_dict())
    addresses = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    graph = capture(model, torch.randn(1, 4, 8, 8))
    with torch.no_grad():
        for parameter in graph.module.parameters():
            parameter.fill_(7.0)
    assert all(module.training for module in model.modules())
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == addresses
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_captured_in_evaluation_mode_from_training_mode(basic_block, assert_same) -> None:
    model = nn.Sequential(basic_block(), nn.Dropout(0.9)).train()
    graph = capture(model, torch.randn(2, 4, 8, 8))
    assert_same(model, graph, torch.randn(3, 4, 8, 8))


def test_clone_shares_nothing() -> None:
    graph = capture(nn.Linear(3, 4), torch.randn(2, 3))
    other = clone(graph)
    with torch.no_grad():
        other.module.weight.zero_()
    assert graph.module.weight.abs().sum() > 0
    assert other.example_args is graph.example_args


def test_parameter_names_are_the_users(basic_block) -> None:
    names = {name for name, _ in capture(basic_block(), torch.randn(2, 4, 8, 8)).module.named_parameters()}
    assert names == {"conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"}


def test_inplace_operations_and_functional_calls(network, trained, assert_same) -> None:
    def forward(s, x):
        y = s.norm(s.conv(x))
        y = F.relu(y, inplace=True).mean((2, 3))
        y += 1
        y[:, 0] += 2
        y[:, 1] = 0
        y.clamp_(max=3)
        return s.out(F.dropout(y, 0.1, s.training))

    model = network(forward, conv=nn.Conv2d(3, 8, 3), norm=trained(nn.BatchNorm2d(8)), out=nn.Linear(8, 8))
    graph = capture(model, torch.randn(1, 3, 6, 6))
    assert_same(model, graph, torch.randn(1, 3, 6, 6), torch.randn(7, 3, 6, 6))


def test_inputs_written_to_stay_as_they_are(network) -> None:
    def forward(s, x):
        x += 1
        return s.a(x)

    model = network(forward, a=nn.Linear(4, 4)).eval()
    graph = capture(model, torch.randn(2, 4))
    x = torch.randn(3, 4)
    kept = x.clone()
    out = graph(x)
    assert torch.equal(x, kept)
    torch.testing.assert_close(out, model(kept))


def test_a_buffer_written_to_raises(network) -> None:
    def forward(s, x):
        s.calls.add_(1)
        return s.a(x) + s.calls

    model = network(forward, a=nn.Linear(4, 4))
    model.register_buffer("calls", torch.zeros(()))
    with pytest.raises(QuantizationError, match=r"^calls: .* writes to this buffer in evaluation mode"):
        capture(model, torch.randn(2, 4))


class Choosy(nn.Module):
    def forward(self, x):
        if x.sum() > 0:  # the line to be named
            return x
        return -x


class Host(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.choosy = nn.Linear(4, 4), Choosy()

    def forward(self, x):
        return self.choosy(self.linear(x))


def test_what_cannot_be_exported_names_the_line_and_suggests_a_submodule(capfd, caplog) -> None:
    with pytest.raises(QuantizationError) as caught:
        capture(Host(), torch.randn(2, 4))
    message = seen_in(caught)
    line = Choosy.forward.__code__.co_firstlineno + 1
    assert f"test_graph.py:{line}, in forward: `if x.sum() > 0:" in message
    assert "capture Host" in message
    assert "quantize a submodule" in message
    assert "Traceback" not in message
    printed = capfd.readouterr()
    assert "OCTAVO_SEED" not in printed.err
    assert printed.err == ""
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_the_submodule_of_what_cannot_be_exported_can_be_captured(assert_same) -> None:
    host = Host()
    assert_same(host.linear, capture(host.linear, torch.randn(2, 4)), torch.randn(3, 4))


def test_log_levels_come_back_after_a_failure() -> None:
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = logger.level
    with pytest.raises(QuantizationError):
        capture(Host(), torch.randn(2, 4))
    assert logger.level == level


def test_wrong_input_width_is_quiet_too(capfd) -> None:
    with pytest.raises(QuantizationError, match="reduction dim"):
        capture(nn.Linear(3, 3), torch.randn(2, 4))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("example", [torch.zeros(2, 4), {"x": torch.zeros(2, 4), "z": torch.zeros(2, 4)}])
def test_an_example_that_does_not_fit_raises(example, network) -> None:
    class Two(nn.Module):
        def forward(self, x, y):
            return x + y

    with pytest.raises(QuantizationError) as caught:
        capture(Two(), example)
    assert "capture Two.forward(x, y)" in seen_in(caught)
    assert "missing a required argument: 'y'" in seen_in(caught)


def test_inputs_under_two_stars_raise() -> None:
    class Loose(nn.Module):
        def forward(self, **inputs):
            return inputs["x"]

    with pytest.raises(QuantizationError, match=r"\['x'\] fall under \*\*inputs; name the inputs"):
        capture(Loose(), {"x": torch.zeros(2, 4)})


def test_lazy_layers_raise_until_they_have_seen_data(assert_same) -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.LazyLinear(3))
    with pytest.raises(QuantizationError, match=r"^0\.weight: .* no shape yet; call the model once"):
        capture(model, torch.randn(2, 5))
    model(torch.randn(2, 5))
    assert_same(model, capture(model, torch.randn(2, 5)), torch.randn(7, 5))


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated")  # since torch 2.14; here it is what is refused
@pytest.mark.filterwarnings("ignore:.torch.jit.*:DeprecationWarning")
def test_torchscript_raises() -> None:
    with pytest.raises(QuantizationError, match=r"torch\.export reads Python modules only"):
        capture(torch.jit.script(nn.Linear(3, 3)), torch.randn(2, 3))


def test_a_module_that_was_run_backward_can_be_captured(assert_same) -> None:
    with pytest.warns(FutureWarning, match="weight_norm"):
        model = nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(4, 4)))
    model(torch.randn(2, 4)).sum().backward()
    assert_same(model, capture(model, torch.randn(2, 4)), torch.randn(3, 4))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_transformer_layers_stay_open_without_gradients(context) -> None:
    with context():
        graph = capture(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(1, 3, 8))
    names = [str(node.target) for node in graph.module.graph.nodes]
    assert names.count("aten.matmul.default") == 2
    assert names.count("aten.linear.default") == 4
    assert torch.backends.mha.get_fastpath_enabled()


def broken(edit) -> Graph:
    graph = capture(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), torch.randn(2, 3))
    edit(graph.module)
    return graph


def node_named(module, name):
    return next(node for node in module.graph.nodes if node.name == name)


def test_the_check_rejects_in_place_operations() -> None:
    def edit(module):
        node_named(module, "relu").target = torch.ops.aten.relu_.default

    with pytest.raises(QuantizationError, match=r"^relu: .*relu_\.default, which writes to its inputs"):
        check_graph(broken(edit))


def test_the_check_rejects_dropout() -> None:
    def edit(module):
        node = node_named(module, "relu")
        node.target, node.args = torch.ops.aten.dropout.default, (*node.args, 0.5, True)

    with pytest.raises(QuantizationError, match="differs in training"):
        check_graph(broken(edit))


def test_the_check_rejects_batch_statistics() -> None:
    def edit(module):
        node = node_named(module, "relu")
        node.target = torch.ops.aten.batch_norm.default
        node.args = (node.args[0], None, None, None, None, True, 0.1, 1e-5, False)

    with pytest.raises(QuantizationError, match="differs in training"):
        check_graph(broken(edit))


def test_the_check_rejects_submodule_calls() -> None:
    def edit(module):
        module.add_module("extra", nn.ReLU())
        node = node_named(module, "relu")
        with module.graph.inserting_after(node):
            call = module.graph.call_module("extra", (node,))
        node.replace_all_uses_with(call, delete_user_cb=lambda user: user is not call)

    with pytest.raises(QuantizationError, match="holds a call_module of extra"):
        check_graph(broken(edit))


def test_the_check_rejects_unknown_shapes() -> None:
    with pytest.raises(QuantizationError, match="does not know the shape"):
        check_graph(broken(lambda module: node_named(module, "relu").meta.pop("val")))


def test_the_check_rejects_names_that_do_not_exist() -> None:
    def edit(module):
        del module.get_submodule("0")._parameters["weight"]

    with pytest.raises(QuantizationError, match=r"0\.weight references nonexistent attribute"):
        check_graph(broken(edit))


def test_every_pass_leaves_a_graph_that_verifies_and_computes_the_same(
    network, basic_block, trained, assert_same
) -> None:
    models = {
        "residual": (basic_block(), torch.randn(2, 4, 6, 6)),
        "transformer": (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(2, 3, 8)),
        "recurrent": (nn.GRU(4, 5, 2, batch_first=True), torch.randn(2, 2, 4)),
        "norm": (
            nn.Sequential(
                nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 4, 3)), trained(nn.BatchNorm1d(4)), nn.Dropout()
            ),
            torch.randn(2, 4, 6),
        ),
        "einsum": (
            network(
                lambda s, x: torch.einsum("bij,hjk->bhik", x.add_(1).double(), s.a.weight.view(2, 2, 4).double()),
                a=nn.Linear(4, 4),
            ),
            torch.randn(2, 3, 2),
        ),
    }
    for model, example in models.values():
        module = export(private_copy(model), (example,), {}, (0,))
        model.eval()
        for run in PASSES.values():
            run(module)
            check_graph(Graph(module=module, example_args=(example,), example_kwargs={}, dynamic_axes=(0,)))
            x = torch.randn(5, *example.shape[1:])
            wanted, found = model(x.clone()), module(x.clone())
            wanted, found = (v[0] if isinstance(v, tuple) else v for v in (wanted, found))
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_pass_runs_where_one_of_its_operators_is() -> None:
    def ran(model, example) -> set[str]:
        """The passes that rewrite what is exported of `model`."""
        module, found = export(private_copy(model.eval()), (example,), {}, (0,)), set()
        for name, one in PASSES.items():
            replace(one, rewrite=lambda module, name=name, one=one: found.add(name) or one.rewrite(module))(module)
        return found

    x = torch.randn(2, 3, 8)
    assert ran(nn.ReLU(), x) == set()
    assert ran(nn.Sequential(nn.Linear(8, 4), nn.ReLU()), x) == {"fold_constant_weights"}
    assert ran(nn.GRU(8, 4, 2, batch_first=True), x) >= {"split_recurrent", "fold_constant_weights"}
    assert "to_matmul" in ran(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), x)
    assert "fold_batch_norm" in ran(nn.Sequential(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4)), x)


def test_what_nothing_reads_is_gone_also_where_no_pass_runs(network) -> None:
    graph = capture(network(lambda self, x: (self.a(x), x.relu())[1], a=nn.Linear(8, 4)), torch.randn(2, 8))
    assert [node.op for node in graph.module.graph.nodes] == ["placeholder", "call_function", "output"]
    assert not list(graph.module.parameters())
