"""What must hold of reading and augmentation, as plain functions.

The tests of each subject call them on the code as it is; test_mutations.py calls the same ones on
code that was made wrong on purpose, and expects an AssertionError. They reach the code through its
modules (`coco.parse`, not `parse`), so that they see what a mutation put there.
"""

from __future__ import annotations

import dataclasses
import io
import math
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import functional

from harness.seeds import derive_seed
from single_stage_detector import augmentation, coco, config, data
from single_stage_detector.config import REFERENCE, TINY, Config

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
    ],
    "annotations": [
        {"id": 1, "image_id": 900, "category_id": 3, "bbox": [20, 10, 100, 50], "iscrowd": 0},
        {"id": 2, "image_id": 20, "category_id": 90, "bbox": [0, 0, 64, 32], "iscrowd": 0},
        {"id": 3, "image_id": 900, "category_id": 7, "bbox": [0, 0, 200, 100], "iscrowd": 1},
        {"id": 4, "image_id": 900, "category_id": 7, "bbox": [50, 25, 0, 25], "iscrowd": 0},
    ],
}
"""Three images, the second without an annotation; a crowd and a box without width."""


class Draws:
    """In place of a generator: gives what the test says, and notes what is asked for."""

    def __init__(self, *numbers: float) -> None:
        self.numbers = list(numbers)
        self.asked: list[tuple[float, ...]] = []

    def uniform(self, low: float, high: float, size: int | None = None) -> Any:
        """The next number, or the next `size`."""
        self.asked.append((low, high))
        if size is None:
            return self.numbers.pop(0)
        return numpy.array([self.numbers.pop(0) for _ in range(size)])

    def integers(self, count: int) -> int:
        """The next number."""
        self.asked.append((count,))
        return int(self.numbers.pop(0))

    def random(self) -> float:
        """The next number."""
        return self.numbers.pop(0)


def generator(seed: int) -> numpy.random.Generator:
    """What the loader gives to an image."""
    return numpy.random.Generator(numpy.random.PCG64(seed))


def photo(width: int, height: int, seed: int = 1) -> Image.Image:
    """Colours of every kind, which change slowly."""
    grid = generator(seed).integers(0, 256, (5, 7, 3), dtype=numpy.uint8)
    return Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)


def random_boxes(count: int, seed: int) -> NDArray[numpy.float32]:
    """Corners of large and small boxes within the image [count, 4]."""
    random = generator(seed)
    sizes = random.uniform(0.02, 0.9, (count, 2))
    corners = random.uniform(0, 1, (count, 2)) * (1 - sizes)
    return numpy.concatenate([corners, corners + sizes], axis=1).astype(numpy.float32)


# --- instances files ------------------------------------------------------------------------------


def check_parsing() -> None:
    """Spec 1.3: labels and images in the order of the file, every annotation, no empty image."""
    found = coco.parse(INSTANCES, 4, "made-up file")
    assert found.category_ids == (7, 3, 90)
    assert found.category_names == ("cat", "dog", "brush")
    assert found.image_ids.tolist() == [900, 20]
    assert found.file_names == ("first.jpg", "last.jpg")
    assert found.sizes.tolist() == [[200, 100], [64, 32]]
    assert found.first_box.tolist() == [0, 3, 4]
    assert found.labels.tolist() == [2, 1, 1, 3]
    expected = [[0.1, 0.1, 0.6, 0.6], [0, 0, 1, 1], [0.25, 0.25, 0.25, 0.5], [0, 0, 1, 1]]
    assert found.boxes.dtype == numpy.float32
    assert numpy.array_equal(found.boxes, numpy.array(expected, numpy.float32))


# --- the crop -------------------------------------------------------------------------------------


def plain_overlap(box: list[float], crop: tuple[float, ...]) -> float:
    """Intersection over union of two boxes, one at a time."""
    width = max(0.0, min(box[2], crop[2]) - max(box[0], crop[0]))
    height = max(0.0, min(box[3], crop[3]) - max(box[1], crop[1]))
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, crop)]
    return width * height / (sum(areas) - width * height)


