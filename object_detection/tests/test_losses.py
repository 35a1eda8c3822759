"""Proposals, losses and detections against torchvision's own functions."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.roi_heads import fastrcnn_loss

from object_detection import box_head, mask_head, region_proposals
from object_detection.anchors import make_anchors
from object_detection.boxes import Boxes
from object_detection.config import REFERENCE
from object_detection.detection import detect
from object_detection.model import MaskRCNN
from object_detection.tests.oracles import with_our_weights

MAPS = [(20, 28), (10, 14), (5, 7), (3, 4), (2, 2)]
SIZES = torch.tensor([[105, 80], [112, 76]])


def generators(count=2):
    return [torch.Generator().manual_seed(number) for number in range(count)]


@pytest.fixture(params=[True, False], ids=["legacy", "modern"])
def config(request):
    return dataclasses.replace(REFERENCE, legacy_coords=request.param)


def head_outputs(config, seed=0):
    """Objectness, deltas and anchors of each map."""
    generator = torch.Generator().manual_seed(seed)
    anchors = make_anchors(config, [torch.empty(1, 0, *size) for size in MAPS])
    objectness = [torch.randn(2, len(some), generator=generator) for some in anchors]
    # So small that no box leaves the image: of such a one the two conventions keep other pixels.
    deltas = [0.4 * torch.rand(2, len(some), 4, generator=generator) - 0.2 for some in anchors]
    return objectness, deltas, anchors


def their_proposals(config, objectness, deltas, anchors, before, after):
    """What torchvision's RPN makes of the same outputs, in our convention."""
    rpn = with_our_weights(MaskRCNN(REFERENCE)).rpn
    rpn._pre_nms_top_n = {"training": before, "testing": before}
    rpn._post_nms_top_n = {"training": after, "testing": after}
    rpn.min_size = 0.0
    one = float(config.legacy_coords)
    half_open = torch.cat(anchors) + torch.tensor([0.0, 0, one, one])
    decoded = BoxCoder((1.0, 1.0, 1.0, 1.0)).decode(
        torch.cat(deltas, dim=1).flatten(0, 1), [half_open, half_open]
    )
    sizes = [(height, width) for width, height in SIZES.tolist()]
    counts = [some.shape[1] for some in objectness]
    boxes, _ = rpn.filter_proposals(
        decoded.view(2, -1, 4), torch.cat(objectness, dim=1).flatten()[:, None], sizes, counts
    )
    return [some - torch.tensor([0.0, 0, one, one]) for some in boxes]


@pytest.mark.parametrize("is_training", [True, False])
def test_proposals_are_those_of_torchvision(config, is_training):
    config = dataclasses.replace(
        config, train_pre_nms=300, train_post_nms=150, test_pre_nms=200, test_post_nms=90
    )
    outputs = head_outputs(config)
    found = region_proposals.propose(*outputs, SIZES, config, is_training)
    before, after = (300, 150) if is_training else (200, 90)
    expected = their_proposals(config, *outputs, before, after)
    for ours, theirs in zip(found, expected, strict=True):
        assert len(ours) == after
        assert torch.allclose(ours, theirs, atol=1e-3)


def test_the_best_of_a_batch():
    """v0.5's rule: so many proposals of all images together."""
    config = dataclasses.replace(REFERENCE, proposals_per="batch", train_post_nms=150)
    objectness, deltas, anchors = head_outputs(config)
    objectness[0][1] += 1
    alone = dataclasses.replace(config, proposals_per="image", train_post_nms=5000)
    every = region_proposals.propose(objectness, deltas, anchors, SIZES, alone, True)
    found = region_proposals.propose(objectness, deltas, anchors, SIZES, config, True)
    counts = [len(some) for some in found]
    assert sum(counts) == 150
    assert 0 < counts[0] < counts[1]
    for some, all_ in zip(found, every, strict=True):
        assert torch.equal(some, all_[: len(some)])
    evaluation = dataclasses.replace(config, test_post_nms=90)
    found = region_proposals.propose(objectness, deltas, anchors, SIZES, evaluation, False)
    assert [len(some) for some in found] == [90, 90]


