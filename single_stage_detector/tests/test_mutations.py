"""Wrong sciences, each put into the real code and each caught by a check that the tests use."""

from __future__ import annotations

import pytest

from single_stage_detector import default_boxes, detection, loss, model, schedule, train
from single_stage_detector.tests import checks
from tests.mutations import Mutation, assert_caught, assert_right_source_passes

pytestmark = pytest.mark.usefixtures("torch_state")

MODULES = (default_boxes, detection, loss, model, schedule, train)


MUTATIONS = {
    # --- default boxes ---
    "centres at the cells' corners": Mutation(
        default_boxes, "(cell + 0.5) * step", "cell * step", checks.check_table
    ),
    "steps of the map's own size": Mutation(
        default_boxes,
        "config.map_strides[index] / config.input_size",
        "1 / size",
        checks.check_table,
    ),
    "cells before shapes": Mutation(
        default_boxes,
        "boxes += [(x, y, width, height) for y, x in itertools.product(centres, centres)]",
        "boxes += [(x, y, width, height) for y, x in itertools.product(centres, centres)]\n"
        "        num_shapes = len(box_shapes(config, index))\n"
        "        last = boxes[-num_shapes * size * size :]\n"
        "        boxes[-num_shapes * size * size :] = [\n"
        "            last[shape * size * size + cell]\n"
        "            for cell in range(size * size)\n"
        "            for shape in range(num_shapes)\n"
        "        ]",
        checks.check_table,
    ),
    "columns before rows": Mutation(
        default_boxes,
        "for y, x in itertools.product",
        "for x, y in itertools.product",
        checks.check_table,
    ),
    "not clamped": Mutation(default_boxes, ".clamp(0, 1).float()", ".float()", checks.check_table),
    "second square without its root": Mutation(
        default_boxes, "math.sqrt(scale * next_scale)", "next_scale", checks.check_table
    ),
    "variances changed over": Mutation(
        default_boxes, "CENTRE_SCALE = 10.0", "CENTRE_SCALE = 5.0", checks.check_coding
    ),
    "sizes without their logarithm": Mutation(
        default_boxes,
        "torch.log(sizes / default_sizes) * SIZE_SCALE",
        "(sizes / default_sizes - 1) * SIZE_SCALE",
        checks.check_coding,
    ),
    "exponent limited": Mutation(
        default_boxes,
        "torch.exp(deltas[..., 2:] / SIZE_SCALE)",
        "torch.exp((deltas[..., 2:] / SIZE_SCALE).clamp(max=4.1))",
        checks.check_coding,
    ),
    "boxes a pixel wider": Mutation(
        default_boxes,
        "torch.minimum(right, other_right) - torch.maximum(left, other_left)",
        "torch.minimum(right, other_right) - torch.maximum(left, other_left) + 1 / 300",
        checks.check_overlap,
    ),
    # --- targets and loss ---
    "no claims": Mutation(
        loss, "is_claimed = claimed_by >= 0", "is_claimed = claimed_by > 99", checks.check_matching
    ),
    "claims of the padding": Mutation(
        loss, "numbers.where(labels > 0, -1)", "numbers.expand_as(labels)", checks.check_claims
    ),
    "the first claim wins": Mutation(
        loss,
        'torch.full_like(best_object, -1).scatter_reduce(1, best_default, claims, "amax")',
        "torch.full_like(best_object, -1)\n"
        "    for place in range(num_objects - 1, -1, -1):\n"
        "        claimed_by.scatter_(1, best_default[:, place : place + 1],"
        " claims[:, place : place + 1].clone())",
        checks.check_claims,
    ),
    "a half is enough": Mutation(
        loss,
        "best_overlap > MATCH_IOU",
        "best_overlap >= MATCH_IOU",
        checks.check_threshold_is_strict,
    ),
    "a higher threshold": Mutation(
        loss, "MATCH_IOU = 0.5", "MATCH_IOU = 0.6", checks.check_matching
    ),
    "labels shifted": Mutation(
        loss,
        "labels.gather(1, objects) * is_match",
        "(labels.gather(1, objects) - 1).clamp(min=0) * is_match",
        checks.check_matching,
    ),
    "divided by the batch's matches": Mutation(
        loss,
        "/ num_matches.clamp(min=1)",
        "/ num_matches.sum() * len(num_matches)",
        checks.check_loss,
    ),
    "four negatives to a match": Mutation(
        loss, "NEGATIVES_PER_POSITIVE = 3", "NEGATIVES_PER_POSITIVE = 4", checks.check_loss
    ),
    "negatives of the whole batch": Mutation(
        loss,
        "num_matches[:, None]\n",
        "num_matches.float().mean()\n",
        checks.check_loss,
    ),
    "easiest negatives": Mutation(
        loss, "sort(dim=1, descending=True)", "sort(dim=1)", checks.check_loss
    ),
    "squares for smooth L1": Mutation(
        loss, "functional.smooth_l1_loss", "functional.mse_loss", checks.check_loss
    ),
    "another beta": Mutation(
        loss,
        'target_deltas, reduction="none"',
        'target_deltas, reduction="none", beta=1 / 9',
        checks.check_loss,
    ),
    "boxes of the background": Mutation(
        loss, "(box_errors * is_match).sum(dim=1)", "box_errors.sum(dim=1)", checks.check_loss
    ),
    "infinite loss of flat objects": Mutation(
        default_boxes, "MIN_SIZE = 1e-6", "MIN_SIZE = 0.0", checks.check_flat_objects
    ),
    # --- network ---
    "third stage strides": Mutation(
        model,
        "_stage(num_blocks[2], num_filters[1], num_filters[2], stride=1)",
        "_stage(num_blocks[2], num_filters[1], num_filters[2], stride=2)",
        checks.check_backbone,
    ),
    "stride in the second convolution": Mutation(
        model,
        "nn.Conv2d(num_outputs, num_outputs, 3, padding=1, bias=False)\n",
        "nn.Conv2d(num_outputs, num_outputs, 3, stride, padding=1, bias=False)\n"
        "        self.conv1.stride = (1, 1)\n",
        checks.check_forward,
    ),
    "no activation before the heads": Mutation(
        model, "parts += [conv, *norm, nn.ReLU()]", "parts += [conv, *norm]", checks.check_forward
    ),
    "shape-major channels": Mutation(
        model,
        "class_head(x).reshape(num_images, self.num_classes, -1)",
        "class_head(x).reshape(num_images, -1, self.num_classes, x.shape[2] * x.shape[3])"
        ".transpose(1, 2).flatten(2)",
        checks.check_forward,
    ),
    "mean in the wrong order": Mutation(
        model,
        "torch.tensor([PIXEL_MEANS, ",
        "torch.tensor([PIXEL_MEANS[::-1], ",
        checks.check_forward,
    ),
    "He's values in the heads": Mutation(
        model, "nn.init.xavier_uniform_", "nn.init.kaiming_uniform_", checks.check_initial_values
    ),
    # --- detections ---
    "background among the classes": Mutation(
        detection, ".softmax(dim=1)[:, 1:]", ".softmax(dim=1)[:, :-1]", checks.check_detections
    ),
    "scores of each class alone": Mutation(
        detection, ".softmax(dim=1)[:, 1:]", ".sigmoid()[:, 1:]", checks.check_detections
    ),
    "labels from 0": Mutation(detection, "classes + 1,", "classes,", checks.check_detections),
    "suppression across classes": Mutation(
        detection,
        "groups = images * scores.shape[1] + classes",
        "groups = images",
        checks.check_detections,
    ),
    "no limit for each class": Mutation(
        detection,
        "_best_of_groups(candidates, groups, config.max_detections)\n",
        "_best_of_groups(candidates, groups, 10**9)\n",
        checks.check_limit_of_a_class,
    ),
    "suppressed boxes suppress": Mutation(
        detection,
        "        if torch.equal(stays, before):\n            return stays",
        "        return stays",
        checks.check_suppression_chain,
    ),
    "overlap of the limit stays": Mutation(
        detection,
        ".flatten() >= nms_iou",
        ".flatten() > nms_iou",
        checks.check_suppression_chain,
    ),
    # --- schedule ---
    "rate falls a step late": Mutation(
        schedule, "step >= boundary", "step > boundary", checks.check_schedule
    ),
    "evaluated before the step": Mutation(
        schedule,
        "scaled(iteration, config) + 1",
        "scaled(iteration, config)",
        checks.check_schedule,
    ),
    "rate not scaled with the batch": Mutation(
        schedule, " * config.batch_size / config.base_batch_size\n", "\n", checks.check_schedule
    ),
    "rate of the epoch": Mutation(
        train,
        "learning_rate(config, run.step + len(losses), steps_per_epoch)",
        "learning_rate(config, (epoch - 1) * steps_per_epoch, steps_per_epoch)",
        checks.check_trajectory,
    ),
    # --- the loop ---
    "Nesterov's momentum": Mutation(
        train,
        "momentum=config.momentum,",
        "momentum=config.momentum,\n        nesterov=True,",
        checks.check_trajectory,
    ),
    "no decay of biases": Mutation(
        train,
        "        model.parameters(),\n        momentum=config.momentum,",
        '        [{"params": [w], "weight_decay": config.weight_decay * (w.dim() > 1)}'
        " for w in model.parameters()],\n        momentum=config.momentum,",
        checks.check_trajectory,
    ),
    "frozen stem": Mutation(
        train,
        "                scaler.step(optimizer)\n",
        "                model.backbone.conv1.weight.grad.zero_()\n"
        "                scaler.step(optimizer)\n",
        checks.check_trajectory,
    ),
    "gradients not clipped": Mutation(
        train,
        "if config.max_gradient_norm:",
        "if False:",
        checks.check_adamw_trajectory,
    ),
    "decay through the gradient": Mutation(
        train, "torch.optim.AdamW(", "torch.optim.Adam(", checks.check_adamw_trajectory
    ),
    "mean over a full batch": Mutation(
        train,
        "num_processes() / size)",
        "num_processes() / config.batch_size)",
        checks.check_trajectory,
    ),
    "mean over each process's share": Mutation(
        train,
        "errors.sum() * (torch_support.num_processes() / size)",
        "errors.sum() / size",
        checks.check_gradient_is_mean_over_processes,
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_wrong_science_is_caught(name, monkeypatch, tmp_path):
    assert_caught(MUTATIONS[name], monkeypatch, tmp_path, MODULES)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_a_loaded_copy_of_the_right_source_passes(module, monkeypatch, tmp_path):
    mutations = list(MUTATIONS.values())
    assert_right_source_passes(module, mutations, monkeypatch, tmp_path, MODULES)
