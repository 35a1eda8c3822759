"""The recipe: v0.5's numbers, and values that no training can be made of."""

from __future__ import annotations

import dataclasses

import pytest

from harness.errors import UsageError
from harness.options import parse_command_line
from sentiment_analysis.config import (
    MINI,
    NEGATIVE,
    POSITIVE,
    PRESETS,
    REFERENCE,
    TINY,
    Config,
    check_values,
)


def test_the_reference_is_v0_5s_recipe():
    """Sections 1 to 4 of the specification."""
    assert Config() == REFERENCE
    (target,) = REFERENCE.quality_targets
    assert (target.name, target.value, target.higher_is_better) == ("accuracy", 90.6, True)
    assert (POSITIVE, NEGATIVE) == (0, 1)
    expected = {
        "dataset": "imdb",
        "embedding_size": 1024,
        "num_filters": 1024,
        "filter_widths": (3, 4),
        "word_cutoff": 150,
        "batch_size": 128,
        "eval_batch_size": 128,
        "learning_rate": 5e-4,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "max_epochs": 100,
        # What would help, and v0.5 has not:
        "dropout": 0.0,
        "vocabulary_from": "train_and_test",
        "initialization": "independent",
    }
    assert {name: getattr(REFERENCE, name) for name in expected} == expected


def test_the_mini_differs_in_values_only():
    expected = {
        "embedding_size": 64,
        "num_filters": 64,
        "word_cutoff": 1,
        "batch_size": 64,
        "learning_rate": 1e-3,
        "max_epochs": 10,
    }
    assert {name: getattr(MINI, name) for name in expected} == expected
    for name in ("filter_widths", "batching", "dropout", "vocabulary_from", "initialization"):
        assert getattr(MINI, name) == getattr(REFERENCE, name)
    assert [target.value for target in MINI.quality_targets] == [78.5]


def test_every_preset_goes_by_its_name_and_can_be_trained():
    assert {name: config.preset for name, (_, config) in PRESETS.items()} == {
        name: name for name in PRESETS
    }
    for config in (REFERENCE, MINI, TINY):
        check_values(config)
        assert config.epochs_to_target <= config.max_epochs


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("embedding_size", 0),
        ("num_filters", 0),
        ("filter_widths", ()),
        ("filter_widths", (3, -1)),
        ("dropout", 1.0),
        ("dropout", float("nan")),
        ("word_cutoff", -1),
        ("batch_size", 0),
        ("eval_batch_size", 0),
        ("max_epochs", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("adam_beta1", 1.0),
        ("adam_beta2", -0.1),
        ("adam_epsilon", -1.0),
    ],
)
def test_a_value_that_no_training_can_be_made_of_is_one_line(name, value):
    with pytest.raises(UsageError) as error:
        check_values(dataclasses.replace(REFERENCE, **{name: value}))
    message = str(error.value)
    assert "\n" not in message
    assert name in message


def test_other_fields_can_be_given_on_the_command_line():
    arguments = ["reference", "--filter-widths", "2", "3", "--dataset", "imdb-copy"]
    config, options = parse_command_line("sentiment_analysis", PRESETS, arguments)
    assert (config.filter_widths, config.dataset) == ((2, 3), "imdb-copy")
    assert options.modified == ("dataset", "filter_widths")


@pytest.mark.parametrize("option", ["--preset", "--made-up-reviews", "--epochs-to-target"])
def test_facts_of_the_benchmark_cannot(option):
    with pytest.raises(UsageError):
        parse_command_line("sentiment_analysis", PRESETS, ["mini", option, "5"])
