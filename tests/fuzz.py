"""Mutations of saved networks and studies: each loads as what it says or is one QuantizationError, in 2 s and 1 GiB.

    python tests/fuzz.py [--count 20000] [--seed 0] [--processes 2] [--only NUMBER]

Accidents change bytes; what then still loads has to be the original, bit for bit. Forgeries change what the bytes mean
and make the digests right again; what then loads has to be what it says: saved and loaded once more, it gives the same.
Every case is numbered, and made of its seed and number alone: `--only` repeats one. Cases run in processes of their own
with a limit of memory; one that ends such a process is a failure like any other.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import signal
import sqlite3
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch.utils._pytree import tree_leaves

import octavo
from forgery import NETWORK, SAMPLES, Parts, manifest_of, parts_of, save_sample, write
from octavo.errors import QuantizationError
from octavo.network.graph import call_arguments
from octavo.numerics import Histogram
from octavo.workflow.kept import pack_stats, unpack_stats
from octavo.workflow.study import Study, Trial

SECONDS, BYTES = 2.0, 2**30
EXPORT = 8.0  # seconds more, where the model beside the graph is another's and torch exports the graph again
BATCH = 200  # cases of one process


# ---- what is mutated


@dataclass(frozen=True)
class Originals:
    """The folder of the genuine files: networks by name, a study, statistics."""

    folder: Path
    networks: dict[str, Parts]
    outputs: dict[str, list[Any]]
    examples: dict[str, Any]
    study: bytes
    trials: list[Trial]
    stats: bytes


def originals(folder: Path) -> Originals:
    """Small networks for an engine that reads ONNX, a study with trials, and statistics."""
    networks, outputs, examples = {}, {}, {}
    for name in SAMPLES:
        examples[name] = save_sample(name, folder / name, engine="openvino")
        networks[name] = parts_of(folder / name)
        outputs[name] = run(octavo.load(folder / name, engine="reference"), examples[name])
    histogram = Histogram()
    histogram.update(torch.linspace(-3, 5, 200))
    stats = pack_stats({"a": histogram, "b": Histogram()})
    with closing(Study(folder / "study")) as study:
        for number in range(4):
            study.run(f"key{number}", lambda number=number: trial(number))
        study.keep("stats", stats)
        trials = study.trials()
    return Originals(
        folder, networks, outputs, examples, (folder / "study" / "study.sqlite").read_bytes(), trials, stats
    )


def trial(number: int) -> Trial:
    """One with every column filled."""
    return Trial(
        key=f"key{number}",
        stage="ptq",
        method="max",
        engine="simulation",
        kept_float=("head", "stem"),
        metric=0.5 + number,
        scores=(0.25, 0.75),
        abandoned=bool(number % 2),
        error=None,
        seconds=1.5,
        versions={"octavo": "0"},
        model="m",
        data="d",
        rules=("*",),
    )


def run(network: Any, example: Any) -> list[Any]:
    args, kwargs = call_arguments(example)
    with torch.no_grad():
        return tree_leaves(network(*args, **kwargs))


def equal(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ---- mutations

WORDS = [
    "",
    "x",
    "__import__('os')",
    "aten.from_file.default",
    "aten.relu.default",
    "s0",
    "../..",
    "\n",
    "float32",
    "output",
]
NUMBERS = [0, 1, -1, 2, 3, 7, 255, 2**31, 2**63, 10**30, 0.5, -0.0, 1e38, True, False, None]


def altered(data: bytes, chance: random.Random) -> bytes:
    """Bytes flipped, cut out, doubled, put in or cut off."""
    found = bytearray(data)
    for _ in range(chance.choice([1, 1, 1, 2, 8])):
        at, length = chance.randrange(len(found) + 1), chance.choice([1, 1, 2, 8, 100])
        match chance.randrange(6):
            case 0 | 1 if at < len(found):
                found[at] ^= 1 << chance.randrange(8)
            case 2:
                del found[at : at + length]
            case 3:
                found[at:at] = found[at : at + length]
            case 4:
                found[at:at] = chance.randbytes(length)
            case _:
                found[at : at + length] = bytes([chance.choice([0, 255, 127, 128])]) * min(length, len(found) - at)
    return bytes(found[: chance.randrange(len(found) + 1)] if chance.random() < 0.05 else found)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value within a JSON value."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from places(item, (*path, key))


def rewritten(value: Any, chance: random.Random) -> Any:
    """A JSON value with some of its values replaced, taken out, doubled or exchanged."""
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        paths = [path for path in places(value) if path]
        if not paths:
            break
        path, other = chance.choice(paths), chance.choice(paths)
        try:
            _edit(_at(value, path[:-1]), path[-1], json.loads(json.dumps(_at(value, other))), chance)
        except (KeyError, IndexError, TypeError):  # an edit before took it away
            continue
    return value


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def _edit(parent: Any, key: Any, other: Any, chance: random.Random) -> None:
    match chance.randrange(8):
        case 0:
            del parent[key]
        case 1:
            parent[key] = other
        case 2 if isinstance(parent, list):
            parent.insert(key, other)
        case 3 if isinstance(parent, list):
            parent[key], parent[0] = parent[0], parent[key]
        case 4 if isinstance(parent[key], int | float):
            parent[key] = parent[key] + chance.choice([-1, 1, 2, 100])
        case 5 if isinstance(parent[key], str) and parent[key]:
            parent[key] = altered(parent[key].encode(), chance).decode(errors="replace")
        case 6:
            parent[key] = chance.choice(NUMBERS)
        case _:
            parent[key] = chance.choice(
                [*WORDS, [], {}, [[]], {"node": "input_1"}, ["Pow", 10, 9], ["Mul", "s0", 2**40]]
            )


def protocol(data: bytes, chance: random.Random) -> bytes:
    """An ONNX model with a node, an initializer, an attribute or a size changed."""
    model = onnx.load_model_from_string(data)
    graph = model.graph
    match chance.randrange(7):
        case 0:
            chance.choice(graph.node).op_type = chance.choice(
                ["Add", "Loop", "If", "Tile", "Expand", "Range", "Conv", "X"]
            )
        case 1:
            del graph.node[chance.randrange(len(graph.node))]
        case 2:
            node = chance.choice(graph.node)
            names = [name for other in graph.node for name in (*other.input, *other.output)]
            if node.input:
                node.input[chance.randrange(len(node.input))] = chance.choice(names)
        case 3:
            tensor = chance.choice(graph.initializer)
            tensor.dims[:] = [chance.choice([0, 1, 3, 8, 10**6, -1]) for _ in tensor.dims]
        case 4:
            tensor = chance.choice(graph.initializer)
            tensor.raw_data = altered(tensor.raw_data, chance)
        case 5:
            for entry in chance.choice(graph.initializer).external_data:
                entry.value = chance.choice(["0", "-1", "10000000000", "x", entry.value])
        case _:
            attributes = [attribute for node in graph.node for attribute in node.attribute]
            if attributes:
                attribute = chance.choice(attributes)
                attribute.i = chance.choice([0, -1, 2, 10**6])
                attribute.ints[:] = [chance.choice([0, -1, 2, 10**6]) for _ in attribute.ints]
    return model.SerializeToString()


# ---- cases: (originals, chance, folder) ─▶ what came of it

Case = Callable[[Originals, random.Random, Path], str]
OTHERS = (RuntimeError, AssertionError)


def accident(genuine: Originals, chance: random.Random, folder: Path) -> str:
    """Of the bytes of a file: it is the original or an error."""
    name = chance.choice(list(genuine.networks))
    path = folder / "net.octavo"
    path.write_bytes(altered((genuine.folder / name).read_bytes(), chance))
    if equal(run(octavo.load(path, engine="reference"), genuine.examples[name]), genuine.outputs[name]):
        return "equal"
    raise AssertionError("an altered file gives other outputs")


def forgery(genuine: Originals, chance: random.Random, folder: Path) -> str:
    """Of what the bytes mean, with digests that are right: it is what it says or an error."""
    name = chance.choice(list(genuine.networks))
    parts = dict(genuine.networks[name])
    manifest = None
    part = chance.choice([NETWORK] * 6 + ["manifest.json", "model.onnx", "tensors.safetensors", "samples.safetensors"])
    if part == NETWORK:
        parts[part] = json.dumps(rewritten(json.loads(parts[part]), chance)).encode()
    elif part == "manifest.json":
        manifest = json.dumps(rewritten(json.loads(manifest_of(parts)), chance)).encode()
    elif part == "model.onnx" and chance.random() < 0.7:
        parts[part] = protocol(parts[part], chance)
    else:
        parts[part] = altered(parts[part], chance)
    path = write(folder / "net.octavo", parts, manifest, **({} if manifest else {"engine": "reference"}))
    engine = "openvino" if part == "model.onnx" and chance.random() < 0.3 else "reference"
    loaded = octavo.load(path, engine=engine)
    found = run(loaded, genuine.examples[name])
    if equal(found, genuine.outputs[name]):
        return "equal"
    origin = loaded.origin
    octavo.save(origin.net, again := folder / "again.octavo", engine="reference")
    if engine == "reference" and not equal(run(octavo.load(again), genuine.examples[name]), found):
        raise AssertionError("what was loaded is not what it says")
    return "another network"


def study_bytes(genuine: Originals, chance: random.Random, folder: Path) -> str:
    """Of the bytes of a study: SQLite has no digests, so what it holds may have changed, but never its kind."""
    (folder / "study.sqlite").write_bytes(altered(genuine.study, chance))
    return _read_study(genuine, folder)


def study_values(genuine: Originals, chance: random.Random, folder: Path) -> str:
    """Of values in a study's rows, of any type that SQLite knows."""
    (folder / "study.sqlite").write_bytes(genuine.study)
    columns = [*Trial.__dataclass_fields__]
    text = json.dumps(rewritten({"a": ["b", "c"], "d": {"e": 1.5}}, chance))
    value = chance.choice([*WORDS, *NUMBERS, text, "[" * 100_000, chance.randbytes(9), chance.randbytes(16)])
    with closing(sqlite3.connect(folder / "study.sqlite")) as database:
        column = chance.choice(columns)
        try:
            database.execute(f"UPDATE trials SET {column} = ? WHERE id = ?", (value, chance.randint(1, 4)))
            database.commit()
        except (sqlite3.Error, OverflowError):
            return "equal"
    return _read_study(genuine, folder)


