"""The command: `octavo demo`."""

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
    """Quantize EfficientNet-Lite0, score it on photographs and time it against float. Needs octavo[zoo]."""
    console = Console()
    try:
        from octavo.zoo.demo import run  # noqa: PLC0415 (torch takes seconds to import; --help should not)

        run(out, console, rounds=rounds)
    except QuantizationError as error:
        console.print(f"[red]error[/red] {error}")
        raise typer.Exit(code=1) from error


if __name__ == "__main__":
    app()