def objects_of_two_images():
    return [
        torch.tensor([[5.0, 8, 60, 70], [30, 20, 90, 50], [1, 1, 12, 14]]),
        torch.tensor([[40.0, 10, 100, 60]]),
    ]


def test_proposal_losses_are_torchvisions_formulas(config):
    """Of all anchors: so many are drawn that chance decides nothing."""
    config = dataclasses.replace(config, rpn_batch_size=1_000_000)
    objectness, deltas, anchors = head_outputs(config)
    objects = objects_of_two_images()
    found = region_proposals.proposal_losses(
        objectness, deltas, anchors, SIZES, objects, generators(), config
    )
    coordinates = Boxes(config.legacy_coords)
    together = torch.cat(anchors)
    logits, labels, errors = [], [], []
    for image, boxes in enumerate(objects):
        overlap = coordinates.intersection_over_union(boxes, together)
        best, shown = overlap.max(0)
        is_object = (best >= 0.7) | (overlap == overlap.max(1, keepdim=True).values).any(0)
        counts = (is_object | (best < 0.3)) & coordinates.are_inside(together, SIZES[image])
        logits.append(torch.cat(objectness, dim=1)[image][counts])
        labels.append(is_object[counts].float())
        drawn = is_object & counts
        expected = coordinates.encode(boxes[shown[drawn]], together[drawn], (1, 1, 1, 1))
        difference = torch.cat(deltas, dim=1)[image][drawn] - expected
        errors.append(
            torch.where(difference.abs() < 1 / 9, 4.5 * difference**2, difference.abs() - 1 / 18)
        )
    assert min(len(some) for some in errors) > 0
    objectness_loss = functional.binary_cross_entropy_with_logits(
        torch.cat(logits), torch.cat(labels)
    )
    box_loss = torch.cat(errors).sum() / sum(map(len, logits))
    assert torch.allclose(torch.stack(found), torch.stack([objectness_loss, box_loss]), rtol=1e-5)


def test_proposal_losses_draw_so_many_and_no_more_than_half_with_an_object(config):
    """Equal logits make the loss a count: log 2 for each anchor, whatever its label."""
    objectness, deltas, anchors = head_outputs(config)
    flat = [torch.zeros_like(some) for some in objectness]
    objects = objects_of_two_images()
    loss, _ = region_proposals.proposal_losses(
        flat, deltas, anchors, SIZES, objects, generators(), config
    )
    assert loss.item() == pytest.approx(0.693147, rel=1e-5)
    nothing = [torch.zeros(0, 4), torch.zeros(0, 4)]
    losses = region_proposals.proposal_losses(
        objectness, deltas, anchors, SIZES, nothing, generators(), config
    )
    assert losses[0] > 0
    assert losses[1] == 0


def test_losses_of_the_box_head(config):
    """The function of torchvision divides by the same number but bends at 1/9, not at 1."""
    torch.manual_seed(0)
    objects = objects_of_two_images()
    labels = [torch.tensor([3, 7, 80]), torch.tensor([1])]
    proposals = [torch.cat([boxes + torch.rand(len(boxes), 4) * 6] * 20) for boxes in objects]
    samples = [
        box_head.choose_samples(some, boxes, names, generator, config)
        for some, boxes, names, generator in zip(
            proposals, objects, labels, generators(), strict=True
        )
    ]
    count = sum(len(some.labels) for some in samples)
    class_logits, deltas = torch.randn(count, 81), torch.randn(count, 81, 4)
    found = box_head.box_losses(class_logits, deltas, samples, objects, config)
    targets = []
    for some, boxes in zip(samples, objects, strict=True):
        expected = torch.zeros(len(some.labels), 4)
        expected[: some.num_foreground] = Boxes(config.legacy_coords).encode(
            boxes[some.objects], some.boxes[: some.num_foreground], box_head.WEIGHTS
        )
        targets.append(expected)
    assert sum(some.num_foreground for some in samples) > 30
    class_loss, _ = fastrcnn_loss(
        class_logits, deltas.flatten(1), [some.labels for some in samples], targets
    )
    true = torch.cat([some.labels for some in samples])
    chosen = deltas[torch.arange(count), true][true > 0]
    box_loss = functional.smooth_l1_loss(
        chosen, torch.cat(targets)[true > 0], beta=1.0, reduction="sum"
    )
    assert torch.allclose(found[0], class_loss, rtol=1e-5)
    assert torch.allclose(found[1], box_loss / count, rtol=1e-5)


