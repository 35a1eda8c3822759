"""The recipe: v0.5's numbers, and values that no training can be made of."""

from __future__ import annotations

import dataclasses

import pytest

from harness.errors import UsageError
from harness.options import parse_command_line
from object_detection import data, schedule
from object_detection.config import MINI, PRESETS, REFERENCE, TINY, Config, check_values
from object_detection.train import check_batches


def test_the_reference_is_v0_5s_recipe():
    """Sections 1 to 4 of the specification."""
    assert Config() == REFERENCE
    targets = [dataclasses.astuple(target) for target in REFERENCE.quality_targets]
    assert targets == [("box_ap", 0.377, True), ("mask_ap", 0.339, True)]
    expected = {
        "num_classes": 81,
        "num_train_images": 117_266,
        "num_eval_images": 5_000,
        "min_size": 800,
        "max_size": 1_333,
        "size_divisor": 32,
        "flip_probability": 0.5,
        "legacy_coords": True,
        "num_blocks": (3, 4, 6, 3),
        "stem_channels": 64,
        "norm": "frozen-batch",
        "num_frozen_stages": 2,
        "pretrained_backbone": "msra",
        "fpn_channels": 256,
        "strides": (4, 8, 16, 32, 64),
        "anchor_sizes": (32, 64, 128, 256, 512),
        "aspect_ratios": (0.5, 1.0, 2.0),
        "rpn_batch_size": 256,
        "rpn_nms_iou": 0.7,
        "train_pre_nms": 2_000,
        "train_post_nms": 2_000,
        "test_pre_nms": 1_000,
        "test_post_nms": 1_000,
        "roi_batch_size": 512,
        "canonical_size": 224,
        "box_head_channels": 1_024,
        "num_mask_convs": 4,
        "mask_head_channels": 256,
        "batch_size": 2,
        "base_batch_size": 2,
        "base_learning_rate": 0.0025,
        "bias_rate_factor": 2.0,
        "warmup_steps": 500,
        "warmup_factor": 1 / 3,
        "decay_iterations": (480_000, 640_000),
        "max_iterations": 720_000,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "max_gradient_norm": 0,
        "first_evaluation": 1,
        "eval_batch_size": 1,
        "min_score": 0.05,
        "nms_iou": 0.5,
        "max_detections": 100,
    }
    assert {name: getattr(REFERENCE, name) for name in expected} == expected


def test_every_preset_goes_by_its_name_and_can_be_trained():
    assert {name: config.preset for name, (_, config) in PRESETS.items()} == {
        name: name for name in PRESETS
    }
    for config in (REFERENCE, MINI, TINY):
        check_values(config)
        check_batches(config)
        assert config.epochs_to_target <= config.max_epochs
        steps_per_epoch = data.num_steps(config)
        last_step = schedule.last_step(config, steps_per_epoch)
        # Every rate is used, and the last epoch is begun.
        assert schedule.decay_steps(config)[-1] < last_step
        assert (config.max_epochs - 1) * steps_per_epoch < last_step


# --- schedule -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0.0025 * (1 / 3 * (1 - 1 / 500) + 1 / 500)),
        (249, 0.0025 * (1 / 3 * 0.5 + 0.5)),
        (498, 0.0025 * (1 / 3 * (1 - 499 / 500) + 499 / 500)),
        (499, 0.0025),
        (479_998, 0.0025),
        (479_999, 0.00025),
        (639_998, 0.00025),
        (639_999, 0.000025),
    ],
)
def test_rates_of_the_specification(step, rate):
    """Section 3: iteration i is step i - 1."""
    assert schedule.learning_rate(REFERENCE, step) == pytest.approx(rate, rel=1e-12)


def test_a_larger_batch_learns_faster_and_ends_earlier():
    """The linear rule, and Detectron's schedule for 16 images: 0.02, 60k, 80k, 90k."""
    sixteen = dataclasses.replace(REFERENCE, batch_size=16)
    assert schedule.learning_rate(sixteen, 1_000) == pytest.approx(0.02)
    assert schedule.decay_steps(sixteen) == [60_000, 80_000]
    assert schedule.last_step(sixteen, data.num_steps(sixteen)) == 90_000


def test_evaluations_are_after_each_epoch_and_at_the_end():
    """v0.5 never evaluated its last iterations."""
    steps = schedule.evaluation_steps(REFERENCE, 58_633)
    assert steps == [*range(58_633, 58_633 * 13, 58_633), 720_000]
    assert len(steps) == 13
    assert schedule.evaluation_steps(MINI, 250) == [750, 1_000]
    one = dataclasses.replace(REFERENCE, max_epochs=1)
    assert schedule.evaluation_steps(one, 58_633) == [58_633]


# --- wrong values ---------------------------------------------------------------------------------

WRONG = [
    ("min_size", 0),
    ("batch_size", 0),
    ("max_epochs", 0),
    ("max_detections", 0),
    ("eval_batch_size", 0),
    ("first_evaluation", 0),
    ("max_iterations", 0),
    ("num_blocks", (3, 0, 6, 3)),
    ("max_size", 799),
    ("stem_channels", 6),
    ("num_frozen_stages", 6),
    ("anchor_sizes", (32, 64)),
    ("anchor_sizes", (32, 64, 0, 256, 512)),
    ("warmup_steps", -1),
    ("warmup_factor", 0.0),
    ("images_per_pass", -1),
    ("decay_iterations", (200, 100)),
    ("decay_iterations", (5, 5)),
    ("base_learning_rate", 0.0),
    ("base_learning_rate", float("nan")),
    ("momentum", 1.0),
    ("weight_decay", -1.0),
    ("max_gradient_norm", -1.0),
    ("bias_rate_factor", -1.0),
    ("rpn_nms_iou", 0.0),
    ("nms_iou", 1.5),
    ("min_score", 1.0),
    ("flip_probability", 1.5),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_value_that_no_training_can_be_made_of_is_one_line(name, value):
    with pytest.raises(UsageError) as error:
        check_values(dataclasses.replace(REFERENCE, **{name: value}))
    message = str(error.value)
    assert "\n" not in message
    assert "; " in message
    assert name in message or name.replace("_", "-") in message


def test_weights_that_do_not_fit_the_backbone_are_one_line():
    for changes in ({"num_blocks": (3, 4, 23, 3)}, {"stem_channels": 32}, {"norm": "group"}):
        with pytest.raises(UsageError, match="pretrained_backbone"):
            check_values(dataclasses.replace(REFERENCE, **changes))


def test_a_batch_that_leaves_a_process_nothing_is_one_line(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UsageError, match=r"a batch of 2 images .* 3 processes; give another"):
        check_batches(REFERENCE)


def test_other_fields_can_be_given_on_the_command_line():
    arguments = ["reference", "--batch-size", "16", "--images-per-pass", "2"]
    arguments += ["--no-legacy-coords", "--proposals-per", "batch"]
    config, _ = parse_command_line("object_detection", PRESETS, arguments)
    assert (config.batch_size, config.images_per_pass) == (16, 2)
    assert (config.legacy_coords, config.proposals_per) == (False, "batch")


@pytest.mark.parametrize("option", ["--num-classes", "--num-train-images", "--dataset", "--preset"])
def test_facts_of_the_benchmark_cannot(option):
    with pytest.raises(UsageError):
        parse_command_line("object_detection", PRESETS, ["mini", option, "5"])
