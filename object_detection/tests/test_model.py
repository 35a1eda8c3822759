"""The network against torchvision's with the same weights; the specification's counts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from object_detection import box_head, config, mask_head, model, regions
from object_detection.tests import oracles, training_checks


@pytest.fixture(scope="module")
def ours():
    torch.manual_seed(0)
    network = model.MaskRCNN(config.REFERENCE)
    oracles.randomise(network, 1)
    return network.eval()


@pytest.fixture(scope="module")
def theirs(ours):
    return oracles.with_our_weights(ours)


def count(parameters):
    return sum(weights.numel() for weights in parameters)


def test_parameters(ours, theirs):
    assert count(ours.parameters()) == count(theirs.parameters()) == 44_347_573
    for network in (ours, theirs):
        assert count(w for w in network.parameters() if w.requires_grad) == 44_125_173
        assert count(network.buffers()) == 106_240
    parts = (ours.backbone, ours.pyramid, ours.proposal_head)
    assert [count(part.parameters()) for part in parts] == [23_454_912, 3_344_384, 593_935]
    assert count(ours.box_head.parameters()) == 13_895_680 + 415_125
    assert count(ours.mask_head.parameters()) == 2_360_320 + 283_217


def test_parameters_of_the_mini():
    network = model.MaskRCNN(config.MINI)
    parts = (network.backbone, network.pyramid, network.proposal_head)
    counts = [count(part.parameters()) for part in parts]
    counts.append(count([*network.box_head.parameters(), *network.mask_head.parameters()]))
    assert counts == [506_384, 67_840, 9_743, 243_358]
    assert all(weights.requires_grad for weights in network.parameters())


@torch.no_grad()
def test_the_same_maps_and_logits(ours, theirs):
    images = 50 * torch.randn(2, 3, 128, 160)
    maps, objectness, deltas = ours(images)
    their_maps = list(theirs.backbone(images).values())
    assert len(maps) == len(their_maps) == 5
    stages = ours.backbone(images)
    for found, expected in zip(stages, theirs.backbone.body(images).values(), strict=True):
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-4)
    for found, expected in zip(maps, their_maps, strict=True):
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-4)
    their_objectness, their_deltas = theirs.rpn.head(their_maps)
    for level, x in enumerate(maps):
        rows, columns = x.shape[2:]
        logits = objectness[level].unflatten(1, (rows, columns, 3)).permute(0, 3, 1, 2)
        assert torch.allclose(logits, their_objectness[level], rtol=1e-5, atol=1e-4)
        values = deltas[level].reshape(2, rows, columns, 12).permute(0, 3, 1, 2)
        assert torch.allclose(values, their_deltas[level], rtol=1e-5, atol=1e-4)

    boxes = [torch.tensor([[3.0, 5, 60, 90], [20, 8, 150, 120]]), torch.tensor([[0.0, 0, 30, 18]])]
    features = regions.read_regions(maps, boxes, box_head.REGION_SIZE, config.REFERENCE)
    class_logits, box_deltas = ours.box_head(features)
    hidden = theirs.roi_heads.box_head(features)
    their_logits, their_box_deltas = theirs.roi_heads.box_predictor(hidden)
    assert torch.allclose(class_logits, their_logits, rtol=1e-5, atol=1e-4)
    assert torch.allclose(box_deltas.flatten(1), their_box_deltas, rtol=1e-5, atol=1e-4)
    features = regions.read_regions(maps, boxes, mask_head.REGION_SIZE, config.REFERENCE)
    expected = theirs.roi_heads.mask_predictor(theirs.roi_heads.mask_head(features))
    assert expected.shape == (3, 81, 28, 28)
    assert torch.allclose(ours.mask_head(features), expected, rtol=1e-5, atol=1e-4)


def test_weights_at_the_start():
    """The specification's section 2.6."""
    torch.manual_seed(0)
    network = model.MaskRCNN(config.REFERENCE)
    for layer in (*network.pyramid.lateral, *network.pyramid.output, network.box_head.fc6):
        bound = (3 / layer.weight[0].numel()) ** 0.5
        assert layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    head, boxes = network.proposal_head, network.box_head
    deviations = {head.conv: 0.01, head.objectness: 0.01, head.deltas: 0.01, boxes.classes: 0.01}
    for layer, deviation in {**deviations, boxes.deltas: 0.001}.items():
        assert layer.weight.std().item() == pytest.approx(deviation, rel=0.05)
    masks = network.mask_head
    for layer in (*masks.convs, masks.upsample, masks.masks):
        fan_out = nn.init._calculate_correct_fan(layer.weight, "fan_out")
        assert layer.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
    for name, weights in network.named_parameters():
        assert not name.endswith("bias") or not weights.any()


def test_the_pyramid_is_torchvisions():
    training_checks.check_pyramid()


def test_pixels_are_normalised_blue_first():
    images = torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 3, 4)
    found = model.normalize_pixels(images, torch.tensor([[4, 3], [2, 1]]), config.REFERENCE)
    expected = torch.tensor([30 - 102.9801, 20 - 115.9465, 10 - 122.7717]).view(3, 1, 1)
    assert torch.allclose(found[0], expected.expand(3, 3, 4))
    assert torch.allclose(found[1, :, :1, :2], expected.expand(3, 1, 2))
    assert not found[1, :, 1:].any()
    assert not found[1, :, :, 2:].any()
