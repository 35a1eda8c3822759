"""The backbone: a ResNet of bottleneck blocks whose four stages each give a feature map.

Shapes: B images, H and W their sides, a multiple of 32.

Source: He et al., "Deep Residual Learning for Image Recognition" (2016), table 1. A stage's stride
stands in its first 1x1 convolution, as in the authors' own weights (MSRA); torchvision's weights
were trained with it in the 3x3 one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from object_detection.config import Config

MAX_GROUPS = 8
"""Of group normalisation."""
Norm = Callable[[int], nn.Module]


class FrozenBatchNorm(nn.Module):
    """Batch normalisation by constants: nothing of it is trained, and there is no epsilon."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(num_channels))
        self.register_buffer("bias", torch.zeros(num_channels))
        self.register_buffer("running_mean", torch.zeros(num_channels))
        self.register_buffer("running_var", torch.ones(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same."""
        scale = self.weight * self.running_var.rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


def group_norm(num_channels: int) -> nn.GroupNorm:
    """Group normalisation, for a backbone that is trained from random weights in small batches."""
    return nn.GroupNorm(min(MAX_GROUPS, num_channels // 4), num_channels)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut; the first or the second one strides."""

    def __init__(
        self, num_inputs: int, num_outputs: int, strides: tuple[int, int], norm: Norm
    ) -> None:
        super().__init__()
        num_filters, stride = num_outputs // 4, max(strides)
        self.conv1 = nn.Conv2d(num_inputs, num_filters, 1, strides[0], bias=False)
        self.bn1 = norm(num_filters)
        self.conv2 = nn.Conv2d(num_filters, num_filters, 3, strides[1], padding=1, bias=False)
        self.bn2 = norm(num_filters)
        self.conv3 = nn.Conv2d(num_filters, num_outputs, 1, bias=False)
        self.bn3 = norm(num_outputs)
        self.downsample: nn.Module = nn.Identity()
        if num_inputs != num_outputs or stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(num_inputs, num_outputs, 1, stride, bias=False), norm(num_outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """[B, num_inputs, H, W] -> [B, num_outputs, H / stride, W / stride]."""
        residual = torch.relu(self.bn1(self.conv1(x)))
        residual = torch.relu(self.bn2(self.conv2(residual)))
        residual = self.bn3(self.conv3(residual))
        return torch.relu(residual + self.downsample(x))


class Backbone(nn.Module):
    """The four stages. Their parts have the names of torchvision's ResNet."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        norm: Norm = group_norm if config.norm == "group" else FrozenBatchNorm
        self.num_outputs = [config.stem_channels * 4 * 2**stage for stage in range(4)]
        self.conv1 = nn.Conv2d(3, config.stem_channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm(config.stem_channels)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        num_inputs = config.stem_channels
        for stage, num_blocks in enumerate(config.num_blocks):
            num_outputs = self.num_outputs[stage]
            strides = (2, 1) if config.pretrained_backbone != "torchvision" else (1, 2)
            blocks = [Bottleneck(num_inputs, num_outputs, strides if stage else (1, 1), norm)]
            blocks += [
                Bottleneck(num_outputs, num_outputs, (1, 1), norm) for _ in range(num_blocks - 1)
            ]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            num_inputs = num_outputs
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        parts = [nn.ModuleList([self.conv1, self.bn1]), *self.stages]
        for part in parts[: config.num_frozen_stages]:
            part.requires_grad_(False)

    @property
    def stages(self) -> list[nn.Module]:
        """layer1 to layer4."""
        return [self.get_submodule(f"layer{stage + 1}") for stage in range(4)]

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> maps of a cell to 4, 8, 16 and 32 pixels."""
        x = self.maxpool(torch.relu(self.bn1(self.conv1(images))))
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps
