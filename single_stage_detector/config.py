"""Every number of the benchmark: the fields, and the presets that give them values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import tyro

from harness.errors import UsageError
from harness.stop_rule import QualityTarget

PIXEL_MEANS = (0.485, 0.456, 0.406)
"""Red, green and blue of ImageNet's average pixel, of 0 to 1: the backbone was trained so."""
PIXEL_DEVIATIONS = (0.229, 0.224, 0.225)
"""Their standard deviations."""
MIN_IOU_OPTIONS = (0.1, 0.3, 0.5, 0.7, 0.9, -math.inf)
"""Overlap that a crop must exceed with every object; the last is no limit."""


@dataclass(frozen=True)
class ExtraLayer:
    """A block after the backbone: 1x1 convolution, then 3x3, each with ReLU; gives a map."""

    num_bottleneck: int
    """Channels between the two convolutions."""
    num_channels: int
    """Channels of the map."""
    stride: int = 2
    """Stride of the 3x3 convolution."""
    padding: int = 1
    """Its padding, in cells."""


@dataclass(frozen=True)
class Config:
    """The science of one preset. Defaults are the v0.5 recipe on COCO 2017."""

    preset: tyro.conf.Suppress[str] = "reference"
    """Name of this preset."""
    dataset: tyro.conf.Suppress[Literal["coco-2017", "shapes128", "made-up"]] = "coco-2017"
    """Which images."""
    quality_targets: tyro.conf.Suppress[tuple[QualityTarget, ...]] = (QualityTarget("ap", 0.212),)
    """Box AP, averaged over IoU 0.50 to 0.95, that ends the run (v0.5's run_and_time.sh)."""
    epochs_to_target: tyro.conf.Suppress[float] = 49.1
    """Epochs that a run is expected to need (v0.5's example log: 0.2229 at iteration 180,000)."""
    checkpoint_interval_s: float = 1800
    """Seconds between checkpoints."""

    num_classes: tyro.conf.Suppress[int] = 81
    """Scores of a default box; class 0 is background."""
    num_train_images: tyro.conf.Suppress[int] = 117_266
    """Training images with an annotation; an epoch has each once."""
    num_eval_images: tyro.conf.Suppress[int] = 4_952
    """Validation images with an annotation; the 48 others are not looked at."""

    input_size: int = 300
    """Side of the square that the network sees, in pixels."""
    num_blocks: tuple[int, int, int] = (3, 4, 6)
    """Basic blocks of the backbone's three stages; (3, 4, 6) are ResNet-34's."""
    num_filters: tuple[int, int, int] = (64, 128, 256)
    """Channels of the three stages."""
    pretrained_backbone: bool = True
    """Whether the backbone begins with ImageNet's weights, from a file of the data set."""
    extra_layers: tyro.conf.Suppress[tuple[ExtraLayer, ...]] = (
        ExtraLayer(256, 512),
        ExtraLayer(256, 512),
        ExtraLayer(128, 256),
        ExtraLayer(128, 256, stride=1, padding=0),
        ExtraLayer(128, 256, stride=1, padding=0),
    )
    """Blocks after the backbone."""
    extra_batch_norm: bool = False
    """Whether the convolutions after the backbone have batch normalisation."""
    map_strides: tuple[int, ...] = (8, 16, 32, 64, 100, 300)
    """Distance between two cells of each feature map, in pixels."""
    box_scales: tuple[int, ...] = (21, 45, 99, 153, 207, 261, 315)
    """Side of each map's square default box, in pixels, and one more for the last map's second."""
    aspect_ratios: tyro.conf.Suppress[tuple[tuple[int, ...], ...]] = (
        (2,),
        (2, 3),
        (2, 3),
        (2, 3),
        (2,),
        (2,),
    )
    """Further shapes of each map's default boxes, width over height; each lying and standing."""

    crop_probability: float = 1.0
    """Part of the training images to which the crop's options are put at all."""
    crop_trials: int = 1
    """Crops tried before another option is drawn; 50 in the paper's code."""

    batch_size: int = 32
    """Training images in a step, over all processes."""
    base_batch_size: tyro.conf.Suppress[int] = 32
    """The batch that base_learning_rate and all numbers of iterations belong to."""
    base_learning_rate: float = 1e-3
    """Learning rate for a batch of base_batch_size; it grows in proportion to the batch."""
    warmup_steps: int = 0
    """Steps in which the rate grows in a straight line; 300 in v0.6's large batches."""
    warmup_factor: float = 0.0
    """The line begins at (1 - 2**-warmup_factor) of the rate: 0 begins at nothing."""
    decay_iterations: tuple[int, ...] = (160_000, 200_000)
    """Iterations of base_batch_size images after which the rate is a tenth of what it was."""
    decay_epochs: tuple[float, ...] = ()
    """The same in epochs, in place of decay_iterations (40 50 in v0.7)."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or Adam with decoupled weight decay."""
    momentum: float = 0.9
    """Part of the sum of gradients that stays from step to step (SGD)."""
    weight_decay: float = 5e-4
    """Of all weights, biases and batch normalisation included."""
    max_gradient_norm: float = 0.0
    """Longer gradients are scaled down to this length; 0: none is."""

    evaluation_iterations: tuple[int, ...] = (120_000, 160_000, 180_000, 200_000, 220_000, 240_000)
    """Iterations of base_batch_size images, counted from 0, after whose step is evaluated."""
    evaluation_epochs: tuple[int, ...] = ()
    """Epochs after which is evaluated, in place of evaluation_iterations (40 50 55 60 65 70 75 80
    in v0.7)."""
    max_epochs: int = 66
    """Epochs after which a run that has not reached its target gives up. v0.5 goes on to 800, but
    evaluates no more after the 66th has begun."""

    min_score: float = 0.05
    """Detections with a lower score are left out."""
    nms_iou: float = 0.5
    """Of two boxes of a class that overlap as much or more, the one with the lower score goes."""
    max_detections: int = 200
    """Boxes of a class that enter the suppression, and boxes of an image that come out."""