def plain_centre_is_inside(box: list[float], crop: tuple[float, ...]) -> bool:
    """Strictly, in both directions."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return crop[0] < x < crop[2] and crop[1] < y < crop[3]


def check_crop_options() -> None:
    """Seven options, equally likely; the first leaves the image alone, the last limits nothing."""
    assert config.MIN_IOU_OPTIONS[:5] == (0.1, 0.3, 0.5, 0.7, 0.9)
    assert config.MIN_IOU_OPTIONS[5:] == (-math.inf,)
    draws = Draws(0)
    assert augmentation.choose_crop(random_boxes(2, 1), 1, draws) is None  # type: ignore[arg-type]
    assert draws.asked == [(7,)]
    # One box in a corner, the crop in the other: it holds the second box whole.
    boxes = numpy.array([[0, 0, 0.1, 0.1], [0.5, 0.5, 1, 1]], numpy.float32)
    trial = (0.5, 0.5, 0.5, 0.5)  # width, height, left, top
    draws = Draws(1, *trial, 6, *trial)
    assert augmentation.choose_crop(boxes, 1, draws) == (0.5, 0.5, 1.0, 1.0)  # type: ignore[arg-type]
    assert draws.asked == 2 * [(7,), (0.3, 1.0), (0, 0.5), (0, 0.5)]
    # Two trials of one option before another is drawn.
    draws = Draws(1, *trial, *trial, 0)
    assert augmentation.choose_crop(boxes, 2, draws) is None  # type: ignore[arg-type]
    assert draws.numbers == []


def check_crop_limits() -> None:
    """Least overlap and aspect are as the rule says them, up to their very limits."""

    def trial(box: list[float], min_iou: float, *draws: float) -> Any:
        boxes = numpy.array([box], numpy.float32)
        return augmentation.try_crop(boxes, min_iou, Draws(*draws))  # type: ignore[arg-type]

    half = (1.0, 0.5, 0.0, 0.0)
    assert trial([0, 0, 1, 0.25], 0.5, *half) is None  # an overlap of 0.5 does not exceed 0.5
    assert trial([0, 0, 1, 0.25], 0.4999, *half) == (0, 0, 1, 0.5)
    assert trial([0, 0, 1, 1], -math.inf, *half) is None  # its centre lies on the edge
    assert trial([0, 0, 1, 0.98], -math.inf, *half) == (0, 0, 1, 0.5)
    # More than twice as wide as high, and as high as wide.
    assert trial([0, 0, 1, 0.9], -math.inf, 1.0, 0.499, 0, 0) is None
    assert trial([0, 0, 0.9, 1], -math.inf, 0.499, 1.0, 0, 0) is None


def check_crop() -> None:
    """Each crop that is chosen fulfils its option for every object, and all options occur."""
    boxes = numpy.array([[0.1, 0.1, 0.9, 0.9], [0.15, 0.1, 0.9, 0.9]], numpy.float32)
    random = generator(5)
    least = Counter[float]()
    for _ in range(3000):
        crop = augmentation.choose_crop(boxes, 1, random)
        if crop is None:
            least[-1] += 1
            continue
        width, height = crop[2] - crop[0], crop[3] - crop[1]
        assert 0.3 - 1e-9 < width <= 1 and 0.3 - 1e-9 < height <= 1
        assert min(crop) >= 0 and max(crop) <= 1 + 1e-9
        assert 0.5 <= width / height <= 2
        assert any(plain_centre_is_inside(box, crop) for box in boxes.tolist())
        lowest = min(plain_overlap(box, crop) for box in boxes.tolist())
        least[max([0.0, *(limit for limit in (0.1, 0.3, 0.5, 0.7) if lowest > limit)])] += 1
    # An option whose trial fails is drawn again, so that leaving the image alone grows likelier.
    assert 1 / 7 < least[-1] / 3000 < 0.6
    assert min(least[limit] for limit in (0.1, 0.3, 0.5, 0.7)) > 0, least


def check_cut_out() -> None:
    """Spec 1.4, 1d: centres decide, boxes are clipped and rescaled, pixels rounded down."""
    image = photo(101, 67)
    crop = (0.107, 0.213, 0.6995, 0.9)  # 10.8, 14.3, 70.6 and 60.3 pixels
    boxes = numpy.array(
        [
            [0.0, 0.1, 0.5, 0.6],  # clipped at left and top
            [0.2, 0.3, 0.4, 0.5],  # whole
            [0.6, 0.5, 0.9, 0.6],  # its centre lies outside
            [0.5, 0.7, 0.8, 1.0],  # clipped at right and bottom
            [0.3, 0.3, 0.3, 0.5],  # without width
        ],
        numpy.float32,
    )
    labels = numpy.array([5, 6, 7, 8, 9])
    cut, found, kept = augmentation.cut_out(image, boxes, labels, crop)
    left, top, right, bottom = 10, 14, 70, 60
    expected = numpy.asarray(image)[top:bottom, left:right]
    assert numpy.array_equal(numpy.asarray(cut), expected)
    assert kept.tolist() == [5, 6, 8, 9]
    for ours, box in zip(found.tolist(), boxes[[0, 1, 3, 4]].tolist(), strict=True):
        for axis, (low, high) in enumerate(((0.107, 0.6995), (0.213, 0.9))):
            for side in (axis, axis + 2):
                relative = (min(max(box[side], low), high) - low) / (high - low)
                assert math.isclose(ours[side], relative, abs_tol=1e-6)


# --- mirror, size, colours ------------------------------------------------------------------------


def augmented(config: Config, seed: int) -> tuple[NDArray[numpy.uint8], Any, Any]:
    """A photo of 90 x 60 with three objects, augmented."""
    boxes = random_boxes(3, 7)
    labels = numpy.array([3, 1, 2])
    return augmentation.augment(photo(90, 60), boxes, labels, config, generator(seed))


def check_order_of_augmentation() -> None:
    """Torchvision's steps in the rule's order, with the numbers that the generator gives."""
    for seed in range(12):
        config = dataclasses.replace(REFERENCE, input_size=48)
        found, boxes, labels = augmented(config, seed)
        random = generator(seed)
        image, expected, kept = photo(90, 60), random_boxes(3, 7), numpy.array([3, 1, 2])
        random.random()  # whether to crop at all: here always
        crop = augmentation.choose_crop(expected, 1, random)
        if crop is not None:
            image, expected, kept = augmentation.cut_out(image, expected, kept, crop)
        if random.random() < 0.5:
            image = functional.hflip(image)
            expected = numpy.array(
                [[1 - box[2], box[1], 1 - box[0], box[3]] for box in expected], numpy.float32
            )
        image = functional.resize(image, [48, 48])
        image = plain_jitter(image, random)
        assert numpy.array_equal(found, numpy.asarray(image).transpose(2, 0, 1)), f"seed {seed}"
        assert found.dtype == numpy.uint8
        assert numpy.allclose(boxes, expected, atol=1e-6)
        assert labels.tolist() == kept.tolist()


def plain_jitter(image: Image.Image, random: numpy.random.Generator) -> Image.Image:
    """Torchvision's four changes in the order and by the factors that the generator gives."""
    factors = [random.uniform(*limits) for limits in ((0.875, 1.125), (0.5, 1.5), (0.5, 1.5))]
    factors.append(random.uniform(-0.05, 0.05))
    changes: tuple[Any, ...] = (
        functional.adjust_brightness,
        functional.adjust_contrast,
        functional.adjust_saturation,
        functional.adjust_hue,
    )
    for number in random.permutation(4):
        image = changes[number](image, factors[number])
    return image


