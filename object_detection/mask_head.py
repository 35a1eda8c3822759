"""The mask head: which cells of a region the object covers, for each class.

Shapes: R regions of all images together, C classes.

Source: He et al., "Mask R-CNN" (2017), section 3.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

REGION_SIZE = 14
"""Rows and columns of a region's features; the mask has twice as many."""
MASK_SIZE = 2 * REGION_SIZE


class MaskHead(nn.Module):
    """3x3 convolutions, a transposed one that doubles the size, and a map for each class."""

    def __init__(
        self, num_inputs: int, num_convs: int, num_channels: int, num_classes: int
    ) -> None:
        super().__init__()
        counts = [num_inputs, *[num_channels] * num_convs]
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1) for before, after in itertools.pairwise(counts)
        )
        self.upsample = nn.ConvTranspose2d(counts[-1], num_channels, 2, stride=2)
        self.masks = nn.Conv2d(num_channels, num_classes, 1)
        for conv in (*self.convs, self.upsample, self.masks):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(conv.bias)

    def forward(self, features: Tensor) -> Tensor:
        """[R, num_inputs, 14, 14] -> mask logits [R, C, 28, 28]."""
        for conv in self.convs:
            features = torch.relu(conv(features))
        logits: Tensor = self.masks(torch.relu(self.upsample(features)))
        return logits


def mask_loss(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Mean loss over the cells of the true class's maps; 0 where there is no region.

    logits [R, C, 28, 28]; labels [R]; targets, what is covered, [R, 28, 28].
    """
    if not len(labels):
        return logits.float().sum() * 0
    found = logits.float()[torch.arange(len(labels), device=labels.device), labels]
    return functional.binary_cross_entropy_with_logits(found, targets.to(found.dtype))
