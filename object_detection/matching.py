"""Which object a box is to show, and which boxes count in a step's loss.

Shapes: N boxes, M objects of one image.

Source: Ren et al., "Faster R-CNN" (2015), section 3.1.2; Girshick, "Fast R-CNN" (2015),
section 2.3.
"""

from __future__ import annotations

import torch
from torch import Tensor

IGNORED = -1
"""In place of a label: counts neither as an object nor as background."""


def match(
    overlap: Tensor, min_foreground: float, max_background: float, keep_best: bool
) -> tuple[Tensor, Tensor]:
    """The object that each box overlaps most [N], and whether it is to show it [N].

    overlap [M, N]: intersection over union. 1: the overlap is `min_foreground` or more; 0: below
    `max_background`; IGNORED: between them. With `keep_best` the boxes that overlap an object more
    than all others do, or as much, are 1 too; each shows the object that it overlaps most itself.
    """
    num_objects, num_boxes = overlap.shape
    if num_objects == 0:
        nothing = torch.zeros(num_boxes, dtype=torch.int64, device=overlap.device)
        return nothing, nothing
    best_overlap, best_object = overlap.max(dim=0)
    roles = torch.full_like(best_object, IGNORED)
    roles[best_overlap < max_background] = 0
    roles[best_overlap >= min_foreground] = 1
    if keep_best:
        is_best = (overlap == overlap.amax(dim=1, keepdim=True)).any(dim=0)
        roles[is_best] = 1
    return best_object, roles


def sample(
    roles: Tensor, num_samples: int, foreground_share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Numbers of the boxes that count: with an object, and background.

    roles [N]: 1, 0 or IGNORED. At most `foreground_share` of the samples have an object; background
    fills them up as far as there is any. All are drawn at random.
    """
    foreground = roles.eq(1).nonzero().squeeze(1)
    background = roles.eq(0).nonzero().squeeze(1)
    num_foreground = min(int(num_samples * foreground_share), len(foreground))
    num_background = min(num_samples - num_foreground, len(background))
    return (
        draw(foreground, num_foreground, generator),
        draw(background, num_background, generator),
    )


def draw(values: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """So many of the values [N], each at most once, at random [count].

    The generator is the CPU's, whatever the device: so the same are drawn on each.
    """
    order = torch.randperm(len(values), generator=generator)[:count]
    return values[order.to(values.device, non_blocking=True)]
