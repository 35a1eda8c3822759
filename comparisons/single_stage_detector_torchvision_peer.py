"""One run of torchvision in comparisons.single_stage_detector: its SSD around our layers.

torchvision has no SSD with a ResNet-34, but its class SSD goes around any module that gives feature
maps: here our backbone and extra layers. Heads, default boxes, matching, loss and post-processing
are torchvision's. COCO's metric is pycocotools'.
"""

from __future__ import annotations

import contextlib
import io
from collections import OrderedDict
from typing import Any

import torch
import tyro
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD, SSDHead
from torchvision.ops import box_iou

from comparisons.single_stage_detector_work import (
    FloatArray,
    Inputs,
    Work,
    make_inputs,
    make_network,
    make_outputs,
    make_results,
    measure,
)
from single_stage_detector import model as our_model
from single_stage_detector.config import PIXEL_DEVIATIONS, PIXEL_MEANS, Config
from single_stage_detector.default_boxes import DefaultBoxes


class Features(nn.Module):
    """Our backbone and extra layers, in the form that torchvision's SSD takes."""

    def __init__(self, network: our_model.SSD) -> None:
        super().__init__()
        self.backbone = network.backbone
        self.extra_layers = network.extra_layers

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """[B, 3, S, S] -> feature maps by number."""
        maps = [self.backbone(images.contiguous(memory_format=torch.channels_last))]
        for layer in self.extra_layers:
            maps.append(layer(maps[-1]))
        return OrderedDict((str(number), features) for number, features in enumerate(maps))


def build(network: our_model.SSD, config: Config) -> SSD:
    """The SSD of torchvision around our layers, its own heads with our weights."""
    channels = [head.in_channels for head in network.box_heads]
    num_shapes = [head.out_channels // 4 for head in network.box_heads]
    head = SSDHead(channels, num_shapes, config.num_classes)
    parts = (
        (head.regression_head, network.box_heads),
        (head.classification_head, network.class_heads),
    )
    with torch.no_grad():
        for theirs, ours in parts:
            for conv, source in zip(theirs.module_list, ours, strict=True):
                for name, weights in conv.named_parameters():
                    # Channels: ours (column, shape), theirs (shape, column).
                    values = getattr(source, name).unflatten(0, (theirs.num_columns, -1))
                    weights.copy_(values.transpose(0, 1).flatten(0, 1))
    generator = DefaultBoxGenerator(
        [list(ratios) for ratios in config.aspect_ratios],
        scales=[scale / config.input_size for scale in config.box_scales],
        steps=list(config.map_strides),
    )
    detector = SSD(
        Features(network),
        generator,
        (config.input_size, config.input_size),
        config.num_classes,
        image_mean=list(PIXEL_MEANS),
        image_std=list(PIXEL_DEVIATIONS),
        head=head,
        score_thresh=config.min_score,
        nms_thresh=config.nms_iou,
        detections_per_img=config.max_detections,
        topk_candidates=config.max_detections,
    )
    return detector.to(memory_format=torch.channels_last)


def targets_of(inputs: Inputs, image_size: int) -> list[dict[str, Tensor]]:
    """Objects of each image in torchvision's form: corners in pixels, and labels."""
    return [
        {"boxes": boxes[labels > 0] * image_size, "labels": labels[labels > 0]}
        for boxes, labels in zip(inputs.boxes, inputs.labels, strict=True)
    ]


def encode_targets(detector: SSD, targets: list[dict[str, Tensor]], anchors: Tensor) -> int:
    """What SSD.forward and SSD.compute_loss do up to the targets of all images; counts matches."""
    num_matches = 0
    for target in targets:
        matches = detector.proposal_matcher(box_iou(target["boxes"], anchors))
        shown = torch.where(matches >= 0)[0]
        matched = target["boxes"][matches[shown]]
        detector.box_coder.encode_single(matched, anchors[shown])
        labels = torch.zeros(len(anchors), dtype=torch.int64)
        labels[shown] = target["labels"][matches[shown]]
        num_matches += len(shown)
    return num_matches


def coco_ap(ground_truth: dict[str, Any], results: FloatArray) -> float:
    """Average precision by pycocotools, which reports its progress on stdout."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = ground_truth
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


def main() -> None:
    """Measure and print the result."""
    work = tyro.cli(Work)
    config, inputs = work.config, make_inputs(work)
    detector = build(make_network(work, inputs), config)
    optimizer = torch.optim.SGD(
        detector.parameters(),
        config.base_learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    images = list(inputs.pixels.float() / 255)
    targets = targets_of(inputs, config.input_size)
    sizes = [(config.input_size, config.input_size)] * work.batch_size
    anchors = DefaultBoxes(config).corners * config.input_size
    deltas, logits = (values.transpose(1, 2).contiguous() for values in make_outputs(work, inputs))
    outputs = {"bbox_regression": deltas, "cls_logits": logits}
    ground_truth, results = make_results(work)

    def step() -> float:
        losses = detector(images, targets)
        loss = losses["bbox_regression"] + losses["classification"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.item())

    @torch.no_grad()
    def evaluate() -> int:
        detector.eval()
        found = detector(images)
        detector.train()
        return sum(len(image["scores"]) for image in found)

    @torch.no_grad()
    def post_process() -> int:
        found = detector.postprocess_detections(outputs, [anchors] * len(images), sizes)
        return sum(len(image["scores"]) for image in found)

    measure(
        work,
        step=step,
        evaluate=evaluate,
        encode=lambda: encode_targets(detector, targets, anchors),
        post_process=post_process,
        coco_evaluation=lambda: coco_ap(ground_truth, results),
        facts={
            "batch_size": len(images),
            "image_size": images[0].shape[-1],
            "num_objects": sum(len(target["labels"]) for target in targets),
            "num_parameters": sum(weights.numel() for weights in detector.parameters()),
            "num_default_boxes": len(anchors),
            "num_classes": logits.shape[2],
            "momentum": optimizer.param_groups[0]["momentum"],
            "weight_decay": optimizer.param_groups[0]["weight_decay"],
            "min_score": detector.score_thresh,
            "nms_iou": detector.nms_thresh,
            "max_detections": detector.detections_per_img,
            "num_results": len(results),
        },
    )


if __name__ == "__main__":
    main()
