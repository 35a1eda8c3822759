"""Box arithmetic against torchvision's, whose boxes are half-open: right and bottom one larger."""

from __future__ import annotations

import pytest
import torch
from torchvision import ops
from torchvision.models.detection._utils import BoxCoder

from object_detection.boxes import MAX_LOG_SCALE, Boxes

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
both = pytest.mark.parametrize("legacy", [True, False])


def random_boxes(count, seed):
    generator = torch.Generator().manual_seed(seed)
    low = 400 * torch.rand(count, 2, generator=generator)
    return torch.cat([low, low + 1 + 200 * torch.rand(count, 2, generator=generator)], dim=1)


def half_open(boxes, legacy):
    return boxes + torch.tensor([0.0, 0, legacy, legacy])


@both
def test_overlap(legacy):
    first, second = random_boxes(50, 0), random_boxes(70, 1)
    found = Boxes(legacy).intersection_over_union(first, second)
    expected = ops.box_iou(half_open(first, legacy), half_open(second, legacy))
    assert torch.allclose(found, expected, atol=1e-6)
    batched = Boxes(legacy).intersection_over_union(first[None], second[None])
    assert torch.equal(batched[0], found)


@both
def test_coding(legacy):
    objects, references = random_boxes(200, 0), random_boxes(200, 1)
    coder = BoxCoder(WEIGHTS)
    found = Boxes(legacy).encode(objects, references, WEIGHTS)
    expected = coder.encode_single(half_open(objects, legacy), half_open(references, legacy))
    assert torch.allclose(found, expected, atol=3e-5)
    references = references.double()
    deltas = torch.randn(200, 4).double() * torch.tensor([10.0, 10, 30, 30])
    found = Boxes(legacy).decode(deltas, references, WEIGHTS)
    expected = coder.decode_single(deltas, half_open(references, legacy))
    assert torch.allclose(half_open(found, legacy), expected, atol=1e-8)
    assert (deltas[:, 2:] / 5 > MAX_LOG_SCALE).any()  # the limit was put to use


@both
def test_decoding_undoes_encoding(legacy):
    objects, references = random_boxes(100, 2).double(), random_boxes(100, 3).double()
    coordinates = Boxes(legacy)
    deltas = coordinates.encode(objects, references, WEIGHTS)
    assert torch.allclose(coordinates.decode(deltas, references, WEIGHTS), objects, atol=1e-9)


@both
def test_suppression(legacy):
    boxes = (random_boxes(500, 4) / 4).round()
    scores, groups = torch.rand(500), torch.randint(5, (500,))
    found = Boxes(legacy).suppress(boxes, scores, groups, 0.5)
    parts = []
    for group in range(5):
        members = groups.eq(group).nonzero().squeeze(1)
        kept = ops.nms(half_open(boxes[members], legacy), scores[members], 0.5)
        parts.append(members[kept])
    expected = torch.cat(parts)
    expected = expected[scores[expected].argsort(descending=True)]
    assert torch.equal(found, expected)
    assert len(found) < 480
    assert len(Boxes(legacy).suppress(boxes[:0], scores[:0], groups[:0], 0.5)) == 0


@both
def test_clipping(legacy):
    boxes = torch.tensor([[-5.0, -6, 30, 40], [3, 4, 100, 200], [50, 60, 90, 95]])
    clipped = Boxes(legacy).clip(boxes, torch.tensor([80, 70]))
    expected = torch.tensor([[0.0, 0, 30, 40], [3, 4, 80, 70], [50, 60, 80, 70]])
    last = expected[1:, 2:]
    last -= float(legacy)
    assert torch.equal(clipped, expected)


@both
def test_inside(legacy):
    edge = 79.0 if legacy else 80.0
    boxes = torch.tensor(
        [[0.0, 0, edge, 10], [0, 0, edge + 1, 10], [-1, 0, 5, 5], [0, -0.5, 5, 5], [5, 5, 9, edge]]
    )
    found = Boxes(legacy).are_inside(boxes, torch.tensor([80, 70]))
    assert found.tolist() == [True, False, False, False, False]
