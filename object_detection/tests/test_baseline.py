"""A cheap baseline on the mini's validation set: edges, and the nearest of four mean shapes.

No learning but four means. A region that edges enclose is an object, and its mask; its label is
the category whose objects fill their box, and the circle around them, most alike. README.md has its
AP50.
"""

from __future__ import annotations

from typing import Any

import numpy
import pytest
from pycocotools import mask as coco_mask
from scipy import ndimage

from object_detection.config import MINI
from object_detection.evaluate import coco_statistics
from object_detection.prepare import SPLITS
from object_detection.shapes import SHAPES128, draw_picture, make_instances

MIN_EDGE = 50
"""Change over two pixels, after a mean of 3 x 3: sum over red, green and blue."""
MIN_PIXELS = 15
NUM_FOR_MEANS = 300
"""Training pictures that the means are of."""

Region = tuple[tuple[float, float, float, float], tuple[float, float], Any]


def regions_of(pixels: Any) -> list[Region]:
    """Box, how much of box and circle it fills, and mask of each region.

    A box is left, top, width, height; a mask is as large as the picture.
    """
    smooth = ndimage.uniform_filter(pixels.astype(float), (3, 3, 1))
    across = numpy.abs(smooth[2:, 1:-1] - smooth[:-2, 1:-1]).sum(axis=2)
    along = numpy.abs(smooth[1:-1, 2:] - smooth[1:-1, :-2]).sum(axis=2)
    is_edge = numpy.pad(numpy.maximum(across, along) > MIN_EDGE, 1)
    numbers, _ = ndimage.label(~is_edge)
    sizes = numpy.bincount(numbers.ravel())
    background = 1 + sizes[1:].argmax()
    found = []
    for number, place in enumerate(ndimage.find_objects(numbers), start=1):
        if number == background or sizes[number] < MIN_PIXELS:
            continue
        mask = numpy.pad(numbers[place] == number, 2)
        mask = ndimage.binary_dilation(ndimage.binary_fill_holes(mask), iterations=2)
        ys, xs = numpy.nonzero(mask)
        width, height = int(numpy.ptp(xs)) + 1, int(numpy.ptp(ys)) + 1
        left, top = place[1].start - 2 + int(xs.min()), place[0].start - 2 + int(ys.min())
        radius = numpy.hypot(ys - ys.mean(), xs - xs.mean()).max()
        fills = (len(ys) / (width * height), len(ys) / (numpy.pi * radius**2))
        whole = numpy.zeros(numbers.shape, numpy.uint8, order="F")
        rows, columns = (part + side.start - 2 for part, side in zip((ys, xs), place, strict=True))
        seen = (rows >= 0) & (rows < len(whole)) & (columns >= 0) & (columns < len(whole))
        whole[rows[seen], columns[seen]] = 1
        found.append(((left, top, width, height), fills, whole))
    return found


def overlap(one: Any, other: Any) -> float:
    """Intersection over union of two boxes: left, top, width, height."""
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    return float(shared / (one[2] * one[3] + other[2] * other[3] - shared))


def mean_fills() -> dict[int, Any]:
    """Of each category's regions, over some training pictures."""
    fills: dict[int, list[tuple[float, float]]] = {}
    for number in range(NUM_FOR_MEANS):
        picture = draw_picture(SHAPES128, SPLITS["train2017"].seed, number)
        for box, region_fills, _ in regions_of(picture.pixels):
            for annotation in picture.annotations:
                if overlap(box, annotation["bbox"]) > 0.5:
                    fills.setdefault(annotation["category_id"], []).append(region_fills)
    return {category: numpy.mean(values, axis=0) for category, values in fills.items()}


@pytest.mark.slow
def test_the_baseline_stays_below_the_target():
    means = mean_fills()
    assert sorted(means) == [1, 3, 6, 10]
    split = SPLITS["val2017"]
    pictures = [draw_picture(SHAPES128, split.seed, n) for n in range(split.num_pictures)]
    results = []
    for image_id, picture in enumerate(pictures, start=1):
        for box, fills, mask in regions_of(picture.pixels):
            distances = {c: numpy.hypot(*(mean - fills)) for c, mean in means.items()}
            category = min(distances, key=lambda c: distances[c])
            results.append(
                {
                    "image_id": image_id,
                    "category_id": category,
                    "score": float(1 / (1 + 10 * distances[category])),
                    "bbox": list(map(float, box)),
                    "segmentation": coco_mask.encode(mask),
                }
            )
    truth = make_instances(SHAPES128, (picture.annotations for picture in pictures), ".png")
    for target in MINI.quality_targets:
        kind, _, name = target.name.partition("_")
        found = coco_statistics(truth, results, kind)
        print("baseline:", kind, found)
        assert 0.7 < found[name] < 0.78 < target.value
