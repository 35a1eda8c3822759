"""The anchors of the specification's table, and their order."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from object_detection.anchors import cell_anchors, make_anchors
from object_detection.config import REFERENCE

TABLE = {
    4: [[-22, -10, 25, 13], [-14, -14, 17, 17], [-10, -22, 13, 25]],
    8: [[-40, -20, 47, 27], [-28, -28, 35, 35], [-20, -44, 27, 51]],
    16: [[-84, -40, 99, 55], [-56, -56, 71, 71], [-36, -80, 51, 95]],
    32: [[-164, -72, 195, 103], [-112, -112, 143, 143], [-76, -168, 107, 199]],
    64: [[-332, -152, 395, 215], [-224, -224, 287, 287], [-148, -328, 211, 391]],
}


@pytest.mark.parametrize(("level", "stride"), list(enumerate(TABLE)))
def test_anchors_of_the_first_cell(level, stride):
    size = REFERENCE.anchor_sizes[level]
    assert cell_anchors(stride, size, REFERENCE.aspect_ratios) == TABLE[stride]


def test_anchors_of_an_image():
    maps = [torch.empty(1, 0, *s) for s in [(200, 336), (100, 168), (50, 84), (25, 42), (13, 21)]]
    levels = make_anchors(REFERENCE, maps)
    assert [len(anchors) for anchors in levels] == [201_600, 50_400, 12_600, 3_150, 819]
    rows_columns_ratios = levels[1].view(100, 168, 3, 4)
    expected = torch.tensor(TABLE[8][2]) + torch.tensor([16, 40, 16, 40])
    assert torch.equal(rows_columns_ratios[5, 2, 2], expected.float())


def test_modern_anchors_have_the_same_pixels():
    modern = dataclasses.replace(REFERENCE, legacy_coords=False)
    maps = [torch.empty(1, 0, *s) for s in [(4, 6), (2, 3), (1, 2), (1, 1), (1, 1)]]
    pairs = (make_anchors(config, maps) for config in (REFERENCE, modern))
    for legacy_ones, modern_ones in zip(*pairs, strict=True):
        assert torch.equal(modern_ones, legacy_ones + torch.tensor([0.0, 0, 1, 1]))
