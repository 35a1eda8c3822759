"""Every number of the benchmark: the fields, and the presets that give them values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import tyro

from harness.errors import UsageError
from harness.stop_rule import QualityTarget

CONVERSION_SEED = 0
"""Seed of the shuffle over all images before the shards are written: every run has the same."""
CHANNEL_MEANS = (123.68, 116.78, 103.94)
"""Red, green and blue that v0.5 subtracts from pixels of 0 to 255; nothing is divided."""
BASE_BATCH_SIZE = 256
"""The batch that base_learning_rate belongs to."""


@dataclass(frozen=True)
class Config:
    """The science of one preset. Defaults are the v0.5 recipe on ImageNet."""

    preset: tyro.conf.Suppress[str] = "reference"
    """Name of this preset."""
    dataset: tyro.conf.Suppress[Literal["imagenet", "mnist-5k", "made-up"]] = "imagenet"
    """Which images, and with it the format of the files that come in."""
    quality_targets: tyro.conf.Suppress[tuple[QualityTarget, ...]] = (
        QualityTarget("top_1", 0.749),
    )
    """Top-1 accuracy that ends the run (v0.5's run_and_time.sh)."""
    epochs_to_target: tyro.conf.Suppress[float] = 64
    """Epochs that a run is expected to need (published v0.5 runs passed at 62 or 63; evaluated
    every 4)."""
    checkpoint_interval_s: float = 1800
    """Seconds between checkpoints."""

    num_classes: tyro.conf.Suppress[int] = 1001
    """Logits; class 0 is background, which no image has."""
    num_train_images: tyro.conf.Suppress[int] = 1_281_167
    """Images of the training set."""
    num_eval_images: tyro.conf.Suppress[int] = 50_000
    """Images of the validation set."""
    num_train_shards: tyro.conf.Suppress[int] = 1024
    """Files that the training set is written to."""
    num_eval_shards: tyro.conf.Suppress[int] = 128
    """Files that the validation set is written to."""

    num_filters: int = 64
    """Filters of the stem; stage s (from 0) has bottlenecks of num_filters * 2**s, and four times
    as many at their end."""
    num_blocks: tuple[int, ...] = (3, 4, 6, 3)
    """Bottlenecks of each stage; (3, 4, 6, 3) is ResNet-50."""
    stem_kernel: int = 7
    """Side of the first convolution's kernel."""
    stem_stride: int = 2
    """Its stride."""

    train_size: int = 224
    """Side of the square that the network sees, in pixels."""
    eval_resize: int = 256
    """Shorter side of an evaluation image before the centre is cut out of it."""
    min_crop_area: float = 0.05
    """Smallest part of a training image that a crop may have; the largest is all of it."""
    min_crop_aspect: float = 0.75
    """Narrowest crop, width over height."""
    max_crop_aspect: float = 1.33
    """Widest crop."""
    random_flip: bool = True
    """Whether half of the training images are mirrored."""
    shuffle_buffer: int = 1500
    """Records that are mixed on their way from the shards."""

    batch_size: int = 64
    """Training images in a step, over all replicas."""
    base_learning_rate: float = 0.128
    """Learning rate for a batch of 256; it grows in proportion to the batch."""
    warmup_epochs: float = 5
    """Epochs in which the rate grows from 0 in a straight line."""
    decay_epochs: tuple[int, ...] = (30, 60, 80, 90)
    """Epochs after which the rate is a tenth of what it was."""
    momentum: float = 0.9
    """Part of the sum of gradients that stays from step to step."""
    l2_regularization: float = 1e-4
    """Factor of half the squared norm of all weights but batch normalisation's."""
    loss_scale: float = 128
    """Factor on the loss while gradients are computed with --precision fp16."""
    max_epochs: int = 92
    """Epochs after which a run that has not reached its target gives up."""
    epochs_between_evaluations: tyro.conf.Suppress[int] = 4
    """Epochs from one evaluation to the next."""


def check_values(config: Config) -> None:
    """Raises UsageError naming a field that no training can be made of."""
    counts = ("num_filters", "stem_kernel", "stem_stride", "train_size", "batch_size")
    for name in (*counts, "shuffle_buffer"):
        if getattr(config, name) < 1:
            option = name.replace("_", "-")
            raise UsageError(f"{name} is {getattr(config, name)}; give --{option} 1 or more")
    if min(config.num_blocks, default=0) < 1:
        raise UsageError("num_blocks needs 1 or more for each stage; give --num-blocks 3 4 6 3")
    if config.eval_resize < config.train_size:
        sides = f"{config.eval_resize} and {config.train_size}"
        raise UsageError(f"eval_resize is less than train_size ({sides}); raise --eval-resize")
    if not (0 < config.min_crop_area <= 1 and 0 < config.min_crop_aspect <= config.max_crop_aspect):
        raise UsageError("a crop needs 0 < area <= 1 and 0 < narrowest <= widest; correct them")
    if not 0 <= config.warmup_epochs < math.inf:
        cause = f"warmup_epochs is {config.warmup_epochs}"
        raise UsageError(f"{cause}; give --warmup-epochs 0 or more")
    if list(config.decay_epochs) != sorted({max(0, epoch) for epoch in config.decay_epochs}):
        given = " ".join(map(str, config.decay_epochs))
        raise UsageError(f"decay_epochs is {given}; give numbers that grow, from 0 on")
    if not 0 <= config.l2_regularization < math.inf:
        cause = f"l2_regularization is {config.l2_regularization}"
        raise UsageError(f"{cause}; give --l2-regularization 0 or more")
    if not (config.base_learning_rate > 0 and 0 <= config.momentum < 1 and config.loss_scale > 0):
        cause = "base_learning_rate and loss_scale lie above 0, momentum from 0 to below 1"
        raise UsageError(f"{cause}; correct them")
    every = config.epochs_between_evaluations
    if config.max_epochs < every or config.max_epochs % every:
        cause = f"max_epochs is {config.max_epochs}, and every {every} epochs are evaluated"
        raise UsageError(f"{cause}; give a multiple of {every}")


REFERENCE = Config()

MINI = Config(
    preset="mini",
    dataset="mnist-5k",
    quality_targets=(QualityTarget("top_1", 0.97),),
    epochs_to_target=8,
    checkpoint_interval_s=60,
    num_classes=11,
    num_train_images=4_000,
    num_eval_images=1_000,
    num_train_shards=4,
    num_eval_shards=1,
    num_filters=16,
    num_blocks=(1, 1, 1, 1),
    stem_kernel=3,
    stem_stride=1,
    train_size=28,
    eval_resize=28,
    min_crop_area=0.6,
    random_flip=False,
    warmup_epochs=1,
    decay_epochs=(6, 11, 14),
    max_epochs=16,
)

TINY = Config(
    preset="tiny",
    dataset="made-up",
    quality_targets=(QualityTarget("top_1", 0.9),),
    epochs_to_target=4,
    checkpoint_interval_s=0.2,
    num_classes=5,
    num_train_images=200,
    num_eval_images=50,
    num_train_shards=2,
    num_eval_shards=1,
    num_filters=4,
    num_blocks=(1, 1),
    stem_kernel=3,
    stem_stride=1,
    train_size=16,
    eval_resize=18,
    min_crop_area=0.6,
    shuffle_buffer=50,
    batch_size=16,
    base_learning_rate=0.5,
    warmup_epochs=0.5,
    decay_epochs=(6, 7),
    max_epochs=8,
)

PRESETS = {
    "reference": ("ImageNet to top-1 0.749, the v0.5 recipe (a GPU with 16 GB)", REFERENCE),
    "mini": ("a small ResNet on handwritten digits to top-1 0.97 (half a minute on 2 cores)", MINI),
    "tiny": ("made-up images, a few seconds: for tests and for a first look", TINY),
}
