"""What must hold of instances files, transforms and batches, as plain functions.

Tests and mutations both call them. They reach the code through its modules (`coco.parse`, not
`parse`), so that they see what a mutation put there.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from harness.seeds import derive_seed
from object_detection import coco, data, masks, transforms
from object_detection.config import REFERENCE, TINY

RUNS = {"size": [100, 200], "counts": [0, 3, 97, 2, 19898]}
"""A crowd's pixels: three of the first column from the top, and two of the second."""
INSTANCES: dict[str, Any] = {
    "categories": [  # not in the order of their ids
        {"id": 7, "name": "cat"},
        {"id": 3, "name": "dog"},
        {"id": 90, "name": "brush"},
    ],
    "images": [  # nor these
        {"id": 900, "file_name": "first.jpg", "width": 200, "height": 100},
        {"id": 5, "file_name": "empty.jpg", "width": 100, "height": 100},
        {"id": 20, "file_name": "last.jpg", "width": 64, "height": 32},
        {"id": 30, "file_name": "thin.jpg", "width": 64, "height": 32},
        {"id": 40, "file_name": "crowd.jpg", "width": 200, "height": 100},
    ],
    "annotations": [
        {
            "id": number,
            "image_id": image,
            "category_id": kind,
            "bbox": box,
            "iscrowd": is_crowd,
            "segmentation": outline,
            "area": 9.0,
        }
        for number, image, kind, box, is_crowd, outline in (
            (
                1,
                900,
                3,
                [20, 10, 100, 50],
                0,
                [[20, 10, 120, 10, 120, 60], [30, 20, 40, 20, 40, 30]],
            ),
            (2, 20, 90, [0, 0, 64, 32], 0, [[0, 0, 64, 0, 64, 32, 0, 32]]),
            (3, 900, 7, [0, 0, 2, 3], 1, RUNS),
            (4, 900, 7, [50, 25, 0, 25], 0, [[50, 25, 50, 50, 50, 30]]),
            (5, 30, 7, [5, 5, 1, 20], 0, [[5, 5, 6, 5, 6, 25]]),
            (6, 30, 7, [5, 5, 20, 0.5], 0, [[5, 5, 25, 5, 25, 5.5]]),
            (7, 40, 7, [0, 0, 2, 3], 1, RUNS),
        )
    ],
}
"""An image without an annotation, one with thin boxes only, one with nothing but a crowd."""


def check_parsing() -> None:
    """Spec 1.2: categories by id, crowds no objects, images with a box of more than a pixel."""
    found = coco.parse(INSTANCES, 4, "made-up file", is_training=True)
    assert found.category_ids == (3, 7, 90)
    assert found.category_names == ("dog", "cat", "brush")
    assert found.image_ids.tolist() == [900, 20, 40]
    assert found.file_names == ("first.jpg", "last.jpg", "crowd.jpg")
    assert found.sizes.tolist() == [[200, 100], [64, 32], [200, 100]]
    assert found.first_object.tolist() == [0, 2, 3, 3]
    assert found.labels.tolist() == [1, 2, 3]
    assert found.boxes.tolist() == [[20, 10, 100, 50], [50, 25, 0, 25], [0, 0, 64, 32]]
    assert found.outlines.first_polygon.tolist() == [0, 2, 3, 4]
    assert found.outlines.first_corner.tolist() == [0, 3, 6, 9, 13]
    assert found.outlines.corners[3:6].tolist() == [[30, 20], [40, 20], [40, 30]]

    every = coco.parse(INSTANCES, 4, "made-up file", is_training=False)
    assert every.image_ids.tolist() == [900, 5, 20, 30, 40]
    assert every.first_object.tolist() == [0] * 6

    boxes, labels, outlines = found.objects_of(1)
    assert boxes.tolist() == [[0, 0, 64, 32]]
    assert labels.tolist() == [3]
    assert outlines.first_corner.tolist() == [0, 4]
    assert outlines.first_polygon.tolist() == [0, 1]
    assert outlines.corners.tolist() == [[0, 0], [64, 0], [64, 32], [0, 32]]
    boxes, _, outlines = found.objects_of(2)
    assert len(boxes) == len(outlines.corners) == 0


# --- transforms -----------------------------------------------------------------------------------


