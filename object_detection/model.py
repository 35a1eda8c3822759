"""Mask R-CNN: backbone, feature pyramid, proposals, and the two heads that look at regions.

Shapes: B images, H and W their sides, N_l anchors of a feature map.

Source: He et al., "Mask R-CNN" (2017).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from object_detection.backbone import Backbone
from object_detection.box_head import BoxHead
from object_detection.config import Config
from object_detection.feature_pyramid import FeaturePyramid
from object_detection.mask_head import MaskHead
from object_detection.region_proposals import RegionProposalHead

MSRA_STATISTICS = ((102.9801, 115.9465, 122.7717), (1.0, 1.0, 1.0))
"""Mean and deviation of blue, green and red, of 0 to 255, that the authors' weights were trained
with."""
TORCHVISION_STATISTICS = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
"""The same of red, green and blue, of torchvision's weights: its 0.485 and so on, times 255."""


class MaskRCNN(nn.Module):
    """All layers. `forward` is what is dense; the heads are called on regions of its maps."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.backbone = Backbone(config)
        self.pyramid = FeaturePyramid(self.backbone.num_outputs, config.fpn_channels)
        self.proposal_head = RegionProposalHead(config.fpn_channels, len(config.aspect_ratios))
        self.box_head = BoxHead(config.fpn_channels, config.box_head_channels, config.num_classes)
        self.mask_head = MaskHead(
            config.fpn_channels,
            config.num_mask_convs,
            config.mask_head_channels,
            config.num_classes,
        )

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Normalised images [B, 3, H, W] -> maps of the pyramid, and of each map objectness logits
        [B, N_l] and box deltas [B, N_l, 4].
        """
        maps = self.pyramid(self.backbone(images))
        objectness, deltas = self.proposal_head(maps)
        return maps, objectness, deltas


def normalize_pixels(images: Tensor, sizes: Tensor, config: Config) -> Tensor:
    """Pixels of 0 to 255, red first, [B, 3, H, W] as the backbone was trained on them.

    sizes: width and height of each image without padding [B, 2]. Returns float32, centred, zero
    where there is padding; blue first, but red first for torchvision's weights.
    """
    is_torchvision = config.pretrained_backbone == "torchvision"
    rows = torch.arange(images.shape[2], device=images.device)
    columns = torch.arange(images.shape[3], device=images.device)
    is_row = rows < sizes[:, 1:]
    is_column = columns < sizes[:, :1]
    is_image = is_row[:, None, :, None] & is_column[:, None, None, :]
    pixels = (images if is_torchvision else images.flip(1)).float()
    mean, deviation = pixel_statistics(is_torchvision, pixels.device, pixels.dtype)
    return (pixels - mean) / deviation * is_image


@lru_cache
def pixel_statistics(
    is_torchvision: bool, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the channels [1, 3, 1, 1]."""
    values = TORCHVISION_STATISTICS if is_torchvision else MSRA_STATISTICS
    mean, deviation = torch.tensor(values, device=device, dtype=dtype)
    return mean.view(1, 3, 1, 1), deviation.view(1, 3, 1, 1)
