"""The quality: COCO's average precision and recall of boxes and masks over the validation set.

Source: https://cocodataset.org/#detection-eval; Lin et al., "Microsoft COCO" (2014).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pycocotools import mask as coco_mask
from torch import distributed

from harness import torch_support
from object_detection.boxes import Boxes
from object_detection.coco import Annotations
from object_detection.config import Config
from object_detection.data import Images, eval_batches
from object_detection.detection import Found, find
from object_detection.masks import encode, paste
from object_detection.model import MaskRCNN

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
ANNOTATION_FIELDS = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
"""What counts of an annotation where boxes are judged; outlines are most of an instances file."""

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
    values: dict[str, float] = {}
    if torch_support.rank() == 0:
        for kind in KINDS:
            found = coco_statistics(images.ground_truth, results, kind)
            values |= {f"{kind}_{name}": value for name, value in found.items()}
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
    annotations = images.annotations
    results = []
    model.eval()
    with torch.no_grad():
        for numbers, pixels, sizes in eval_batches(images, config, num_workers, max_images):
            original_sizes = torch.from_numpy(annotations.sizes)[numbers]
            pixels = pixels.to(device, non_blocking=True)
            found = find(model, pixels, sizes, original_sizes, config)
            for number, one in zip(numbers.tolist(), found, strict=True):
                results += to_results(annotations, number, one, config)
    model.train()
    return results


def to_results(annotations: Annotations, number: int, found: Found, config: Config) -> Results:
    """One image's detections in COCO's form: left, top, width, height, and runs of pixels."""
    width, height = annotations.sizes[number].tolist()
    patches = paste(found.masks, found.boxes, height, width)
    corners = found.boxes.double()
    sizes = Boxes(config.legacy_coords).sizes(corners)
    boxes = torch.cat([corners[:, :2], sizes], dim=1)
    return [
        {
            "image_id": int(annotations.image_ids[number]),
            "category_id": annotations.category_ids[label - 1],
            "score": score,
            "bbox": box,
            "segmentation": encode(patch, height, width),
        }
        for box, score, label, patch in zip(
            boxes.tolist(), found.scores.tolist(), found.labels.tolist(), patches, strict=True
        )
    ]


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
    judged = "segmentation" if kind == "mask" else "bbox"
    kept = [
        {name: result[name] for name in ("image_id", "category_id", "score", judged)}
        for result in results or [nothing_in(ground_truth)]
    ]
    fields = (*ANNOTATION_FIELDS, "segmentation") if kind == "mask" else ANNOTATION_FIELDS
    annotations = [  # a copy: it is written to
        {field: annotation[field] for field in fields} for annotation in ground_truth["annotations"]
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # they report their progress there
        truth = COCO()
        truth.dataset = {**ground_truth, "annotations": annotations}
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(kept), KINDS[kind])
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(STATISTICS, map(float, evaluation.stats[:12]), strict=True))


def nothing_in(ground_truth: Mapping[str, Any]) -> dict[str, Any]:
    """A detection that hits nothing: neither evaluator takes an empty list of results."""
    image = ground_truth["images"][0]
    height, width = image["height"], image["width"]
    runs = {"size": [height, width], "counts": [height * width]}
    return {
        "image_id": image["id"],
        "category_id": ground_truth["categories"][0]["id"],
        "score": 0.0,
        "bbox": [-2.0, -2.0, 1.0, 1.0],
        "segmentation": coco_mask.frPyObjects(runs, height, width),
    }
