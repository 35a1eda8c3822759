"""Matching, targets and loss, beside torchvision's and the rule as the specification words it."""

import torch

from single_stage_detector import loss
from single_stage_detector.config import TINY
from single_stage_detector.default_boxes import DefaultBoxes
from single_stage_detector.tests import checks


def test_matching_is_torchvisions():
    checks.check_matching()


def test_every_object_claims_its_best_box():
    checks.check_claims()


def test_the_threshold_is_strict():
    checks.check_threshold_is_strict()


def test_the_loss_is_torchvisions_for_each_image():
    checks.check_loss()


def test_no_box_counts_twice_where_negatives_are_few():
    checks.check_few_negatives()


def test_an_object_without_width_has_a_finite_loss():
    checks.check_flat_objects()


def test_a_batch_without_any_object_has_no_loss_and_no_gradient():
    coder = DefaultBoxes(TINY)
    num_boxes = len(coder.corners)
    targets = loss.encode_targets(coder, torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.int64))
    deltas = torch.randn(2, 4, num_boxes, requires_grad=True)
    logits = torch.randn(2, 5, num_boxes, requires_grad=True)
    losses = loss.image_losses(deltas, logits, *targets)
    losses.sum().backward()
    assert losses.tolist() == [0, 0]
    assert logits.grad is not None
    assert not logits.grad.any()
