"""The feature pyramid: maps of all strides with the meaning of the deepest one.

Shapes: B images, C channels of the pyramid.

Source: Lin et al., "Feature Pyramid Networks for Object Detection" (2017), section 3.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional


class FeaturePyramid(nn.Module):
    """Lateral 1x1 convolutions, added from the deepest map upwards, and a 3x3 one on each sum."""

    def __init__(self, num_inputs: Sequence[int], num_channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(count, num_channels, 1) for count in num_inputs)
        self.output = nn.ModuleList(
            nn.Conv2d(num_channels, num_channels, 3, padding=1) for _ in num_inputs
        )
        for conv in (*self.lateral, *self.output):
            nn.init.kaiming_uniform_(conv.weight, a=1)
            nn.init.zeros_(conv.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps of the backbone, the finest first -> as many of C channels, and one coarser.

        Each map has half as many rows and columns as the one before. The coarsest of the result
        takes every second cell of the one before it.
        """
        sums = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        for level in range(len(sums) - 1, 0, -1):
            coarse = functional.interpolate(sums[level], scale_factor=2.0, mode="nearest")
            sums[level - 1] = sums[level - 1] + coarse
        outputs = [conv(x) for conv, x in zip(self.output, sums, strict=True)]
        return [*outputs, functional.max_pool2d(outputs[-1], 1, stride=2)]
