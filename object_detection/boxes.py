"""Arithmetic of boxes: sizes, overlap, clipping, coding and suppression, in two conventions.

Boxes are left, top, right, bottom in pixels. In v0.5's convention, `legacy`, right and bottom are
the last pixel inside, so that a width is right - left + 1; in the modern one they are the first
outside. `ONE` of the convention is that one pixel.

Shapes: N, M boxes; ... stands for any leading dimensions.

Sources: Girshick et al., "Rich feature hierarchies" (2014), appendix C, for the coding; v0.5's
boxlist_ops.py and box_coder.py for the convention.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision import ops

MAX_LOG_SCALE = math.log(1000 / 16)
"""A decoded box is at most 62.5 times as wide or high as the one that it is coded against."""

Weights = tuple[float, float, float, float]
"""Factors on coded centre x, centre y, width, height."""


@dataclass(frozen=True)
class Boxes:
    """One of the two conventions, and what follows from it."""

    legacy: bool

    @property
    def one(self) -> int:
        """What right - left lacks of the width: 1 where the right pixel is inside."""
        return int(self.legacy)

    def sizes(self, boxes: Tensor) -> Tensor:
        """Width and height: [..., 4] -> [..., 2]."""
        return boxes[..., 2:] - boxes[..., :2] + self.one

    def areas(self, boxes: Tensor) -> Tensor:
        """[..., 4] -> [...]."""
        return self.sizes(boxes).prod(dim=-1)

    def intersection_over_union(self, first: Tensor, second: Tensor) -> Tensor:
        """Overlap of each box of `first` with each of `second`: [..., N, 4], [..., M, 4] ->
        [..., N, M].
        """
        low = torch.maximum(first[..., :, None, :2], second[..., None, :, :2])
        high = torch.minimum(first[..., :, None, 2:], second[..., None, :, 2:])
        shared = (high - low + self.one).clamp(min=0).prod(dim=-1)
        union = self.areas(first)[..., :, None] + self.areas(second)[..., None, :] - shared
        return shared / union

    def clip(self, boxes: Tensor, sizes: Tensor) -> Tensor:
        """Boxes [..., N, 4] within images of these widths and heights [..., 2]."""
        most = (sizes - self.one).to(boxes.dtype)[..., None, :]
        corners = [torch.minimum(corner.clamp(min=0), most) for corner in boxes.split(2, dim=-1)]
        return torch.cat(corners, dim=-1)

    def are_inside(self, boxes: Tensor, sizes: Tensor) -> Tensor:
        """Whether boxes [..., N, 4] lie wholly within images of these sizes [..., 2]."""
        ends, limits = boxes[..., 2:], sizes[..., None, :]
        is_high = ends < limits if self.legacy else ends <= limits
        return (boxes[..., :2] >= 0).all(dim=-1) & is_high.all(dim=-1)

    def encode(self, objects: Tensor, references: Tensor, weights: Weights) -> Tensor:
        """Deltas [..., 4] that turn the references [..., 4] into the objects [..., 4]."""
        reference_sizes, object_sizes = self.sizes(references), self.sizes(objects)
        shift = objects[..., :2] + 0.5 * object_sizes - references[..., :2] - 0.5 * reference_sizes
        deltas = [shift / reference_sizes, torch.log(object_sizes / reference_sizes)]
        return torch.cat(deltas, dim=-1) * objects.new_tensor(weights)

    def decode(self, deltas: Tensor, references: Tensor, weights: Weights) -> Tensor:
        """Boxes [..., 4] that deltas [..., 4] make of the references [..., 4]."""
        deltas = deltas / deltas.new_tensor(weights)
        reference_sizes = self.sizes(references)
        centres = references[..., :2] + 0.5 * reference_sizes + deltas[..., :2] * reference_sizes
        sizes = torch.exp(deltas[..., 2:].clamp(max=MAX_LOG_SCALE)) * reference_sizes
        low = centres - 0.5 * sizes
        return torch.cat([low, low + sizes - self.one], dim=-1)

    def suppress(self, boxes: Tensor, scores: Tensor, groups: Tensor, max_iou: float) -> Tensor:
        """Which boxes stay, the surest first: of two of a group that overlap by more than
        `max_iou` the one with the lower score goes.

        boxes [N, 4], scores [N], groups [N] whole numbers -> indices [K].
        """
        if not len(boxes):
            return groups
        # Half-open boxes, each group in a region of its own; torchvision's operator is greedy.
        half_open = boxes + boxes.new_tensor([0, 0, self.one, self.one])
        span = half_open.max() - half_open.min() + 1
        apart = half_open + (groups.to(boxes.dtype) * span)[:, None]
        return ops.nms(apart, scores, max_iou)
