"""One run of our side of comparisons.object_detection.

    .venv/bin/python -m comparisons.object_detection_ours --seed 1

It calls what object_detection.train and its evaluation call, in the reference configuration.
"""

from __future__ import annotations

import torch
import tyro
from torch import Tensor

from comparisons.object_detection_work import (
    ORIGINAL_HEIGHT,
    ORIGINAL_WIDTH,
    Runs,
    Work,
    make_batch,
    make_masks,
    make_network,
    make_results,
    measure,
    optimizer_of,
)
from harness import torch_support
from object_detection import box_head
from object_detection.detection import find
from object_detection.evaluate import KINDS, coco_statistics
from object_detection.masks import encode, paste
from object_detection.train import MEMORY_FORMAT
from object_detection.training_losses import TrainingLosses


def main() -> None:
    """Measure and print the result."""
    work = tyro.cli(Work)
    torch_support.set_up(torch.device("cpu"), work.seed)
    config, batch = work.config, make_batch(work)
    network, num_masks = make_network(work, batch)
    network.to(memory_format=MEMORY_FORMAT["cpu"])  # type: ignore[call-overload]
    losses_of = TrainingLosses(network, config)
    optimizer = optimizer_of(network, config)
    masks, boxes = make_masks(work)
    ground_truth, results = make_results(work)

    def step() -> Tensor:
        network.train()
        optimizer.zero_grad()
        losses: Tensor = losses_of(batch)
        losses.sum().backward()
        optimizer.step()
        return losses.detach()

    @torch.no_grad()
    def find_objects() -> int:
        network.eval()
        found = find(network, batch.images, batch.sizes, batch.sizes, config)
        return sum(len(one.scores) for one in found)

    def paste_masks() -> list[Runs]:
        patches = paste(masks, boxes, ORIGINAL_HEIGHT, ORIGINAL_WIDTH)
        return [encode(patch, ORIGINAL_HEIGHT, ORIGINAL_WIDTH) for patch in patches]

    def judge() -> dict[str, list[float]]:
        return {kind: list(coco_statistics(ground_truth, results, kind).values()) for kind in KINDS}

    measure(
        work,
        step=step,
        find=find_objects,
        paste=paste_masks,
        judge=judge,
        heads=(network.box_head, network.mask_head),
        num_expected_masks=num_masks,
        facts={
            "batch_shape": list(batch.images.shape),
            "image_sizes": batch.sizes.tolist(),
            "num_objects": len(batch.labels),
            "num_parameters": sum(weights.numel() for weights in network.parameters()),
            "num_trained": sum(
                weights.numel() for group in optimizer.param_groups for weights in group["params"]
            ),
            "num_constants": sum(values.numel() for values in network.buffers()),
            "num_classes": config.num_classes,
            "rpn_batch_size": config.rpn_batch_size,
            "roi_batch_size": config.roi_batch_size,
            "rpn_nms_iou": config.rpn_nms_iou,
            "num_candidates": [config.train_pre_nms, config.test_pre_nms],
            "num_proposals": [config.train_post_nms, config.test_post_nms],
            "foreground_share": box_head.FOREGROUND_SHARE,
            "min_score": config.min_score,
            "nms_iou": config.nms_iou,
            "max_detections": config.max_detections,
            "num_pasted": len(masks),
            "num_results": len(results),
        },
    )


if __name__ == "__main__":
    main()
