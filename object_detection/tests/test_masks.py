"""Outlines, mask targets and pasting against pycocotools and torchvision."""

from __future__ import annotations

import numpy
import pytest
import torch
from pycocotools import mask as coco_mask
from torchvision.models.detection.roi_heads import paste_masks_in_image

from object_detection import masks, shapes


def rasterise_one(segmentation, height, width):
    runs = coco_mask.frPyObjects(segmentation, height, width)
    runs = coco_mask.merge(runs) if isinstance(runs, list) else runs
    return torch.from_numpy(coco_mask.decode(runs)).bool()


def random_objects(stream, count):
    """Segmentations of one to three polygons."""
    return [
        [
            stream.uniform(0, 100, 2 * stream.integers(3, 9)).tolist()
            for _ in range(stream.integers(1, 4))
        ]
        for _ in range(count)
    ]


def test_targets_are_the_polygons_in_each_region():
    stream = numpy.random.default_rng(0)
    segmentations = random_objects(stream, 5)
    outlines = masks.outlines_of(segmentations)
    objects = torch.from_numpy(stream.integers(0, 5, 40))
    low = torch.from_numpy(stream.uniform(0, 80, (40, 2))).float()
    regions = torch.cat([low, low + torch.from_numpy(stream.uniform(0.2, 60, (40, 2)))], 1).float()
    found = masks.mask_targets(outlines, objects, regions, 28)
    for target, number, region in zip(found, objects.tolist(), regions.double(), strict=True):
        span = (region[2:] - region[:2]).clamp(min=1).numpy()
        moved = [
            ((numpy.array(polygon).reshape(-1, 2) - region[:2].numpy()) * (28 / span)).ravel()
            for polygon in segmentations[number]
        ]
        expected = rasterise_one([polygon.tolist() for polygon in moved], 28, 28)
        assert torch.equal(target, expected)
    assert found.any()
    assert not found.all()


def test_an_object_without_a_region_and_a_region_without_an_object():
    outlines = masks.outlines_of([[[0.0, 0, 9, 0, 9, 9]], []])
    region = torch.tensor([[0.0, 0, 9, 9]])
    assert masks.mask_targets(outlines, torch.tensor([0]), region, 28).any()
    assert not masks.mask_targets(outlines, torch.tensor([1]), region, 28).any()
    nothing = masks.mask_targets(outlines, torch.zeros(0).long(), torch.zeros(0, 4), 28)
    assert nothing.shape == (0, 28, 28)


@pytest.mark.parametrize("compressed", [False, True])
def test_runs_become_rectangles_that_cover_the_same_pixels(compressed):
    recipe = shapes.Recipe(occlusion=True, empty_one_in=0, min_objects=4, max_objects=8)
    for number in range(5):
        for annotation in shapes.draw_picture(recipe, 3, number).annotations:
            runs = annotation["segmentation"]
            expected = rasterise_one(runs, *runs["size"])
            if compressed:
                runs = coco_mask.frPyObjects(runs, *runs["size"])
            outlines = masks.outlines_of([runs])
            region = torch.tensor([[0.0, 0, 128, 128]])
            found = masks.mask_targets(outlines, torch.tensor([0]), region, 128)[0]
            assert torch.equal(found, expected)


@pytest.mark.parametrize("bad", [[[1.0, 2, 3]], [[[1.0, 2], [3, 4]]]])
def test_a_polygon_of_another_form_is_refused(bad):
    with pytest.raises(ValueError, match="polygon"):
        masks.outlines_of([bad])


def whole(patch, height, width):
    """The bitmap of the whole image."""
    bitmap = numpy.zeros((height, width), bool)
    num_rows, num_columns = patch.bitmap.shape
    bitmap[patch.top : patch.top + num_rows, patch.left : patch.left + num_columns] = patch.bitmap
    return bitmap


def random_masks(count, height, width, seed, rounded=False):
    """Probabilities [D, 28, 28] and boxes [D, 4] of which some reach out of the image."""
    torch.manual_seed(seed)
    size = torch.tensor([width, height])
    low = torch.rand(count, 2) * size * 1.3 - 0.2 * size
    boxes = torch.cat([low, low + torch.rand(count, 2).square() * size], dim=1)
    coarse = torch.rand(count, 1, 5, 5)
    smooth = torch.nn.functional.interpolate(coarse, (28, 28), mode="bicubic")[:, 0]
    probabilities = torch.where(torch.rand(count, 1, 1) < 0.7, smooth, torch.rand(count, 28, 28))
    return probabilities.clamp(0, 1), boxes.round() if rounded else boxes


