"""SSD: a ResNet's first three stages, extra layers, and two heads on every feature map.

Shapes: B images, S their side, C classes (0 is background), A default boxes.

Sources: Liu et al., "SSD: Single Shot MultiBox Detector" (2016); He et al., "Deep Residual Learning
for Image Recognition" (2016), table 1; v0.5's choice of stages and strides.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn

from single_stage_detector.config import PIXEL_DEVIATIONS, PIXEL_MEANS, Config, ExtraLayer
from single_stage_detector.default_boxes import box_shapes


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; the first one strides."""

    def __init__(self, num_inputs: int, num_outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_inputs, num_outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(num_outputs)
        self.conv2 = nn.Conv2d(num_outputs, num_outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(num_outputs)
        self.downsample: nn.Module = nn.Identity()
        if num_inputs != num_outputs or stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(num_inputs, num_outputs, 1, stride, bias=False),
                nn.BatchNorm2d(num_outputs),
            )

    def forward(self, x: Tensor) -> Tensor:
        """[B, num_inputs, H, W] -> [B, num_outputs, H / stride, W / stride]."""
        residual = torch.relu(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        return torch.relu(residual + self.downsample(x))


class Backbone(nn.Module):
    """A ResNet up to its third stage, whose stride is 1 here: one cell to 8 pixels.

    Its parts have the names of torchvision's ResNet, so that they load its weights.
    """

    def __init__(self, num_blocks: Sequence[int], num_filters: Sequence[int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, num_filters[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(num_filters[0])
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(num_blocks[0], num_filters[0], num_filters[0], stride=1)
        self.layer2 = _stage(num_blocks[1], num_filters[0], num_filters[1], stride=2)
        self.layer3 = _stage(num_blocks[2], num_filters[1], num_filters[2], stride=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, num_filters[2], S / 8, S / 8]."""
        x = self.maxpool(torch.relu(self.bn1(self.conv1(images))))
        features: Tensor = self.layer3(self.layer2(self.layer1(x)))
        return features


def _stage(num_blocks: int, num_inputs: int, num_outputs: int, stride: int) -> nn.Sequential:
    first = BasicBlock(num_inputs, num_outputs, stride)
    rest = [BasicBlock(num_outputs, num_outputs, 1) for _ in range(num_blocks - 1)]
    return nn.Sequential(first, *rest)


class SSD(nn.Module):
    """The whole network. Its boxes come in the order of `default_boxes.make_default_boxes`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.num_classes = config.num_classes
        self.backbone = Backbone(config.num_blocks, config.num_filters)
        self.extra_layers = nn.ModuleList()
        self.box_heads = nn.ModuleList()
        self.class_heads = nn.ModuleList()
        num_channels = [config.num_filters[2]]
        for layer in config.extra_layers:
            block = _extra_layer(num_channels[-1], layer, config.extra_batch_norm)
            self.extra_layers.append(block)
            num_channels.append(layer.num_channels)
        for index, count in enumerate(num_channels):
            num_shapes = len(box_shapes(config, index))
            self.box_heads.append(nn.Conv2d(count, 4 * num_shapes, 3, padding=1))
            num_scores = config.num_classes * num_shapes
            self.class_heads.append(nn.Conv2d(count, num_scores, 3, padding=1))
        for part in (self.extra_layers, self.box_heads, self.class_heads):
            for weights in part.parameters():
                if weights.dim() > 1:
                    nn.init.xavier_uniform_(weights)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images [B, 3, S, S] -> box deltas [B, 4, A], class logits [B, C, A]."""
        maps = [self.backbone(images)]
        for layer in self.extra_layers:
            maps.append(layer(maps[-1]))
        num_images = len(images)
        box_deltas, class_logits = [], []
        for x, box_head, class_head in zip(maps, self.box_heads, self.class_heads, strict=True):
            # Channels are (coordinate, shape) and (class, shape), so that boxes come by shape,
            # row and column.
            box_deltas.append(box_head(x).reshape(num_images, 4, -1))
            class_logits.append(class_head(x).reshape(num_images, self.num_classes, -1))
        return torch.cat(box_deltas, dim=2), torch.cat(class_logits, dim=2)


def _extra_layer(num_inputs: int, layer: ExtraLayer, batch_norm: bool) -> nn.Sequential:
    bottleneck, outputs = layer.num_bottleneck, layer.num_channels
    parts: list[nn.Module] = []
    for conv in (
        nn.Conv2d(num_inputs, bottleneck, 1),
        nn.Conv2d(bottleneck, outputs, 3, layer.stride, layer.padding),
    ):
        norm = [nn.BatchNorm2d(conv.out_channels)] if batch_norm else []
        parts += [conv, *norm, nn.ReLU()]
    return nn.Sequential(*parts)


def normalize_pixels(images: Tensor) -> Tensor:
    """Pixels of 0 to 255 [B, 3, S, S] as the backbone was trained on them: float32, centred."""
    pixels = images.float()
    means, deviations = _pixel_constants(pixels.device, pixels.dtype)
    return (pixels / 255 - means) / deviations


@cache
def _pixel_constants(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Means and deviations [1, 3, 1, 1], copied to a GPU once: each copy would make it wait."""
    means, deviations = torch.tensor([PIXEL_MEANS, PIXEL_DEVIATIONS], dtype=dtype, device=device)
    return means.view(1, 3, 1, 1), deviations.view(1, 3, 1, 1)