def _read_study(genuine: Originals, folder: Path) -> str:
    with closing(Study(folder)) as study:
        found = study.trials()
        data = study.blob("stats")
        if data is not None:
            unpack_stats(data)
    for one in found:
        assert all(isinstance(name, str) for name in (*one.kept_float, *one.repairs, *one.rules)), "not a name"
        assert isinstance(one.metric, float), "no number"
    return "equal" if found == genuine.trials else "other trials"


def statistics(genuine: Originals, chance: random.Random, folder: Path) -> str:
    """Of statistics, with the digest made right in half of the cases."""
    data = genuine.stats
    if chance.random() < 0.5:
        unpack_stats(altered(data, chance))
    else:
        from hashlib import sha256  # noqa: PLC0415

        packed = altered(data[32:], chance)
        unpack_stats(sha256(packed).digest() + packed)
    return "read"


def settings(genuine: Originals, chance: random.Random, folder: Path) -> str:
    """Of what a run was started with."""
    from octavo.workflow.drop import drop_of  # noqa: PLC0415
    from octavo.workflow.run import Settings, settings_of  # noqa: PLC0415

    whole = Settings(recipe=str(folder / "recipe.py"), max_drop="1%").model_dump_json().encode()
    data = (
        json.dumps(rewritten(json.loads(whole), chance)).encode() if chance.random() < 0.5 else altered(whole, chance)
    )
    (folder / "run.json").write_bytes(data)
    drop_of(settings_of(folder).max_drop)
    return "read"


