"""What happens to an image and its objects before the network sees them.

Boxes are corners in pixels [M, 4], in the convention of config.legacy_coords.

Source: v0.5's transforms.py and segmentation_mask.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from object_detection.boxes import Boxes
from object_detection.coco import FloatArray, IntArray
from object_detection.config import Config
from object_detection.masks import Outlines


@dataclass(frozen=True)
class Objects:
    """What there is to find on an image."""

    boxes: Tensor
    """float32 [M, 4]."""
    labels: Tensor
    """int64 [M]."""
    outlines: Outlines


def to_objects(
    boxes: FloatArray, labels: IntArray, outlines: Outlines, size: tuple[int, int], legacy: bool
) -> Objects:
    """COCO's left, top, width, height [M, 4] as corners within an image of this width and height.

    Boxes of which nothing is left are no objects.
    """
    one = Boxes(legacy).one
    corners = torch.from_numpy(boxes).float()
    corners = torch.cat(
        [corners[:, :2], corners[:, :2] + (corners[:, 2:] - one).clamp(min=0)], dim=1
    )
    corners = Boxes(legacy).clip(corners, torch.tensor(size))
    is_left = (corners[:, 2:] > corners[:, :2]).all(dim=1)
    numbers = is_left.nonzero().squeeze(1)
    return Objects(corners[numbers], torch.from_numpy(labels)[numbers], outlines.select(numbers)[0])


def resized(width: int, height: int, config: Config) -> tuple[int, int]:
    """Width and height as the network sees them: the shorter side as config.min_size says, unless
    the longer one would exceed config.max_size.
    """
    short, long = min(width, height), max(width, height)
    side = config.min_size
    if long / short * side > config.max_size:
        side = round(config.max_size * short / long)
    side = max(1, side)  # of an image that is nearly a line
    other = max(1, int(side * long / short))
    return (side, other) if width <= height else (other, side)


def resize(image: Image.Image, config: Config) -> Image.Image:
    """Bilinear, antialiased."""
    return image.resize(resized(*image.size, config), Image.Resampling.BILINEAR)


def scale(objects: Objects, before: tuple[int, int], after: tuple[int, int]) -> Objects:
    """The objects of an image that was resized from one width and height to another."""
    ratio = torch.tensor([after[0] / before[0], after[1] / before[1]], dtype=torch.float64)
    outlines = objects.outlines
    return Objects(
        objects.boxes * ratio.repeat(2).float(),
        objects.labels,
        Outlines(outlines.corners * ratio, outlines.first_corner, outlines.first_polygon),
    )


def mirror(objects: Objects, width: int, legacy: bool) -> Objects:
    """The objects of an image of this width, left and right exchanged."""
    edge = width - Boxes(legacy).one
    boxes = objects.boxes[:, [2, 1, 0, 3]]
    boxes[:, [0, 2]] = edge - boxes[:, [0, 2]]
    outlines = objects.outlines
    corners = outlines.corners.clone()
    corners[:, 0] = edge - corners[:, 0]
    return Objects(
        boxes,
        objects.labels,
        Outlines(corners, outlines.first_corner, outlines.first_polygon),
    )


def augment(
    image: Image.Image, objects: Objects, config: Config, random: numpy.random.Generator
) -> tuple[NDArray[numpy.uint8], Objects]:
    """Resize a training image and mirror it half of the time: pixels [3, H, W], objects."""
    before = image.size
    image = resize(image, config)
    objects = scale(objects, before, image.size)
    if random.random() < config.flip_probability:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        objects = mirror(objects, image.width, config.legacy_coords)
    return to_array(image), objects


def to_array(image: Image.Image) -> NDArray[numpy.uint8]:
    """Pixels [3, H, W] of 0 to 255."""
    return numpy.ascontiguousarray(numpy.asarray(image).transpose(2, 0, 1))