def check_jitter() -> None:
    """Torchvision's colour jitter, to the bit, on a photo of every colour."""
    image = photo(80, 50, seed=3)
    for seed in range(20):
        ours = augmentation.jitter_colours(image, generator(seed))
        assert numpy.array_equal(ours, plain_jitter(image, generator(seed))), f"seed {seed}"


def check_probabilities() -> None:
    """Half of the images are mirrored; `crop_probability` of them are cropped where they may be."""
    boxes, labels = numpy.array([[0.0, 0.0, 0.75, 1.0]], numpy.float32), numpy.array([1])
    image = photo(16, 16)

    def count(config: Config) -> Counter[tuple[float, ...]]:
        results = (
            augmentation.augment(image, boxes, labels, config, generator(seed))[1][0].tolist()
            for seed in range(1000)
        )
        return Counter(map(tuple, results))

    never = count(dataclasses.replace(TINY, input_size=8, crop_probability=0.0))
    assert set(never) == {(0, 0, 0.75, 1), (0.25, 0, 1, 1)}
    assert 430 < never[0, 0, 0.75, 1] < 570
    half = count(dataclasses.replace(TINY, input_size=8, crop_probability=0.5))
    always = count(dataclasses.replace(TINY, input_size=8, crop_probability=1.0))
    whole, whole_always = (c[0, 0, 0.75, 1] + c[0.25, 0, 1, 1] for c in (half, always))
    assert abs(whole - (1000 + whole_always) / 2) < 70


