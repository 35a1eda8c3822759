"""Anchors: the boxes that the region proposal network codes its proposals against.

Source: Ren et al., "Faster R-CNN" (2015), section 3.1.1; v0.5's anchor_generator.py for the
rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from object_detection.config import Config


def cell_anchors(stride: int, size: int, aspect_ratios: Sequence[float]) -> list[list[float]]:
    """Anchors of the first cell of a feature map, right and bottom inside, one to each ratio.

    A window of the cell's own size is given each ratio of height to width by rounded sides, and
    those are scaled by size / stride about the window's centre.
    """
    centre = (stride - 1) / 2
    anchors = []
    for ratio in aspect_ratios:
        width = round(math.sqrt(stride**2 / ratio))
        height = round(width * ratio)
        half_width, half_height = ((side * size / stride - 1) / 2 for side in (width, height))
        low = [centre - half_width, centre - half_height]
        anchors.append([*low, centre + half_width, centre + half_height])
    return anchors


def make_anchors(config: Config, maps: Sequence[Tensor]) -> list[Tensor]:
    """Anchors of each feature map [rows * columns * ratios, 4], by row, column and ratio.

    maps [B, C, rows, columns], the finest first. The modern convention has the same pixels in each
    anchor.
    """
    return [
        map_anchors(config, level, (x.shape[2], x.shape[3]), x.device)
        for level, x in enumerate(maps)
    ]


@lru_cache(maxsize=64)  # images come in a few sizes
def map_anchors(
    config: Config, level: int, map_size: tuple[int, int], device: torch.device
) -> Tensor:
    """Anchors of one map [rows * columns * ratios, 4]; map_size: its rows and columns."""
    stride = config.strides[level]
    corners = cell_anchors(stride, config.anchor_sizes[level], config.aspect_ratios)
    cell = torch.tensor(corners, device=device, dtype=torch.float32)
    if not config.legacy_coords:
        cell[:, 2:] += 1
    y, x = (torch.arange(count, device=device) * stride for count in map_size)
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    shifts = torch.stack([columns, rows, columns, rows], dim=-1).reshape(-1, 1, 4)
    return (shifts + cell).reshape(-1, 4)
