"""The quality: COCO's average precision and recall of boxes over the whole validation set.

Shapes: B images, D detections.

Source: https://cocodataset.org/#detection-eval; Lin et al., "Microsoft COCO" (2014).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from typing import Any, Literal

import numpy
import torch
from numpy.typing import NDArray
from torch import distributed

from harness import torch_support
from single_stage_detector.config import Config
from single_stage_detector.data import Images, eval_batches
from single_stage_detector.default_boxes import DefaultBoxes
from single_stage_detector.detection import detect
from single_stage_detector.model import SSD, normalize_pixels

STATISTICS = (
    "ap",
    "ap_50",
    "ap_75",
    "ap_small",
    "ap_medium",
    "ap_large",
    "ar_1",
    "ar_10",
    "ar_100",
    "ar_small",
    "ar_medium",
    "ar_large",
)
"""COCO's twelve numbers, in its order: average precision, and recall; -1 where nothing counts."""

ANNOTATION_FIELDS = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
"""What counts of an annotation where boxes are judged; outlines are most of an instances file."""

FloatArray = NDArray[numpy.float64]


def evaluate(
    model: SSD,
    images: Images,
    config: Config,
    device: torch.device,
    num_workers: int,
    max_images: int | None = None,
) -> dict[str, float]:
    """COCO's twelve numbers by name, over the images of all processes, each image once.

    Detections are float32 whatever the precision of training. With `max_images` the others' objects
    count as missed, which is for timing.
    """
    assert images.ground_truth is not None
    synchronise_statistics(model)
    mine = detect_objects(model, images, config, device, num_workers, max_images)
    detections = gather(mine)
    values = coco_statistics(images.ground_truth, detections) if torch_support.rank() == 0 else {}
    return torch_support.from_first_process(values)


def synchronise_statistics(model: SSD) -> None:
    """Every process takes over the first one's running statistics."""
    if torch_support.num_processes() > 1:
        for buffer in model.buffers():
            distributed.broadcast(buffer, 0)


def detect_objects(
    model: SSD,
    images: Images,
    config: Config,
    device: torch.device,
    num_workers: int,
    max_images: int | None = None,
) -> FloatArray:
    """What the model finds on this process's share of the images, in the form of COCO's results.

    Rows of image id, left, top, width, height in pixels of the original image, score, category id:
    [D, 7]. Boxes are not clipped to the image. A box that is no number is no detection: pycocotools
    would count it as a hit.
    """
    annotations = images.annotations
    category_ids = numpy.array([0, *annotations.category_ids])
    default_boxes = DefaultBoxes(config).to(device)
    rows = [numpy.zeros((0, 7))]
    model.eval()
    with torch.no_grad(), numpy.errstate(invalid="ignore"):  # infinity less infinity
        for numbers, pixels in eval_batches(images, config, num_workers, max_images):
            inputs = normalize_pixels(pixels.to(device, non_blocking=True))
            box_deltas, class_logits = model(inputs)
            found = detect(box_deltas, class_logits, default_boxes, config)
            places = numbers[found.images.cpu()].numpy()
            boxes = found.boxes.cpu().numpy().astype(numpy.float64)
            boxes = boxes * numpy.tile(annotations.sizes[places], 2)
            boxes[:, 2:] -= boxes[:, :2]
            ids = annotations.image_ids[places]
            kinds = category_ids[found.labels.cpu().numpy()]
            scores = found.scores.cpu().numpy()
            rows.append(numpy.column_stack([ids, boxes, scores, kinds]))
    model.train()
    detections = numpy.concatenate(rows)
    return detections[numpy.isfinite(detections).all(axis=1)]


def gather(mine: FloatArray) -> FloatArray:
    """The detections of all processes in the first one, in the order of their images."""
    if torch_support.num_processes() == 1:
        return mine
    parts: list[Any] | None = None
    if torch_support.rank() == 0:
        parts = [None] * torch_support.num_processes()
    distributed.gather_object(mine, parts)
    return mine if parts is None else numpy.concatenate(parts)


def coco_statistics(
    ground_truth: Mapping[str, Any],
    detections: FloatArray,
    backend: Literal["faster-coco-eval", "pycocotools"] = "faster-coco-eval",
) -> dict[str, float]:
    """COCO's twelve numbers of boxes, by name.

    ground_truth: an instances file; detections: rows as `detect_objects` gives them [D, 7]. All
    images of the file count, with or without objects. pycocotools is the original, and slower.
    """
    if backend == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    else:
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as COCOeval

    if not len(detections):  # neither takes an empty list of results
        first = ground_truth["images"][0]["id"]
        kind = ground_truth["categories"][0]["id"]
        detections = numpy.array([[first, -2.0, -2.0, 1.0, 1.0, 0.0, kind]])
    annotations = [  # a copy: it is written to
        {field: annotation[field] for field in ANNOTATION_FIELDS}
        for annotation in ground_truth["annotations"]
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # they report their progress there
        truth = COCO()
        truth.dataset = {**ground_truth, "annotations": annotations}
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(STATISTICS, map(float, evaluation.stats[:12]), strict=True))
