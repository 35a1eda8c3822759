"""COCO's instances file: images, boxes and labels by v0.5's rules.

Shapes: N images, G objects of all images together.

Source: v0.5's coco.py; https://cocodataset.org/#format-data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray

from harness.errors import UsageError

FIELDS = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}
"""What must be there of each."""
METRIC_FIELDS = {"annotations": ("area", "iscrowd")}
"""What the metric reads too."""

FloatArray = NDArray[numpy.float32]
IntArray = NDArray[numpy.int64]


@dataclass(frozen=True)
class Annotations:
    """The images of one split that have an object, in the order of the file."""

    image_ids: IntArray
    """[N]."""
    file_names: tuple[str, ...]
    """N names, within the folder of the split."""
    sizes: IntArray
    """Width and height that the file names, in pixels [N, 2]."""
    boxes: FloatArray
    """Corners relative to the image, image after image [G, 4]."""
    labels: IntArray
    """1 to C - 1 [G]."""
    first_box: IntArray
    """Where the boxes of each image begin, and of the last end [N + 1]."""
    category_ids: tuple[int, ...]
    """COCO's id of label 1, of label 2, and so on."""
    category_names: tuple[str, ...]
    """Their names."""

    @property
    def num_images(self) -> int:
        """Images with an object."""
        return len(self.image_ids)

    def boxes_of(self, index: int) -> tuple[FloatArray, IntArray]:
        """Corners [M, 4] and labels [M] of an image."""
        objects = slice(*self.first_box[index : index + 2])
        return self.boxes[objects], self.labels[objects]


def read_instances(path: Path) -> dict[str, Any]:
    """The content of an instances file.

    Raises UsageError where it is missing or is none.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; run download_dataset.sh") from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON ({error}); run verify_dataset.sh") from error
    parts = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(p), list) for p in parts):
        cause = f"{path} has no lists of {', '.join(parts)}"
        raise UsageError(f"{cause}; is it an instances file of COCO?")
    return content


def parse(content: Mapping[str, Any], num_classes: int, source: str) -> Annotations:
    """Images and objects of an instances file; `source` names it in errors.

    Labels are 1, 2, ... in the order of the categories. Every annotation is an object, crowds and
    boxes without width included; images without one are left out. Raises UsageError where the
    file contradicts itself or has another number of categories than num_classes - 1.
    """
    categories = content["categories"]
    check_fields(content, source, FIELDS)
    if len(categories) != num_classes - 1:
        cause = f"{source} has {len(categories)} categories, not {num_classes - 1}"
        raise UsageError(f"{cause}; is it this preset's?")
    label_of = {category["id"]: label for label, category in enumerate(categories, start=1)}
    objects: dict[int, list[tuple[list[float], int]]] = {
        image["id"]: [] for image in content["images"]
    }
    for annotation in content["annotations"]:
        try:
            label = label_of[annotation["category_id"]]
            objects[annotation["image_id"]].append((annotation["bbox"], label))
        except (KeyError, TypeError) as error:
            cause = f"{source}: annotation {annotation['id']} misnames {error}"
            raise UsageError(f"{cause}; run verify_dataset.sh") from error
    images = [image for image in content["images"] if objects[image["id"]]]
    sizes = numpy.array([(image["width"], image["height"]) for image in images], numpy.int64)
    sizes = sizes.reshape(-1, 2)
    counts = [len(objects[image["id"]]) for image in images]
    flat = [item for image in images for item in objects[image["id"]]]
    boxes = to_relative_corners([box for box, _ in flat], numpy.repeat(sizes, counts, axis=0))
    if boxes is None:
        cause = f"{source} has a box that is not four numbers, or an image without a size"
        raise UsageError(f"{cause}; run verify_dataset.sh")
    return Annotations(
        image_ids=numpy.array([image["id"] for image in images], numpy.int64),
        file_names=tuple(image["file_name"] for image in images),
        sizes=sizes,
        boxes=boxes,
        labels=numpy.array([label for _, label in flat], numpy.int64),
        first_box=numpy.cumsum([0, *counts], dtype=numpy.int64),
        category_ids=tuple(category["id"] for category in categories),
        category_names=tuple(str(category["name"]) for category in categories),
    )


def check_fields(
    content: Mapping[str, Any], source: str, fields: Mapping[str, Sequence[str]]
) -> None:
    """Raises UsageError naming what an image, an annotation or a category lacks."""
    for part, names in fields.items():
        for number, record in enumerate(content[part]):
            for name in names:
                if not isinstance(record, dict) or name not in record:
                    cause = f"{source}: number {number + 1} of its {part} lacks {name!r}"
                    raise UsageError(f"{cause}; run verify_dataset.sh")


def to_relative_corners(boxes: list[list[float]], sizes: IntArray) -> FloatArray | None:
    """COCO's left, top, width, height in pixels as corners relative to the image [G, 4].

    sizes: width and height of each box's image [G, 2]. None where that gives no numbers.
    """
    try:
        corners = numpy.array(boxes, numpy.float64).reshape(len(boxes), 4)
    except (TypeError, ValueError):
        return None
    corners[:, 2:] += corners[:, :2]
    with numpy.errstate(divide="ignore", invalid="ignore"):
        corners /= numpy.tile(sizes, 2)
    return corners.astype(numpy.float32) if numpy.isfinite(corners).all() else None
