"""`octavo.load`: with torch where torch is, and without it where it is not. Importing this file imports neither."""

from collections.abc import Callable, Collection
from importlib.util import find_spec
from os import PathLike
from typing import Any

from octavo.errors import QuantizationError
from octavo.saved.limits import LIMITS, Limits
from octavo_serve.served import load as serve

OPTIONS = {"threads", "cache"}  # of `octavo_serve.load`


def load(
    path: str | PathLike[str],
    *,
    engine: str | None = None,
    check: bool = True,
    operators: Collection[str] = (),
    limits: Limits = LIMITS,
    **options: Any,
) -> Callable[..., Any]:
    """The network that `save` wrote, compiled for this machine and called like the user's model.

    The file is data, whoever wrote it: see docs/trust.md. Where torch is not installed, a network for OpenVINO or ONNX
    Runtime is served without it, and called with arrays, as `octavo_serve.load` does everywhere: see docs/serve.md.

    engine     None is the one that it was saved for
    check      compare it with the simulation on the samples that were saved with it, unless that held before for this
               file, CPU and version of the engine; see `octavo.compile`
    operators  further ones that it may call ("torchvision.nms.default", or a namespace), if you trust it and them
    limits     what one call on its samples may take; raise them for a large network that you trust
    options    of that engine's compile function
    raises     QuantizationError for a file that is truncated, altered, none of Octavo's, or of a newer version, for one
               that does not fit together or asks for more than `limits`, and for an engine that computes something else
    """
    if _has_torch():
        from octavo.saved.artifact import load as load_with_torch  # noqa: PLC0415 (it may not be there)

        return load_with_torch(path, engine=engine, check=check, operators=operators, limits=limits, **options)
    if operators or limits is not LIMITS or not options.keys() <= OPTIONS:
        raise QuantizationError(
            asked="load a saved network with these arguments",
            seen="torch is not installed",
            remedy="install it, or pass path, engine, check, threads and cache alone",
            site=str(path),
        )
    return serve(path, engine=engine, check=check, **options)


def _has_torch() -> bool:
    """Whether it can be imported."""
    try:
        return find_spec("torch") is not None
    except (ImportError, ValueError):
        return False
