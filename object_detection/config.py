"""Every number of the benchmark: the fields, and the presets that give them values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import tyro

from harness.errors import UsageError
from harness.stop_rule import QualityTarget


@dataclass(frozen=True)
class Config:
    """The science of one preset. Defaults are the v0.5 recipe on COCO 2017."""

    preset: tyro.conf.Suppress[str] = "reference"
    """Name of this preset."""
    dataset: tyro.conf.Suppress[Literal["coco-2017", "shapes128", "made-up"]] = "coco-2017"
    """Which images."""
    quality_targets: tyro.conf.Suppress[tuple[QualityTarget, ...]] = (
        QualityTarget("box_ap", 0.377),
        QualityTarget("mask_ap", 0.339),
    )
    """AP of boxes and of masks, averaged over IoU 0.50 to 0.95, that end the run together (v0.5's
    MIN_BBOX_MAP and MIN_SEGM_MAP)."""
    epochs_to_target: tyro.conf.Suppress[float] = 12
    """Epochs that a run is expected to need (mlperf/training#240: one V100)."""
    checkpoint_interval_s: float = 1800
    """Seconds between checkpoints."""

    num_classes: tyro.conf.Suppress[int] = 81
    """Scores of a region; class 0 is background."""
    num_train_images: tyro.conf.Suppress[int] = 117_266
    """Training images with an annotation that is larger than a pixel."""
    num_eval_images: tyro.conf.Suppress[int] = 5_000
    """Validation images, those without an annotation included."""

    min_size: int = 800
    """Shorter side of an image as the network sees it, in pixels."""
    max_size: int = 1_333
    """Longer side at most; images that would exceed it stay smaller."""
    size_divisor: tyro.conf.Suppress[int] = 32
    """Sides of a batch are padded to multiples of this: the coarsest map's stride."""
    flip_probability: float = 0.5
    """Part of the training images that are mirrored."""
    legacy_coords: bool = True
    """Whether right and bottom of a box are the last pixels inside, as in v0.5; else the first
    ones outside."""

    num_blocks: tuple[int, int, int, int] = (3, 4, 6, 3)
    """Bottleneck blocks of the backbone's four stages; these are ResNet-50's."""
    stem_channels: int = 64
    """Channels after the first convolution; the stages give 4, 8, 16 and 32 times as many."""
    norm: Literal["frozen-batch", "group"] = "frozen-batch"
    """Normalisation in the backbone: constants of the pretrained weights, or groups of channels."""
    num_frozen_stages: int = 2
    """Parts of the backbone that are not trained; the first is the stem."""
    pretrained_backbone: Literal["msra", "torchvision", "none"] = "msra"
    """Whose weights of ImageNet the backbone begins with."""
    fpn_channels: int = 256
    """Channels of the feature pyramid."""
    strides: tyro.conf.Suppress[tuple[int, ...]] = (4, 8, 16, 32, 64)
    """Pixels to a cell of each of its maps."""

    anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    """Side of each map's square anchor, in pixels."""
    aspect_ratios: tyro.conf.Suppress[tuple[float, ...]] = (0.5, 1.0, 2.0)
    """Height over width of a cell's anchors."""
    rpn_batch_size: int = 256
    """Anchors of an image that count in a step."""
    rpn_nms_iou: float = 0.7
    """Of two proposals that overlap by more, the one with the lower score goes."""
    train_pre_nms: int = 2_000
    """Best anchors of each map that become proposals, in training."""
    test_pre_nms: int = 1_000
    """The same in evaluation."""
    train_post_nms: int = 2_000
    """Proposals that stay, in training."""
    test_post_nms: int = 1_000
    """The same in evaluation, of each image."""
    proposals_per: Literal["image", "batch"] = "image"
    """Whether train_post_nms is of each image, or of all images of a process together (v0.5)."""

    roi_batch_size: int = 512
    """Proposals of an image that count in a step."""
    canonical_size: int = 224
    """Side of the regions that are read from the map of stride 16, in pixels."""
    box_head_channels: int = 1_024
    """Of its two hidden layers."""
    num_mask_convs: int = 4
    """3x3 convolutions of the mask head."""
    mask_head_channels: int = 256
    """Their channels."""

    batch_size: int = 2
    """Training images in a step, over all processes."""
    images_per_pass: int = 0
    """Images that a process has on its device at once; a step adds up the gradients of several
    passes where its share of the batch is larger. 0: all at once."""
    base_batch_size: tyro.conf.Suppress[int] = 2
    """The batch that base_learning_rate and all numbers of iterations belong to."""
    base_learning_rate: float = 2.5e-3
    """Learning rate for a batch of base_batch_size; it grows in proportion to the batch."""
    bias_rate_factor: float = 2.0
    """Of biases, whose weight decay is 0."""
    warmup_steps: int = 500
    """Steps in which the rate grows in a straight line."""
    warmup_factor: float = 1 / 3
    """Part of the rate that the line begins with."""
    decay_iterations: tuple[int, ...] = (480_000, 640_000)
    """Iterations of base_batch_size images after which the rate is a tenth of what it was."""
    max_iterations: int = 720_000
    """Iterations of base_batch_size images after which a run that has not reached its target gives
    up."""
    momentum: float = 0.9
    """Part of the sum of gradients that stays from step to step."""
    weight_decay: float = 1e-4
    """Of weights; biases have none."""
    max_gradient_norm: float = 0.0
    """Longer gradients are scaled down to this length; 0: none is."""

    first_evaluation: int = 1
    """Epoch after which is evaluated for the first time; then after each one and at the end."""
    max_epochs: int = 13
    """Epochs after which a run gives up, if max_iterations do not end it earlier."""
    eval_batch_size: int = 1
    """Images of a process that are evaluated together; padding changes results a little."""

    min_score: float = 0.05
    """Detections with a lower score, or the same, are left out."""
    nms_iou: float = 0.5
    """Of two boxes of a class that overlap by more, the one with the lower score goes."""
    max_detections: int = 100
    """Detections of an image."""


def check_values(config: Config) -> None:
    """Raises UsageError naming a field that no training can be made of."""
    counts = ["min_size", "max_size", "stem_channels", "fpn_channels", "box_head_channels"]
    counts += ["num_mask_convs", "mask_head_channels", "rpn_batch_size", "roi_batch_size"]
    counts += ["train_pre_nms", "test_pre_nms", "train_post_nms", "test_post_nms"]
    counts += ["canonical_size", "batch_size", "max_iterations", "first_evaluation", "max_epochs"]
    counts += ["eval_batch_size", "max_detections"]
    for name in counts:
        if getattr(config, name) < 1:
            option = name.replace("_", "-")
            raise UsageError(f"{name} is {getattr(config, name)}; give --{option} 1 or more")
    if min(config.num_blocks) < 1:
        raise UsageError("num_blocks needs 1 or more for each stage; correct --num-blocks")
    if config.max_size < config.min_size:
        cause = f"max_size {config.max_size} is below min_size {config.min_size}"
        raise UsageError(f"{cause}; give a larger --max-size")
    if config.stem_channels % 4:
        cause = f"stem_channels is {config.stem_channels}"
        raise UsageError(f"{cause}; give --stem-channels a multiple of 4")
    is_resnet50 = (config.num_blocks, config.stem_channels) == ((3, 4, 6, 3), 64)
    if config.pretrained_backbone != "none" and (config.norm == "group" or not is_resnet50):
        cause = "pretrained_backbone is of a ResNet-50 with frozen-batch norm"
        raise UsageError(f"{cause}; give --pretrained-backbone none for another network")
    if not 0 <= config.num_frozen_stages <= 5:
        raise UsageError("num_frozen_stages lies from 0 to 5; correct --num-frozen-stages")
    if len(config.anchor_sizes) != len(config.strides) or min(config.anchor_sizes) < 1:
        cause = f"there are {len(config.strides)} feature maps"
        raise UsageError(f"{cause}; give --anchor-sizes as many sizes of 1 or more")
    if config.warmup_steps < 0 or not 0 < config.warmup_factor <= 1 or config.images_per_pass < 0:
        cause = "warmup_steps and images_per_pass are not below 0, warmup_factor above 0 to 1"
        raise UsageError(f"{cause}; correct them")
    numbers = list(config.decay_iterations)
    if numbers != sorted(set(numbers)) or (numbers and numbers[0] < 0):
        given = " ".join(map(str, numbers))
        cause = f"decay_iterations is {given}"
        raise UsageError(f"{cause}; give --decay-iterations numbers that grow, from 0 on")
    if not (0 < config.base_learning_rate < math.inf and 0 <= config.momentum < 1):
        raise UsageError(
            "base_learning_rate lies above 0, momentum from 0 to below 1; correct them"
        )
    if not (0 <= config.weight_decay < math.inf and config.max_gradient_norm >= 0):
        raise UsageError("weight_decay and max_gradient_norm are not below 0; correct them")
    if not 0 <= config.bias_rate_factor < math.inf:
        raise UsageError("bias_rate_factor is not below 0; correct --bias-rate-factor")
    for name in ("rpn_nms_iou", "nms_iou"):
        if not 0 < getattr(config, name) <= 1:
            raise UsageError(f"{name} lies above 0 to 1; correct --{name.replace('_', '-')}")
    if not (0 <= config.min_score < 1 and 0 <= config.flip_probability <= 1):
        raise UsageError(
            "min_score lies from 0 to below 1, flip_probability from 0 to 1; correct them"
        )


REFERENCE = Config()

MINI = Config(
    preset="mini",
    dataset="shapes128",
    quality_targets=(QualityTarget("box_ap_50", 0.8), QualityTarget("mask_ap_50", 0.8)),
    epochs_to_target=3,
    checkpoint_interval_s=60,
    num_classes=5,
    num_train_images=1_000,
    num_eval_images=400,
    min_size=128,
    max_size=128,
    num_blocks=(1, 1, 1, 1),
    stem_channels=16,
    norm="group",
    num_frozen_stages=0,
    pretrained_backbone="none",
    fpn_channels=32,
    anchor_sizes=(8, 16, 32, 64, 128),
    rpn_batch_size=64,
    train_pre_nms=200,
    test_pre_nms=100,
    train_post_nms=200,
    test_post_nms=100,
    roi_batch_size=64,
    canonical_size=64,
    box_head_channels=128,
    num_mask_convs=2,
    mask_head_channels=32,
    batch_size=4,
    base_batch_size=4,
    base_learning_rate=0.02,
    bias_rate_factor=1.0,
    warmup_steps=100,
    decay_iterations=(670, 900),
    max_iterations=1_000,
    max_gradient_norm=10,
    first_evaluation=3,
    max_epochs=4,
    eval_batch_size=25,
)

TINY = Config(
    preset="tiny",
    dataset="made-up",
    quality_targets=(QualityTarget("box_ap_50", 0.04), QualityTarget("mask_ap_50", 0.03)),
    epochs_to_target=5,
    checkpoint_interval_s=0.2,
    num_classes=5,
    num_train_images=30,
    num_eval_images=20,
    min_size=64,
    max_size=64,
    num_blocks=(1, 1, 1, 1),
    stem_channels=8,
    norm="group",
    num_frozen_stages=0,
    pretrained_backbone="none",
    fpn_channels=32,
    anchor_sizes=(8, 16, 24, 32, 64),
    rpn_batch_size=32,
    train_pre_nms=20,
    test_pre_nms=30,
    train_post_nms=20,
    test_post_nms=30,
    roi_batch_size=16,
    canonical_size=64,
    box_head_channels=64,
    num_mask_convs=1,
    mask_head_channels=32,
    batch_size=4,
    base_batch_size=4,
    base_learning_rate=0.014,
    bias_rate_factor=1.0,
    warmup_steps=4,
    decay_iterations=(50,),
    max_iterations=60,
    max_gradient_norm=10,
    first_evaluation=3,
    max_epochs=8,
    eval_batch_size=10,
    min_score=0.01,
)

PRESETS = {
    "reference": (
        "COCO 2017 to box AP 0.377 and mask AP 0.339, the v0.5 recipe (a GPU)",
        REFERENCE,
    ),
    "mini": (
        "a small Mask R-CNN on generated shapes to AP50 0.80 (two minutes on two cores)",
        MINI,
    ),
    "tiny": ("made-up images, a few seconds: for tests and for a first look", TINY),
}
