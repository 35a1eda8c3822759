"""Matching against torchvision's Matcher, and who is drawn."""

from __future__ import annotations

import pytest
import torch
from torchvision.models.detection._utils import Matcher

from object_detection.matching import IGNORED, match, sample


@pytest.mark.parametrize(("high", "low", "keep_best"), [(0.7, 0.3, True), (0.5, 0.5, False)])
def test_matches_are_those_of_torchvision(high, low, keep_best):
    generator = torch.Generator().manual_seed(0)
    overlap = torch.rand(6, 400, generator=generator) ** 2
    overlap[2] *= 0.2  # an object that no box overlaps by much
    overlap[2, 7] = overlap[2, 90] = overlap[2].max()  # and two boxes as much
    expected = Matcher(high, low, keep_best)(overlap)
    objects, roles = match(overlap, high, low, keep_best)
    assert torch.equal(roles == 1, expected >= 0)
    assert torch.equal(roles == 0, expected == Matcher.BELOW_LOW_THRESHOLD)
    assert torch.equal(roles == IGNORED, expected == Matcher.BETWEEN_THRESHOLDS)
    assert torch.equal(objects[roles == 1], expected[expected >= 0])
    assert set(roles.tolist()) == ({1, 0, IGNORED} if high > low else {1, 0})


def test_without_an_object_all_is_background():
    objects, roles = match(torch.zeros(0, 9), 0.7, 0.3, keep_best=True)
    assert roles.tolist() == objects.tolist() == [0] * 9


@pytest.mark.parametrize(
    ("num_foreground", "num_background", "expected"),
    [(500, 500, (64, 192)), (10, 500, (10, 246)), (500, 30, (64, 30)), (0, 0, (0, 0))],
)
def test_as_many_are_drawn_as_there_are(num_foreground, num_background, expected):
    roles = torch.full((1200,), IGNORED)
    roles[:num_foreground] = 1
    roles[num_foreground : num_foreground + num_background] = 0
    generator = torch.Generator().manual_seed(1)
    foreground, background = sample(roles, 256, 0.25, generator)
    assert (len(foreground), len(background)) == expected
    assert (roles[foreground] == 1).all()
    assert (roles[background] == 0).all()
    for drawn in (foreground, background):
        assert len(drawn.unique()) == len(drawn)


def test_all_are_drawn_equally_often():
    roles = torch.ones(20, dtype=torch.int64)
    generator = torch.Generator().manual_seed(2)
    counts = torch.zeros(20)
    for _ in range(2000):
        counts[sample(roles, 20, 0.25, generator)[0]] += 1
    assert counts.sum() == 2000 * 5
    assert counts.min() > 420
    assert counts.max() < 580
