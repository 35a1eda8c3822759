"""Polygons to bitmaps, a whole batch at once and on any device, bit for bit as COCO's own code.

COCO rasterises at five times the resolution: a walk along each edge, point by point, crosses from
one pixel column into the next at a certain height, and there inside and outside change places
from this height on, column by column. Each edge crosses each column at most once, so that a table
of edges and columns holds all that happens; the parity of the changes so far is the bitmap.

Shapes: E edges of all polygons together, P polygons, H and W rows and columns of a bitmap.

Source: the behaviour of pycocotools.mask.frPyObjects.
"""

from __future__ import annotations

import torch
from torch import Tensor

SCALE = 5
"""Steps of COCO's walk to a pixel."""
BEFORE = 2
"""The step of a pixel's five after which the walk crosses into its column."""


def rasterise(corners: Tensor, first_corner: Tensor, height: int, width: int) -> Tensor:
    """Bitmaps of polygons, bool [P, H, W].

    corners [E, 2]: x and y in pixels of the corners of all polygons, one after the other, float64;
    first_corner [P + 1]: where each begins, and the last ends.
    """
    device = corners.device
    num_polygons = len(first_corner) - 1
    counts = first_corner.diff()
    owner = torch.repeat_interleave(torch.arange(num_polygons, device=device), counts)  # [E]
    following = torch.arange(1, len(corners) + 1, device=device)
    last = first_corner[1:][counts > 0] - 1
    following[last] = first_corner[:-1][counts > 0]

    steps = (SCALE * corners + 0.5).trunc().long()  # [E, 2]
    begin, end = steps, steps[following]
    lengths = (end - begin).abs()
    is_flat = lengths[:, 0] >= lengths[:, 1]  # the walk goes along x, else along y
    main = is_flat.long().neg() + 1  # 0: x, 1: y
    is_reversed = (end - begin).gather(1, main[:, None]).squeeze(1) < 0
    low = torch.where(is_reversed[:, None], end, begin).double()
    high = torch.where(is_reversed[:, None], begin, end).double()
    span = (high - low).abs()
    slope = torch.where(
        is_flat, (high - low)[:, 1] / span[:, 0], (high - low)[:, 0] / span[:, 1]
    ).nan_to_num()

    # Where the walk goes from step `before` of x to the next one, or comes back.
    columns = torch.arange(width, device=device, dtype=torch.float64)
    before = SCALE * columns + BEFORE  # [W]
    left = torch.minimum(low[:, :1], high[:, :1])
    right = torch.maximum(low[:, :1], high[:, :1])
    crosses = (left <= before) & (before + 1 <= right)  # [E, W]

    # Along x the heights of both points are at hand.
    place = before - low[:, :1]
    heights = [
        (low[:, 1:] + slope[:, None] * (place + next_one) + 0.5).trunc() for next_one in (0, 1)
    ]
    height_of_flat = torch.minimum(*heights)

    # Along y the lower of two points is sought between which x changes: the estimate is off by at
    # most one step, and the walk's own arithmetic decides.
    estimate = ((before + 0.5 - low[:, :1]) / slope[:, None]).nan_to_num().floor()
    place_of_steep = torch.zeros_like(estimate)
    for step in (estimate - 1, estimate, estimate + 1):
        here, there = (
            (low[:, :1] + slope[:, None] * (step + next_one) + 0.5).trunc() for next_one in (0, 1)
        )
        is_here = (torch.minimum(here, there) <= before) & (torch.maximum(here, there) > before)
        place_of_steep = torch.where(is_here, step, place_of_steep)
    height_of_steep = place_of_steep + low[:, 1:]

    lower = torch.where(is_flat[:, None], height_of_flat, height_of_steep)
    rows = ((lower + 0.5) / SCALE - 0.5).clamp(0, height).ceil().long()  # [E, W]

    # Column by column, as COCO's runs go; a change below a column belongs to the next one.
    cells = width * height + 1
    places = owner[:, None] * cells + columns.long() * height + rows
    changes = torch.zeros(num_polygons * cells, dtype=torch.int32, device=device)
    changes.index_add_(0, places[crosses], torch.ones_like(places[crosses], dtype=torch.int32))
    parity = changes.view(num_polygons, cells)[:, :-1].cumsum(dim=1) % 2
    return parity.view(num_polygons, width, height).transpose(1, 2).bool()
