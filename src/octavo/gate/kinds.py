"""What can be opened: a row for each kind of file."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from octavo.errors import QuantizationError
from octavo.gate.network import Opened

Open = Callable[[Path, str, str | None], Opened]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of file.

    what     it is, in words
    engines  that can run it, the one by default first
    open     (path, name for messages, one of `engines` or None) → the network
    """

    what: str
    engines: tuple[str, ...]
    open: Open


def opened(what: Any, engine: str | None = None) -> Opened:
    """The network that `what` is: a path to one of `KINDS`, "file.py:function", a torch module, or a function.

    engine  to run it on, if there is a choice
    raises  QuantizationError for what is not there, no kind that is known, damaged, or not to be run on that engine
    """
    if callable(what):
        return _open_callable(what)
    name, text = Path(what).name, str(what)
    file, colon, function = text.rpartition(":")
    if colon and file.endswith(".py"):
        return _open_function(Path(file), function, name)
    path = Path(what)
    if not path.exists():
        raise _refused(text, "there is nothing at this path", "check it")
    kind = KINDS.get(".octavo" if _is_artifact(path) else path.suffix.lower())
    if kind is None or (path.is_dir() and not _is_artifact(path)):
        known = ", ".join(f"{suffix} ({row.what})" for suffix, row in KINDS.items())
        seen = (
            "this is a folder"
            if path.is_dir()
            else f"a file {path.suffix or 'without a suffix'} is none of those known"
        )
        raise _refused(text, seen, f"pass one of {known}, or file.py:function")
    if engine is not None and kind.engines and engine not in kind.engines:
        raise _refused(text, f"{kind.what} cannot be run on {engine}", f"choose one of {', '.join(kind.engines)}")
    return kind.open(path, name, engine if kind.engines else None)


def _is_artifact(path: Path) -> bool:
    return path.is_dir() and (path / "manifest.json").is_file()


def _refused(site: str, seen: str, remedy: str) -> QuantizationError:
    return QuantizationError(asked="open a network", seen=seen, remedy=remedy, site=site)


def _needs(package: str, path: Path, otherwise: str) -> None:
    if find_spec(package) is None:
        raise _refused(str(path), f"{package} is not installed", f"pip install {package}{otherwise}")


def _open_onnx(path: Path, name: str, engine: str | None) -> Opened:
    if engine == "openvino":
        return _open_ir(path, name, engine)
    _needs("onnxruntime", path, ", or run it on OpenVINO: --engine openvino")
    from octavo.gate.onnxruntime_file import open_with_onnxruntime  # noqa: PLC0415 (its package may be missing)

    return open_with_onnxruntime(path, name)


def _open_ir(path: Path, name: str, engine: str | None) -> Opened:
    _needs("openvino", path, "")
    from octavo.gate.openvino_file import open_with_openvino  # noqa: PLC0415 (its package may be missing)

    return open_with_openvino(path, name)


def _open_artifact(path: Path, name: str, engine: str | None) -> Opened:
    from octavo.gate.artifact import open_artifact  # noqa: PLC0415 (only who opens one needs it)

    return open_artifact(path, name, engine)


def _open_recipe(path: Path, name: str, engine: str | None) -> Opened:
    from octavo.gate.python import open_recipe  # noqa: PLC0415 (see above)

    return open_recipe(path, name)


def _open_function(path: Path, function: str, name: str) -> Opened:
    from octavo.gate.python import open_function  # noqa: PLC0415 (see above)

    if not path.is_file():
        raise _refused(str(path), "there is no such file", "write file.py:function")
    return open_function(path, function, name)


def _open_callable(network: Callable[..., Any]) -> Opened:
    from octavo.gate.python import open_callable  # noqa: PLC0415 (see above)

    return open_callable(network, getattr(network, "__name__", type(network).__name__))


KINDS = {
    ".onnx": Kind(what="ONNX", engines=("onnxruntime", "openvino"), open=_open_onnx),
    ".xml": Kind(what="OpenVINO IR", engines=("openvino",), open=_open_ir),
    ".octavo": Kind(
        what="a network of octavo.save",
        engines=("openvino", "inductor", "onnxruntime", "reference"),
        open=_open_artifact,
    ),
    ".py": Kind(what="a recipe", engines=(), open=_open_recipe),
}
