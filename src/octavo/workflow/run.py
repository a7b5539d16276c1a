"""`octavo run`: a recipe file, or the folder of an earlier run, through `quantize` to a folder with all that was found.

A recipe is a Python file with `model()`, `calibration()` and `evaluate(model)`, and optionally `example()`,
`train(model)` and `options()`, a dict of further arguments of `quantize`. It is code, and is executed; so is the copy
of it in the folder of a run. All else in that folder is data (docs/trust.md).
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console
from torch import Tensor
from torch.utils._pytree import tree_leaves

from octavo.engines import ENGINES, available
from octavo.errors import QuantizationError
from octavo.exits import Exit
from octavo.files import write
from octavo.measure import agreement, sqnr_db
from octavo.network.export import private_copy
from octavo.network.graph import call_arguments
from octavo.network.ranks import is_first, together
from octavo.saved.artifact import save
from octavo.workflow.drop import drop_of
from octavo.workflow.goal import Evaluate, Goal
from octavo.workflow.outcome import Result
from octavo.workflow.recipe import INTERRUPTED, quantize, save_record
from octavo.workflow.table import show
from octavo.workflow.timing import contestants, latency, latency_record

SETTINGS, ARTIFACT = "run.json", "net.octavo"


class Settings(BaseModel):
    """What a run was started with: written to its folder, so that the folder alone resumes it."""

    model_config = ConfigDict(extra="forbid")

    recipe: str
    max_drop: str
    budget: str | None = None
    trials: int | None = None
    prefer: str = "accuracy"
    engine: str = "auto"
    trials_on: str | None = None
    min_int8: float | None = None
    rounds: int = 20


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a recipe file defines."""

    name: str
    model: Callable[[], Any]
    calibration: Callable[[], Any]
    evaluate: Evaluate
    example: Callable[[], Any] | None
    train: Callable[[Any], Any] | None
    options: Callable[[], dict[str, Any]]


def load_recipe(path: Path) -> Recipe:
    """The recipe in the file `path`.

    raises  QuantizationError if there is no such file, or it lacks one of the three functions
    """
    if not path.is_file():
        raise QuantizationError(
            asked=f"run the recipe {path}",
            seen="there is no such file",
            remedy="pass a Python file with model(), calibration() and evaluate(model), or the folder of a run",
        )
    module = imported(path)
    missing = [name for name in ("model", "calibration", "evaluate") if not callable(getattr(module, name, None))]
    if missing:
        raise QuantizationError(
            asked=f"run the recipe {path}",
            seen=f"it does not define {', '.join(f'{name}()' for name in missing)}",
            remedy="define model(), calibration() and evaluate(model); examples/ has five of them",
        )
    return Recipe(
        name=path.stem,
        model=module.model,
        calibration=module.calibration,
        evaluate=module.evaluate,
        example=getattr(module, "example", None),
        train=getattr(module, "train", None),
        options=getattr(module, "options", dict),
    )


def imported(path: Path) -> ModuleType:
    """The module in the file `path`, which is executed."""
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.path.insert(0, str(path.parent))  # a recipe may import what lies beside it
    sys.modules[path.stem] = module  # so that its functions can be pickled
    spec.loader.exec_module(module)
    return module


def settings_of(what: Path, **given: Any) -> Settings:
    """The settings for a recipe file, or those that the folder `what` was started with; `given` values go before both.

    raises  QuantizationError for a folder that is no run's, or whose settings are damaged
    """
    given = {name: value for name, value in given.items() if value is not None}
    if not what.is_dir():
        return Settings(recipe=str(what.resolve()), **{"max_drop": "1%"} | given)
    try:
        stored = Settings.model_validate_json(_short(what / SETTINGS))
    except (OSError, ValidationError) as error:
        raise QuantizationError(
            asked=f"resume the run in {what}",
            seen=f"its {SETTINGS} is missing or damaged",
            remedy="start it again from the recipe: octavo run RECIPE.py --out " + str(what),
        ) from error
    if not Path(stored.recipe).is_file():
        stored = stored.model_copy(update={"recipe": str((what / "recipe.py").resolve())})
    return stored.model_copy(update=given)


def _short(path: Path) -> bytes:
    """The bytes of a file that a person could have written; neither a pipe nor a disk full."""
    if not path.is_file() or path.stat().st_size > 2**20:
        raise OSError("it is no short file")
    return path.read_bytes()


