"""What both programs of comparisons.single_stage_detector work on, and their clock.

A batch of made-up images with as many objects as COCO's have, a network whose random weights find
about as much as a trained one, outputs for a post-processing alone, and a COCO result set.

Shapes: B images, M the most objects that one of them has, A default boxes, C classes.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from single_stage_detector.config import REFERENCE, Config
from single_stage_detector.default_boxes import DefaultBoxes, intersection_over_union
from single_stage_detector.loss import encode_targets
from single_stage_detector.model import SSD, normalize_pixels

MEAN_OBJECTS = 7.3
"""Of an image: COCO's training set has 860,001 in 117,266 (specification, section 1.2)."""
WIDTH, HEIGHT = 640, 480
"""Of the images of the COCO evaluation, in pixels."""
CANDIDATES_PER_IMAGE = 150
"""Boxes with a score that counts, of the network with random weights, about."""
DETECTIONS_PER_OBJECT = 3
"""Of the COCO evaluation."""
OTHER_DETECTIONS = 20
"""Detections of an image that are at no object, in the COCO evaluation."""
CROWD_ONE_IN = 80
"""One of so many objects of the COCO evaluation is a crowd."""

FloatArray = NDArray[numpy.float64]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Work:
    """How much of it; the defaults are what is compared."""

    seed: int
    batch_size: int = 8
    """Images of a step, of an evaluation and of a post-processing."""
    num_blocks: tuple[int, int, int] = REFERENCE.num_blocks
    """Basic blocks of the backbone's stages."""
    num_filters: tuple[int, int, int] = REFERENCE.num_filters
    """Their channels."""
    num_steps: int = 3
    """Training steps on the clock, and evaluations of a batch."""
    num_calls: int = 15
    """Encodings and post-processings of a batch on the clock."""
    num_coco_images: int = 500
    """Images of the COCO evaluation."""
    num_coco_calls: int = 3
    """COCO evaluations on the clock."""

    @property
    def config(self) -> Config:
        """The reference preset with this batch and this backbone."""
        return dataclasses.replace(
            REFERENCE,
            batch_size=self.batch_size,
            num_blocks=self.num_blocks,
            num_filters=self.num_filters,
        )


@dataclass(frozen=True)
class Inputs:
    """A batch as our loop gets it."""

    pixels: Tensor
    """uint8 [B, 3, S, S]."""
    boxes: Tensor
    """Corners relative to the image [B, M, 4]; zeros where an image has fewer."""
    labels: Tensor
    """[B, M]; 0 where an image has fewer."""


# --- made-up work ---------------------------------------------------------------------------------


def draw_boxes(stream: numpy.random.Generator, count: int) -> FloatArray:
    """Corners of boxes within the image, relative to it, small ones as frequent as large [N, 4]."""
    sides = numpy.exp(stream.uniform(numpy.log(0.04), numpy.log(0.8), (count, 1)))
    aspects = numpy.exp(stream.uniform(-0.5, 0.5, (count, 1)))
    sizes = numpy.minimum(numpy.hstack([sides * aspects, sides / aspects]), 0.98)
    corners = stream.uniform(0, 1, (count, 2)) * (1 - sizes)
    return numpy.hstack([corners, corners + sizes])


def make_inputs(work: Work) -> Inputs:
    """Images of noise, with objects."""
    config, stream = work.config, numpy.random.default_rng(work.seed)
    counts = stream.geometric(1 / MEAN_OBJECTS, work.batch_size)
    shape = (work.batch_size, 3, config.input_size, config.input_size)
    boxes = numpy.zeros((work.batch_size, counts.max(), 4), numpy.float32)
    labels = numpy.zeros(boxes.shape[:2], numpy.int64)
    for image, count in enumerate(counts):
        boxes[image, :count] = draw_boxes(stream, count)
        labels[image, :count] = stream.integers(1, config.num_classes, count)
    pixels = torch.from_numpy(stream.integers(0, 256, shape, numpy.uint8))
    return Inputs(pixels, torch.from_numpy(boxes), torch.from_numpy(labels))


@torch.no_grad()
def make_network(work: Work, inputs: Inputs) -> SSD:
    """Our network with random weights that find about so many candidates as a trained one may.

    As it is initialised it would find nothing at all, and its running statistics would not be
    those of any image.
    """
    torch.manual_seed(work.seed)
    network = SSD(work.config)
    images = normalize_pixels(inputs.pixels)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    network(images)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    for heads, deviation in ((network.box_heads, 1.0), (network.class_heads, 2.0)):
        hooks = [head.register_forward_hook(_Standardise(deviation)) for head in heads]
        network(images)
        for hook in hooks:
            hook.remove()
    _, class_logits = network(images)
    surest = class_logits[:, 1:].flatten().topk(CANDIDATES_PER_IMAGE * work.batch_size).values
    for head in network.class_heads:  # background: everywhere so much that no more than these count
        weights, biases = (x.unflatten(0, (work.config.num_classes, -1)) for x in head.parameters())
        weights[0] = 0
        biases[0] = surest[-1] - math.log(work.config.min_score)
    return network


class _Standardise:
    """A hook that makes each channel's values of this batch have mean 0 and this deviation."""

    def __init__(self, deviation: float) -> None:
        self.deviation = deviation

    def __call__(self, head: nn.Conv2d, _: Any, values: Tensor) -> None:
        centred = values - head.bias.view(1, -1, 1, 1)  # type: ignore[union-attr]
        scale = self.deviation / centred.std(dim=(0, 2, 3)).clamp(min=1e-6)
        head.bias.copy_(-centred.mean(dim=(0, 2, 3)) * scale)  # type: ignore[union-attr]
        head.weight.mul_(scale.view(-1, 1, 1, 1))