def check_values(config: Config) -> None:
    """Raises UsageError naming a field that no training can be made of."""
    counts = ("input_size", "crop_trials", "batch_size", "max_epochs", "max_detections")
    for name in counts:
        if getattr(config, name) < 1:
            option = name.replace("_", "-")
            raise UsageError(f"{name} is {getattr(config, name)}; give --{option} 1 or more")
    for name in ("num_blocks", "num_filters"):
        if min(getattr(config, name)) < 1:
            option = name.replace("_", "-")
            raise UsageError(f"{name} needs 1 or more for each stage; correct --{option}")
    if config.warmup_steps < 0 or config.warmup_factor < 0:
        raise UsageError("warmup_steps and warmup_factor are not below 0; correct them")
    for name in ("decay_iterations", "decay_epochs", "evaluation_iterations", "evaluation_epochs"):
        numbers = list(getattr(config, name))
        if numbers != sorted(set(numbers)) or (numbers and not 0 <= numbers[0] < math.inf):
            option, given = name.replace("_", "-"), " ".join(map(str, numbers))
            raise UsageError(f"{name} is {given}; give --{option} numbers that grow, from 0 on")
    if config.evaluation_epochs:
        first, option, least = config.evaluation_epochs[0], "evaluation_epochs", 1
        most = config.max_epochs
    elif config.evaluation_iterations:
        first, option, least = config.evaluation_iterations[0], "evaluation_iterations", 0
        num_images = config.max_epochs * config.num_train_images
        most = math.ceil(num_images / config.base_batch_size) - 1
    else:
        raise UsageError("no evaluation is asked for; give --evaluation-epochs")
    if not least <= first <= most:
        cause = f"{option} begin with {first}, and max_epochs {config.max_epochs} end at {most}"
        raise UsageError(f"{cause}; give a first one from {least} on, or more --max-epochs")
    if not 0 <= config.crop_probability <= 1:
        raise UsageError(f"crop_probability is {config.crop_probability}; give 0 to 1")
    if not (0 < config.base_learning_rate < math.inf and 0 <= config.momentum < 1):
        raise UsageError(
            "base_learning_rate lies above 0, momentum from 0 to below 1; correct them"
        )
    if not (0 <= config.weight_decay < math.inf and config.max_gradient_norm >= 0):
        raise UsageError("weight_decay and max_gradient_norm are not below 0; correct them")
    if not (0 <= config.min_score < 1 and 0 < config.nms_iou <= 1):
        raise UsageError("min_score lies from 0 to below 1, nms_iou above 0 to 1; correct them")
    num_maps = 1 + len(config.extra_layers)
    if len(config.map_strides) != num_maps or len(config.box_scales) != num_maps + 1:
        cause = f"there are {num_maps} feature maps"
        raise UsageError(f"{cause}; give as many map_strides, and one more of box_scales")
    if min(*config.map_strides, *config.box_scales) < 1:
        raise UsageError("map_strides and box_scales are 1 or more; correct them")


