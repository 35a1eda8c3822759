"""From the box head's outputs to detections: the surest boxes of each image, one to an object.

Shapes: R proposals of an image, C classes, D detections.

Source: Girshick, "Fast R-CNN" (2015), section 3; v0.5's box_head/inference.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from object_detection.box_head import WEIGHTS
from object_detection.boxes import Boxes
from object_detection.config import Config


@dataclass(frozen=True)
class Detections:
    """Objects found on one image, the surest first."""

    boxes: Tensor
    """In pixels of what the network saw [D, 4]."""
    scores: Tensor
    """Probabilities [D]."""
    labels: Tensor
    """1 to C - 1 [D]."""


def detect(
    class_logits: Tensor, deltas: Tensor, proposals: Tensor, size: Tensor, config: Config
) -> Detections:
    """The detections of one image.

    class_logits [R, C], deltas [R, C, 4], proposals [R, 4]; size: width and height of the image
    without padding [2]. Boxes are clipped to it; of two of a class that overlap by more than
    config.nms_iou the one with the lower score goes. Boxes as sure as the last one stay too.
    """
    coordinates = Boxes(config.legacy_coords)
    scores = class_logits.float().softmax(dim=1)
    boxes = coordinates.decode(deltas.float(), proposals[:, None], WEIGHTS)
    boxes = coordinates.clip(boxes, size)
    is_candidate = scores > config.min_score
    is_candidate[:, 0] = False
    regions, labels = is_candidate.nonzero(as_tuple=True)
    boxes, scores = boxes[regions, labels], scores[regions, labels]
    kept = coordinates.suppress(boxes, scores, labels, config.nms_iou)
    if len(kept) > config.max_detections:
        kept = kept[scores[kept] >= scores[kept[config.max_detections - 1]]]
    return Detections(boxes[kept], scores[kept], labels[kept])
