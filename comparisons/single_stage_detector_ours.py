"""One run of our side of comparisons.single_stage_detector.

    .venv/bin/python -m comparisons.single_stage_detector_ours --seed 1

It calls what single_stage_detector.train and its evaluation call, in the reference configuration.
"""

from __future__ import annotations

import torch
import tyro
from torch import Tensor

from comparisons.single_stage_detector_work import (
    Work,
    make_inputs,
    make_network,
    make_outputs,
    make_results,
    measure,
)
from harness import torch_support
from single_stage_detector.default_boxes import DefaultBoxes
from single_stage_detector.detection import detect
from single_stage_detector.evaluate import coco_statistics
from single_stage_detector.loss import encode_targets, image_losses
from single_stage_detector.model import normalize_pixels
from single_stage_detector.train import MEMORY_FORMAT, make_optimizer


def main() -> None:
    """Measure and print the result."""
    work = tyro.cli(Work)
    torch_support.set_up(torch.device("cpu"), work.seed)
    config, inputs = work.config, make_inputs(work)
    network = make_network(work, inputs)
    memory_format = MEMORY_FORMAT["cpu"]
    network.to(memory_format=memory_format)  # type: ignore[call-overload]
    optimizer = make_optimizer(network, config)
    default_boxes = DefaultBoxes(config)
    outputs = make_outputs(work, inputs)
    ground_truth, results = make_results(work)

    def forward() -> tuple[Tensor, Tensor]:
        images = normalize_pixels(inputs.pixels).contiguous(memory_format=memory_format)
        box_deltas, class_logits = network(images)
        return box_deltas, class_logits

    def step() -> float:
        box_deltas, class_logits = forward()
        targets = encode_targets(default_boxes, inputs.boxes, inputs.labels)
        loss = image_losses(box_deltas, class_logits, *targets).mean()
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = config.base_learning_rate
        optimizer.step()
        return loss.item()

    @torch.no_grad()
    def evaluate() -> int:
        network.eval()
        box_deltas, class_logits = forward()
        found = detect(box_deltas, class_logits, default_boxes, config)
        network.train()
        return len(found.scores)

    def encode() -> int:
        _, labels = encode_targets(default_boxes, inputs.boxes, inputs.labels)
        return int((labels > 0).sum())

    measure(
        work,
        step=step,
        evaluate=evaluate,
        encode=encode,
        post_process=lambda: len(detect(*outputs, default_boxes, config).scores),
        coco_evaluation=lambda: coco_statistics(ground_truth, results)["ap"],
        facts={
            "batch_size": len(inputs.pixels),
            "image_size": inputs.pixels.shape[-1],
            "num_objects": int((inputs.labels > 0).sum()),
            "num_parameters": sum(weights.numel() for weights in network.parameters()),
            "num_default_boxes": len(default_boxes.corners),
            "num_classes": outputs[1].shape[1],
            "momentum": optimizer.param_groups[0]["momentum"],
            "weight_decay": optimizer.param_groups[0]["weight_decay"],
            "min_score": config.min_score,
            "nms_iou": config.nms_iou,
            "max_detections": config.max_detections,
            "num_results": len(results),
        },
    )


if __name__ == "__main__":
    main()
