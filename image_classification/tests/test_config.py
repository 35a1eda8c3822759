"""The recipe: v0.5's numbers, and values that no training can be made of."""

from __future__ import annotations

import dataclasses

import pytest

from harness.errors import UsageError
from harness.options import parse_command_line
from image_classification.config import MINI, PRESETS, REFERENCE, TINY, Config, check_values


def test_the_reference_is_v0_5s_recipe():
    """Sections 1 to 4 of the specification."""
    assert Config() == REFERENCE
    (target,) = REFERENCE.quality_targets
    assert (target.name, target.value, target.higher_is_better) == ("top_1", 0.749, True)
    expected = {
        "num_classes": 1001,
        "num_train_images": 1_281_167,
        "num_eval_images": 50_000,
        "num_train_shards": 1024,
        "num_eval_shards": 128,
        "num_filters": 64,
        "num_blocks": (3, 4, 6, 3),
        "stem_kernel": 7,
        "stem_stride": 2,
        "train_size": 224,
        "eval_resize": 256,
        "min_crop_area": 0.05,
        "min_crop_aspect": 0.75,
        "max_crop_aspect": 1.33,
        "random_flip": True,
        "shuffle_buffer": 1500,
        "batch_size": 64,
        "base_learning_rate": 0.128,
        "warmup_epochs": 5,
        "decay_epochs": (30, 60, 80, 90),
        "momentum": 0.9,
        "l2_regularization": 1e-4,
        "loss_scale": 128,
        "epochs_between_evaluations": 4,
    }
    assert {name: getattr(REFERENCE, name) for name in expected} == expected


def test_every_preset_goes_by_its_name_and_can_be_trained():
    assert {name: config.preset for name, (_, config) in PRESETS.items()} == {
        name: name for name in PRESETS
    }
    for config in (REFERENCE, MINI, TINY):
        check_values(config)
        assert config.epochs_to_target <= config.max_epochs
        # The last boundary lies within the run, so that every rate is used.
        assert max(config.decay_epochs) < config.max_epochs


WRONG = {
    "num_filters": 0,
    "stem_kernel": 0,
    "stem_stride": -1,
    "train_size": 0,
    "batch_size": 0,
    "shuffle_buffer": 0,
    "num_blocks": (3, 0),
    "eval_resize": 223,
    "min_crop_area": 0.0,
    "min_crop_aspect": 1.5,
    "max_crop_aspect": 0.5,
    "base_learning_rate": 0.0,
    "momentum": 1.0,
    "loss_scale": 0.0,
    "max_epochs": 90,
}


MORE_WRONG = [
    ("warmup_epochs", -1.0),
    ("warmup_epochs", float("nan")),
    ("decay_epochs", (-1,)),
    ("decay_epochs", (30, 20)),
    ("l2_regularization", -1.0),
    ("l2_regularization", float("nan")),
]


@pytest.mark.parametrize(("name", "value"), [*WRONG.items(), *MORE_WRONG])
def test_a_value_that_no_training_can_be_made_of_is_one_line(name, value):
    with pytest.raises(UsageError) as error:
        check_values(dataclasses.replace(REFERENCE, **{name: value}))
    message = str(error.value)
    assert "\n" not in message and "; " in message
    assert name in message or name.split("_")[1] in message


def test_no_stage_at_all_is_refused():
    with pytest.raises(UsageError, match="num_blocks needs 1 or more for each stage"):
        check_values(dataclasses.replace(REFERENCE, num_blocks=()))


def test_other_fields_can_be_given_on_the_command_line():
    arguments = ["reference", "--batch-size", "1024", "--num-blocks", "3", "4", "23", "3"]
    config, _ = parse_command_line("image_classification", PRESETS, arguments)
    assert (config.batch_size, config.num_blocks) == (1024, (3, 4, 23, 3))


@pytest.mark.parametrize("option", ["--num-classes", "--num-train-images", "--dataset", "--preset"])
def test_facts_of_the_benchmark_cannot(option):
    with pytest.raises(UsageError):
        parse_command_line("image_classification", PRESETS, ["mini", option, "5"])
