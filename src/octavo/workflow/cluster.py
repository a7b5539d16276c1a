"""Independent trials side by side on a Ray cluster: each worker captures the model once, and measures what it is sent.

What comes back goes into the study of the process that asked, as if it had been measured there. Ray runs a trial again
elsewhere when the worker that had it is lost.
"""

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from octavo.errors import QuantizationError
from octavo.network.digest import digest_of_batch
from octavo.network.export import private_copy
from octavo.network.graph import capture
from octavo.network.placement import make_plan
from octavo.network.rule import Rule
from octavo.network.target import Target
from octavo.workflow.goal import Evaluate, Goal, Score
from octavo.workflow.kept import pack_stats, unpack_stats
from octavo.workflow.search import MeasureAll, one_after_the_other
from octavo.workflow.study import Trial
from octavo.workflow.trial import Candidate, Context, measure

RETRIES = 3  # of a trial whose worker was lost


@dataclass(frozen=True, kw_only=True)
class Payload:
    """A `Context` as it travels: a captured graph cannot be pickled, so the model goes and is captured again."""

    network: nn.Module
    example: Any
    dynamic_axes: tuple[int, ...]
    rules: tuple[Rule, ...]
    target: Target
    stats: bytes
    evaluate: Evaluate
    goal: Goal
    engine: str
    reference: Score
    model: str
    data: str
    batches: tuple[Any, ...]

    def unpacked(self) -> Context:
        """The context on this machine."""
        graph = capture(self.network, self.example, dynamic_axes=self.dynamic_axes)
        return Context(
            plan=make_plan(graph, self.rules, target=self.target),
            stats=unpack_stats(self.stats),
            evaluate=self.evaluate,
            goal=self.goal,
            engine=self.engine,
            reference=self.reference,
            model=self.model,
            data=self.data,
            batches=self.batches,
        )


def packed(context: Context, model: nn.Module) -> Payload:
    """What another machine needs to measure candidates of `context`."""
    graph, plan = context.graph, context.plan
    return Payload(
        network=private_copy(model),
        example=graph.example_kwargs or graph.example_args,
        dynamic_axes=graph.dynamic_axes,
        rules=plan.rules,
        target=plan.target,
        stats=pack_stats(context.stats),
        evaluate=context.evaluate,
        goal=context.goal,
        engine=context.engine,
        reference=context.reference,
        model=context.model,
        data=context.data,
        batches=context.batches,
    )


_contexts: dict[str, Context] = {}  # of this worker, by `content`: a model is captured once


def content(payload: Payload, pickler: Any) -> str:
    """Hexadecimal SHA-256 of all that `payload` holds, and of the files that its functions and classes were read from.

    pickler  a class like pickle.Pickler: what it pickles by reference is but a name in its bytes
    """

    class ByContent(pickler):  # type: ignore[misc]
        """Tensors are pickled with their address."""

        def persistent_id(self, part: Any) -> str | None:
            return digest_of_batch(part) if isinstance(part, Tensor) else None

    pickled = BytesIO()
    ByContent(pickled).dump(payload)
    digest = sha256(pickled.getvalue())
    for part in (payload.evaluate, type(payload.network), *map(type, payload.network.modules())):
        digest.update(_file_of(part))
    return digest.hexdigest()


def _file_of(part: Any) -> bytes:
    try:
        return Path(inspect.getsourcefile(inspect.unwrap(part)) or "").read_bytes()
    except (OSError, TypeError):
        return b""


def _measure_payload(name: str, payload: Payload, candidate: Candidate, stage: str) -> Trial:
    if name not in _contexts:
        _contexts.clear()  # another search: nothing asks for the former one any more
        _contexts[name] = payload.unpacked()
    return measure(_contexts[name], candidate, stage)


@contextmanager
def measured_on(where: Literal["ray"] | None, model: nn.Module) -> Iterator[MeasureAll]:
    """The way to measure several candidates: here, or on the Ray cluster that is connected, else one of this machine.

    raises  QuantizationError if Ray is asked for and not installed, or `where` is something else
    """
    if where is None:
        yield one_after_the_other
        return
    if where != "ray" or find_spec("ray") is None:
        raise QuantizationError(
            asked=f"run trials on {where!r}",
            seen="Ray is not installed" if where == "ray" else "only Ray spreads trials",
            remedy="pip install 'octavo[distributed]'" if where == "ray" else 'pass trials_on="ray", or leave it out',
        )
    import ray  # noqa: PLC0415 (an extra)

    started_here = not ray.is_initialized()
    if started_here:
        ray.init(log_to_driver=False, include_dashboard=False)
    try:
        yield _on_ray(ray, model)
    finally:
        if started_here:
            ray.shutdown()


def _on_ray(ray: Any, model: nn.Module) -> MeasureAll:
    remote = ray.remote(max_retries=RETRIES)(_measure_payload)
    payloads: list[Any] = []

    def measure_all(
        context: Context, candidates: Sequence[Candidate], stage: str
    ) -> Iterator[tuple[Candidate, Callable[[], Trial]]]:
        if not payloads:
            for part in (context.evaluate, type(model)):
                _send_by_value(ray, part)
            payload = packed(context, model)
            payloads.extend([content(payload, ray.cloudpickle.CloudPickler), ray.put(payload)])
        waiting = {remote.remote(*payloads, candidate, stage): candidate for candidate in candidates}
        while waiting:
            (ready,), _ = ray.wait(list(waiting), num_returns=1)
            yield waiting.pop(ready), lambda ready=ready: ray.get(ready)  # type: ignore[misc]

    return measure_all


def _send_by_value(ray: Any, part: Any) -> None:
    """Let Ray send the module of `part` along, if other machines cannot import it: a recipe, a notebook, a test."""
    module = inspect.getmodule(part)
    if module is None or module.__name__ == "__main__":
        return
    if find_spec_of(module.__name__) is None:
        ray.cloudpickle.register_pickle_by_value(module)


def find_spec_of(name: str) -> Any:
    """How `name` would be imported by another process; None if it could not be."""
    loaded = sys.modules.pop(name, None)  # it may be there only because somebody put it there
    try:
        return find_spec(name)
    except (ImportError, ValueError):
        return None
    finally:
        if loaded is not None:
            sys.modules[name] = loaded
