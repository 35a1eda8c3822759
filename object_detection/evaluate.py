"""The quality: COCO's average precision and recall of boxes and masks over the validation set.

Shapes: B images, D detections, S rows and columns of a mask.

Source: https://cocodataset.org/#detection-eval; Lin et al., "Microsoft COCO" (2014).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import numpy
import torch
from torch import Tensor, distributed

from harness import torch_support
from object_detection import box_head, mask_head
from object_detection.anchors import make_anchors
from object_detection.config import Config
from object_detection.data import Images, eval_batches
from object_detection.detection import Detections, detect
from object_detection.masks import encode_bitmaps, paste
from object_detection.model import MaskRCNN, normalize_pixels
from object_detection.region_proposals import propose
from object_detection.regions import read_regions

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
KINDS = {"box": "bbox", "mask": "segm"}
"""What is judged, and COCO's name for it."""
PASTE_THREADS = 2
"""That turn masks into runs of pixels while the next images are looked at."""

Results = list[dict[str, Any]]


def evaluate(
    model: MaskRCNN,
    images: Images,
    config: Config,
    device: torch.device,
    num_workers: int,
    max_images: int | None = None,
) -> dict[str, float]:
    """COCO's numbers of boxes and of masks by name, over the images of all processes, each once.

    Detections are float32 whatever the precision of training. With `max_images` the others' objects
    count as missed, which is for timing.
    """
    assert images.ground_truth is not None
    mine = detect_objects(model, images, config, device, num_workers, max_images)
    results = gather(mine)
    values = {}
    if torch_support.rank() == 0:
        for name in KINDS:
            found = coco_statistics(images.ground_truth, results, name)
            values |= {f"{name}_{key}": value for key, value in found.items()}
    return torch_support.from_first_process(values)


def detect_objects(
    model: MaskRCNN,
    images: Images,
    config: Config,
    device: torch.device,
    num_workers: int,
    max_images: int | None = None,
) -> Results:
    """What the model finds on this process's share of the images, in the form of COCO's results."""
    pasted: list[Future[Results]] = []
    model.eval()
    with torch.no_grad(), ThreadPoolExecutor(PASTE_THREADS) as threads:
        for numbers, pixels, sizes in eval_batches(images, config, num_workers, max_images):
            found, masks = find(model, pixels.to(device), sizes.to(device), config)
            for number, size, detections, some in zip(
                numbers.tolist(), sizes, found, masks, strict=True
            ):
                on_cpu = Detections(
                    detections.boxes.cpu(), detections.scores.cpu(), detections.labels.cpu()
                )
                job = (images, number, size, on_cpu, some.cpu(), config)
                pasted.append(threads.submit(to_results, *job))
        results = [result for some in pasted for result in some.result()]
    model.train()
    return results


def find(
    model: MaskRCNN, pixels: Tensor, sizes: Tensor, config: Config
) -> tuple[list[Detections], list[Tensor]]:
    """Detections of each image, and the probabilities of their masks [D, S, S].

    pixels uint8 [B, 3, H, W]; sizes: width and height without padding [B, 2].
    """
    maps, objectness, deltas = model(normalize_pixels(pixels, sizes))
    anchors = make_anchors(config, [x.shape[2:] for x in maps], pixels.device)
    proposals = propose(objectness, deltas, anchors, sizes, config, is_training=False)
    features = read_regions(maps, proposals, box_head.REGION_SIZE, config)
    class_logits, box_deltas = model.box_head(features)
    counts = [len(some) for some in proposals]
    found = [
        detect(some_logits, some_deltas, some, size, config)
        for some_logits, some_deltas, some, size in zip(
            class_logits.split(counts), box_deltas.split(counts), proposals, sizes, strict=True
        )
    ]
    features = read_regions(maps, [some.boxes for some in found], mask_head.REGION_SIZE, config)
    labels = torch.cat([some.labels for some in found])
    logits = model.mask_head(features)[torch.arange(len(labels), device=labels.device), labels]
    masks = logits.float().sigmoid().split([len(some.scores) for some in found])
    return found, list(masks)


def to_results(
    images: Images,
    number: int,
    size: Tensor,
    detections: Detections,
    masks: Tensor,
    config: Config,
) -> Results:
    """One image's detections in the original image's pixels, in COCO's form."""
    annotations = images.annotations
    width, height = annotations.sizes[number].tolist()
    ratio = torch.tensor([width, height]).double() / size
    boxes = (detections.boxes.double() * ratio.repeat(2)).float()
    runs = encode_bitmaps(paste(masks, boxes, height, width))
    one = int(config.legacy_coords)
    results = []
    for box, score, label, mask in zip(
        boxes.double().numpy(),
        detections.scores.tolist(),
        detections.labels.tolist(),
        runs,
        strict=True,
    ):
        left, top, right, bottom = box.tolist()
        result = {
            "image_id": int(annotations.image_ids[number]),
            "category_id": annotations.category_ids[label - 1],
            "score": score,
            "bbox": [left, top, right - left + one, bottom - top + one],
            "segmentation": mask,
        }
        if numpy.isfinite(box).all():  # pycocotools would count a box that is none as a hit
            results.append(result)
    return results


def gather(mine: Results) -> Results:
    """The detections of all processes in the first one, in the order of their images."""
    if torch_support.num_processes() == 1:
        return mine
    parts: list[Any] | None = None
    if torch_support.rank() == 0:
        parts = [None] * torch_support.num_processes()
    distributed.gather_object(mine, parts)
    return mine if parts is None else [result for part in parts for result in part]


def coco_statistics(
    ground_truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    kind: str,
    backend: Literal["faster-coco-eval", "pycocotools"] = "faster-coco-eval",
) -> dict[str, float]:
    """COCO's twelve numbers by name, of boxes or masks as `kind` says.

    ground_truth: an instances file; results as `detect_objects` gives them. All images of the file
    count, with or without objects. pycocotools is the original, and slower.
    """
    if backend == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    else:
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as COCOeval

    # What is not judged is left out: a mask's box and area follow from the mask.
    judged = "segmentation" if KINDS[kind] == "segm" else "bbox"
    kept = [
        {name: result[name] for name in ("image_id", "category_id", "score", judged)}
        for result in results
    ]
    if not kept:  # neither takes an empty list of results
        return dict.fromkeys(STATISTICS, 0.0)
    annotations = [dict(annotation) for annotation in ground_truth["annotations"]]
    with contextlib.redirect_stdout(io.StringIO()):  # they report their progress there
        truth = COCO()
        truth.dataset = {**ground_truth, "annotations": annotations}
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(kept), KINDS[kind])
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(STATISTICS, map(float, evaluation.stats[:12]), strict=True))
