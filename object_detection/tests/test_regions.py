"""Reading regions against torchvision's RoIAlign and choice of levels."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torchvision import ops
from torchvision.ops.poolers import LevelMapper

from object_detection import regions
from object_detection.config import REFERENCE


def random_regions(count, seed):
    generator = torch.Generator().manual_seed(seed)
    low = 300 * torch.rand(count, 2, generator=generator)
    sides = torch.exp(7 * torch.rand(count, 1, generator=generator))
    return torch.cat([low, low + sides], dim=1)


@pytest.mark.parametrize("legacy", [True, False])
def test_levels_are_those_of_torchvision(legacy):
    config = dataclasses.replace(REFERENCE, legacy_coords=legacy)
    boxes = random_regions(2000, 0)
    half_open = boxes + torch.tensor([0.0, 0, legacy, legacy])
    expected = 2 + LevelMapper(2, 5, 224, 4, 1e-6)([half_open])
    found = regions.choose_levels(boxes, config)
    assert torch.equal(found, expected)
    assert found.unique().tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize("legacy", [True, False])
def test_each_region_is_read_from_its_own_map_and_image(legacy):
    config = dataclasses.replace(REFERENCE, legacy_coords=legacy)
    maps = [torch.randn(2, 4, 256 // 2**level, 320 // 2**level) for level in range(5)]
    boxes = [random_regions(20, 1), random_regions(30, 2)]
    found = regions.read_regions(maps, boxes, 7, config)
    assert found.shape == (50, 4, 7, 7)
    place = 0
    for image, some in enumerate(boxes):
        for box in some:
            level = int(regions.choose_levels(box[None], config))
            row = torch.cat([torch.tensor([float(image)]), box])[None]
            expected = ops.roi_align(
                maps[level - 2], row, 7, 0.5**level, sampling_ratio=2, aligned=not legacy
            )
            assert torch.allclose(found[place], expected[0], atol=1e-5)
            place += 1


def test_an_image_without_regions():
    maps = [torch.randn(2, 4, 64 // 2**level, 64 // 2**level) for level in range(4)]
    found = regions.read_regions(maps, [torch.zeros(0, 4), torch.zeros(0, 4)], 7, REFERENCE)
    assert found.shape == (0, 4, 7, 7)
