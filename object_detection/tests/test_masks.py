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


def test_masks_are_pasted_as_torchvision_pastes_them():
    torch.manual_seed(0)
    probabilities = torch.rand(60, 28, 28)
    low = torch.rand(60, 2) * torch.tensor([150.0, 90.0]) - 20
    boxes = torch.cat([low, low + torch.rand(60, 2) * 120], dim=1)
    is_seen = (boxes[:, :2] < torch.tensor([160, 100])).all(1) & (boxes[:, 2:] > 0).all(1)
    expected = paste_masks_in_image(probabilities[is_seen, None], boxes[is_seen], (100, 160))
    found = torch.from_numpy(masks.paste(probabilities, boxes, 100, 160))
    assert torch.equal(found[is_seen], expected[:, 0] > 0.5)
    assert found[is_seen].flatten(1).any(dim=1).all()
    assert not found[~is_seen].any()  # where torchvision would fail
    assert 40 < is_seen.sum() < 60


def test_bitmaps_are_encoded_as_pycocotools_decodes_them():
    stream = numpy.random.default_rng(1)
    bitmaps = stream.random((7, 30, 20)) > 0.5
    for bitmap, runs in zip(bitmaps, masks.encode_bitmaps(bitmaps), strict=True):
        assert numpy.array_equal(coco_mask.decode(runs), bitmap)
