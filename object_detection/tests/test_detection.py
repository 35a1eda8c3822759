"""From images to detections, beside torchvision's heads. test_losses.py has `detect` in parts."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torchvision.models.detection.roi_heads import RoIHeads

from object_detection import box_head, detection, mask_head, model
from object_detection.anchors import make_anchors
from object_detection.config import TINY
from object_detection.region_proposals import propose
from object_detection.regions import read_regions

MODERN = dataclasses.replace(TINY, legacy_coords=False)
SIZES = torch.tensor([[64, 50], [41, 64], [64, 64]])


def random_model(config):
    """Weights that are far enough from those of an untrained network to tell images apart."""
    torch.manual_seed(3)
    network = model.MaskRCNN(config).eval()
    with torch.no_grad():
        for name, weights in network.named_parameters():
            if name.startswith(("proposal_head", "box_head.classes", "mask_head.masks")):
                weights.copy_(weights.sign() * weights.abs().sqrt())
            elif name.startswith("box_head.deltas"):
                weights *= 300
    return network


@pytest.fixture(scope="module")
def pixels():
    """Three images, noise of many grains."""
    generator = torch.Generator().manual_seed(4)
    grains = [
        torch.nn.functional.interpolate(torch.rand(3, 3, s, s, generator=generator), (64, 64))
        for s in (3, 7, 16, 64)
    ]
    return (255 * torch.stack(grains).mean(dim=0)).byte()


def torchvision_heads(network, config):
    """The second stage of torchvision around our layers and our reading of regions."""

    def pool(size):
        return lambda maps, boxes, _: read_regions(maps, boxes, size, config)

    def predict(features):
        logits, deltas = network.box_head(features)
        return logits, deltas.flatten(1)

    return RoIHeads(
        pool(box_head.REGION_SIZE), torch.nn.Identity(), predict,
        0.5, 0.5, 64, 0.25, box_head.WEIGHTS,
        config.min_score, config.nms_iou, config.max_detections,
        pool(mask_head.REGION_SIZE), torch.nn.Identity(), network.mask_head,
    ).eval()  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize(("min_score", "max_detections"), [(0.01, 20), (0.2, 1000)])
def test_what_is_found_is_what_torchvisions_heads_find(pixels, min_score, max_detections):
    """Boxes, scores, labels and masks of each image, in pixels of the image before resizing."""
    config = dataclasses.replace(MODERN, min_score=min_score, max_detections=max_detections)
    network = random_model(config)
    found = detection.find(network, pixels, SIZES, SIZES * torch.tensor([2, 3]), config)
    images = model.normalize_pixels(pixels, SIZES, config)
    maps, objectness, deltas = network(images)
    proposals = propose(objectness, deltas, make_anchors(config, maps), SIZES, config, False)
    shapes = SIZES.flip(1).tolist()
    expected, _ = torchvision_heads(network, config)(maps, proposals, shapes)
    assert len(found) == 3 and len(torch.cat([some.labels for some in found]).unique()) > 1
    for mine, theirs in zip(found, expected, strict=True):
        assert len(mine.labels) == len(theirs["labels"])
        assert 5 < len(mine.labels) <= max_detections
        assert torch.equal(mine.labels, theirs["labels"])
        assert torch.allclose(mine.scores, theirs["scores"], rtol=0, atol=1e-6)
        boxes = theirs["boxes"] * torch.tensor([2, 3, 2, 3])
        assert torch.allclose(mine.boxes, boxes, rtol=0, atol=1e-3)
        assert mine.boxes.dtype == torch.float32
        assert torch.allclose(mine.masks, theirs["masks"][:, 0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_images_in_a_batch_are_found_as_alone(pixels):
    """Padding that they have in common changes nothing where they are of one size."""
    network, sizes = random_model(TINY), torch.tensor([[64, 64]] * 3)
    together = detection.find(network, pixels, sizes, sizes, TINY)
    for number, mine in enumerate(together):
        one = slice(number, number + 1)
        (alone,) = detection.find(network, pixels[one], sizes[one], sizes[one], TINY)
        assert len(mine.labels) > 3 and torch.equal(mine.labels, alone.labels)
        assert torch.allclose(mine.boxes, alone.boxes, rtol=0, atol=1e-3)
        assert torch.allclose(mine.masks, alone.masks, rtol=0, atol=1e-4)


@pytest.mark.parametrize("coordinate", range(4))
def test_a_box_that_is_no_number_is_no_detection(coordinate):
    """Nor does it keep the others from suppressing each other."""
    proposals = torch.tensor([[0.0, 0, 20, 20], [1, 0, 20, 20], [30, 30, 50, 50]])
    logits = torch.tensor([[0.0, 4, 0, 0, 0], [0, 3, 0, 0, 0], [0, 9, 0, 0, 0]])
    config, size = dataclasses.replace(TINY, min_score=0.1), torch.tensor([60, 60])
    found = detection.detect(logits, torch.zeros(3, 5, 4), proposals, size, config)
    assert found.boxes.tolist() == [[30, 30, 50, 50], [0, 0, 20, 20]]
    proposals[2, coordinate] = torch.nan
    found = detection.detect(logits, torch.zeros(3, 5, 4), proposals, size, config)
    assert found.boxes.tolist() == [[0, 0, 20, 20]]


def test_a_box_without_a_size_is_no_detection():
    """Of the modern convention; in v0.5's each has a pixel at least."""
    proposals = torch.tensor([[30.0, 70, 50, 90], [0, 0, 20, 20]])
    logits = torch.tensor([[0.0, 9, 0, 0, 0], [0, 3, 0, 0, 0]])
    for legacy, count in ((False, 1), (True, 2)):
        config = dataclasses.replace(TINY, legacy_coords=legacy, min_score=0.1)
        size = torch.tensor([60, 60])
        found = detection.detect(logits, torch.zeros(2, 5, 4), proposals, size, config)
        assert len(found.boxes) == count


@torch.no_grad()
def test_a_model_of_no_numbers_finds_nothing(pixels):
    network = random_model(TINY)
    for weights in network.parameters():
        weights.fill_(torch.nan)
    for found in detection.find(network, pixels, SIZES, SIZES, TINY):
        assert found.boxes.shape == (0, 4) and found.masks.shape == (0, 28, 28)
        assert len(found.scores) == len(found.labels) == 0