def test_samples_of_the_box_head(config):
    """The objects' own boxes are among what is drawn from; background is what overlaps less."""
    objects, labels = objects_of_two_images()[0], torch.tensor([3, 7, 80])
    far = torch.tensor([[200.0, 200, 220, 240]]).repeat(600, 1)
    samples = box_head.choose_samples(far, objects, labels, generators(1)[0], config)
    assert len(samples.boxes) == len(samples.labels) == 512
    assert samples.num_foreground == 3
    assert sorted(samples.labels[:3].tolist()) == [3, 7, 80]
    assert torch.equal(labels[samples.objects], samples.labels[:3])
    assert torch.equal(objects[samples.objects], samples.boxes[:3])
    assert not samples.labels[3:].any()
    near = objects.repeat(300, 1)
    samples = box_head.choose_samples(near, objects, labels, generators(1)[0], config)
    assert samples.num_foreground == 128
    nothing = torch.zeros(0, 4)
    samples = box_head.choose_samples(far, nothing, labels[:0], generators(1)[0], config)
    assert samples.num_foreground == 0
    assert len(samples.boxes) == 512


def test_loss_of_the_mask_head():
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 81, 28, 28), torch.tensor([4, 80, 1, 4, 9])
    targets = torch.rand(5, 28, 28) > 0.5
    found = mask_head.mask_loss(logits, labels, targets)
    chosen = torch.stack([logits[i, label] for i, label in enumerate(labels)])
    expected = functional.binary_cross_entropy_with_logits(chosen, targets.float())
    assert torch.allclose(found, expected)
    weights = torch.ones(1, requires_grad=True)
    nothing = mask_head.mask_loss(weights * logits[:0], labels[:0], targets[:0])
    assert nothing == 0
    nothing.backward()  # every parameter has a gradient: DistributedDataParallel needs it
    assert weights.grad == 0


def test_detections_are_those_of_torchvision(config):
    config = dataclasses.replace(config, max_detections=40)
    torch.manual_seed(1)
    low = torch.rand(300, 2) * 70
    proposals = torch.cat([low, low + 5 + 60 * torch.rand(300, 2)], dim=1)
    class_logits, deltas = 3 * torch.randn(300, 81), 0.5 * torch.randn(300, 81, 4)
    found = detect(class_logits, deltas, proposals, SIZES[0], config)
    heads = with_our_weights(MaskRCNN(REFERENCE)).roi_heads
    heads.detections_per_img = 40
    one = torch.tensor([0.0, 0, config.legacy_coords, config.legacy_coords])
    width, height = SIZES[0].tolist()
    (boxes,), (scores,), (labels,) = heads.postprocess_detections(
        class_logits, deltas.flatten(1), [proposals + one], [(height, width)]
    )
    assert len(found.scores) == 40
    assert torch.allclose(found.scores, scores, atol=1e-6)
    assert torch.equal(found.labels, labels)
    assert torch.allclose(found.boxes, boxes - one, atol=1e-3)


def test_boxes_as_sure_as_the_last_stay_too():
    logits = torch.zeros(10, 3)
    logits[:, 1] = 5
    logits[0, 1] = 6
    low = 10 * torch.arange(10.0)[:, None].expand(-1, 2)
    proposals = torch.cat([low, low + 5], dim=1)
    config = dataclasses.replace(REFERENCE, max_detections=4)
    found = detect(logits, torch.zeros(10, 3, 4), proposals, torch.tensor([500, 500]), config)
    assert len(found.scores) == 10
    logits[1:4, 1] = 5.5
    found = detect(logits, torch.zeros(10, 3, 4), proposals, torch.tensor([500, 500]), config)
    assert len(found.scores) == 4
