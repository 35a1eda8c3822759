"""Default boxes: where they lie, how an object is coded against one, how far two boxes overlap.

Corners are left, top, right, bottom; centred is centre x, centre y, width, height; all are relative
to the image, of 0 to 1. Shapes: A default boxes; ... stands for any leading dimensions.

Source: Liu et al., "SSD: Single Shot MultiBox Detector" (2016), sections 2.1 and 2.2.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from single_stage_detector.config import Config, ExtraLayer

CENTRE_SCALE = 10.0
"""Factor on coded centres, so that they vary about as much as sizes do (1 / 0.1 in the paper's
code)."""
SIZE_SCALE = 5.0
"""Factor on coded sizes (1 / 0.2)."""
MIN_SIZE = 1e-6
"""Least width and height of an object that is coded: the logarithm of 0 would be no loss."""


def map_sizes(input_size: int, extra_layers: Sequence[ExtraLayer]) -> list[int]:
    """Side of each feature map, in cells: the backbone's and each extra layer's."""
    size = input_size
    for _ in range(3):  # stem, pooling, second stage: each halves, rounding up
        size = (size + 1) // 2
    sizes = [size]
    for layer in extra_layers:
        sizes.append((sizes[-1] + 2 * layer.padding - 3) // layer.stride + 1)
    return sizes


def box_shapes(config: Config, map_index: int) -> list[tuple[float, float]]:
    """Width and height of the default boxes in each cell of a map, before clamping."""
    scale, next_scale = config.box_scales[map_index : map_index + 2]
    small = scale / config.input_size
    large = math.sqrt(scale * next_scale) / config.input_size
    shapes = [(small, small), (large, large)]
    for ratio in config.aspect_ratios[map_index]:
        long, short = small * math.sqrt(ratio), small / math.sqrt(ratio)
        shapes += [(long, short), (short, long)]
    return shapes


def make_default_boxes(config: Config) -> Tensor:
    """The table of default boxes, centred and clamped to [0, 1] as such: [A, 4] float32.

    In the order of the network's outputs: map, shape, row, column.
    """
    boxes = []
    for index, size in enumerate(map_sizes(config.input_size, config.extra_layers)):
        step = config.map_strides[index] / config.input_size
        centres = [(cell + 0.5) * step for cell in range(size)]
        for width, height in box_shapes(config, index):
            boxes += [(x, y, width, height) for y, x in itertools.product(centres, centres)]
    return torch.tensor(boxes, dtype=torch.float64).clamp(0, 1).float()


def to_corners(centred: Tensor) -> Tensor:
    """Centred boxes [..., 4] as corners."""
    centres, sizes = centred[..., :2], centred[..., 2:]
    return torch.cat([centres - sizes / 2, centres + sizes / 2], dim=-1)


class DefaultBoxes(nn.Module):
    """The default boxes of a network, on its device, and the coding against them.

    centred, corners: [A, 4].
    """

    centred: Tensor
    corners: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        centred = make_default_boxes(config)
        self.register_buffer("centred", centred, persistent=False)
        self.register_buffer("corners", to_corners(centred), persistent=False)

    def encode(self, corners: Tensor) -> Tensor:
        """Box deltas [..., 4, A] of an object for each default box: corners [..., A, 4]."""
        centres = (corners[..., :2] + corners[..., 2:]) / 2
        sizes = (corners[..., 2:] - corners[..., :2]).clamp(min=MIN_SIZE)
        default_centres, default_sizes = self.centred[:, :2], self.centred[:, 2:]
        deltas = [
            (centres - default_centres) / default_sizes * CENTRE_SCALE,
            torch.log(sizes / default_sizes) * SIZE_SCALE,
        ]
        return torch.cat(deltas, dim=-1).transpose(-1, -2)

    def decode(self, box_deltas: Tensor) -> Tensor:
        """Corners [..., A, 4] of what the network says: box_deltas [..., 4, A]."""
        deltas = box_deltas.transpose(-1, -2)
        default_centres, default_sizes = self.centred[:, :2], self.centred[:, 2:]
        centres = deltas[..., :2] / CENTRE_SCALE * default_sizes + default_centres
        sizes = torch.exp(deltas[..., 2:] / SIZE_SCALE) * default_sizes
        return to_corners(torch.cat([centres, sizes], dim=-1))


def intersection_over_union(first: Tensor, second: Tensor) -> Tensor:
    """Overlap of each box of `first` with each of `second`, of 0 to 1.

    Corners [..., N, 4] and [..., M, 4] give [..., N, M]. Boxes without area overlap nothing.
    """
    left, top, right, bottom = first[..., :, None, :].unbind(-1)
    other_left, other_top, other_right, other_bottom = second[..., None, :, :].unbind(-1)
    width = torch.minimum(right, other_right) - torch.maximum(left, other_left)
    height = torch.minimum(bottom, other_bottom) - torch.maximum(top, other_top)
    shared = width.clamp_(min=0).mul_(height.clamp_(min=0))
    area = (right - left) * (bottom - top)
    other_area = (other_right - other_left) * (other_bottom - other_top)
    union = area + other_area - shared
    return shared.div_(union.clamp_(min=torch.finfo(union.dtype).tiny))