def check_objects() -> None:
    """Spec 1.2: corners in the convention, within the image; what is left of nothing is dropped."""
    boxes = [[10, 20, 30, 40], [-5, 10, 20, 0.5], [90, 70, 30, 30], [150, 10, 20, 20]]
    labels = numpy.array([1, 2, 3, 4])
    outlines = masks.outlines_of([[[float(k), 0, k, 9, 9, 9]] for k in range(4)])
    array = numpy.array(boxes, numpy.float64)
    found = transforms.to_objects(array, labels, outlines, (100, 80), legacy=True)
    # x2 = x + max(w - 1, 0), 99 and 79 at most; the second has no height, the last is outside.
    assert found.boxes.tolist() == [[10, 20, 39, 59], [90, 70, 99, 79]]
    assert found.boxes.dtype == torch.float32
    assert found.labels.tolist() == [1, 3]
    assert found.outlines.first_polygon.tolist() == [0, 1, 2]
    assert found.outlines.corners[::3].tolist() == [[0, 0], [2, 0]]
    found = transforms.to_objects(array, labels, outlines, (100, 80), legacy=False)
    assert found.boxes.tolist() == [[10, 20, 40, 60], [0, 10, 15, 10.5], [90, 70, 100, 80]]


SIZES = {
    (640, 480): (1066, 800),
    (480, 640): (800, 1066),
    (500, 500): (800, 800),
    (640, 427): (1199, 800),
    (640, 360): (1333, 750),
    (1000, 200): (1335, 267),
    (200, 1000): (267, 1335),
    (333, 500): (800, 1201),
}
"""Sizes of photos, and what section 1.3's rule makes of them, worked out by hand."""


def check_sizes() -> None:
    """Spec 1.3: the shorter side 800, or less where the longer one would exceed 1,333."""
    for before, after in SIZES.items():
        assert transforms.resized(*before, REFERENCE) == after, before
    assert transforms.resized(1333, 1, REFERENCE) == (1333, 1)
    assert transforms.resized(1, 3000, REFERENCE) == (1, 3000)
    for width in range(50, 700, 13):
        for height in range(50, 700, 17):
            short, long = min(width, height), max(width, height)
            side = 800
            if long / short * side > 1333:
                side = round(1333 * short / long)
            expected = sorted((side, int(side * long / short)))
            found = transforms.resized(width, height, REFERENCE)
            assert sorted(found) == expected
            assert (found[0] <= found[1]) == (width <= height)


def photo(width: int, height: int, seed: int = 1) -> Image.Image:
    """Colours of every kind, which change slowly."""
    random = numpy.random.default_rng(seed)
    grid = random.integers(0, 256, (5, 7, 3), dtype=numpy.uint8)
    return Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)


def check_augmentation() -> None:
    """Spec 1.3: pixels, boxes and outlines are moved alike; half of the images are mirrored."""
    for legacy in (True, False):
        config = dataclasses.replace(TINY, min_size=60, max_size=80, legacy_coords=legacy)
        one = int(legacy)
        image = photo(50, 40)
        boxes = numpy.array([[4.0, 10, 20, 25], [30, 5, 12, 8]])
        outline = [[4.0, 10, 24, 10, 24, 35], [5, 5, 9, 5, 9, 9]]
        outlines = masks.outlines_of([outline, [[30.0, 5, 42, 5, 42, 13]]])
        objects = transforms.to_objects(boxes, numpy.array([1, 2]), outlines, (50, 40), legacy)
        num_mirrored = 0
        for seed in range(200):
            random = numpy.random.default_rng(seed)
            pixels, found = transforms.augment(image, objects, config, random)
            expected = image.resize((75, 60), Image.Resampling.BILINEAR)
            corners = objects.boxes.double() * 1.5
            points = outlines.corners * 1.5
            is_mirrored = numpy.random.default_rng(seed).random() < 0.5
            num_mirrored += is_mirrored
            if is_mirrored:
                expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
                left, right = 75 - one - corners[:, 2], 75 - one - corners[:, 0]
                corners[:, 0], corners[:, 2] = left, right
                points[:, 0] = 75 - one - points[:, 0]
            assert numpy.array_equal(pixels, numpy.asarray(expected).transpose(2, 0, 1))
            assert pixels.dtype == numpy.uint8
            assert torch.allclose(found.boxes.double(), corners, atol=1e-4)
            assert torch.allclose(found.outlines.corners, points)
            assert found.labels.tolist() == [1, 2]
            assert torch.equal(found.outlines.first_polygon, outlines.first_polygon)
        assert 70 < num_mirrored < 130
        assert objects.boxes.tolist() == [[4, 10, 24 - one, 35 - one], [30, 5, 42 - one, 13 - one]]