REFERENCE = Config()

MINI = Config(
    preset="mini",
    dataset="shapes128",
    quality_targets=(QualityTarget("ap_50", 0.85),),
    epochs_to_target=5,
    checkpoint_interval_s=60,
    num_classes=5,
    num_train_images=1_954,
    num_eval_images=395,
    input_size=128,
    num_blocks=(1, 1, 1),
    num_filters=(16, 32, 64),
    pretrained_backbone=False,
    extra_layers=(
        ExtraLayer(32, 128),
        ExtraLayer(32, 128),
        ExtraLayer(32, 64),
        ExtraLayer(32, 64),
    ),
    extra_batch_norm=True,
    map_strides=(8, 16, 32, 64, 128),
    box_scales=(12, 24, 44, 64, 84, 110),
    aspect_ratios=((2,), (2,), (2,), (2,), (2,)),
    crop_probability=0.25,
    batch_size=8,
    base_batch_size=8,
    base_learning_rate=3e-3,
    warmup_steps=200,
    decay_iterations=(1_080, 1_445),
    optimizer="adamw",
    weight_decay=1e-2,
    max_gradient_norm=10,
    evaluation_iterations=(979, 1_224, 1_469, 1_714),
    max_epochs=7,
)

TINY = Config(
    preset="tiny",
    dataset="made-up",
    quality_targets=(QualityTarget("ap_50", 0.1),),
    epochs_to_target=3,
    checkpoint_interval_s=0.2,
    num_classes=5,
    num_train_images=60,
    num_eval_images=20,
    input_size=64,
    num_blocks=(1, 1, 1),
    num_filters=(8, 16, 16),
    pretrained_backbone=False,
    extra_layers=(ExtraLayer(8, 16), ExtraLayer(8, 16)),
    extra_batch_norm=True,
    map_strides=(8, 16, 32),
    box_scales=(16, 28, 44, 60),
    aspect_ratios=((2,), (2,), (2,)),
    crop_probability=0.5,
    batch_size=8,
    base_batch_size=8,
    base_learning_rate=1e-2,
    warmup_steps=4,
    decay_iterations=(48, 60),
    optimizer="adamw",
    weight_decay=1e-2,
    max_gradient_norm=10,
    evaluation_iterations=(11, 23, 35, 47, 59, 71),
    max_epochs=9,
)

PRESETS = {
    "reference": ("COCO 2017 to box AP 0.212, the v0.5 recipe (a GPU with 16 GB)", REFERENCE),
    "mini": ("a small SSD on generated shapes to AP50 0.85 (two minutes on two cores)", MINI),
    "tiny": ("made-up images, a few seconds: for tests and for a first look", TINY),
}
