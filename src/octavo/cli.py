"""The command: `octavo run`, `octavo check`, `octavo bench`, `octavo demo`. `exits.py` says what each may end by."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from octavo.exits import Exit, ending, promptly

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

    def work() -> Exit:
        from octavo.zoo.demo import demonstrate  # noqa: PLC0415 (torch takes seconds to import; --help should not)

        demonstrate(out, console, rounds=rounds)
        return Exit.MET

    raise typer.Exit(promptly(lambda: ending(console, work)))


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

    def work() -> Exit:
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
        return Exit(run_recipe(settings, folder, console)["exit_code"])

    raise typer.Exit(ending(console, work))  # Ctrl-C ends a search with the best so far


@app.command()
def check(
    float_network: Annotated[
        str,
        typer.Argument(
            metavar="FLOAT",
            help="The float network: an ONNX file, an OpenVINO IR, a recipe, file.py:function, or an .octavo file. "
            "Python files are executed.",
        ),
    ],
    int8_network: Annotated[str, typer.Argument(metavar="INT8", help="The int8 one: any of these, made by any tool.")],
    data: Annotated[
        Path,
        typer.Option(help="An .npz file or a folder of .npy files, by input name, with labels or not; or a recipe."),
    ],
    evaluate: Annotated[Path | None, typer.Option(help="A recipe whose evaluate() is the metric.")] = None,
    max_drop: Annotated[
        str, typer.Option(help="What may be lost: 1% of the float score, or '0.3 points' of its unit.")
    ] = "1%",
    min_int8: Annotated[
        float, typer.Option(min=0, max=1, help="The share of the multiplications that has to run on integers.")
    ] = 0.0,
    measure: Annotated[
        Literal["auto", "agreement", "fidelity"],
        typer.Option(help="Without labels: of decisions, of values, or by what the outputs look like."),
    ] = "auto",
    engine: Annotated[
        str | None, typer.Option(help="That runs ONNX files: onnxruntime or openvino.  \\[default: onnxruntime]")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Samples in a call, where any number goes.")] = 8,
    bench: Annotated[bool, typer.Option(help="Time both.")] = True,
    rounds: Annotated[int, typer.Option(min=1, help="How often each is timed.")] = 20,
    json_out: Annotated[str | None, typer.Option("--json", help="Write the record here; - is standard output.")] = None,
    card: Annotated[Path | None, typer.Option(help="Write a Markdown card here.")] = None,
) -> None:
    """Check an int8 network against the float one. Exit codes: 0 met, 1 not met, 2 used wrongly, 3 too few samples."""
    from octavo.gate.report import Report  # noqa: PLC0415 (see demo)

    report = Report(json_out=json_out, card_out=card)

    def work() -> Exit:
        from octavo.gate.check import check as compare  # noqa: PLC0415 (see demo)

        report.clear()
        with report.printing():
            found = compare(
                float_network,
                int8_network,
                data=data,
                evaluate=evaluate,
                max_drop=max_drop,
                min_int8=min_int8,
                measure=measure,
                engine=engine,
                batch=batch,
                bench=bench,
                rounds=rounds,
            )
        return report.found(found)

    def apart() -> Exit:
        report.check_apart([float_network, int8_network, data, evaluate])
        return Exit.MET

    def begin() -> int:
        code = ending(report.console, apart)
        return code or ending(report.console, work, wrong=report.failed)

    raise typer.Exit(promptly(begin))


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

    def work() -> Exit:
        from octavo.workflow.bench import bench as time_it, write  # noqa: PLC0415

        record = time_it(artifact, console, engine=engine, batch=batch, rounds=rounds)
        if json_out is not None:
            write(record, json_out)
            console.print(f"written to {json_out}")
        return Exit.MET

    raise typer.Exit(promptly(lambda: ending(console, work)))


if __name__ == "__main__":
    app()
