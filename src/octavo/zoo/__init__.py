"""Real networks with real data: `task("resnet20")` builds one, calibrates it and scores it. Needs `octavo[zoo]`."""

from collections.abc import Callable

from octavo.errors import QuantizationError
from octavo.zoo import ds_cnn_s, efficientnet_lite0, lstm, minilm, photographs, resnet20
from octavo.zoo.task import Batch, Task

TASKS: dict[str, Callable[[], Task]] = {
    "efficientnet_lite0": efficientnet_lite0.make_task,
    "resnet20": resnet20.make_task,
    "ds_cnn_s": ds_cnn_s.make_task,
    "lstm": lstm.make_task,
    "minilm": minilm.make_task,
    "photographs": photographs.make_task,
}


def task(name: str) -> Task:
    """The task of that name. Raises QuantizationError for a name not in `TASKS` and for missing data or packages."""
    if name not in TASKS:
        raise QuantizationError(
            asked=f"load the task {name!r}",
            seen="the zoo has no such task",
            remedy=f"choose one of {', '.join(TASKS)}",
        )
    return TASKS[name]()


__all__ = ["TASKS", "Batch", "Task", "task"]
