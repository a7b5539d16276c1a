"""Networks with labelled data that the zoo does not have, and the zoo's, under one roof: `SCORED[name]()`.

Weights and data lie in `OCTAVO_DATA`; `requirements.txt` lists the packages that read them, beside those of the zoo.
"""

from collections.abc import Callable
from functools import partial

from benchmarks.data_networks import deeplab, dtln, hama_asr, mobilenet_v2, yolox_nano
from benchmarks.data_networks.scored import Scored, of_task
from octavo.zoo import task


def _of_zoo(name: str) -> Scored:
    return of_task(task(name))


SCORED: dict[str, Callable[[], Scored]] = {
    "yolox_nano": yolox_nano.scored,
    "deeplab": deeplab.scored,
    "mobilenet_v2": mobilenet_v2.scored,
    "hama_asr": hama_asr.scored,
    "dtln": dtln.scored,
    **{name: partial(_of_zoo, name) for name in ("resnet20", "ds_cnn_s", "lstm", "efficientnet_lite0", "minilm")},
}

__all__ = ["SCORED", "Scored"]
