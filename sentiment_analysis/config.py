"""Every number of the benchmark: the fields, and the presets that give them values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import tyro

from harness.errors import UsageError
from harness.stop_rule import QualityTarget

NUM_CLASSES = 2
POSITIVE, NEGATIVE = 0, 1
"""The labels, as v0.5 has them: most libraries have them the other way round."""


@dataclass(frozen=True)
class Config:
    """The science of one preset. Defaults are the v0.5 recipe on IMDB."""

    preset: tyro.conf.Suppress[str] = "reference"
    """Name of this preset."""
    dataset: Literal["imdb", "imdb-copy", "movie-snippets", "made-up"] = "imdb"
    """imdb: the archive aclImdb_v1.tar.gz, by its digest. imdb-copy: the one other aclImdb*.tar.*
    in the data folder, with whatever reviews it has in the same layout. movie-snippets: the rated
    snippets of VADER. made-up: reviews of made-up words."""
    quality_targets: tyro.conf.Suppress[tuple[QualityTarget, ...]] = (
        QualityTarget("accuracy", 90.6),
    )
    """Mean accuracy of the test batches, in percent, that ends the run (v0.5 asked for more than
    this number; here it is enough to meet it)."""
    epochs_to_target: tyro.conf.Suppress[float] = 3
    """Epochs that a run is expected to need."""
    checkpoint_interval_s: float = 1800
    """Seconds between checkpoints."""

    embedding_size: int = 1024
    """Width of the word embeddings."""
    num_filters: int = 1024
    """Filters of each convolution."""
    filter_widths: tuple[int, ...] = (3, 4)
    """Words that the filters of each convolution see; the convolutions stand side by side."""
    dropout: float = 0.0
    """Share of the pooled filters that a training step leaves out; v0.5 has none."""
    initialization: Literal["independent", "paddle_shared_stream"] = "independent"
    """paddle_shared_stream: every matrix starts from the same random numbers, scaled, as v0.5's
    framework drew them."""

    word_cutoff: int = 150
    """Words that occur more often than this are in the vocabulary; all others are one word."""
    vocabulary_from: Literal["train_and_test", "train"] = "train_and_test"
    """Reviews whose words are counted; v0.5 counts the test reviews too."""

    batch_size: int = 128
    """Reviews in a training step, over all processes."""
    batching: Literal["bucketed", "shuffled"] = "bucketed"
    """bucketed: reviews of like length share a batch. shuffled: v0.5's plain shuffle."""
    learning_rate: float = 5e-4
    """Adam's, constant."""
    adam_beta1: float = 0.9
    """Decay of Adam's mean of gradients."""
    adam_beta2: float = 0.999
    """Decay of Adam's mean of squared gradients."""
    adam_epsilon: float = 1e-8
    """Term that keeps Adam's denominator from zero; it is added after the bias correction."""
    max_epochs: int = 100
    """Epochs after which a run that has not reached its target gives up."""
    eval_batch_size: int = 128
    """Test reviews in a batch of the metric, which is a mean over batches."""

    made_up_vocabulary: tyro.conf.Suppress[int] = 5_147
    """Words of made-up data (--synthetic-data, and the tiny preset), the unknown one included;
    default: IMDB's."""
    made_up_reviews: tyro.conf.Suppress[int] = 25_000
    """Made-up training reviews, and as many for the test."""
    made_up_lengths: tyro.conf.Suppress[tuple[tuple[int, int], ...]] = (
        (0, 10), (10, 90), (20, 119), (30, 134), (40, 151), (50, 174), (60, 205), (70, 251),
        (80, 323), (90, 457), (95, 595), (99, 909), (100, 2_469),
    )  # fmt: skip
    """Words of made-up reviews: so many per cent have at most so many. Default: quantiles of
    the training half of IMDB (of a copy: see the card)."""


def check_values(config: Config) -> None:
    """Raises UsageError naming a field that no training can be made of."""
    counts = ("embedding_size", "num_filters", "batch_size", "eval_batch_size", "max_epochs")
    for name in counts:
        if getattr(config, name) < 1:
            option = name.replace("_", "-")
            raise UsageError(f"{name} is {getattr(config, name)}; give --{option} 1 or more")
    if min(config.filter_widths, default=0) < 1:
        widths = " ".join(map(str, config.filter_widths)) or "empty"
        raise UsageError(f"filter_widths is {widths}; give widths of 1 or more")
    if config.word_cutoff < 0:
        raise UsageError(f"word_cutoff is {config.word_cutoff}; give --word-cutoff 0 or more")
    if not 0 <= config.dropout < 1:
        raise UsageError(f"dropout is {config.dropout:g}; it lies from 0 to below 1")
    if not (config.learning_rate > 0 and config.adam_epsilon >= 0):
        raise UsageError("learning_rate must be above 0 and adam_epsilon not below; correct them")
    if not (0 <= config.adam_beta1 < 1 and 0 <= config.adam_beta2 < 1):
        raise UsageError("adam_beta1 and adam_beta2 lie from 0 to below 1; correct them")


REFERENCE = Config()

MINI = Config(
    preset="mini",
    dataset="movie-snippets",
    quality_targets=(QualityTarget("accuracy", 78.5),),
    epochs_to_target=3,
    checkpoint_interval_s=60,
    embedding_size=64,
    num_filters=64,
    word_cutoff=1,
    batch_size=64,
    learning_rate=1e-3,
    max_epochs=10,
    made_up_vocabulary=9_260,
    made_up_reviews=7_338,
    made_up_lengths=((0, 1), (10, 8), (30, 14), (50, 18), (70, 23), (90, 30), (99, 41), (100, 51)),
)

TINY = Config(
    preset="tiny",
    dataset="made-up",
    quality_targets=(QualityTarget("accuracy", 89.0),),
    epochs_to_target=2,
    checkpoint_interval_s=0.2,
    embedding_size=16,
    num_filters=16,
    batch_size=32,
    learning_rate=5e-3,
    max_epochs=10,
    eval_batch_size=32,
    made_up_vocabulary=400,
    made_up_reviews=1_000,
    made_up_lengths=((0, 1), (25, 10), (50, 20), (75, 30), (100, 60)),
)

PRESETS = {
    "reference": ("IMDB to an accuracy of 90.6 %, the v0.5 recipe", REFERENCE),
    "mini": ("rated movie snippets to an accuracy of 78.5 % (seconds on two cores)", MINI),
    "tiny": ("made-up data, a few seconds: for tests and for a first look", TINY),
}
