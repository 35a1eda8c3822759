"""Wrong sciences, each put into the real code and each caught by a check that the tests use."""

from __future__ import annotations

import pytest

from object_detection import (
    anchors,
    backbone,
    box_head,
    boxes,
    coco,
    config,
    data,
    feature_pyramid,
    mask_head,
    masks,
    matching,
    model,
    polygons,
    region_proposals,
    regions,
    schedule,
    train,
    training_losses,
    transforms,
)
from object_detection.tests import data_checks, test_losses, training_checks
from object_detection.tests.training_checks import (
    check_gradient_of_processes_and_passes,
    check_trajectory,
)
from tests.mutations import Mutation, assert_caught, assert_right_source_passes

pytestmark = pytest.mark.usefixtures("torch_state")

MODULES = (
    anchors,
    backbone,
    box_head,
    boxes,
    coco,
    data,
    feature_pyramid,
    mask_head,
    masks,
    matching,
    model,
    polygons,
    region_proposals,
    regions,
    schedule,
    train,
    training_losses,
    transforms,
)
PLACES = (*MODULES, config, data_checks, test_losses, training_checks)
"""Where a mutation takes the place of the original."""


def check_proposals() -> None:
    """Beside torchvision's."""
    test_losses.test_proposals_are_those_of_torchvision(config.REFERENCE, is_training=True)


