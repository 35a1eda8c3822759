"""From the network's outputs to detections: scores, suppression of doubles, the best of an image.

Shapes: B images, C classes (0 is background), A default boxes; N candidates of all images, in
groups of one image and class; P pairs of candidates of one group.

Source: Liu et al., "SSD: Single Shot MultiBox Detector" (2016), section 2.2, "Inference time";
v0.5's thresholds.
"""

from __future__ import annotations

import math
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
    logits = class_logits.float()
    # Most boxes show nothing: a score is at most exp(its logit - the largest), so that a box needs
    # a softmax only where one of its logits comes near enough to the largest.
    best_object = logits[:, 1:].amax(dim=1)  # [B, A]
    best = torch.maximum(best_object, logits[:, 0])
    least = math.log(config.min_score) - 0.01 if config.min_score > 0 else -math.inf
    images, places = (best_object > best + least).nonzero(as_tuple=True)
    scores = logits[images, :, places].softmax(dim=1)[:, 1:]  # [boxes, C - 1]
    boxes, classes = (scores > config.min_score).nonzero(as_tuple=True)  # each [N]
    images, places = images[boxes], places[boxes]
    candidates = Detections(
        images,
        default_boxes.decode(box_deltas.float())[images, places],
        scores[boxes, classes],
        classes + 1,
    )
    groups = images * scores.shape[1] + classes
    candidates, _, ranks = _best_of_groups(candidates, groups, config.max_detections)
    candidates = select(candidates, _survive(candidates, ranks, config.nms_iou))
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


def _survive(candidates: Detections, ranks: Tensor, nms_iou: float) -> Tensor:
    """Which candidates no better one of their group suppresses [N], for all groups at once.

    Each is compared with those before it in its group. The greedy rule, "a box goes if a better one
    that stays overlaps it", is applied to all boxes again and again until nothing changes. After t
    rounds the first t of each group are right, so that this ends with the result of going through
    them one by one; mostly after two or three.
    """
    places = torch.arange(len(ranks), device=ranks.device)
    worse = torch.repeat_interleave(ranks)  # [P]: place n comes as often as ranks[n] says
    first_pair = ranks.cumsum(0) - ranks
    number = torch.arange(len(worse), device=ranks.device) - first_pair[worse]
    better = (places - ranks)[worse] + number
    boxes = candidates.boxes[:, None]
    overlaps = intersection_over_union(boxes[better], boxes[worse]).flatten() >= nms_iou
    better, worse = better[overlaps], worse[overlaps]
    stays = torch.ones_like(ranks, dtype=torch.bool)
    while True:
        before = stays
        stays = torch.ones_like(before)
        stays[worse[before[better]]] = False
        if torch.equal(stays, before):
            return stays
