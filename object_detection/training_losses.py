"""One pass of training: from a batch to the five losses, through all parts of the network.

Shapes: B images, H and W their sides.

Source: He et al., "Mask R-CNN" (2017), section 3.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from object_detection import box_head, mask_head
from object_detection.anchors import make_anchors
from object_detection.box_head import box_losses, choose_samples
from object_detection.config import Config
from object_detection.data import Batch
from object_detection.mask_head import MASK_SIZE, mask_loss
from object_detection.masks import mask_targets
from object_detection.model import MaskRCNN, normalize_pixels
from object_detection.region_proposals import proposal_losses, propose
from object_detection.regions import read_regions

LOSSES = ("objectness", "proposal_boxes", "classes", "boxes", "masks")
"""In the order of the result."""

Dense = Callable[[Tensor], tuple[list[Tensor], list[Tensor], list[Tensor]]]


class TrainingLosses(nn.Module):
    """The losses of a batch; a module, so that DistributedDataParallel can go around it."""

    def __init__(self, model: MaskRCNN, config: Config, dense: Dense | None = None) -> None:
        """dense: `model` itself, perhaps compiled."""
        super().__init__()
        self.model = model
        self.config = config
        self.dense: Dense = dense or model

    def forward(self, batch: Batch) -> Tensor:
        """Mean losses of the batch in the order of LOSSES [5], float32; their sum is trained."""
        config = self.config
        objects = batch.objects()
        boxes = [some.boxes for some in objects]
        seeds = batch.sampling_seeds.tolist()
        # On the CPU wherever the rest is: the same draws on every device.
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]

        maps, objectness, deltas = self.dense(normalize_pixels(batch.images, batch.sizes, config))
        anchors = make_anchors(config, maps)
        objectness_loss, proposal_loss = proposal_losses(
            objectness, deltas, anchors, batch.sizes, boxes, generators, config
        )
        proposals = propose(objectness, deltas, anchors, batch.sizes, config, is_training=True)
        samples = [
            choose_samples(some, each.boxes, each.labels, generator, config)
            for some, each, generator in zip(proposals, objects, generators, strict=True)
        ]

        regions = [some.boxes for some in samples]
        features = read_regions(maps, regions, box_head.REGION_SIZE, config)
        class_logits, box_deltas = self.model.box_head(features)
        class_loss, box_loss = box_losses(class_logits, box_deltas, samples, boxes, config)

        shown = [some.boxes[: some.num_foreground] for some in samples]
        labels = torch.cat([some.labels[: some.num_foreground] for some in samples])
        targets = [
            mask_targets(each.outlines, some.objects, region, MASK_SIZE)
            for each, some, region in zip(objects, samples, shown, strict=True)
        ]
        features = read_regions(maps, shown, mask_head.REGION_SIZE, config)
        logits = self.model.mask_head(features)
        masks_loss = mask_loss(logits, labels, torch.cat(targets))
        return torch.stack([objectness_loss, proposal_loss, class_loss, box_loss, masks_loss])
