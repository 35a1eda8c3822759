"""COCO's instances file: images, boxes, labels and outlines by v0.5's rules.

Shapes: N images, G objects of all images together, P polygons and E corners of these.

Source: v0.5's datasets/coco.py; https://cocodataset.org/#format-data.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray

from harness.errors import UsageError
from object_detection.masks import Outlines, join_polygons, polygons_of

FIELDS = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox", "segmentation"),
    "categories": ("id", "name"),
}
"""What must be there of each."""
METRIC_FIELDS = {"annotations": ("area", "iscrowd")}
"""What the metric reads too."""

FloatArray = NDArray[numpy.float64]
IntArray = NDArray[numpy.int64]


@dataclass(frozen=True)
class Annotations:
    """The images of one split in the order of the file, with the objects that are trained on."""

    image_ids: IntArray
    """[N]."""
    file_names: tuple[str, ...]
    """N names, within the folder of the split."""
    sizes: IntArray
    """Width and height that the file names, in pixels [N, 2]."""
    boxes: FloatArray
    """Left, top, width, height in pixels, image after image [G, 4]."""
    labels: IntArray
    """1 to C - 1 [G]."""
    outlines: Outlines
    """Of all objects."""
    first_object: IntArray
    """Where the objects of each image begin, and of the last end [N + 1]."""
    category_ids: tuple[int, ...]
    """COCO's id of label 1, of label 2, and so on."""
    category_names: tuple[str, ...]
    """Their names."""

    @property
    def num_images(self) -> int:
        """Images, those without an object included."""
        return len(self.image_ids)

    def objects_of(self, index: int) -> tuple[FloatArray, IntArray, Outlines]:
        """Boxes [M, 4], labels [M] and outlines of an image's objects."""
        first, end = self.first_object[index : index + 2].tolist()
        polygons = self.outlines.first_polygon[first : end + 1]
        corners = self.outlines.first_corner[polygons[0] : polygons[-1] + 1]
        outlines = Outlines(
            self.outlines.corners[corners[0] : corners[-1]],
            corners - corners[0],
            polygons - polygons[0],
        )
        return self.boxes[first:end], self.labels[first:end], outlines


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


def parse(
    content: Mapping[str, Any], num_classes: int, source: str, is_training: bool
) -> Annotations:
    """Images and objects of an instances file; `source` names it in errors.

    Labels are 1, 2, ... in the order of the categories' ids. Crowds are no objects. For training,
    images are left out that have no annotation, crowds included, of more than one pixel's width
    and height; for evaluation all stay, and no object is read. Raises UsageError where the file
    contradicts itself or has another number of categories than num_classes - 1.
    """
    check_fields(content, source, FIELDS)
    categories = sorted(content["categories"], key=lambda category: category["id"])
    if len(categories) != num_classes - 1:
        cause = f"{source} has {len(categories)} categories, not {num_classes - 1}"
        raise UsageError(f"{cause}; is it this preset's?")
    label_of = {category["id"]: label for label, category in enumerate(categories, start=1)}
    annotated: dict[int, list[Mapping[str, Any]]] = {image["id"]: [] for image in content["images"]}
    images = content["images"]
    if is_training:
        used = set()
        for annotation in content["annotations"]:
            with said_of(annotation, source):
                if is_larger_than_a_pixel(annotation):
                    used.add(annotation["image_id"])
                annotated[annotation["image_id"]].append(annotation)
        images = [image for image in images if image["id"] in used]
    objects = [
        [annotation for annotation in annotated[image["id"]] if not annotation.get("iscrowd", 0)]
        for image in images
    ]
    labels, boxes, polygons = [], [], []
    for annotation in (annotation for some in objects for annotation in some):
        with said_of(annotation, source):
            labels.append(label_of[annotation["category_id"]])
            boxes.append(box_of(annotation))
            polygons.append(polygons_of(annotation["segmentation"]))
    try:
        sizes = numpy.array([[image["width"], image["height"]] for image in images], numpy.int64)
    except (TypeError, ValueError) as error:
        cause = f"{source} has an image whose width or height is no number"
        raise UsageError(f"{cause}; run verify_dataset.sh") from error
    if (sizes < 1).any():
        raise UsageError(f"{source} has an image without a size; run verify_dataset.sh")
    return Annotations(
        image_ids=numpy.array([image["id"] for image in images], numpy.int64),
        file_names=tuple(image["file_name"] for image in images),
        sizes=sizes.reshape(-1, 2),
        boxes=numpy.array(boxes, numpy.float64).reshape(-1, 4),
        labels=numpy.array(labels, numpy.int64),
        outlines=join_polygons(polygons),
        first_object=numpy.cumsum([0, *map(len, objects)], dtype=numpy.int64),
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


@contextlib.contextmanager
def said_of(annotation: Mapping[str, Any], source: str) -> Iterator[None]:
    """Turns what goes wrong with an annotation into a UsageError that names it."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        cause = f"misnames {error}" if isinstance(error, KeyError) else f"is wrong: {error}"
        raise UsageError(
            f"{source}: annotation {annotation['id']} {cause}; run verify_dataset.sh"
        ) from error


def box_of(annotation: Mapping[str, Any]) -> list[float]:
    """Left, top, width, height in pixels. Raises ValueError for what is no box."""
    box = annotation["bbox"]
    if not isinstance(box, list) or len(box) != 4:
        raise ValueError("its box is not four numbers")
    numbers = [float(number) for number in box]
    if not numpy.isfinite(numbers).all():
        raise ValueError("its box is not four numbers")
    return numbers


def is_larger_than_a_pixel(annotation: Mapping[str, Any]) -> bool:
    """Whether both sides of its box are."""
    return min(box_of(annotation)[2:]) > 1
