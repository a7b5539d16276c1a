"""Batch-norm folding, constant weights and identities: the same function from fewer operations."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from octavo.network.edit import layer_of
from octavo.network.graph import capture

CONVOLUTIONS = {
    1: (nn.Conv1d, nn.ConvTranspose1d),
    2: (nn.Conv2d, nn.ConvTranspose2d),
    3: (nn.Conv3d, nn.ConvTranspose3d),
}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def names(graph) -> list[str]:
    return [name for name, _ in graph.module.named_parameters()]


def norms_left(graph) -> int:
    return sum("batch_norm" in str(node.target) for node in graph.module.graph.nodes)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_norm_folds_into_every_convolution(dimensions, affine, trained, network, assert_same) -> None:
    plain, transposed = CONVOLUTIONS[dimensions]

    def pair(layer, bias, groups, **options):
        convolution = layer(4, 6, 3, bias=bias, groups=groups, **options)
        return nn.Sequential(convolution, trained(NORMS[dimensions](6, affine=affine, eps=1e-2)))

    pairs = [pair(plain, bias, groups, dilation=2) for bias in (True, False) for groups in (1, 2)]
    pairs += [pair(transposed, bias, groups, stride=2, output_padding=1) for bias in (True, False) for groups in (1, 2)]
    model = network(lambda s, x: [layer(x) for layer in s.pairs], pairs=nn.ModuleList(pairs))
    graph = capture(model, torch.randn(1, 4, *[6] * dimensions))
    assert norms_left(graph) == 0
    assert sorted(names(graph)) == sorted(f"pairs.{i}.0.{part}" for i in range(8) for part in ("weight", "bias"))
    assert_same(model, graph, torch.randn(1, 4, *[6] * dimensions), torch.randn(3, 4, *[6] * dimensions))


def test_norm_folds_by_the_formula() -> None:
    convolution, norm = nn.Conv1d(1, 1, 1), nn.BatchNorm1d(1, eps=0.0)
    with torch.no_grad():
        for tensor, number in (
            (convolution.weight, 3.0),
            (convolution.bias, 5.0),
            (norm.weight, 2.0),
            (norm.bias, 7.0),
            (norm.running_mean, 1.0),
            (norm.running_var, 16.0),
        ):
            tensor.fill_(number)
    graph = capture(nn.Sequential(convolution, norm), torch.randn(2, 1, 4))
    # w·γ/√σ² = 3·2/4 and (b−μ)·γ/√σ² + β = (5−1)·2/4 + 7
    assert graph.module.get_parameter("0.weight").item() == 1.5
    assert graph.module.get_parameter("0.bias").item() == 9.0


def test_norm_folds_into_a_linear_of_rows_only(trained, assert_same) -> None:
    rows = nn.Sequential(nn.Linear(4, 6, bias=False), trained(nn.BatchNorm1d(6)))
    graph = capture(rows, torch.randn(1, 4))
    assert norms_left(graph) == 0
    assert_same(rows, graph, torch.randn(7, 4))
    sequences = nn.Sequential(nn.Linear(4, 6), trained(nn.BatchNorm1d(5)))  # axis 1 is the sequence
    graph = capture(sequences, torch.randn(1, 5, 4))
    assert norms_left(graph) == 1
    assert_same(sequences, graph, torch.randn(7, 5, 4))


def test_norm_folds_into_a_parametrized_convolution_through_dropout(trained, assert_same) -> None:
    convolution = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3, padding="same"))
    model = nn.Sequential(convolution, nn.Dropout2d(), nn.Identity(), trained(nn.BatchNorm2d(4)))
    graph = capture(model, torch.randn(1, 3, 6, 6))
    assert norms_left(graph) == 0
    assert names(graph) == ["0.weight", "0.bias"]
    assert_same(model, graph, torch.randn(7, 3, 6, 6))


STAYS = {
    "norm before the convolution": (lambda s, x: s.conv(s.norm(x)), 1),
    "two readers of the convolution": (lambda s, x: s.norm(s.conv(x)) + s.conv(x).relu() + 0 * s.conv(x), 1),
    "the weight is read elsewhere": (lambda s, x: (s.norm(s.conv(x)), s.conv.weight.sum()), 1),
    "only the second call is normalized": (lambda s, x: s.norm(s.conv(s.conv(x))), 1),
    "two norms for one layer": (lambda s, x: s.second(s.conv(s.norm(s.conv(x)))), 2),
    "one weight, several biases": (
        lambda s, x: (
            s.norm(F.conv2d(x, s.conv.weight, s.conv.bias)),
            s.norm(F.conv2d(x, s.conv.weight, s.other.bias)),
        ),
        2,
    ),
}


def test_norm_stays_where_folding_would_change_something_else(network, trained, assert_same) -> None:
    check_cases(STAYS, network, trained, assert_same)


def check_cases(cases, network, trained, assert_same) -> None:
    """Capture a network of all cases at once; each has so many norms left, and the same outputs."""
    branches = nn.ModuleList()
    for forward, _ in cases.values():
        layers = {name: nn.Conv2d(3, 3, 3, padding=1) for name in ("conv", "other")}
        branches.append(network(forward, **layers, norm=trained(nn.BatchNorm2d(3)), second=trained(nn.BatchNorm2d(3))))
    model = network(lambda s, x: [branch(x) for branch in s.branches], branches=branches)
    graph = capture(model, torch.randn(1, 3, 5, 5))
    kept = [layer_of(node) for node in graph.module.graph.nodes if "batch_norm" in str(node.target)]
    counted = {case: sum(name.startswith(f"branches.{i}.") for name in kept) for i, case in enumerate(cases)}
    assert counted == {case: left for case, (_, left) in cases.items()}
    assert_same(model, graph, torch.randn(7, 3, 5, 5))


def test_a_read_of_the_convolution_beside_the_norm_keeps_it(network, trained, assert_same) -> None:
    def forward(s, x):
        y = s.conv(x)
        return s.norm(y) + y

    model = network(forward, conv=nn.Conv2d(3, 3, 3), norm=trained(nn.BatchNorm2d(3)))
    graph = capture(model, torch.randn(1, 3, 5, 5))
    assert norms_left(graph) == 1
    assert_same(model, graph, torch.randn(7, 3, 5, 5))


FOLDS = {
    "one norm, two convolutions": lambda s, x: (s.norm(s.conv(x)), s.norm(s.other(x))),
    "one convolution, called twice, normalized each time": lambda s, x: s.norm(s.conv(s.norm(s.conv(x)).relu())),
    "a bias shared with a convolution that is not normalized": lambda s, x: (
        s.norm(s.conv(x)),
        F.conv2d(x, s.other.weight, s.conv.bias),
    ),
    "a bias shared with one that has another norm": lambda s, x: (
        s.norm(s.conv(x)),
        s.second(F.conv2d(x, s.other.weight, s.conv.bias)),
    ),
    "a bias read elsewhere": lambda s, x: s.norm(s.conv(x)) + s.conv.bias[:, None, None],
}


def test_norm_folds_beside_shared_parameters(network, trained, assert_same) -> None:
    check_cases({case: (forward, 0) for case, forward in FOLDS.items()}, network, trained, assert_same)


def test_norms_without_running_statistics_stay(assert_same) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.InstanceNorm2d(4))
    graph = capture(model, torch.randn(1, 3, 6, 6))
    assert names(graph) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert_same(model, graph, torch.randn(7, 3, 6, 6))


def test_double_precision_folds_in_double_precision(trained, assert_same) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), trained(nn.BatchNorm2d(4))).double()
    graph = capture(model, torch.randn(2, 3, 6, 6).double())
    assert_same(model, graph, torch.randn(7, 3, 6, 6).double(), rtol=1e-12)


def test_folded_parameters_train_when_the_users_did(trained) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), trained(nn.BatchNorm2d(4)), nn.Conv2d(4, 4, 1))
    model[0].weight.requires_grad_(False)
    graph = capture(model, torch.randn(2, 3, 6, 6))
    trainable = {name: parameter.requires_grad for name, parameter in graph.module.named_parameters()}
    assert trainable == {"0.weight": False, "0.bias": False, "2.weight": True, "2.bias": True}


@pytest.mark.parametrize(
    "parametrize", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm]
)
def test_parametrized_weights_become_plain_under_the_users_name(parametrize, assert_same) -> None:
    model = nn.Sequential(parametrize(nn.Linear(8, 8)), parametrize(nn.Conv1d(8, 4, 3)))
    graph = capture(model, torch.randn(1, 8, 8))
    assert sorted(names(graph)) == ["0.bias", "0.weight", "1.bias", "1.weight"]
    assert_same(model, graph, torch.randn(7, 8, 8))


def test_weights_computed_from_parameters_are_computed_once(network, assert_same) -> None:
    model = network(lambda s, x: x @ (s.w * s.gain).T + F.linear(x, s.w.T), w=nn.Parameter(torch.randn(4, 4)))
    model.gain = nn.Parameter(torch.randn(4, 1))
    graph = capture(model, torch.randn(2, 4))
    operations = [node.target for node in graph.module.graph.nodes if node.op == "call_function"]
    aten = torch.ops.aten
    assert operations == [aten.matmul.default, aten.linear.default, aten.add.Tensor]
    assert_same(model, graph, torch.randn(7, 4))


def test_a_random_weight_is_not_folded(network) -> None:
    model = network(lambda s, x: x @ (s.w + torch.rand_like(s.w)), w=nn.Parameter(torch.randn(4, 4)))
    graph = capture(model, torch.randn(2, 4))
    x = torch.randn(2, 4)
    assert not torch.equal(graph(x), graph(x))


def test_identities_and_dropout_are_gone(network, assert_same) -> None:
    def forward(s, x):
        x = x.clone().detach().contiguous()[:].to(x.dtype).expand(x.shape)
        x = F.dropout(nn.Identity()(x), 0.5, s.training)
        return s.a(F.alpha_dropout(x, 0.5, s.training))

    model = network(forward, a=nn.Linear(4, 4))
    graph = capture(model, torch.randn(2, 4))
    assert [str(node.target) for node in graph.module.graph.nodes if node.op == "call_function"] == [
        "aten.linear.default"
    ]
    assert_same(model, graph, torch.randn(7, 4))


def test_slices_and_casts_that_do_something_stay(network, assert_same) -> None:
    model = network(lambda s, x: (x[:, 1:], x[:, ::2], x[:, :-1], x.to(torch.float64), x[:, :1].expand(-1, 3)))
    assert_same(model, capture(model, torch.randn(2, 4)), torch.randn(7, 4))


def test_a_view_after_attention_survives_the_new_memory_layout(network, assert_same) -> None:
    """torch's attention kernel lays its result out as [batch, length, heads, width]; the product does not."""

    def forward(s, x):
        y = F.scaled_dot_product_attention(x, x, x)
        return y.transpose(1, 2).contiguous().view(y.shape[0], y.shape[2], -1)

    model = network(forward)
    assert_same(model, capture(model, torch.randn(1, 2, 5, 4)), torch.randn(7, 2, 5, 4))


def test_subclasses_of_convolutions_are_convolutions(network, assert_same) -> None:
    class Same(nn.Conv2d):
        def forward(self, x):
            return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias)

    reflect = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
    model = nn.Sequential(Same(3, 4, 3), nn.Conv2d(4, 4, 4, padding="same"), reflect)
    graph = capture(model, torch.randn(1, 3, 6, 6))
    assert names(graph) == [f"{i}.{part}" for i in range(3) for part in ("weight", "bias")]
    assert_same(model, graph, torch.randn(7, 3, 6, 6))
