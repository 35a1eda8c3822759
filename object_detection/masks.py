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

    def to(self, device: torch.device) -> Outlines:
        """The same on the device."""
        parts = (self.corners, self.first_corner, self.first_polygon)
        return Outlines(*(part.to(device, non_blocking=True) for part in parts))

    def select(self, objects: Tensor) -> tuple[Outlines, Tensor]:
        """The outlines of some objects [K], one may come more than once, and which of them each
        corner belongs to [E]."""
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
    """The outlines of annotations: lists of polygons, or runs of pixels as COCO has them.

    Runs become rectangles, which cover exactly the same pixels. Raises ValueError for anything else.
    """
    corners: list[NDArray[numpy.float64]] = []
    num_polygons = []
    for segmentation in segmentations:
        if isinstance(segmentation, Mapping):
            polygons = rectangles_of(segmentation)
        else:
            polygons = [numpy.array(polygon, numpy.float64) for polygon in segmentation]
        if not all(polygon.ndim == 1 and len(polygon) % 2 == 0 for polygon in polygons):
            raise ValueError("a polygon is no list of x and y")
        corners += [polygon.reshape(-1, 2) for polygon in polygons]
        num_polygons.append(len(polygons))
    together = numpy.concatenate(corners) if corners else numpy.zeros((0, 2))
    lengths = torch.tensor([len(polygon) for polygon in corners], dtype=torch.int64)
    return Outlines(
        torch.from_numpy(together), ends(lengths), ends(torch.tensor(num_polygons).long())
    )


def rectangles_of(segmentation: Mapping[str, Any]) -> list[NDArray[numpy.float64]]:
    """Runs of pixels as polygons, one to each run of a column, wider where columns are alike."""
    height, width = segmentation["size"]
    runs = segmentation
    if isinstance(segmentation["counts"], list):
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
            rectangles.append(numpy.array(box, numpy.float64))
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


def paste(masks: Tensor, boxes: Tensor, height: int, width: int) -> NDArray[numpy.bool_]:
    """Bitmaps of an image's detections, bool [D, H, W].

    masks: probabilities [D, S, S] of what lies in the boxes [D, 4], in pixels of the image. A mask
    is padded by one cell, its box enlarged as much and cut to whole pixels, and the cells between
    are interpolated (bilinear, corners not aligned).
    """
    bitmaps = numpy.zeros((len(masks), height, width), numpy.bool_)
    padded = functional.pad(masks, (PADDING,) * 4)
    for bitmap, mask, box in zip(bitmaps, padded, enlarge(boxes, masks.shape[-1]), strict=True):
        left, top, right, bottom = box.tolist()
        rows, columns = max(bottom - top + 1, 1), max(right - left + 1, 1)
        seen_rows = slice(max(top, 0), min(top + rows, height))
        seen_columns = slice(max(left, 0), min(left + columns, width))
        if seen_rows.start >= seen_rows.stop or seen_columns.start >= seen_columns.stop:
            continue
        enlarged = functional.interpolate(
            mask[None, None], (rows, columns), mode="bilinear", align_corners=False
        )[0, 0]
        within = enlarged[
            seen_rows.start - top : seen_rows.stop - top,
            seen_columns.start - left : seen_columns.stop - left,
        ]
        bitmap[seen_rows, seen_columns] = (within > MASK_THRESHOLD).numpy()
    return bitmaps


def enlarge(boxes: Tensor, size: int) -> Tensor:
    """The boxes [D, 4] of masks of S x S cells once they are padded, in whole pixels."""
    scale = (size + 2 * PADDING) / size
    centres = (boxes[:, 2:] + boxes[:, :2]) * 0.5
    halves = (boxes[:, 2:] - boxes[:, :2]) * 0.5 * scale
    return torch.cat([centres - halves, centres + halves], dim=1).trunc().long()


def encode_bitmaps(bitmaps: Sequence[NDArray[numpy.bool_]]) -> list[dict[str, Any]]:
    """Bitmaps [H, W] as COCO's compressed runs."""
    return [
        coco_mask.encode(numpy.asfortranarray(bitmap, dtype=numpy.uint8)) for bitmap in bitmaps
    ]
