"""Generated pictures with exact boxes and masks in COCO's format: discs, boxes, triangles, stars.

"shapes128" is the set that the mini presets of both detection benchmarks train on: 128 x 128
pixels of coloured noise, one to five objects that do not cover each other. Each object is a
polygon; COCO's own mask code rasterises it, the pixels are painted through that bitmap, and box and
area come from it.

All draws and colours are whole numbers from generators whose streams NumPy has frozen, so that a
set is the same on every machine.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

CATEGORIES = ({"id": 1, "name": "disc"}, {"id": 3, "name": "box"}, {"id": 6, "name": "triangle"},
              {"id": 10, "name": "star"})  # fmt: skip
"""With gaps between the ids, as COCO's have."""
UNIT = 8
"""Coordinates are whole multiples of 1 / UNIT of a pixel."""
NUM_DIRECTIONS = 256
"""Directions of the circle."""
COSINES = [round(4096 * math.cos(2 * math.pi * k / NUM_DIRECTIONS)) for k in range(NUM_DIRECTIONS)]
"""Of each direction, times 4096."""
NUM_RADII = 128
MIN_COLOUR_DISTANCE = 120
"""Between an object and what it covers: sum over red, green and blue, of 0 to 255 each."""
BACKGROUND_NOISE = 10
OBJECT_NOISE = 12
"""Standard deviations of the noise, about, of 0 to 255."""
NUM_PLACEMENTS = 30
"""Places tried for an object before it is left out."""

Pixels = NDArray[numpy.uint8]
Mask = NDArray[numpy.uint8]


@dataclass(frozen=True)
class Recipe:
    """What the pictures of a set are like."""

    width: int = 128
    """Pixels."""
    height: int = 128
    """Pixels."""
    min_objects: int = 1
    max_objects: int = 5
    min_radius: int = 9
    """Of the circle around the smallest object, in pixels."""
    max_radius: int = 34
    """Of the largest."""
    empty_one_in: int = 50
    """One of so many pictures has no object; 0: none is empty."""
    occlusion: bool = False
    """Whether objects may cover each other; then only what is seen of one is its mask."""
    crowd_one_in: int = 0
    """One of so many pictures has a crowd, many small discs with one mask; 0: none has."""
    flat_one_in: int = 0
    """One of so many pictures has a box without width; 0: none has."""


SHAPES128 = Recipe()


@dataclass(frozen=True)
class Picture:
    """One generated picture."""

    pixels: Pixels
    """[height, width, 3]."""
    annotations: tuple[dict[str, Any], ...]
    """As in an instances file, but for `id` and `image_id`."""


def draw_picture(recipe: Recipe, seed: int, index: int) -> Picture:
    """Picture `index` of the set that `seed` stands for."""
    random = numpy.random.RandomState([seed, index])
    pixels = draw_background(recipe, random)
    annotations: list[dict[str, Any]] = []
    if recipe.empty_one_in and random.randint(recipe.empty_one_in) == 0:
        return Picture(pixels.astype(numpy.uint8), ())
    circles: list[tuple[int, int, int]] = []  # centre and radius, in units
    masks: list[Mask] = []
    for _ in range(random.randint(recipe.min_objects, recipe.max_objects + 1)):
        circle = place(recipe, circles, random)
        if circle is None:
            continue
        circles.append(circle)
        category = int(random.randint(len(CATEGORIES)))
        polygon = outline(category, *circle, random)
        mask = rasterise(polygon, recipe)
        paint(pixels, mask, random)
        for earlier in masks:
            earlier &= 1 - mask
        masks.append(mask)
        annotations.append({"category_id": CATEGORIES[category]["id"], "polygon": polygon})
    annotations = [
        describe(annotation, mask, recipe)
        for annotation, mask in zip(annotations, masks, strict=True)
        if mask.any()
    ]
    if recipe.crowd_one_in and random.randint(recipe.crowd_one_in) == 0:
        annotations.append(draw_crowd(pixels, masks, recipe, random))
    if recipe.flat_one_in and random.randint(recipe.flat_one_in) == 0:
        annotations.append(make_flat_box(recipe, random))
    return Picture(pixels.astype(numpy.uint8), tuple(annotations))