CASES: dict[Case, int] = {accident: 3, forgery: 10, study_bytes: 2, study_values: 2, statistics: 1, settings: 1}


# ---- running them


@contextmanager
def _bounded() -> Iterator[None]:
    """At most BYTES more than now; a case that waits is ended too."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    former = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + BYTES, former[1]))
    signal.setitimer(signal.ITIMER_REAL, 60)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, former)


def one(genuine: Originals, seed: int, number: int) -> tuple[str, str]:
    """(The name of the case, what came of it); anything but an error of ours is raised."""
    chance = random.Random(f"{seed}.{number}")
    (case,) = chance.choices([*CASES], weights=[*CASES.values()])
    start = time.process_time()
    with tempfile.TemporaryDirectory(dir=genuine.folder) as folder, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            with _bounded():
                outcome = case(genuine, chance, Path(folder))
        except QuantizationError:
            outcome = "refused"
    if any("the ONNX model that was given computes something else" in str(one.message) for one in said):
        outcome = f"{outcome}, ONNX exported anew"  # of the network itself: that takes torch a second or more
        start += EXPORT
    if (taken := time.process_time() - start) > SECONDS:
        raise AssertionError(f"it took {taken:.1f} s")
    return case.__name__, outcome


def some(genuine: Originals, seed: int, numbers: list[int], results: Any, progress: Any) -> None:
    """The cases of these numbers, in a process of their own."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    for number in numbers:
        progress.value = number
        try:
            results.put((number, *one(genuine, seed, number), ""))
        except BaseException as error:  # whatever it is, it is a finding
            where = traceback.format_exc(limit=-4)
            results.put((number, "", f"{type(error).__name__}: {str(error)[:300]}", where))
    progress.value = -1
    results.close()
    results.join_thread()