@pytest.mark.parametrize(("height", "width"), [(100, 160), (480, 640), (3, 5), (1, 1)])
@pytest.mark.parametrize("rounded", [False, True])
def test_masks_are_pasted_and_encoded_as_torchvision_and_pycocotools_do(height, width, rounded):
    """To the last bit of the image, and the last byte of the runs."""
    probabilities, boxes = random_masks(80, height, width, 0, rounded)
    corners = masks.enlarge(boxes, 28)
    size = torch.tensor([width, height])
    is_seen = (corners[:, :2] < size).all(1) & (corners[:, 2:] >= 0).all(1)
    patches = masks.paste(probabilities, boxes, height, width)
    seen = [patch for patch, one in zip(patches, is_seen.tolist(), strict=True) if one]
    expected = paste_masks_in_image(probabilities[is_seen, None], boxes[is_seen], (height, width))
    for patch, probability in zip(seen, expected[:, 0], strict=True):
        bitmap = (probability > 0.5).numpy()
        assert numpy.array_equal(whole(patch, height, width), bitmap)
        runs = coco_mask.encode(numpy.asfortranarray(bitmap.astype(numpy.uint8)))
        assert masks.encode(patch, height, width) == runs
    assert expected.gt(0.5).any() and 20 < is_seen.sum() <= 80
    for patch, one in zip(patches, is_seen.tolist(), strict=True):
        if not one:  # where torchvision would fail
            assert not patch.bitmap.any()
            assert coco_mask.area(masks.encode(patch, height, width)) == 0


def test_corners_of_enlarged_boxes_are_cut_towards_zero():
    """The specification's section 4: 28 cells become 30, whole pixels are cut, not rounded."""
    boxes = torch.tensor([[28.0, 56, 56, 112], [0, 0, 27.9, 27.9], [10.2, 10.2, 10.2, 10.2]])
    expected = [[27, 54, 57, 114], [0, 0, 28, 28], [10, 10, 10, 10]]
    assert masks.enlarge(boxes, 28).tolist() == expected


@pytest.mark.parametrize("num_threads", [1, 2])
def test_the_number_of_threads_changes_nothing(num_threads):
    probabilities, boxes = random_masks(20, 900, 1200, 1)
    expected = masks.paste(probabilities, boxes, 900, 1200)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        found = masks.paste(probabilities, boxes, 900, 1200)
    finally:
        torch.set_num_threads(before)
    for one, other in zip(found, expected, strict=True):
        assert numpy.array_equal(one.bitmap, other.bitmap)


def test_a_mask_of_no_numbers_covers_nothing():
    probabilities = torch.full((2, 28, 28), torch.nan)
    boxes = torch.tensor([[1.0, 2, 8, 9], [0, 0, 20, 10]])
    assert not any(patch.bitmap.any() for patch in masks.paste(probabilities, boxes, 10, 20))


def test_patches_are_encoded_as_pycocotools_encodes_whole_bitmaps():
    """Patches anywhere, whole columns and whole images among them, whose runs must join."""
    stream = numpy.random.default_rng(1)
    num_whole_columns = 0
    for number in range(600):
        height, width = stream.integers(1, 9, 2).tolist()
        top, left = int(stream.integers(height)), int(stream.integers(width))
        bottom, right = int(stream.integers(top, height + 1)), int(stream.integers(left, width + 1))
        if number % 3 == 0:
            top, bottom = 0, height
        density = stream.choice([0, 0.3, 0.9, 1])
        bitmap = stream.random((bottom - top, right - left)) < density
        patch = masks.Patch(left, top, bitmap)
        full = whole(patch, height, width).astype(numpy.uint8)
        assert masks.encode(patch, height, width) == coco_mask.encode(numpy.asfortranarray(full))
        num_whole_columns += full.all(axis=0).sum() > 1
    assert num_whole_columns > 30
