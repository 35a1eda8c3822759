"""From the network's outputs to detections: scores, suppression of doubles, the best of an image.

Shapes: B images, C classes (0 is background), A default boxes; N candidates of all images, in G
groups of one image and class, at most K in each.

Source: Liu et al., "SSD: Single Shot MultiBox Detector" (2016), section 2.2, "Inference time";
v0.5's thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from single_stage_detector.config import Config
from single_stage_detector.default_boxes import DefaultBoxes, intersection_over_union


@dataclass(frozen=True)
class Detections:
    """What was found in a batch, image by image, the highest score first."""

    images: Tensor
    """Place of the image in the batch [N]."""
    boxes: Tensor
    """Corners, relative to the image and not clipped to it [N, 4]."""
    scores: Tensor
    """Probability of the class [N]."""
    labels: Tensor
    """1 to C - 1 [N]."""


def detect(
    box_deltas: Tensor, class_logits: Tensor, default_boxes: DefaultBoxes, config: Config
) -> Detections:
    """Detections in each image, at most `max_detections`: box_deltas [B, 4, A], logits [B, C, A].

    For each class the boxes that score above `min_score`, the best `max_detections` of them; of two
    that overlap by `nms_iou` or more the lower goes; then the best of all classes together.
    """
    scores = class_logits.float().softmax(dim=1)[:, 1:]  # [B, C - 1, A]
    images, classes, places = (scores > config.min_score).nonzero(as_tuple=True)  # each [N]
    candidates = Detections(
        images,
        default_boxes.decode(box_deltas.float())[images, places],
        scores[images, classes, places],
        classes + 1,
    )
    groups = images * scores.shape[1] + classes
    candidates, groups, ranks = _best_of_groups(candidates, groups, config.max_detections)
    candidates = select(candidates, _survive(candidates, groups, ranks, config.nms_iou))
    return _best_of_groups(candidates, candidates.images, config.max_detections)[0]


def select(detections: Detections, which: Tensor) -> Detections:
    """Those of the detections that `which` (a mask, or places) names."""
    return Detections(
        detections.images[which],
        detections.boxes[which],
        detections.scores[which],
        detections.labels[which],
    )


def _best_of_groups(
    candidates: Detections, groups: Tensor, num_best: int
) -> tuple[Detections, Tensor, Tensor]:
    """The `num_best` of each group, ordered by group and falling score, with group and rank [N].

    Of equal scores the earlier comes first.
    """
    order = candidates.scores.argsort(descending=True, stable=True)
    order = order[groups[order].argsort(stable=True)]
    groups = groups[order]
    ranks = _ranks(groups)
    is_best = ranks < num_best
    return select(candidates, order[is_best]), groups[is_best], ranks[is_best]


def _ranks(groups: Tensor) -> Tensor:
    """Place of each candidate in its group, from 0: `groups` [N] is sorted."""
    places = torch.arange(len(groups), device=groups.device)
    return places - torch.searchsorted(groups, groups)


def _survive(candidates: Detections, groups: Tensor, ranks: Tensor, nms_iou: float) -> Tensor:
    """Which candidates no better one of their group suppresses [N], for all groups at once.

    The greedy rule, "a box goes if a better one that stays overlaps it", is applied to all boxes
    again and again until nothing changes. After t rounds the first t of each group are right, so
    that this ends with the result of going through them one by one; mostly after two or three.
    """
    _, rows = groups.unique_consecutive(return_inverse=True)  # [N] of 0 to G - 1
    num_groups = int(rows[-1]) + 1 if len(rows) else 0
    num_columns = int(ranks.max()) + 1 if len(rows) else 0
    boxes = candidates.boxes.new_zeros(num_groups, num_columns, 4)
    boxes[rows, ranks] = candidates.boxes
    overlaps = intersection_over_union(boxes, boxes) >= nms_iou  # [G, K, K]
    is_under = overlaps.triu(diagonal=1)  # [g, i, j]: i comes before j and overlaps it
    stays = torch.ones(num_groups, num_columns, dtype=torch.bool, device=boxes.device)
    while True:
        before = stays
        stays = ~(is_under & before[:, :, None]).any(dim=1)
        if torch.equal(stays, before):
            return stays[rows, ranks]