def run_recipe(settings: Settings, out: Path, console: Console) -> dict[str, Any]:
    """Quantize by the recipe; print what was found; write net.octavo, result.json, model.onnx; return the record."""
    with together():
        return _run(settings, out, console)


def _run(settings: Settings, out: Path, console: Console) -> dict[str, Any]:
    drop, relative = drop_of(settings.max_drop)
    Goal(max_drop=drop, relative=relative)  # whatever is wrong with it, before anything is written or read
    path = Path(settings.recipe)
    recipe = load_recipe(path)
    if is_first():
        write(out / SETTINGS, settings.model_dump_json(indent=2) + "\n")
        if path.resolve() != (out / "recipe.py").resolve():
            write(out / "recipe.py", path.read_bytes())
    model = recipe.model()
    calibration = list(recipe.calibration())
    arguments: dict[str, Any] = {
        "max_drop": settings.max_drop,
        "budget": settings.budget,
        "trials": settings.trials,
        "prefer": settings.prefer,
        "engine": settings.engine,
        "trials_on": settings.trials_on,
        "example": recipe.example() if recipe.example else None,
        "train": recipe.train,
        **({} if settings.min_int8 is None else {"min_int8": settings.min_int8}),
        **recipe.options(),
    }
    result = quantize(model, calibration=calibration, evaluate=recipe.evaluate, out=out, **arguments)
    record = {"model": recipe.name} | result.record()
    record |= {"stopped": result.stopped, "exit_code": int(exit_of(result))}
    if is_first():
        _save(result, out / ARTIFACT)
        record |= _deployed(result, model, calibration[0], out, settings.rounds)
        save_record(out, record)
        show(record, console)
        console.print(result.summary, markup=False)
        console.print(f"written to {out / 'result.json'} and {out / ARTIFACT}")
    return record


def exit_of(result: Result) -> Exit:
    """How `octavo run` ends: see `exits.py`. Too few samples are told from a goal that is surely missed."""
    if result.stopped == INTERRUPTED:
        return Exit.INTERRUPTED
    if result.int8_share < result.goal.min_int8:
        return Exit.NOT_MET
    if result.too_few:
        interval = result.verdict.interval
        beyond = interval is not None and interval[0] > result.goal.allowed(result.reference)
        return Exit.NOT_MET if beyond else Exit.COULD_NOT_TELL
    return Exit.MET if result.met else Exit.NOT_MET


def _save(result: Result, path: Path) -> None:
    """Leave the best network there, whether or not the goal is met; one of the simulation for the reference."""
    save(result.net, path, engine=result.engine if result.engine in ENGINES else "reference")


def _deployed(result: Result, model: Any, batch: Any, out: Path, rounds: int) -> dict[str, Any]:
    """Distance, size and time of the network as it would be deployed, beside the float one."""
    graph = result.net.graph
    example = graph.example_kwargs or graph.example_args
    float_model = private_copy(model)
    models = contestants(graph, float_model, result.model)
    args, kwargs = call_arguments(example)
    with torch.inference_mode():
        reference, quantized = float_model(*args, **kwargs), result.model(*args, **kwargs)
    leaves = [leaf for leaf in tree_leaves(example) if isinstance(leaf, Tensor)]
    return {
        "agreement": _agreement(reference, quantized),
        "sqnr_db": _finite(sqnr_db(tree_leaves(reference), tree_leaves(quantized))),
        "size_mb": _sizes(result, out),
        **latency_record(*latency(models, example, rounds=rounds)),
        "batch": leaves[0].shape[0] if leaves and leaves[0].ndim else 1,
    }


def _agreement(reference: Any, quantized: Any) -> float | None:
    """Of class scores [N, classes]; None for any other output."""
    wanted, found = tree_leaves(reference), tree_leaves(quantized)
    if len(wanted) != 1 or not isinstance(wanted[0], Tensor) or wanted[0].ndim != 2:
        return None
    return agreement(wanted[0], found[0])


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None


def _sizes(result: Result, out: Path) -> dict[str, float | None]:
    """Megabytes of the ONNX models; the int8 one is written to `out`. None where ONNX cannot say the network."""
    if "openvino" not in available():
        return {"float": None, "int8": None}
    from octavo.engines.onnx import export_onnx  # noqa: PLC0415 (its packages may be missing)

    try:
        models = {"float": export_onnx(result.net.graph), "int8": export_onnx(result.net)}
    except QuantizationError:
        return {"float": None, "int8": None}
    write(out / "model.onnx", models["int8"].SerializeToString())
    return {name: model.ByteSize() / 1e6 for name, model in models.items()}
