"""From images to detections: the surest boxes of each image, one to an object, and their masks.

Shapes: B images, H and W their sides, R proposals of an image, C classes, D detections, S rows and
columns of a mask.

Sources: Girshick, "Fast R-CNN" (2015), section 3; He et al., "Mask R-CNN" (2017), section 3; v0.5's
box_head/inference.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from object_detection import box_head, mask_head
from object_detection.anchors import make_anchors
from object_detection.box_head import WEIGHTS
from object_detection.boxes import Boxes
from object_detection.config import Config
from object_detection.model import MaskRCNN, normalize_pixels
from object_detection.region_proposals import propose
from object_detection.regions import read_regions


@dataclass(frozen=True)
class Detections:
    """Objects found on one image, the surest first."""

    boxes: Tensor
    """In pixels of what the network saw [D, 4]."""
    scores: Tensor
    """Probabilities [D]."""
    labels: Tensor
    """1 to C - 1 [D]."""


@dataclass(frozen=True)
class Found:
    """Objects found on one image, the surest first, in the image's own pixels; on the CPU."""

    boxes: Tensor
    """float32 [D, 4]."""
    scores: Tensor
    """Probabilities [D]."""
    labels: Tensor
    """1 to C - 1 [D]."""
    masks: Tensor
    """Probability that a cell of a detection's box belongs to the object [D, S, S]."""


def find(
    model: MaskRCNN, pixels: Tensor, sizes: Tensor, original_sizes: Tensor, config: Config
) -> list[Found]:
    """The objects of some images: pixels uint8 [B, 3, H, W], on the model's device.

    sizes: width and height without padding [B, 2]; original_sizes: the same before the images were
    resized [B, 2]; both on the CPU.
    """
    device_sizes = sizes.to(pixels.device)
    maps, objectness, deltas = model(normalize_pixels(pixels, device_sizes, config))
    anchors = make_anchors(config, maps)
    proposals = propose(objectness, deltas, anchors, device_sizes, config, is_training=False)
    features = read_regions(maps, proposals, box_head.REGION_SIZE, config)
    class_logits, box_deltas = model.box_head(features)
    counts = [len(some) for some in proposals]
    of_images = zip(
        class_logits.split(counts), box_deltas.split(counts), proposals, device_sizes, strict=True
    )
    detections = [detect(*parts, config) for parts in of_images]
    boxes = [some.boxes for some in detections]
    features = read_regions(maps, boxes, mask_head.REGION_SIZE, config)
    scores = torch.cat([some.scores for some in detections])
    labels = torch.cat([some.labels for some in detections])
    logits = model.mask_head(features)[torch.arange(len(labels), device=labels.device), labels]
    # All images at once, so that a GPU is waited for once.
    together = (torch.cat(boxes), scores, labels, logits.float().sigmoid())
    counts = [len(some) for some in boxes]
    ratios = (original_sizes.double() / sizes).repeat(1, 2)
    return [
        Found((some_boxes * ratio).float(), *rest)
        for ratio, some_boxes, *rest in zip(
            ratios, *(part.cpu().split(counts) for part in together), strict=True
        )
    ]


def detect(
    class_logits: Tensor, deltas: Tensor, proposals: Tensor, size: Tensor, config: Config
) -> Detections:
    """The detections of one image.

    class_logits [R, C], deltas [R, C, 4], proposals [R, 4]; size: width and height of the image
    without padding [2]. Boxes are clipped to it; of two of a class that overlap by more than
    config.nms_iou the one with the lower score goes. Boxes as sure as the last one stay too. A box
    without a size is no detection, nor one that is no number: pycocotools would count it as a hit.
    """
    coordinates = Boxes(config.legacy_coords)
    scores = class_logits.float().softmax(dim=1)
    boxes = coordinates.decode(deltas.float(), proposals[:, None], WEIGHTS)
    boxes = coordinates.clip(boxes, size)
    has_size = (coordinates.sizes(boxes) > 0).all(dim=2)  # no number is not above 0
    is_candidate = (scores > config.min_score) & has_size
    is_candidate[:, 0] = False
    regions, labels = is_candidate.nonzero(as_tuple=True)
    boxes, scores = boxes[regions, labels], scores[regions, labels]
    kept = coordinates.suppress(boxes, scores, labels, config.nms_iou)
    if len(kept) > config.max_detections:
        kept = kept[scores[kept] >= scores[kept[config.max_detections - 1]]]
    return Detections(boxes[kept], scores[kept], labels[kept])
