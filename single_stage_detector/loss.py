"""Which default box is to show which object, and how wrong the network is about that.

Shapes: B images, M the most objects that one of them has, A default boxes, C classes.

Source: Liu et al., "SSD: Single Shot MultiBox Detector" (2016), section 2.2; v0.5 differs from it
in dividing each image's loss by the image's own number of matches.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from single_stage_detector.default_boxes import DefaultBoxes, intersection_over_union

MATCH_IOU = 0.5
"""A default box that overlaps an object by more than this is to show it."""
NEGATIVES_PER_POSITIVE = 3
"""Background boxes that count in the loss, for each one that shows an object."""


def match(default_boxes: DefaultBoxes, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The object that each default box is to show, for a whole batch at once.

    boxes [B, M, 4]: corners; labels [B, M]: 1 to C - 1, or 0 where an image has fewer objects than
    M. Returns the objects' numbers [B, A] and the labels [B, A], 0 for background.

    A default box shows the object that it overlaps most, if by more than MATCH_IOU; and every
    object claims the default box that overlaps it most, the last of several objects winning.
    """
    num_images, num_objects = labels.shape
    num_default = len(default_boxes.corners)
    if num_objects == 0:
        nothing = labels.new_zeros(num_images, num_default)
        return nothing, nothing
    overlap = intersection_over_union(boxes, default_boxes.corners)  # [B, M, A]
    best_overlap, best_object = overlap.max(dim=1)  # [B, A]
    best_default = overlap.argmax(dim=2)  # [B, M]
    numbers = torch.arange(num_objects, device=labels.device)
    claims = numbers.where(labels > 0, -1)  # [B, M]
    claimed_by = torch.full_like(best_object, -1).scatter_reduce(1, best_default, claims, "amax")
    is_claimed = claimed_by >= 0
    objects = claimed_by.where(is_claimed, best_object)
    is_match = is_claimed | (best_overlap > MATCH_IOU)
    return objects, labels.gather(1, objects) * is_match


def encode_targets(
    default_boxes: DefaultBoxes, boxes: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """What the network should say: box deltas [B, 4, A] and labels [B, A], 0 for background.

    boxes [B, M, 4] and labels [B, M] as for `match`. Deltas of background count nowhere.
    """
    objects, target_labels = match(default_boxes, boxes, labels)
    if boxes.shape[1] == 0:
        return boxes.new_zeros(len(boxes), 4, len(default_boxes.corners)), target_labels
    matched = boxes.gather(1, objects[..., None].expand(-1, -1, 4))  # [B, A, 4]
    return default_boxes.encode(matched), target_labels


def image_losses(
    box_deltas: Tensor, class_logits: Tensor, target_deltas: Tensor, target_labels: Tensor
) -> Tensor:
    """Loss of each image [B]: of its boxes and its classes, for each match; 0 without a match.

    box_deltas, target_deltas [B, 4, A]; class_logits [B, C, A]; target_labels [B, A]. Matches and
    the hardest background boxes, three to a match, count for the classes.
    """
    is_match = target_labels > 0
    num_matches = is_match.sum(dim=1)  # [B]
    box_errors = functional.smooth_l1_loss(box_deltas, target_deltas, reduction="none").sum(dim=1)
    box_loss = (box_errors * is_match).sum(dim=1)

    entropies = functional.cross_entropy(class_logits, target_labels, reduction="none")  # [B, A]
    hardest = (entropies * ~is_match).sort(dim=1, descending=True).values
    places = torch.arange(hardest.shape[1], device=hardest.device)
    is_chosen = places < NEGATIVES_PER_POSITIVE * num_matches[:, None]
    class_loss = (entropies * is_match).sum(dim=1) + (hardest * is_chosen).sum(dim=1)

    # An image without a match has no chosen background either: 0 / 1.
    return (box_loss + class_loss) / num_matches.clamp(min=1)
