"""The command: `octavo demo`, `octavo run`, `octavo bench`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from octavo.errors import QuantizationError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def octavo() -> None:
    """Fold a trained PyTorch network into eight-bit integers, and prove that it is still right."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for result.json.")] = Path("runs/demo"),
    rounds: Annotated[int, typer.Option(min=1, help="How often each contestant is timed.")] = 20,
) -> None:
    """Quantize EfficientNet-Lite0, score it on photographs and time it against float. Needs octavo\\[zoo]."""
    console = Console()
    try:
        from octavo.zoo.demo import demonstrate  # noqa: PLC0415 (torch takes seconds to import; --help should not)

        demonstrate(out, console, rounds=rounds)
    except QuantizationError as error:
        console.print(f"[red]error[/red] {error}")
        raise typer.Exit(code=1) from error


@app.command()
def run(
    what: Annotated[
        Path, typer.Argument(help="A recipe (a Python file: it is executed), or the folder of a run to resume.")
    ],
    max_drop: Annotated[
        str | None,
        typer.Option(help="What may be lost: 1% of the float score, or '0.3 points' of its own unit.  \\[default: 1%]"),
    ] = None,
    min_int8: Annotated[
        float | None,
        typer.Option(help="The share of the multiplications that has to run on integers.  \\[default: 0.9]"),
    ] = None,
    budget: Annotated[str | None, typer.Option(help="Stop after 90s, 30m, 2h and return the best so far.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Stop after so many trials.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for all results.  \\[default: runs/RECIPE]")] = None,
    prefer: Annotated[str | None, typer.Option(help="accuracy: few layers in float; latency: cheap ones.")] = None,
    engine: Annotated[str | None, typer.Option(help="What candidates are scored on.  \\[default: auto]")] = None,
    trials_on: Annotated[str | None, typer.Option(help="ray: spread trials over a Ray cluster.")] = None,
) -> None:
    """Quantize by a recipe: model(), calibration(), evaluate(model). Ctrl-C returns the best so far."""
    console = Console()
    try:
        from octavo.workflow.run import run_recipe, settings_of  # noqa: PLC0415 (see demo)

        folder = out or (what if what.is_dir() else Path("runs") / what.stem)
        settings = settings_of(
            what,
            max_drop=max_drop,
            min_int8=min_int8,
            budget=budget,
            trials=trials,
            prefer=prefer,
            engine=engine,
            trials_on=trials_on,
        )
        run_recipe(settings, folder, console)
    except QuantizationError as error:
        console.print(f"[red]error[/red] {error}", highlight=False)
        raise typer.Exit(code=1) from error


@app.command()
def bench(
    artifact: Annotated[Path, typer.Argument(help="A network that octavo.save wrote.")],
    engine: Annotated[
        str | None, typer.Option(help="Run it on this engine.  \\[default: that it was saved for]")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Samples in a call.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="How often each contestant is timed.")] = 20,
    json_out: Annotated[Path | None, typer.Option("--json", help="Also write the record here.")] = None,
) -> None:
    """Time a saved network, on integers as it is deployed, beside torch eager, torch.compile and float engines."""
    console = Console()
    try:
        from octavo.workflow.bench import bench as time_it  # noqa: PLC0415 (see demo)
        from octavo.workflow.bench import write  # noqa: PLC0415

        record = time_it(artifact, console, engine=engine, batch=batch, rounds=rounds)
        if json_out is not None:
            write(record, json_out)
            console.print(f"written to {json_out}")
    except QuantizationError as error:
        console.print(f"[red]error[/red] {error}", highlight=False)
        raise typer.Exit(code=1) from error


if __name__ == "__main__":
    app()
