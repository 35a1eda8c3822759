"""The recipe: v0.5's numbers, and values that no training can be made of."""

from __future__ import annotations

import dataclasses
import math

import pytest

from harness.errors import UsageError
from harness.options import parse_command_line
from single_stage_detector.config import MINI, PRESETS, REFERENCE, TINY, Config, check_values
from single_stage_detector.schedule import decay_steps, evaluation_steps
from single_stage_detector.train import check_sizes


def test_the_reference_is_v0_5s_recipe():
    """Sections 1 to 4 of the specification."""
    assert Config() == REFERENCE
    (target,) = REFERENCE.quality_targets
    assert (target.name, target.value, target.higher_is_better) == ("ap", 0.212, True)
    layers = [dataclasses.astuple(layer) for layer in REFERENCE.extra_layers]
    assert layers == [
        (256, 512, 2, 1),
        (256, 512, 2, 1),
        (128, 256, 2, 1),
        (128, 256, 1, 0),
        (128, 256, 1, 0),
    ]
    expected = {
        "num_classes": 81,
        "num_train_images": 117_266,
        "num_eval_images": 4_952,
        "input_size": 300,
        "num_blocks": (3, 4, 6),
        "num_filters": (64, 128, 256),
        "pretrained_backbone": True,
        "extra_batch_norm": False,
        "map_strides": (8, 16, 32, 64, 100, 300),
        "box_scales": (21, 45, 99, 153, 207, 261, 315),
        "aspect_ratios": ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,)),
        "crop_probability": 1.0,
        "crop_trials": 1,
        "batch_size": 32,
        "base_batch_size": 32,
        "base_learning_rate": 1e-3,
        "warmup_steps": 0,
        "decay_iterations": (160_000, 200_000),
        "decay_epochs": (),
        "optimizer": "sgd",
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "max_gradient_norm": 0,
        "evaluation_iterations": (120_000, 160_000, 180_000, 200_000, 220_000, 240_000),
        "evaluation_epochs": (),
        "min_score": 0.05,
        "nms_iou": 0.5,
        "max_detections": 200,
    }
    assert {name: getattr(REFERENCE, name) for name in expected} == expected


def test_every_preset_goes_by_its_name_and_can_be_trained():
    assert {name: config.preset for name, (_, config) in PRESETS.items()} == {
        name: name for name in PRESETS
    }
    for config in (REFERENCE, MINI, TINY):
        check_values(config)
        check_sizes(config)
        assert config.epochs_to_target <= config.max_epochs
        steps_per_epoch = math.ceil(config.num_train_images / config.batch_size)
        last_step = evaluation_steps(config, steps_per_epoch)[-1]
        # Every rate is used, and no evaluation lies beyond the last epoch.
        assert decay_steps(config, steps_per_epoch)[-1] < last_step
        assert (config.max_epochs - 1) * steps_per_epoch < last_step


def test_tiny_evaluates_within_epochs_and_at_their_end():
    steps = evaluation_steps(TINY, 8)
    assert {step % 8 == 0 for step in steps} == {True, False}


WRONG = [
    ("input_size", 0),
    ("crop_trials", 0),
    ("batch_size", 0),
    ("max_epochs", 0),
    ("max_detections", 0),
    ("num_blocks", (3, 0, 6)),
    ("num_filters", (64, 128, 0)),
    ("warmup_steps", -1),
    ("warmup_factor", -1.0),
    ("decay_iterations", (200, 100)),
    ("decay_epochs", (-1.0,)),
    ("decay_epochs", (float("nan"),)),
    ("evaluation_iterations", (5, 5)),
    ("evaluation_iterations", ()),
    ("evaluation_iterations", (10**7,)),
    ("evaluation_epochs", (0, 5)),
    ("evaluation_epochs", (67,)),
    ("crop_probability", 1.5),
    ("base_learning_rate", 0.0),
    ("base_learning_rate", float("nan")),
    ("momentum", 1.0),
    ("weight_decay", -1.0),
    ("max_gradient_norm", -1.0),
    ("min_score", 1.0),
    ("nms_iou", 0.0),
    ("map_strides", (8, 16)),
    ("box_scales", (21, 45)),
    ("box_scales", (0, 45, 99, 153, 207, 261, 315)),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_value_that_no_training_can_be_made_of_is_one_line(name, value):
    with pytest.raises(UsageError) as error:
        check_values(dataclasses.replace(REFERENCE, **{name: value}))
    message = str(error.value)
    assert "\n" not in message
    assert "; " in message
    assert name in message or "evaluation" in name


def test_an_input_too_small_for_the_layers_is_one_line():
    with pytest.raises(UsageError, match=r"input_size 200 leaves nothing .*; give a larger"):
        check_sizes(dataclasses.replace(REFERENCE, input_size=200))


def test_other_fields_can_be_given_on_the_command_line():
    arguments = ["reference", "--batch-size", "1024", "--evaluation-epochs", "40", "50"]
    config, _ = parse_command_line("single_stage_detector", PRESETS, arguments)
    assert (config.batch_size, config.evaluation_epochs) == (1024, (40, 50))


@pytest.mark.parametrize("option", ["--num-classes", "--num-train-images", "--dataset", "--preset"])
def test_facts_of_the_benchmark_cannot(option):
    with pytest.raises(UsageError):
        parse_command_line("single_stage_detector", PRESETS, ["mini", option, "5"])