def check_rounded_scale() -> None:
    """A photo whose sides are not scaled by quite the same factor, because of whole pixels."""
    outlines = masks.outlines_of([[[0.0, 0, 640, 0, 640, 427]]])
    box = numpy.array([[0.0, 0, 640, 427]])
    objects = transforms.to_objects(box, numpy.array([1]), outlines, (640, 427), legacy=False)
    scaled = transforms.scale(objects, (640, 427), (1199, 800))
    assert torch.allclose(scaled.boxes, torch.tensor([[0.0, 0, 1199, 800]]), atol=1e-3)
    expected = torch.tensor([[0.0, 0], [1199, 0], [1199, 800]], dtype=torch.float64)
    assert torch.allclose(scaled.outlines.corners, expected)


def check_parts() -> None:
    """An object covers what any of its polygons does, also where two of them overlap."""
    parts = [[0.0, 0, 20, 0, 20, 20, 0, 20], [10.0, 10, 28, 10, 28, 28, 10, 28]]
    outlines = masks.outlines_of([parts])
    region = torch.tensor([[0.0, 0, 28, 28]])
    found = masks.mask_targets(outlines, torch.tensor([0]), region, 28)
    runs = coco_mask.merge(coco_mask.frPyObjects(parts, 28, 28))
    assert numpy.array_equal(found[0].numpy(), coco_mask.decode(runs).astype(bool))


def check_mirrored_mask() -> None:
    """In the modern convention a mirrored outline covers the mirrored pixels."""
    outlines = masks.outlines_of([[[4.0, 10, 24, 10, 24, 35]]])
    box = torch.tensor([[4.0, 10, 24, 35]])
    objects = transforms.Objects(box, torch.tensor([1]), outlines)
    mirrored = transforms.mirror(objects, 50, legacy=False)
    before, after = (
        coco_mask.decode(coco_mask.frPyObjects([some.outlines.corners.flatten().tolist()], 40, 50))[
            :, :, 0
        ]
        for some in (objects, mirrored)
    )
    # COCO rounds x.5 to one side: the slanted edge may differ by a pixel.
    assert (before[:, ::-1] != after).sum() <= 25
    assert before.sum() > 200


# --- batches --------------------------------------------------------------------------------------


SMALL = dataclasses.replace(
    TINY,
    num_train_images=19,
    num_eval_images=7,
    min_size=32,
    max_size=48,
    batch_size=4,
    base_batch_size=4,
    eval_batch_size=4,
)
"""Five steps an epoch, the last with three images."""


def write_photos(folder: Path, num_images: int) -> data.Images:
    """Photos on disk, none to three objects on each; each is of one colour and size of its own."""
    random = numpy.random.default_rng(11)
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": 10 * k, "name": f"kind {k}"} for k in range(1, 5)]
    for number in range(num_images):
        name, width, height = f"{number}.png", 20 + number, 30
        colour = (10 * number, 255 - 10 * number, 128)
        Image.new("RGB", (width, height), colour).save(folder / name)
        content["images"].append(
            {"id": 100 + number, "file_name": name, "width": width, "height": height}
        )
        for _ in range(max(1, number % 4)):
            left, top = random.integers(0, 10, 2).tolist()
            content["annotations"].append(
                {
                    "id": 1 + len(content["annotations"]),
                    "image_id": 100 + number,
                    "category_id": 10 * int(random.integers(1, 5)),
                    "bbox": [left, top, 10, 15],
                    "iscrowd": int(number % 4 == 0),
                    "segmentation": [[left, top, left + 10, top, left + 10, top + 15]],
                    "area": 75.0,
                }
            )
    annotations = coco.parse(content, 5, "made-up", is_training=True)
    return data.Images(annotations, folder, ground_truth=content)