def draw_background(recipe: Recipe, random: numpy.random.RandomState) -> NDArray[numpy.int64]:
    """A grid of 2 to 8 by 2 to 8 colours, blended between its points, under noise [H, W, 3]."""
    columns, rows = random.randint(2, 9, size=2)
    grid = random.randint(96, 160, size=(rows, columns, 3))
    blended = grid
    for axis, size in ((0, recipe.height), (1, recipe.width)):
        # Positions between the grid's points, in 1 / 256 of their distance.
        places = numpy.arange(size) * (blended.shape[axis] - 1) * 256 // size
        before, share = places // 256, places % 256
        share = share.reshape(-1, *[1] * (2 - axis))
        low = blended.take(before, axis)
        high = blended.take(before + 1, axis)
        blended = (low * (256 - share) + high * share) // 256
    blended = blended + noise((recipe.height, recipe.width, 3), BACKGROUND_NOISE, random)
    return numpy.clip(blended, 0, 255)


def noise(
    shape: tuple[int, ...], deviation: int, random: numpy.random.RandomState
) -> NDArray[numpy.int64]:
    """Whole numbers around 0 with about this standard deviation: sums of three uniform ones."""
    total = random.randint(-deviation, deviation + 1, size=(3, *shape), dtype=numpy.int16)
    return total.sum(axis=0, dtype=numpy.int64)


def place(
    recipe: Recipe, circles: list[tuple[int, int, int]], random: numpy.random.RandomState
) -> tuple[int, int, int] | None:
    """Centre and radius of another object, in units, or None where it finds no room.

    Small radii are as likely as large ones by their ratio (log-uniform).
    """
    ratio = recipe.max_radius / recipe.min_radius
    step = int(random.randint(NUM_RADII))
    radius = round(UNIT * recipe.min_radius * ratio ** (step / (NUM_RADII - 1)))
    for _ in range(NUM_PLACEMENTS):
        x = int(random.randint(radius, UNIT * recipe.width - radius + 1))
        y = int(random.randint(radius, UNIT * recipe.height - radius + 1))
        apart = [(x - x2) ** 2 + (y - y2) ** 2 > (radius + r2) ** 2 for x2, y2, r2 in circles]
        if recipe.occlusion or all(apart):
            return x, y, radius
    return None