MUTATIONS = {
    # --- anchors and boxes ---
    "anchors off by half a pixel": Mutation(
        anchors, "centre = (stride - 1) / 2", "centre = stride / 2", check_trajectory
    ),
    "sides of anchors not rounded": Mutation(
        anchors,
        "width = round(math.sqrt(stride**2 / ratio))",
        "width = math.sqrt(stride**2 / ratio)",
        check_trajectory,
    ),
    "anchors column by column": Mutation(
        anchors, 'indexing="ij"', 'indexing="xy"', check_trajectory
    ),
    "boxes a pixel narrower": Mutation(
        boxes,
        "boxes[..., 2:] - boxes[..., :2] + self.one",
        "boxes[..., 2:] - boxes[..., :2]",
        check_trajectory,
    ),
    "overlap without the last pixel": Mutation(
        boxes, "(high - low + self.one)", "(high - low)", check_trajectory
    ),
    "centres from corners alone": Mutation(
        boxes,
        "- references[..., :2] - 0.5 * reference_sizes",
        "- references[..., :2] - 0.5 * object_sizes",
        check_trajectory,
    ),
    "decoded boxes a pixel wider": Mutation(
        boxes, "low + sizes - self.one", "low + sizes", check_trajectory
    ),
    # --- matching and sampling ---
    "an object's best anchor is not taken": Mutation(
        matching, "roles[is_best] = 1", "pass", check_trajectory
    ),
    "background takes no more than foreground": Mutation(
        matching,
        "min(num_samples - num_foreground, len(background))",
        "min(num_foreground, len(background))",
        check_trajectory,
    ),
    # --- proposals ---
    "anchors outside the image count": Mutation(
        region_proposals, "roles = roles.where(is_inside, IGNORED)", "", check_trajectory
    ),
    "proposals' loss bends at 1": Mutation(
        region_proposals, "BETA = 1 / 9", "BETA = 1.0", check_trajectory
    ),
    "proposals' boxes divided by those with an object": Mutation(
        region_proposals,
        "torch.stack(errors).sum() / max(1, num_drawn)",
        "torch.stack(errors).sum() / max(1, sum(int(t.sum()) for t in targets))",
        check_trajectory,
    ),
    "proposals suppressed across maps": Mutation(
        region_proposals,
        "torch.full_like(places, level)",
        "torch.zeros_like(places)",
        check_proposals,
    ),
    "proposals not clipped": Mutation(
        region_proposals, "coordinates.clip(decoded, sizes)", "decoded", check_trajectory
    ),
    # --- regions and heads ---
    "regions aligned to the centres of cells": Mutation(
        regions, "aligned=not config.legacy_coords", "aligned=True", check_trajectory
    ),
    "regions from a finer map": Mutation(
        regions, "CANONICAL_LEVEL = 4", "CANONICAL_LEVEL = 3", check_trajectory
    ),
    "objects are no proposals": Mutation(
        box_head,
        "candidates = torch.cat([proposals, boxes])",
        "candidates = proposals",
        check_trajectory,
    ),
    "deltas of another class": Mutation(
        box_head,
        "deltas.float()[is_foreground, labels[is_foreground]]",
        "deltas.float()[is_foreground, 0]",
        check_trajectory,
    ),
    "boxes coded as proposals are": Mutation(
        box_head,
        "WEIGHTS = (10.0, 10.0, 5.0, 5.0)",
        "WEIGHTS = (1.0, 1.0, 1.0, 1.0)",
        check_trajectory,
    ),
    "boxes' loss bends at 1/9": Mutation(box_head, "BETA = 1.0", "BETA = 1 / 9", check_trajectory),
    "boxes divided by those with an object": Mutation(
        box_head,
        "return class_loss / num_samples, box_loss / num_samples",
        "return class_loss / num_samples, box_loss / max(1, len(found))",
        check_trajectory,
    ),
    "masks of class 0": Mutation(
        mask_head,
        "found = logits.float()[torch.arange(len(labels), device=labels.device), labels]",
        "found = logits.float()[:, 0]",
        check_trajectory,
    ),
    # --- mask targets ---
    "regions a pixel wider for masks": Mutation(
        masks,
        "(regions[:, 2:] - regions[:, :2]).double().clamp(min=1)",
        "(regions[:, 2:] - regions[:, :2] + 1).double()",
        check_trajectory,
    ),
    "parts of an object take turns": Mutation(
        masks,
        "targets.index_add_(0, of_polygon, bitmaps.int()) > 0",
        "targets.index_add_(0, of_polygon, bitmaps.int()) % 2 > 0",
        data_checks.check_parts,
    ),
    "polygons rounded to whole pixels": Mutation(
        polygons, "(SCALE * corners + 0.5).trunc()", "(SCALE * corners.round())", check_trajectory
    ),
    # --- network ---
    "stride in the 3x3 convolution": Mutation(
        backbone,
        'strides = (2, 1) if config.pretrained_backbone != "torchvision" else (1, 2)',
        "strides = (1, 2)",
        check_trajectory,
    ),
    "pyramid without its sums": Mutation(
        feature_pyramid,
        "sums[level - 1] = sums[level - 1] + coarse",
        "pass",
        check_trajectory,
    ),
    "coarsest map by averages": Mutation(
        feature_pyramid,
        "functional.max_pool2d(outputs[-1], 1, stride=2)",
        "functional.avg_pool2d(outputs[-1], 2, ceil_mode=True)",
        training_checks.check_pyramid,
    ),
    "red first": Mutation(model, "images.flip(1)", "images", check_trajectory),
    "padding is not zero": Mutation(
        model, "/ deviation * is_image", "/ deviation", check_trajectory
    ),
    # --- loop and schedule ---
    "no warm-up": Mutation(
        schedule, "rate *= config.warmup_factor * (1 - done) + done", "pass", check_trajectory
    ),
    "iterations from 0": Mutation(
        schedule, "iteration = step + 1", "iteration = step", check_trajectory
    ),
    "the rate does not grow with the batch": Mutation(
        schedule,
        "config.base_learning_rate * config.batch_size / config.base_batch_size",
        "config.base_learning_rate",
        check_trajectory,
    ),
    "biases decay": Mutation(
        train, '"weight_decay": 0.0', '"weight_decay": config.weight_decay', check_trajectory
    ),
    "biases as slow as weights": Mutation(
        train,
        'group["lr"] = rate * group["rate_factor"]',
        'group["lr"] = rate',
        check_trajectory,
    ),
    "Nesterov's momentum": Mutation(
        train,
        "momentum=config.momentum, fused=True",
        "momentum=config.momentum, nesterov=True",
        check_trajectory,
    ),
    "gradients cut one by one": Mutation(
        train,
        "nn.utils.clip_grad_norm_(parameters, config.max_gradient_norm)",
        "nn.utils.clip_grad_value_(parameters, config.max_gradient_norm)",
        check_trajectory,
    ),
    "passes added up, not averaged": Mutation(
        train,
        "share = len(part.images) * torch_support.num_processes() / size",
        "share = torch_support.num_processes()",
        check_gradient_of_processes_and_passes,
    ),
    "a process's share is not weighed": Mutation(
        train,
        "share = len(part.images) * torch_support.num_processes() / size",
        "share = len(part.images) / size",
        check_gradient_of_processes_and_passes,
    ),
    "masks do not count": Mutation(
        training_losses,
        "box_loss, masks_loss])",
        "box_loss, 0 * masks_loss])",
        check_trajectory,
    ),
    # --- data ---
    "categories in the order of the file": Mutation(
        coco,
        'sorted(content["categories"], key=lambda category: category["id"])',
        'content["categories"]',
        data_checks.check_parsing,
    ),
    "labels from 0": Mutation(coco, "start=1)", "start=0)", data_checks.check_parsing),
    "crowds are objects": Mutation(
        coco, 'if not annotation.get("iscrowd", 0)', "", data_checks.check_parsing
    ),
    "images with a crowd alone are left out": Mutation(
        coco,
        "if is_larger_than_a_pixel(annotation):",
        'if is_larger_than_a_pixel(annotation) and not annotation["iscrowd"]:',
        data_checks.check_parsing,
    ),
    "boxes of a pixel make an image count": Mutation(
        coco,
        "min(box_of(annotation)[2:]) > 1",
        "min(box_of(annotation)[2:]) > 0",
        data_checks.check_parsing,
    ),
    "boxes reach one pixel out": Mutation(
        transforms, "(corners[:, 2:] - one)", "corners[:, 2:]", data_checks.check_objects
    ),
    "the longer side decides": Mutation(
        transforms,
        "if long / short * side > config.max_size:",
        "if True:",
        data_checks.check_sizes,
    ),
    "outlines are not mirrored": Mutation(
        transforms, "corners[:, 0] = edge - corners[:, 0]", "", data_checks.check_augmentation
    ),
    "mirrored boxes keep their order": Mutation(
        transforms, "[:, [2, 1, 0, 3]]", "[:, [0, 1, 2, 3]].clone()", data_checks.check_augmentation
    ),
    "one ratio for both axes": Mutation(
        transforms, "after[1] / before[1]", "after[0] / before[0]", data_checks.check_rounded_scale
    ),
    "lying and standing images together": Mutation(
        data,
        "waiting[bool(sizes[index, 1] < sizes[index, 0])]",
        "waiting[False]",
        data_checks.check_order,
    ),
    "images left over are dropped": Mutation(
        data,
        "rest = waiting[False] + waiting[True]",
        "rest = waiting[False]",
        data_checks.check_order,
    ),
    "objects of the next image": Mutation(
        data,
        "self.first_polygon[first : end + 1]\n            outlines",
        "self.first_polygon[first + 1 : end + 2]\n            outlines",
        data_checks.check_batches,
    ),
    "evaluation drops the last, smaller batch": Mutation(
        data,
        "for start in range(0, len(mine), size)",
        "for start in range(0, len(mine) - size + 1, size)",
        data_checks.check_evaluation_batches,
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_wrong_science_is_caught(name, monkeypatch, tmp_path):
    assert_caught(MUTATIONS[name], monkeypatch, tmp_path, PLACES)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_a_loaded_copy_of_the_right_source_passes(module, monkeypatch, tmp_path):
    mutations = list(MUTATIONS.values())
    assert_right_source_passes(module, mutations, monkeypatch, tmp_path, PLACES)
