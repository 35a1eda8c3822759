"""Masks: an object's outline as what the mask head should say, and what it says as a bitmap.

Shapes: M objects of one image, R regions, S rows and columns of a mask, H and W of an image.

Sources: He et al., "Mask R-CNN" (2017), section 3; v0.5's segmentation_mask.py and
mask_head/inference.py for the rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn import functional

from object_detection.polygons import rasterise

FloatArray = NDArray[numpy.float64]

MASK_THRESHOLD = 0.5
"""Probability above which a pixel is part of the object."""
PADDING = 1
"""Cells without an object around a mask before it is enlarged."""


# --- outlines -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outlines:
    """The polygons of some objects; an object covers what any of its polygons does."""

    corners: Tensor
    """x and y in pixels, polygon after polygon, float64 [E, 2]."""
    first_corner: Tensor
    """Where each polygon begins, and the last ends [P + 1]."""
    first_polygon: Tensor
    """Where the polygons of each object begin, and of the last end [M + 1]."""

    def select(self, objects: Tensor) -> tuple[Outlines, Tensor]:
        """The outlines of some objects [K], one may come more than once, and which of them each
        corner belongs to [E].
        """
        polygons, of_object = expand(self.first_polygon, objects)
        corners, of_polygon = expand(self.first_corner, polygons)
        counts = self.first_corner.diff()[polygons]
        chosen = Outlines(
            self.corners[corners],
            ends(counts),
            ends(self.first_polygon.diff()[objects]),
        )
        return chosen, of_object[of_polygon]


def ends(counts: Tensor) -> Tensor:
    """Where parts of these lengths begin one after the other, and the last ends."""
    return functional.pad(counts.cumsum(0), (1, 0))


def expand(first: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """The members of the chosen parts, and the place in `chosen` that each belongs to.

    first: where each part begins, and the last ends.
    """
    counts = first.diff()[chosen]
    places = torch.arange(len(chosen), device=chosen.device).repeat_interleave(counts)
    offsets = torch.arange(len(places), device=chosen.device) - ends(counts)[places]
    return first[chosen][places] + offsets, places


def outlines_of(segmentations: Iterable[Any]) -> Outlines:
    """The outlines of annotations; see `polygons_of`."""
    return join_polygons([polygons_of(segmentation) for segmentation in segmentations])


def polygons_of(segmentation: Any) -> list[FloatArray]:
    """The polygons of an annotation [K, 2] each: COCO's lists of x and y, or runs of pixels.

    Runs become rectangles, which cover exactly the same pixels. Raises KeyError, TypeError or
    ValueError for anything else.
    """
    if isinstance(segmentation, Mapping):
        return rectangles_of(segmentation)
    polygons = [numpy.array(polygon, numpy.float64) for polygon in segmentation]
    for polygon in polygons:
        if polygon.ndim != 1 or len(polygon) % 2 or not numpy.isfinite(polygon).all():
            raise ValueError("a polygon is no list of x and y")
    return [polygon.reshape(-1, 2) for polygon in polygons]


def join_polygons(objects: Sequence[Sequence[FloatArray]]) -> Outlines:
    """The polygons [K, 2] of each object as one structure."""
    corners = [polygon for polygons in objects for polygon in polygons]
    together = numpy.concatenate(corners) if corners else numpy.zeros((0, 2))
    lengths = torch.tensor([len(polygon) for polygon in corners], dtype=torch.int64)
    counts = torch.tensor([len(polygons) for polygons in objects], dtype=torch.int64)
    return Outlines(torch.from_numpy(together), ends(lengths), ends(counts))


def rectangles_of(segmentation: Mapping[str, Any]) -> list[FloatArray]:
    """Runs of pixels as polygons, one to each run of a column, wider where columns are alike."""
    height, width = segmentation["size"]
    runs, counts = segmentation, segmentation["counts"]
    if isinstance(counts, list):
        if sum(counts) != height * width or min(counts) < 0:
            raise ValueError("its runs are not of its size")
        runs = coco_mask.frPyObjects(dict(segmentation), height, width)
    bitmap = numpy.zeros((height + 2, width), numpy.int8)
    bitmap[1:-1] = coco_mask.decode(runs)
    edges = numpy.diff(bitmap, axis=0)  # 1 where a run begins, -1 where it has ended
    open_runs: dict[tuple[int, int], int] = {}
    rectangles = []
    for column in range(width + 1):
        found: set[tuple[int, int]] = set()
        if column < width:
            tops, bottoms = (numpy.flatnonzero(edges[:, column] == sign) for sign in (1, -1))
            found = set(zip(tops.tolist(), bottoms.tolist(), strict=True))
        for top, bottom in sorted(open_runs.keys() - found):
            left = open_runs.pop((top, bottom))
            box = [left, top, column, top, column, bottom, left, bottom]
            rectangles.append(numpy.array(box, numpy.float64).reshape(4, 2))
        for run in found - open_runs.keys():
            open_runs[run] = column
    return rectangles


def mask_targets(outlines: Outlines, objects: Tensor, regions: Tensor, size: int) -> Tensor:
    """What of each region its object covers, bool [R, S, S].

    objects [R]: which one each region shows; regions [R, 4]. The object's polygons are moved to
    the region, stretched to S x S and rasterised as COCO does.
    """
    low = regions[:, :2].double()
    spans = (regions[:, 2:] - regions[:, :2]).double().clamp(min=1)
    chosen, owner = outlines.select(objects)
    corners = (chosen.corners - low[owner]) * (size / spans)[owner]
    bitmaps = rasterise(corners, chosen.first_corner, size, size)
    targets = torch.zeros(len(objects), size, size, dtype=torch.int32, device=corners.device)
    counts = chosen.first_polygon.diff()
    of_polygon = torch.arange(len(objects), device=corners.device).repeat_interleave(counts)
    return targets.index_add_(0, of_polygon, bitmaps.int()) > 0


# --- bitmaps --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Patch:
    """What a detection's mask covers of an image, around the detection only."""

    left: int
    top: int
    bitmap: NDArray[numpy.bool_]
    """[rows, columns]."""


