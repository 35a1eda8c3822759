"""What happens to a training image, and to an evaluation image, before the network sees it.

All randomness comes from one generator, so that an image's augmentation is a function of its seed.
Boxes are corners relative to the image [M, 4].

Sources: Liu et al., "SSD: Single Shot MultiBox Detector" (2016), section 2.2, "Data
augmentation"; v0.5's utils.py; torchvision's definition of colour jitter.
"""

from __future__ import annotations

import numpy
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from single_stage_detector.coco import FloatArray, IntArray
from single_stage_detector.config import MIN_IOU_OPTIONS, Config

MIN_CROP = 0.3
"""Least width and height of a crop, relative to the image."""
MAX_ASPECT = 2.0
"""Widest crop, width over height (relative both); the narrowest is its inverse."""
MAX_BRIGHTNESS_CHANGE = 0.125
MAX_CONTRAST_CHANGE = 0.5
MAX_SATURATION_CHANGE = 0.5
MAX_HUE_CHANGE = 0.05
"""In turns of the colour circle."""

Corners = tuple[float, float, float, float]


def augment(
    image: Image.Image,
    boxes: FloatArray,
    labels: IntArray,
    config: Config,
    random: numpy.random.Generator,
) -> tuple[NDArray[numpy.uint8], FloatArray, IntArray]:
    """Crop, mirror, resize and colour a training image: pixels [3, S, S], boxes, labels."""
    if random.random() < config.crop_probability:
        crop = choose_crop(boxes, config.crop_trials, random)
        if crop is not None:
            image, boxes, labels = cut_out(image, boxes, labels, crop)
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        boxes = boxes[:, [2, 1, 0, 3]]
        boxes[:, [0, 2]] = 1 - boxes[:, [0, 2]]
    image = jitter_colours(resize(image, config.input_size), random)
    return to_array(image), boxes, labels


def prepare_for_evaluation(image: Image.Image, config: Config) -> NDArray[numpy.uint8]:
    """The whole image as the network sees it [3, S, S]."""
    return to_array(resize(image, config.input_size))


def choose_crop(
    boxes: FloatArray, num_trials: int, random: numpy.random.Generator
) -> Corners | None:
    """A part of the image to cut out, relative to it, or None for the whole.

    An option is drawn: leave the image as it is, or a least overlap with every object. It has
    `num_trials` trials; where all fail, an option is drawn again.
    """
    while True:
        option = int(random.integers(1 + len(MIN_IOU_OPTIONS)))
        if option == 0:
            return None
        min_iou = MIN_IOU_OPTIONS[option - 1]
        for _ in range(num_trials):
            crop = try_crop(boxes, min_iou, random)
            if crop is not None:
                return crop


def try_crop(boxes: FloatArray, min_iou: float, random: numpy.random.Generator) -> Corners | None:
    """A random part of the image, or None where it does not suit the objects."""
    width, height = random.uniform(MIN_CROP, 1.0, size=2)
    if not 1 / MAX_ASPECT <= width / height <= MAX_ASPECT:
        return None
    left = random.uniform(0, 1 - width)
    top = random.uniform(0, 1 - height)
    crop = (left, top, left + width, top + height)
    if not (overlap(boxes, crop) > min_iou).all():
        return None
    return crop if is_inside(boxes, crop).any() else None


def overlap(boxes: FloatArray, crop: Corners) -> NDArray[numpy.float64]:
    """Intersection over union of each box with the crop [M]."""
    left, top, right, bottom = boxes.T.astype(numpy.float64)
    width = numpy.clip(numpy.minimum(right, crop[2]) - numpy.maximum(left, crop[0]), 0, None)
    height = numpy.clip(numpy.minimum(bottom, crop[3]) - numpy.maximum(top, crop[1]), 0, None)
    shared = width * height
    area = (crop[2] - crop[0]) * (crop[3] - crop[1])
    result: NDArray[numpy.float64] = shared / ((right - left) * (bottom - top) + area - shared)
    return result


def is_inside(boxes: FloatArray, crop: Corners) -> NDArray[numpy.bool_]:
    """Whether each box's centre lies strictly within the crop [M]."""
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    result: NDArray[numpy.bool_] = (crop[0] < x) & (x < crop[2]) & (crop[1] < y) & (y < crop[3])
    return result


def cut_out(
    image: Image.Image, boxes: FloatArray, labels: IntArray, crop: Corners
) -> tuple[Image.Image, FloatArray, IntArray]:
    """A part of the image with the objects whose centre lies in it, clipped to it.

    Pixels are cut at whole numbers, rounded down; boxes are relative to the crop as it was drawn.
    """
    inside = is_inside(boxes, crop)
    left, top, right, bottom = crop
    low, size = numpy.array([left, top] * 2), numpy.array([right - left, bottom - top] * 2)
    clipped = numpy.clip(boxes[inside], low, numpy.array([right, bottom] * 2))
    pixels = (
        int(left * image.width),
        int(top * image.height),
        int(right * image.width),
        int(bottom * image.height),
    )
    return image.crop(pixels), ((clipped - low) / size).astype(numpy.float32), labels[inside]


def resize(image: Image.Image, size: int) -> Image.Image:
    """A square of size x size pixels, whatever the aspect: bilinear, antialiased."""
    return image.resize((size, size), Image.Resampling.BILINEAR)


def jitter_colours(image: Image.Image, random: numpy.random.Generator) -> Image.Image:
    """Brightness, contrast, saturation and hue, each by a random factor, in random order."""
    brightness = random.uniform(1 - MAX_BRIGHTNESS_CHANGE, 1 + MAX_BRIGHTNESS_CHANGE)
    contrast = random.uniform(1 - MAX_CONTRAST_CHANGE, 1 + MAX_CONTRAST_CHANGE)
    saturation = random.uniform(1 - MAX_SATURATION_CHANGE, 1 + MAX_SATURATION_CHANGE)
    hue = random.uniform(-MAX_HUE_CHANGE, MAX_HUE_CHANGE)
    for change in random.permutation(4):
        if change == 0:
            image = ImageEnhance.Brightness(image).enhance(brightness)
        elif change == 1:
            image = ImageEnhance.Contrast(image).enhance(contrast)
        elif change == 2:
            image = ImageEnhance.Color(image).enhance(saturation)
        else:
            image = shift_hue(image, hue)
    return image


def shift_hue(image: Image.Image, turns: float) -> Image.Image:
    """All colours turned on the colour circle; hue is a byte that wraps around."""
    hue, saturation, value = image.convert("HSV").split()
    turned = numpy.asarray(hue) + numpy.uint8(int(turns * 255) % 256)
    channels = (Image.fromarray(turned), saturation, value)
    return Image.merge("HSV", channels).convert("RGB")


def to_array(image: Image.Image) -> NDArray[numpy.uint8]:
    """Pixels [3, H, W] of 0 to 255."""
    return numpy.ascontiguousarray(numpy.asarray(image).transpose(2, 0, 1))