def make_outputs(work: Work, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Box deltas [B, 4, A] and class logits [B, C, A] as of a network that sees the objects.

    The more a default box overlaps an object the surer is its class, and a little less so a wrong
    one. No box reaches out of the image, because torchvision clips boxes before it suppresses.
    """
    config, generator = work.config, torch.Generator().manual_seed(work.seed)
    default_boxes = DefaultBoxes(config)
    deltas, _ = encode_targets(default_boxes, inputs.boxes, inputs.labels)
    deltas = deltas + 0.5 * torch.randn(deltas.shape, generator=generator)
    boxes = default_boxes.decode(deltas).clamp(0, 1)
    boxes[..., 2:] = torch.maximum(boxes[..., 2:], boxes[..., :2] + 1e-3)
    deltas = default_boxes.encode(boxes)

    overlap = intersection_over_union(inputs.boxes, default_boxes.corners)  # [B, M, A]
    shape = (work.batch_size, config.num_classes, overlap.shape[2])
    logits = torch.randn(shape, generator=generator)
    logits[:, 0] += 7
    wrong = 1 + inputs.labels % (config.num_classes - 1)
    for labels, certainty in ((inputs.labels, 12), (wrong, 9)):
        places = labels[..., None].expand_as(overlap)
        logits.scatter_add_(1, places, certainty * overlap * (inputs.labels > 0)[..., None])
    return deltas, logits


def make_results(work: Work) -> tuple[dict[str, Any], FloatArray]:
    """An instances file with crowds, and detections [D, 7] as `coco_statistics` takes them."""
    stream = numpy.random.default_rng(work.seed)
    num_kinds = work.config.num_classes - 1
    pixels = numpy.array([WIDTH, HEIGHT, WIDTH, HEIGHT])
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    rows: list[FloatArray] = []
    for image_id in range(1, work.num_coco_images + 1):
        images.append({"id": image_id, "width": WIDTH, "height": HEIGHT, "file_name": ""})
        count = int(stream.geometric(1 / MEAN_OBJECTS))
        boxes = draw_boxes(stream, count) * pixels
        kinds = stream.integers(1, num_kinds + 1, count)
        for box, kind in zip(boxes.tolist(), kinds.tolist(), strict=True):
            left, top, right, bottom = box
            width, height = right - left, bottom - top
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": kind,
                "bbox": [left, top, width, height],
                "area": 0.6 * width * height,
                "iscrowd": int(stream.integers(CROWD_ONE_IN) == 0),
            }
            annotations.append(annotation)
        shifts = 0.1 * stream.standard_normal((DETECTIONS_PER_OBJECT, count, 4))
        near = boxes + shifts * numpy.tile(boxes[:, 2:] - boxes[:, :2], 2)
        other = draw_boxes(stream, OTHER_DETECTIONS) * pixels
        corners = numpy.vstack([*near, other])
        other_kinds = stream.integers(1, num_kinds + 1, OTHER_DETECTIONS)
        found_kinds = numpy.hstack([numpy.tile(kinds, DETECTIONS_PER_OBJECT), other_kinds])
        scores = stream.uniform(0.05, 1, len(corners))
        corners[:, 2:] = numpy.maximum(corners[:, 2:] - corners[:, :2], 1)
        ids = numpy.full(len(corners), image_id)
        rows.append(numpy.column_stack([ids, corners, scores, found_kinds]))
    categories = [{"id": kind, "name": f"kind {kind}"} for kind in range(1, num_kinds + 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return content, numpy.vstack(rows)


# --- clock and result -----------------------------------------------------------------------------


def median_s(function: Callable[[], Result], num_calls: int) -> tuple[float, Result, list[float]]:
    """Median seconds of so many calls after a first one, the last result, the seconds of each."""
    seconds = []
    for _ in range(1 + num_calls):
        start_s = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - start_s)
    return statistics.median(seconds[1:]), result, seconds


def measure(
    work: Work,
    step: Callable[[], float],
    evaluate: Callable[[], int],
    encode: Callable[[], int],
    post_process: Callable[[], int],
    coco_evaluation: Callable[[], float],
    facts: Mapping[str, Any],
) -> None:
    """Time each part, the evaluation before steps change the weights, and print the frame's line.

    They return the loss, the number of detections, of matches, of detections, and the AP.
    """
    encode_s, num_matches, _ = median_s(encode, work.num_calls)
    post_process_s, num_found, _ = median_s(post_process, work.num_calls)
    coco_s, ap, _ = median_s(coco_evaluation, work.num_coco_calls)
    evaluate_s, num_detections, evaluations_s = median_s(evaluate, work.num_steps)
    step_s, loss, steps_s = median_s(step, work.num_steps)
    shared = {
        "num_matches": num_matches,
        "ap": round(ap, 9),
        "num_coco_images": work.num_coco_images,
        "min_score": work.config.min_score,
        "num_threads": torch.get_num_threads(),
    }
    measures = {
        "train_images_per_s": work.batch_size / step_s,
        "evaluation_images_per_s": work.batch_size / evaluate_s,
        "encoding_ms": 1000 * encode_s,
        "post_processing_ms": 1000 * post_process_s,
        "coco_evaluation_s": coco_s,
    }
    details = {
        "loss": loss,
        "num_detections": num_detections,
        "num_post_processed": num_found,
        "steps_s": steps_s,
        "evaluations_s": evaluations_s,
    }
    print(json.dumps({"measures": measures, "facts": {**facts, **shared}, "details": details}))
