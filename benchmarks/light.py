"""What Octavo costs before it does anything: to import, to install for serving, and until the first answer.

    python -m benchmarks.light --json benchmarks/results/light.json

Every process is a new one. CPU seconds of imports are interleaved medians. For serving, each engine has a virtual
environment of its own with `packages/serve`; "cold" is with nothing of it in the page cache, which takes root (else the
files of the environment alone are dropped, and that is said), and the seconds run from before the process is started
until it has printed that there is an answer.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.console import Console

import octavo
from octavo.engines import target_for
from octavo.machine import machine, versions
from octavo.zoo import task

ROOT = Path(__file__).parent.parent
NAME = "efficientnet_lite0"
ENGINES = ("onnxruntime", "openvino")
IMPORTS = ("import torch", "import octavo", "from octavo import quantize")
TOOLS = ("pip", "setuptools", "pkg_resources", "_distutils_hack", "distutils-precedence.pth")  # not what it needs
FIRST_ANSWER = """
import sys, numpy, octavo_serve
options = {"cache": sys.argv[2]} if len(sys.argv) > 2 else {}
network = octavo_serve.load(sys.argv[1], **options)
network(numpy.zeros((1, 3, 224, 224), numpy.float32))
print("answered", flush=True)
"""


def cpu_seconds(code: str) -> float:
    """User and system seconds of a new process that runs `code`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def imports(rounds: int) -> dict[str, Any]:
    """{code: median CPU seconds} and how often `import torch` that is; the first round is not counted."""
    times: dict[str, list[float]] = {code: [] for code in IMPORTS}
    for _ in range(rounds + 1):
        for code in IMPORTS:
            times[code].append(cpu_seconds(code))
    medians = {code: statistics.median(each[1:]) for code, each in times.items()}
    ratios = {code: round(each / medians[IMPORTS[0]], 3) for code, each in medians.items()}
    return {"cpu_seconds": {code: round(each, 3) for code, each in medians.items()}, "times_torch": ratios}


def installed(engine: str, folder: Path) -> Path:
    """The Python of a new environment with what serves on `engine`, in the versions that are installed here."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pinned = [f"{package}=={versions()[package]}" for package in ("numpy", engine)]
    command = [python, "-m", "pip", "install", "--quiet", f"{ROOT / 'packages' / 'serve'}[{engine}]", *pinned]
    subprocess.run(command, check=True)
    return python


def megabytes(folder: Path) -> dict[str, float]:
    """{package: MB (10⁶ bytes) of its files} of those of a megabyte and more, and "all" of them, without pip."""
    (site,) = folder.glob("lib/python*/site-packages")
    sizes: dict[str, int] = {}
    for file in site.rglob("*"):
        top = file.relative_to(site).parts[0]
        if file.is_file() and not file.is_symlink() and not top.startswith(TOOLS):
            sizes[top] = sizes.get(top, 0) + file.stat().st_size
    large = {top: round(size / 1e6, 1) for top, size in sorted(sizes.items()) if size >= 1e6}
    return large | {"all": round(sum(sizes.values()) / 1e6, 1)}


def forget(folders: Sequence[Path]) -> str:
    """Drop the page cache, or of these folders alone where the system does not allow that; what was dropped."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
        return "all of the page cache"
    except OSError:
        for file in (file for folder in folders for file in folder.rglob("*") if file.is_file()):
            handle = os.open(file, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)
        return "the files of the environment"


def first_answer(python: Path, arguments: Sequence[str | Path], checks: Path) -> float:
    """Seconds from before the process is started until it says that it has an answer."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    start = time.perf_counter()
    command = [python, "-c", FIRST_ANSWER, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment | {"OCTAVO_CACHE": str(checks)}) as process:
        assert process.stdout is not None
        answered = process.stdout.readline()
        seconds = time.perf_counter() - start
    assert answered == b"answered\n"
    return seconds


def answers(engine: str, network: Path, folder: Path, rounds: int) -> dict[str, Any]:
    """Median seconds until the first answer, cold and warm; `folder` is the environment."""
    python, checks = folder / "bin" / "python", folder / "checks"
    cache = folder / "compiled"
    kinds: dict[str, list[str | Path]] = {"": [network]}
    if engine == "openvino":
        kinds["_with_openvino_cache"] = [network, cache]
    dropped = forget([folder])
    found: dict[str, Any] = {
        "dropped": dropped,
        "cold_first_on_this_machine": round(first_answer(python, [network], checks), 3),
    }
    for kind, arguments in kinds.items():
        first_answer(python, arguments, checks)
        for state in ("cold", "warm"):
            seconds = []
            for _ in range(rounds):
                if state == "cold":
                    forget([folder])
                seconds.append(first_answer(python, arguments, checks))
            found[f"{state}{kind}"] = {
                "median_s": round(statistics.median(seconds), 3),
                "all_s": [round(each, 3) for each in seconds],
            }
    return found


def saved(engine: str, path: Path) -> Path:
    """EfficientNet-Lite0 for `engine`, calibrated by entropy."""
    scored = task(NAME)
    graph = octavo.capture(scored.build(), scored.example)
    plan = octavo.make_plan(graph, target=target_for(engine))
    net = octavo.choose_params(plan, octavo.observe(plan, scored.calibration()), "entropy")
    octavo.save(net, path, engine=engine)
    return path


def main(
    rounds: Annotated[int, typer.Option(help="of every measurement")] = 5,
    networks: Annotated[Path | None, typer.Option(help="a folder of ENGINE.octavo, made if they are not there")] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="where the record is written")] = None,
) -> None:
    """Measure, and print the record."""
    with TemporaryDirectory() as scratch:
        home = networks or Path(scratch)
        home.mkdir(parents=True, exist_ok=True)
        record: dict[str, Any] = {"machine": machine(), "versions": versions(), "imports": imports(rounds), "serve": {}}
        for engine in ENGINES:
            network = home / f"{engine}.octavo"
            if not network.exists():
                saved(engine, network)
            folder = Path(scratch) / engine
            installed(engine, folder)
            record["serve"][engine] = {
                "installed_mb": megabytes(folder),
                "first_answer": answers(engine, network, folder, rounds),
            }
    text = json.dumps(record, indent=1)
    Console().print_json(text)
    if json_path is not None:
        json_path.write_text(text + "\n")


if __name__ == "__main__":
    typer.run(main)