# --- batches --------------------------------------------------------------------------------------


SMALL = dataclasses.replace(
    TINY, num_train_images=19, num_eval_images=7, input_size=16, batch_size=4, base_batch_size=4
)
"""Five steps an epoch, the last with three images."""


def write_photos(folder: Path, num_images: int) -> data.Images:
    """Photos on disk, one to four objects on each; each is of one colour of its own."""
    random = generator(11)
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": 10 * k, "name": f"kind {k}"} for k in range(1, 5)]
    for number in range(num_images):
        name, width, height = f"{number}.png", 20 + number, 30
        colour = (10 * number, 255 - 10 * number, 128)
        Image.new("RGB", (width, height), colour).save(folder / name)
        content["images"].append(
            {"id": 100 + number, "file_name": name, "width": width, "height": height}
        )
        for _ in range(1 + number % 4):
            left, top = random.integers(0, 10, 2).tolist()
            content["annotations"].append(
                {
                    "id": len(content["annotations"]),
                    "image_id": 100 + number,
                    "category_id": 10 * int(random.integers(1, 5)),
                    "bbox": [left, top, 10, 15],
                }
            )
    return data.Images(coco.parse(content, 5, "made-up"), folder, ground_truth=content)


def check_batches() -> None:
    """Each image of an epoch once, in the seed's order, with its own boxes, padded with zeros."""
    config = dataclasses.replace(SMALL, crop_probability=0.0)
    with tempfile.TemporaryDirectory() as folder:
        images = write_photos(Path(folder), 19)
        batches = list(data.train_batches(images, config, 3, [2], 0, 0))
        order = data.epoch_order(19, 3, 2)
        assert sorted(order) == list(range(19))
        assert [len(batch.images) for batch in batches] == [4, 4, 4, 4, 3]
        place = 0
        for batch in batches:
            indices = order[place : place + len(batch.images)]
            place += len(indices)
            counts = [len(images.annotations.boxes_of(index)[1]) for index in indices]
            assert batch.labels.shape == (len(indices), max(counts))
            assert batch.boxes.shape == (len(indices), max(counts), 4)
            for row, index in enumerate(indices):
                random = generator(derive_seed(3, "augmentation", 2, index))
                pixels, boxes, labels = augmentation.augment(
                    images.read(index), *images.annotations.boxes_of(index), config, random
                )
                assert numpy.array_equal(batch.images[row], pixels)
                assert numpy.array_equal(batch.boxes[row, : counts[row]], boxes)
                assert batch.labels[row, : counts[row]].tolist() == labels.tolist()
                assert not batch.boxes[row, counts[row] :].any()
                assert not batch.labels[row, counts[row] :].any()
        assert data.epoch_order(19, 3, 3) != order
        assert data.epoch_order(19, 4, 2) != order


def check_evaluation_batches() -> None:
    """Each image once, whole and as it is, resized whatever its aspect."""
    config = dataclasses.replace(SMALL, batch_size=1)  # evaluation takes four times as many
    with tempfile.TemporaryDirectory() as folder:
        images = write_photos(Path(folder), 7)
        batches = list(data.eval_batches(images, config, 0))
        assert [numbers.tolist() for numbers, _ in batches] == [[0, 1, 2, 3], [4, 5, 6]]
        for numbers, pixels in batches:
            assert pixels.dtype == torch.uint8
            for index, ours in zip(numbers.tolist(), pixels, strict=True):
                image = functional.resize(images.read(index), [16, 16])
                assert numpy.array_equal(ours, numpy.asarray(image).transpose(2, 0, 1))


def encode(image: Image.Image, kind: str) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()
