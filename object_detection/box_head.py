"""The box head: which class each proposal is of, and how its box should be moved and stretched.

Shapes: R proposals of all images together, C classes (0 is background).

Source: Girshick, "Fast R-CNN" (2015), section 2; Lin et al., "Feature Pyramid Networks" (2017),
section 4.2, for the two layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from object_detection.boxes import Boxes
from object_detection.config import Config
from object_detection.matching import match, sample

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""Of the coding of objects against proposals."""
MIN_FOREGROUND = 0.5
"""Overlap with an object that makes a proposal show it; less makes it background."""
FOREGROUND_SHARE = 0.25
"""Of the proposals that count, at most."""
BETA = 1.0
"""Where the loss of a delta turns from a square into a line."""
REGION_SIZE = 7
"""Rows and columns of a proposal's features."""


class BoxHead(nn.Module):
    """Two fully connected layers, then classes and box deltas of each class."""

    def __init__(self, num_channels: int, num_hidden: int, num_classes: int) -> None:
        super().__init__()
        self.fc6 = nn.Linear(num_channels * REGION_SIZE**2, num_hidden)
        self.fc7 = nn.Linear(num_hidden, num_hidden)
        self.classes = nn.Linear(num_hidden, num_classes)
        self.deltas = nn.Linear(num_hidden, 4 * num_classes)
        for layer in (self.fc6, self.fc7):
            nn.init.kaiming_uniform_(layer.weight, a=1)
        nn.init.normal_(self.classes.weight, std=0.01)
        nn.init.normal_(self.deltas.weight, std=0.001)
        for layer in (self.fc6, self.fc7, self.classes, self.deltas):
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """[R, channels, 7, 7] -> class logits [R, C], box deltas [R, C, 4]."""
        hidden = torch.relu(self.fc7(torch.relu(self.fc6(features.flatten(1)))))
        deltas = self.deltas(hidden).unflatten(1, (-1, 4))
        class_logits: Tensor = self.classes(hidden)
        return class_logits, deltas


@dataclass(frozen=True)
class Samples:
    """The proposals of one image that count in a step, those with an object first."""

    boxes: Tensor
    """[R, 4]."""
    labels: Tensor
    """[R]; 0 for background."""
    objects: Tensor
    """Number of the object that each of the first shows [num_foreground]."""

    @property
    def num_foreground(self) -> int:
        """Those with an object."""
        return len(self.objects)


@torch.no_grad()
def choose_samples(
    proposals: Tensor, boxes: Tensor, labels: Tensor, generator: torch.Generator, config: Config
) -> Samples:
    """Draw the proposals of an image that count, out of proposals [P, 4] and its objects' boxes.

    boxes [M, 4], labels [M]: the image's objects.
    """
    candidates = torch.cat([proposals, boxes])
    overlap = Boxes(config.legacy_coords).intersection_over_union(boxes, candidates)
    best_object, roles = match(overlap, MIN_FOREGROUND, MIN_FOREGROUND, keep_best=False)
    foreground, background = sample(roles, config.roi_batch_size, FOREGROUND_SHARE, generator)
    objects = best_object[foreground]
    return Samples(
        boxes=candidates[torch.cat([foreground, background])],
        labels=torch.cat([labels[objects], labels.new_zeros(len(background))]),
        objects=objects,
    )


def box_losses(
    class_logits: Tensor,
    deltas: Tensor,
    samples: Sequence[Samples],
    objects: Sequence[Tensor],
    config: Config,
) -> tuple[Tensor, Tensor]:
    """Losses of classes and of boxes, both sums over the batch's samples divided by their number.

    class_logits [R, C], deltas [R, C, 4] of all images' samples; objects: boxes [M, 4] of each
    image. The deltas of the true class count, of the proposals with an object.
    """
    labels = torch.cat([some.labels for some in samples])
    references = torch.cat([some.boxes for some in samples])
    is_foreground = labels > 0
    shown = torch.cat([boxes[some.objects] for some, boxes in zip(samples, objects, strict=True)])
    class_loss = functional.cross_entropy(class_logits.float(), labels, reduction="sum")
    expected = Boxes(config.legacy_coords).encode(shown, references[is_foreground], WEIGHTS)
    found = deltas.float()[is_foreground, labels[is_foreground]]
    box_loss = functional.smooth_l1_loss(found, expected, beta=BETA, reduction="sum")
    num_samples = max(1, len(labels))
    return class_loss / num_samples, box_loss / num_samples
