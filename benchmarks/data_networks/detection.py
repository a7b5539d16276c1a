"""Boxes: how far two overlap, which of many over one thing are left, and average precision."""

import torch
from torch import Tensor

OVERLAPS = torch.arange(10) * 0.05 + 0.5
RECALLS = torch.linspace(0, 1, 101, dtype=torch.float64)
MOST_OF_A_CLASS = 100  # detections of one class in one photograph that count


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """[n, m]: the share of their union that boxes a [n, 4] and b [m, 4] have in common."""
    low, high = torch.maximum(a[:, None, :2], b[None, :, :2]), torch.minimum(a[:, None, 2:4], b[None, :, 2:4])
    common = (high - low).clamp_min(0).prod(2)
    union = _area(a)[:, None] + _area(b)[None] - common
    return common / union.clamp_min(1e-9)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:4] - boxes[:, :2]).prod(1)


def suppressed(found: Tensor, most: float) -> Tensor:
    """Which rows of [n, 6], the best first, are left when none may overlap a better one of its class by more."""
    near = (overlap(found, found) > most) & (found[:, None, 5] == found[None, :, 5])
    left = torch.ones(len(found), dtype=torch.bool)
    for row in range(len(found)):
        if left[row]:
            left[row + 1 :] &= ~near[row, row + 1 :]
    return left.nonzero().flatten()


def average_precision(found: Tensor, truth: list[Tensor]) -> float:
    """The mean over classes and OVERLAPS × 100, of detections [N, n, 6] with −1 for none, and boxes [m, 5] of each."""
    classes = torch.cat([boxes[:, 4] for boxes in truth]).unique().tolist()
    return 100 * float(torch.stack([_of_class(found, truth, kind) for kind in classes]).mean())


def _of_class(found: Tensor, truth: list[Tensor], kind: float) -> Tensor:
    """[OVERLAPS] precision of one class, as the mean over RECALLS."""
    scores, hits, count = [torch.zeros(0)], [torch.zeros(0, len(OVERLAPS), dtype=torch.bool)], 0
    for rows, boxes in zip(found, truth, strict=True):
        wanted = boxes[boxes[:, 4] == kind]
        mine = rows[(rows[:, 5] == kind) & (rows[:, 4] >= 0)]
        mine = mine[mine[:, 4].argsort(descending=True, stable=True)][:MOST_OF_A_CLASS]
        count += len(wanted)
        scores.append(mine[:, 4])
        hits.append(_hits(overlap(mine, wanted)))
    order = torch.cat(scores).argsort(descending=True, stable=True)
    right = torch.cat(hits)[order].double().cumsum(0)
    precision = right / torch.arange(1, len(right) + 1)[:, None]
    envelope = precision.flip(0).cummax(0).values.flip(0) if len(right) else precision
    return torch.stack([_interpolated(right[:, i] / count, envelope[:, i]) for i in range(len(OVERLAPS))])


def _hits(overlaps: Tensor) -> Tensor:
    """[n, OVERLAPS]: whether each detection, the best first, finds a box that none before it has found."""
    hits = torch.zeros(len(overlaps), len(OVERLAPS), dtype=torch.bool)
    if overlaps.shape[1] == 0:
        return hits
    for column, least in enumerate(OVERLAPS.tolist()):
        free = overlaps.clone()
        for row in range(len(free)):
            most, box = free[row].max(0)
            if most >= least:
                hits[row, column] = True
                free[:, box] = -1
    return hits


def _interpolated(recall: Tensor, precision: Tensor) -> Tensor:
    """The mean over RECALLS of the best precision at that recall or a higher one, 0 where it is not reached."""
    place = torch.searchsorted(recall.contiguous(), RECALLS)
    return torch.cat([precision, torch.zeros(1, dtype=torch.float64)])[place.clamp_max(len(precision))].mean()
