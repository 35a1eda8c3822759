"""Rasterising a batch of polygons gives, bit for bit, what pycocotools gives for each."""

from __future__ import annotations

import numpy
import pytest
import torch
from pycocotools import mask as coco_mask

from object_detection import polygons


def ours(outlines, height, width):
    corners = torch.from_numpy(numpy.concatenate([p.reshape(-1, 2) for p in outlines]))
    counts = [len(p) // 2 for p in outlines]
    return polygons.rasterise(corners, torch.tensor([0, *counts]).cumsum(0), height, width)


def theirs(outlines, height, width):
    runs = coco_mask.frPyObjects([p.tolist() for p in outlines], height, width)
    return torch.from_numpy(coco_mask.decode(runs).transpose(2, 0, 1)).bool()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("height", "width"), [(28, 28), (17, 40), (1, 5), (33, 1)])
@pytest.mark.parametrize("spread", [0.0, 1.0, 40.0])
def test_random_polygons(seed, height, width, spread):
    """Within the bitmap and far out of it, with many corners and as few as COCO takes."""
    stream = numpy.random.default_rng(seed)
    outlines = []
    for _ in range(300):
        num_corners = stream.integers(3, 12)
        low, high = -spread, numpy.array([width, height]) + spread
        outlines.append(stream.uniform(low, high, (num_corners, 2)).ravel())
    found, expected = ours(outlines, height, width), theirs(outlines, height, width)
    assert found.shape == expected.shape
    assert torch.equal(found, expected)
    assert expected.any()


@pytest.mark.parametrize("unit", [1.0, 0.5, 0.2, 0.1, 0.125])
def test_corners_on_a_grid(unit):
    """Where the walk's points and the pixels' borders coincide; edges without length included."""
    stream = numpy.random.default_rng(7)
    outlines = [
        unit * stream.integers(-10, 150, 2 * stream.integers(3, 9)).astype(float)
        for _ in range(2000)
    ]
    outlines += [numpy.array([3.0, 3, 3, 3, 8, 8, 3, 8]), numpy.full(6, 4.0)]
    assert torch.equal(ours(outlines, 20, 24), theirs(outlines, 20, 24))


def test_long_thin_edges():
    stream = numpy.random.default_rng(3)
    outlines = []
    for _ in range(500):
        x, y = stream.uniform(0, 28, 2)
        far = stream.uniform(-3000, 3000, 4)
        outlines.append(numpy.array([x, y, *far]))
    assert torch.equal(ours(outlines, 28, 28), theirs(outlines, 28, 28))


def test_no_polygon_at_all():
    nothing = polygons.rasterise(torch.zeros(0, 2).double(), torch.zeros(1).long(), 5, 6)
    assert nothing.shape == (0, 5, 6)