def outline(
    category: int, x: int, y: int, radius: int, random: numpy.random.RandomState
) -> list[float]:
    """The polygon of an object, rotated at random: x, y, x, y, ... in pixels."""
    turn = int(random.randint(NUM_DIRECTIONS))
    corners: list[tuple[int, int]]  # direction, and distance in 1 / 64 of the radius
    if category == 0:
        corners = [(direction, 64) for direction in range(0, NUM_DIRECTIONS, 8)]
    elif category == 1:
        narrow = int(random.randint(20, 45))  # half the angle between two corners; 32 is a square
        corners = [(narrow, 64), (128 - narrow, 64), (128 + narrow, 64), (256 - narrow, 64)]
    elif category == 2:
        corners = [(0, 64), (85, 64), (171, 64)]
    else:
        corners = [
            (round(point * NUM_DIRECTIONS / 10), 28 if point % 2 else 64) for point in range(10)
        ]
    polygon = []
    for direction, distance in corners:
        cosine = COSINES[(direction + turn) % NUM_DIRECTIONS]
        sine = COSINES[(direction + turn - NUM_DIRECTIONS // 4) % NUM_DIRECTIONS]
        for centre, part in ((x, cosine), (y, sine)):
            polygon.append((centre + radius * distance * part // (64 * 4096)) / UNIT)
    return polygon


def rasterise(polygon: list[float], recipe: Recipe) -> Mask:
    """The polygon's bitmap [height, width], by COCO's own mask code."""
    runs = coco_mask.frPyObjects([polygon], recipe.height, recipe.width)
    bitmap: Mask = coco_mask.decode(runs)[:, :, 0]
    return bitmap.copy()


def paint(pixels: NDArray[numpy.int64], mask: Mask, random: numpy.random.RandomState) -> None:
    """Fill an object, in place, with one colour that differs from what is there, under noise."""
    covered = mask.astype(bool)
    count = max(1, int(covered.sum()))
    mean = pixels[covered].sum(axis=0) // count
    while True:
        colour = random.randint(0, 256, size=3)
        if int(abs(colour - mean).sum()) >= MIN_COLOUR_DISTANCE:
            break
    fill = colour + noise((count, 3), OBJECT_NOISE, random)[: int(covered.sum())]
    pixels[covered] = numpy.clip(fill, 0, 255)


def describe(annotation: dict[str, Any], mask: Mask, recipe: Recipe) -> dict[str, Any]:
    """Box, area and mask of an object as an instances file has them."""
    runs = coco_mask.encode(numpy.asfortranarray(mask))
    polygon = annotation["polygon"]
    segmentation: Any = [polygon]
    if recipe.occlusion:
        segmentation = {"size": [recipe.height, recipe.width], "counts": count_runs(mask)}
    return {
        "category_id": annotation["category_id"],
        "segmentation": segmentation,
        "bbox": [float(side) for side in coco_mask.toBbox(runs)],
        "area": float(coco_mask.area(runs)),
        "iscrowd": 0,
    }


def count_runs(mask: Mask) -> list[int]:
    """Lengths of the runs of 0 and 1 in turn, column by column: COCO's uncompressed form."""
    flat = mask.ravel(order="F")
    edges = numpy.flatnonzero(numpy.diff(flat)) + 1
    bounds = [0, *edges.tolist(), len(flat)]
    lengths = [int(length) for length in numpy.diff(bounds)]
    return [0, *lengths] if flat[0] else lengths


def draw_crowd(
    pixels: NDArray[numpy.int64],
    masks: list[Mask],
    recipe: Recipe,
    random: numpy.random.RandomState,
) -> dict[str, Any]:
    """Ten to twenty small discs under one mask, behind the objects that are there already."""
    together = numpy.zeros((recipe.height, recipe.width), numpy.uint8)
    radius = UNIT * max(2, recipe.min_radius // 3)
    x = int(random.randint(3 * radius, max(3 * radius + 1, UNIT * recipe.width - 3 * radius)))
    y = int(random.randint(3 * radius, max(3 * radius + 1, UNIT * recipe.height - 3 * radius)))
    for _ in range(random.randint(10, 21)):
        dx, dy = (int(value) for value in random.randint(-2 * radius, 2 * radius + 1, size=2))
        together |= rasterise(outline(0, x + dx, y + dy, radius, random), recipe)
    for mask in masks:
        together &= 1 - mask
    together[0, 0] |= not together.any()
    paint(pixels, together, random)
    annotation = describe({"category_id": 1, "polygon": []}, together, recipe)
    runs = {"size": [recipe.height, recipe.width], "counts": count_runs(together)}
    return {**annotation, "segmentation": runs, "iscrowd": 1}


def make_flat_box(recipe: Recipe, random: numpy.random.RandomState) -> dict[str, Any]:
    """An object of height alone, as a few of COCO's annotations are."""
    x = float(random.randint(1, recipe.width))
    y = float(random.randint(1, recipe.height // 2))
    height = float(random.randint(2, recipe.height // 2))
    category = CATEGORIES[int(random.randint(len(CATEGORIES)))]["id"]
    line = [x, y, x, y + height, x, y]
    return {
        "category_id": category,
        "segmentation": [line],
        "bbox": [x, y, 0.0, height],
        "area": 0.0,
        "iscrowd": 0,
    }


def make_instances(
    recipe: Recipe, annotations: Iterable[tuple[dict[str, Any], ...]], ending: str
) -> dict[str, Any]:
    """The instances file of a set, from each picture's annotations; files are named by number."""
    images: list[dict[str, Any]] = []
    numbered: list[dict[str, Any]] = []
    for number, objects in enumerate(annotations, start=1):
        size = {"width": recipe.width, "height": recipe.height}
        images.append({"id": number, "file_name": f"{number:012d}{ending}", **size})
        for annotation in objects:
            numbered.append({"id": len(numbered) + 1, "image_id": number, **annotation})
    categories = [{**category, "supercategory": "shape"} for category in CATEGORIES]
    return {"images": images, "annotations": numbered, "categories": categories}


def digest(picture: Picture) -> str:
    """SHA-256 over pixels and annotations, whatever the file that they are kept in."""
    summary = hashlib.sha256(picture.pixels.tobytes())
    summary.update(json.dumps(picture.annotations, sort_keys=True).encode())
    return summary.hexdigest()


def digest_of_set(digests: Iterable[str]) -> str:
    """SHA-256 over the digests of a set's pictures, in their order."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()
