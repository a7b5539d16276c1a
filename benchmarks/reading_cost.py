"""How much of Octavo runs to quantize a two-layer network: what a newcomer has to read.

python benchmarks/reading_cost.py [--engine ENGINE] [--names]
"""

import argparse
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

import octavo
from octavo import capture, choose_params, compile, make_plan, observe, simulate  # what importing runs is not counted

SOURCE = f"{Path(octavo.__file__).parent.parent}/"
PACKAGES = (f"{SOURCE}octavo/", f"{SOURCE}octavo_serve/")


def functions_that_run(engine: str | None) -> set[tuple[str, str]]:
    """(file, function) of Octavo's that run from capture to the first output; comprehensions are not functions."""
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    batch = torch.randn(4, 8)
    seen: set[tuple[str, str]] = set()

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGES) and not code.co_name.startswith("<"):
            seen.add((code.co_filename.removeprefix(SOURCE), code.co_qualname))

    sys.setprofile(watch)
    try:
        graph = capture(model, batch)
        plan = make_plan(graph)
        net = choose_params(plan, observe(plan, [batch]))
        (compile(net, engine=engine) if engine else simulate(net))(batch)
    finally:
        sys.setprofile(None)
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", help="compile for this engine; without it, simulate")
    parser.add_argument("--names", action="store_true", help="list the functions")
    arguments = parser.parse_args()
    seen = functions_that_run(arguments.engine)
    for file, count in sorted(Counter(file for file, _ in seen).items()):
        print(f"{count:3d}  {file}")
        if arguments.names:
            print("".join(f"       {name}\n" for other, name in sorted(seen) if other == file), end="")
    print(f"{len({file for file, _ in seen})} files, {len(seen)} functions")


if __name__ == "__main__":
    main()