def fuzz(count: int, seed: int, processes: int, folder: Path, first: int = 0) -> tuple[Counter[Any], list[str]]:
    """({(case, outcome): how many}, failures) of `count` cases."""
    os.environ["OCTAVO_CACHE"] = str(folder / "cache")
    genuine = originals(folder)
    pending = [list(range(n, min(n + BATCH, first + count))) for n in range(first, first + count, BATCH)]
    context, found, failures = multiprocessing.get_context("fork"), Counter[Any](), list[str]()
    running: list[tuple[Any, list[int], Any, Any]] = []
    while pending or running:
        while pending and len(running) < processes:
            numbers, results, progress = pending.pop(0), context.Queue(), context.Value("q", -2)
            process = context.Process(target=some, args=(genuine, seed, numbers, results, progress))
            process.start()
            running.append((process, numbers, results, progress))
        time.sleep(0.02)
        for entry in list(running):
            process, numbers, results, progress = entry
            alive = process.is_alive()
            while not results.empty():
                number, case, outcome, where = results.get()
                if where:
                    failures.append(f"case {number}: {outcome}\n{where}")
                else:
                    found[case, outcome] += 1
            if not alive and results.empty():
                running.remove(entry)
                if (last := progress.value) >= 0:
                    failures.append(f"case {last}: it ended the process ({process.exitcode})")
                    pending.insert(0, [number for number in numbers if number > last])
    return found, failures


def main() -> int:
    """Run, print what came of it, and end with 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--only", type=int)
    given = parser.parse_args()
    torch.set_num_threads(1)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        if given.only is not None:
            os.environ["OCTAVO_CACHE"] = str(Path(temporary) / "cache")
            print(*one(originals(Path(temporary)), given.seed, given.only))
            return 0
        found, failures = fuzz(given.count, given.seed, given.processes, Path(temporary))
    for failure in failures:
        print(failure)
    for (case, outcome), number in sorted(found.items()):
        print(f"{number:6}  {case:13} {outcome}")
    print(
        f"{sum(found.values()) + len(failures)} mutations (seed {given.seed}) in {time.monotonic() - start:.0f} s, "
        f"{len(failures)} of them failures"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