def check_order() -> None:
    """Each image once; lying and standing ones apart but in the last batches; as many as N / B."""
    random = numpy.random.default_rng(5)
    for num_images in (19, 40, 41, 203):
        sizes = random.integers(20, 60, (num_images, 2))
        is_lying = sizes[:, 1] < sizes[:, 0]
        for batch_size in (1, 2, 4, 7):
            batches = data.epoch_order(sizes, batch_size, 3, 2)
            assert sorted(itertools.chain.from_iterable(batches)) == list(range(num_images))
            assert len(batches) == math.ceil(num_images / batch_size)
            assert all(len(batch) == batch_size for batch in batches[:-1])
            num_left = sum(int(count) % batch_size for count in (is_lying.sum(), (~is_lying).sum()))
            for batch in batches[: len(batches) - math.ceil(num_left / batch_size)]:
                assert len({bool(is_lying[index]) for index in batch}) == 1
    assert data.epoch_order(sizes, 4, 3, 3) != data.epoch_order(sizes, 4, 3, 2)
    assert data.epoch_order(sizes, 4, 4, 2) != data.epoch_order(sizes, 4, 3, 2)
    assert data.epoch_order(sizes, 4, 3, 2) == data.epoch_order(sizes, 4, 3, 2)


def check_batches() -> None:
    """Each image of an epoch with its own pixels, objects and seeds, padded with zeros."""
    with tempfile.TemporaryDirectory() as folder:
        images = write_photos(Path(folder), 19)
        batches = list(data.train_batches(images, SMALL, 3, [2], 0, 0))
        order = data.epoch_order(images.annotations.sizes, 4, 3, 2)
        assert [len(batch.images) for batch in batches] == [4, 4, 4, 4, 3]
        num_empty = 0
        for batch, indices in zip(batches, order, strict=True):
            assert batch.images.dtype == torch.uint8
            assert all(side % 32 == 0 for side in batch.images.shape[2:])
            assert (batch.sizes.amax(0) <= torch.tensor(batch.images.shape[:1:-1])).all()
            assert (batch.sizes.amax(0) + 32 > torch.tensor(batch.images.shape[:1:-1])).all()
            for row, (index, objects) in enumerate(zip(indices, batch.objects(), strict=True)):
                random = numpy.random.Generator(
                    numpy.random.PCG64(derive_seed(3, "augmentation", 2, index))
                )
                image = images.read(index)
                annotated = images.annotations.objects_of(index)
                whole = transforms.to_objects(*annotated, image.size, True)
                pixels, expected = transforms.augment(image, whole, SMALL, random)
                _, height, width = pixels.shape
                assert batch.sizes[row].tolist() == [width, height]
                assert numpy.array_equal(batch.images[row, :, :height, :width], pixels)
                assert not batch.images[row, :, height:].any()
                assert not batch.images[row, :, :, width:].any()
                assert torch.equal(objects.boxes, expected.boxes)
                assert torch.equal(objects.labels, expected.labels)
                numbers = torch.arange(len(expected.labels))
                found, owner = objects.outlines.select(numbers)
                same, same_owner = expected.outlines.select(numbers)
                assert torch.equal(found.corners, same.corners)
                assert torch.equal(owner, same_owner)
                num_empty += len(numbers) == 0
                seed = derive_seed(3, "sampling", 2, index, bits=63)
                assert batch.sampling_seeds[row] == seed
        assert num_empty == 5


def check_evaluation_batches() -> None:
    """Each image once, as it is, at the network's size."""
    with tempfile.TemporaryDirectory() as folder:
        images = write_photos(Path(folder), 7)
        batches = list(data.eval_batches(images, SMALL, 0))
        assert [numbers.tolist() for numbers, _, _ in batches] == [[0, 1, 2, 3], [4, 5, 6]]
        for numbers, pixels, sizes in batches:
            assert pixels.dtype == torch.uint8
            for index, ours, size in zip(numbers.tolist(), pixels, sizes.tolist(), strict=True):
                image = images.read(index)
                assert tuple(size) == transforms.resized(*image.size, SMALL)
                image = image.resize(tuple(size), Image.Resampling.BILINEAR)
                width, height = size
                expected = numpy.asarray(image).transpose(2, 0, 1)
                assert numpy.array_equal(ours[:, :height, :width], expected)
                assert not ours[:, height:].any()
                assert not ours[:, :, width:].any()


def encode(image: Image.Image, kind: str) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()
