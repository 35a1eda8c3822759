"""What the feature maps say about a region, at a fixed size whatever the region's own.

Shapes: B images, R regions of all images together, S rows and columns of the result.

Sources: He et al., "Mask R-CNN" (2017), section 3, RoIAlign; Lin et al., "Feature Pyramid
Networks" (2017), section 4.2, for the choice of the map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision import ops

from object_detection.boxes import Boxes
from object_detection.config import Config

FINEST_LEVEL, COARSEST_LEVEL = 2, 5
"""Logarithms of the strides of the first and the last map that regions are read from."""
CANONICAL_LEVEL = 4
"""Of a region of config.canonical_size pixels."""
SAMPLES = 2
"""Of a map, along each side of a cell of the result."""


def choose_levels(boxes: Tensor, config: Config) -> Tensor:
    """Logarithm of the stride of the map that each region [R, 4] is read from [R]."""
    sides = Boxes(config.legacy_coords).areas(boxes).clamp(min=0).sqrt()
    levels = torch.floor(CANONICAL_LEVEL + torch.log2(sides / config.canonical_size + 1e-6))
    return levels.clamp(FINEST_LEVEL, COARSEST_LEVEL).long()


def read_regions(
    maps: Sequence[Tensor], boxes: Sequence[Tensor], size: int, config: Config
) -> Tensor:
    """Features of each image's regions, float32 [R, C, S, S].

    maps [B, C, H_l, W_l], the finest first (more than four are not looked at); boxes [R_i, 4] of
    each image, in pixels.
    """
    numbers = [torch.full_like(some[:, :1], image) for image, some in enumerate(boxes)]
    together = torch.cat(list(boxes))
    rows = torch.cat([torch.cat(numbers), together], dim=1)
    levels = choose_levels(together, config)
    features = rows.new_zeros(len(rows), maps[0].shape[1], size, size)
    for level in range(FINEST_LEVEL, COARSEST_LEVEL + 1):
        places = levels.eq(level).nonzero().squeeze(1)
        features[places] = ops.roi_align(
            maps[level - FINEST_LEVEL].float(),
            rows[places],
            size,
            spatial_scale=0.5**level,
            sampling_ratio=SAMPLES,
            aligned=not config.legacy_coords,
        )
    return features