def paste(masks: Tensor, boxes: Tensor, height: int, width: int) -> list[Patch]:
    """The masks of an image's D detections in pixels of the image.

    masks: probabilities [D, S, S] of what lies in the boxes [D, 4], in pixels of the image. A mask
    is padded by one cell, its box enlarged as much and cut to whole pixels, and the cells between
    are interpolated (bilinear, corners not aligned).
    """
    patches = []
    padded = functional.pad(masks, (PADDING,) * 4)
    corners = enlarge(boxes, masks.shape[-1]).tolist()
    for mask, (left, top, right, bottom) in zip(padded, corners, strict=True):
        num_rows, num_columns = max(bottom - top + 1, 1), max(right - left + 1, 1)
        enlarged = functional.interpolate(
            mask[None, None], (num_rows, num_columns), mode="bilinear", align_corners=False
        )[0, 0]
        first_row, first_column = max(-top, 0), max(-left, 0)
        seen = enlarged[first_row : max(height - top, 0), first_column : max(width - left, 0)]
        bitmap = (seen > MASK_THRESHOLD).numpy()
        patches.append(Patch(left + first_column, top + first_row, bitmap))
    return patches


def enlarge(boxes: Tensor, size: int) -> Tensor:
    """The boxes [D, 4] of masks of S x S cells once they are padded, in whole pixels."""
    scale = (size + 2 * PADDING) / size
    centres = (boxes[:, 2:] + boxes[:, :2]) * 0.5
    halves = (boxes[:, 2:] - boxes[:, :2]) * 0.5 * scale
    return torch.cat([centres - halves, centres + halves], dim=1).trunc().long()


def encode(patch: Patch, height: int, width: int) -> dict[str, Any]:
    """A patch of an image as COCO's compressed runs of pixels, column by column.

    Only the patch is looked at, not the whole image.
    """
    num_rows, num_columns = patch.bitmap.shape
    # One pixel without the object above each column, and after the last, so that it changes in
    # pairs: where a run begins, and the row below it.
    columns = numpy.zeros((num_columns + 1, num_rows + 1), bool)
    columns[:-1, 1:] = patch.bitmap.T
    flat = columns.ravel()
    changes = numpy.flatnonzero(flat[1:] != flat[:-1])
    column, row = numpy.divmod(changes, num_rows + 1)
    borders = (patch.left + column) * height + patch.top + row
    # A run down to the image's last row goes on in the next column's first: no change there.
    is_apart = numpy.diff(borders, prepend=-1, append=height * width + 1) > 0
    borders = borders[is_apart[:-1] & is_apart[1:]]
    counts = numpy.diff(borders, prepend=0, append=height * width)
    if counts[-1] == 0:
        counts = counts[:-1]
    runs = {"size": [height, width], "counts": counts}
    compressed: dict[str, Any] = coco_mask.frPyObjects(runs, height, width)
    return compressed
