"""Every number of the benchmark: the fields, and the presets that give them values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import tyro

from harness.errors import UsageError
from harness.stop_rule import QualityTarget

EVALUATION_SEED = 0
"""Seed of the evaluation's negatives: the same candidates for every run (v0.5's `--seed 0`)."""
MIN_RATINGS = 20
"""Users with fewer ratings are left out. MovieLens has none; v0.5 checks all the same."""


@dataclass(frozen=True)
class Config:
    """The science of one preset. Defaults are the v0.5 recipe on ml-20m."""

    preset: tyro.conf.Suppress[str] = "reference"
    """Name of this preset."""
    dataset: tyro.conf.Suppress[Literal["ml-20m", "ml-1m", "ml-100k", "made-up"]] = "ml-20m"
    """Which MovieLens set, and with it the format of its files."""
    quality_targets: tyro.conf.Suppress[tuple[QualityTarget, ...]] = (
        QualityTarget("hr_at_10", 0.635),
    )
    """HR@10 that ends the run (mlcommons/training#83: the lowest best of five seeds, rounded)."""
    epochs_to_target: tyro.conf.Suppress[float] = 7
    """Epochs that a run is expected to need (v0.5's example log, seed 1)."""
    checkpoint_interval_s: float = 1800
    """Seconds between checkpoints."""

    num_factors: int = 64
    """Width of the matrix-factorisation embeddings."""
    mlp_layers: tuple[int, ...] = (256, 256, 128, 64)
    """Widths of the perceptron; the first is the user's and the item's embedding together."""

    batch_size: int = 2048
    """Training examples in a step, over all processes."""
    learning_rate: float = 5e-4
    """Adam's, constant."""
    adam_beta1: float = 0.9
    """Decay of Adam's mean of gradients."""
    adam_beta2: float = 0.999
    """Decay of Adam's mean of squared gradients."""
    adam_epsilon: float = 1e-8
    """Term that keeps Adam's denominator from zero."""
    max_epochs: int = 20
    """Epochs after which a run that has not reached its target gives up."""
    num_train_negatives: int = 4
    """Negatives drawn for each positive, anew each epoch."""

    num_eval_negatives: int = 999
    """Negatives drawn for each user's held-out film, once, with replacement."""
    expansion: tuple[int, int] = (1, 1)
    """Copies of the users and of the films in the fractal expansion of the data; 1 1: as it is."""
    top_k: tyro.conf.Suppress[int] = 10
    """A hit is the held-out film among this many best candidates; the metric's name has it too."""

    made_up_users: tyro.conf.Suppress[int] = 138_493
    """Users of made-up data (--synthetic-data, and the tiny preset); default: ml-20m's."""
    made_up_items: tyro.conf.Suppress[int] = 26_744
    """Items of made-up data."""
    made_up_ratings_per_user: tyro.conf.Suppress[int] = 144
    """Ratings of each made-up user; ml-20m has 144.4 on average."""


def check_values(config: Config) -> None:
    """Raises UsageError naming a field that no training can be made of."""
    counts = ("num_factors", "batch_size", "max_epochs", "num_train_negatives")
    for name in (*counts, "num_eval_negatives"):
        if getattr(config, name) < 1:
            option = name.replace("_", "-")
            raise UsageError(f"{name} is {getattr(config, name)}; give --{option} 1 or more")
    if min(config.mlp_layers, default=0) < 1 or config.mlp_layers[0] % 2:
        layers = " ".join(map(str, config.mlp_layers))
        raise UsageError(f"mlp_layers is {layers}; give widths of 1 or more, the first one even")
    if min(config.expansion) < 1:
        given = " ".join(map(str, config.expansion))
        raise UsageError(f"expansion is {given}; give two numbers of 1 or more")
    if config.dataset == "made-up" and config.expansion != (1, 1):
        raise UsageError("made-up data is not expanded; leave --expansion out")
    if not (config.learning_rate > 0 and config.adam_epsilon >= 0):
        raise UsageError("learning_rate must be above 0 and adam_epsilon not below; correct them")
    if not (0 <= config.adam_beta1 < 1 and 0 <= config.adam_beta2 < 1):
        raise UsageError("adam_beta1 and adam_beta2 lie from 0 to below 1; correct them")


REFERENCE = Config()

MINI = Config(
    preset="mini",
    dataset="ml-100k",
    quality_targets=(QualityTarget("hr_at_10", 0.20),),
    epochs_to_target=10,
    checkpoint_interval_s=60,
    made_up_users=943,
    made_up_items=1_682,
    made_up_ratings_per_user=106,
)

ML_1M = Config(
    preset="ml-1m",
    dataset="ml-1m",
    quality_targets=(QualityTarget("hr_at_10", 0.68),),
    epochs_to_target=20,
    checkpoint_interval_s=600,
    num_factors=8,
    mlp_layers=(64, 32, 16, 8),
    batch_size=256,
    learning_rate=1e-3,
    num_eval_negatives=99,
    made_up_users=6_040,
    made_up_items=3_706,
    made_up_ratings_per_user=165,
)

TINY = Config(
    preset="tiny",
    dataset="made-up",
    quality_targets=(QualityTarget("hr_at_10", 0.20),),
    epochs_to_target=3,
    checkpoint_interval_s=0.2,
    num_factors=8,
    mlp_layers=(32, 16, 8),
    batch_size=512,
    learning_rate=5e-3,
    max_epochs=10,
    num_eval_negatives=99,
    made_up_users=200,
    made_up_items=500,
    made_up_ratings_per_user=40,
)

PRESETS = {
    "reference": ("MovieLens 20M to HR@10 0.635, the v0.5 recipe (a GPU with 16 GB)", REFERENCE),
    "mini": ("the same network on MovieLens 100K to HR@10 0.20 (a minute on two cores)", MINI),
    "ml-1m": ("MovieLens 1M with the paper's small network to HR@10 0.68", ML_1M),
    "tiny": ("made-up data, a few seconds: for tests and for a first look", TINY),
}
