"""Wrong sciences, each put into the real code and each caught by a check that the tests use.

A mutation is a change of text in one module. The changed source is loaded as a module of its own,
and everything that it defines takes the place of the original wherever our code refers to it.
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from harness.errors import UsageError
from image_classification import data, evaluate, images, model, optimizer, train
from image_classification.config import MINI, TINY
from image_classification.tests import checks, training


@pytest.fixture(autouse=True)
def torch_threads():
    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(num_threads)


def on_shards(check: Callable[[data.Images], None]) -> Callable[[], None]:
    """A check of the order, on shards that are written for it."""

    @functools.wraps(check)
    def check_shards() -> None:
        with tempfile.TemporaryDirectory() as folder:
            check(checks.write_numbered(Path(folder)))

    return check_shards


def check_sizes() -> None:
    """Counts of a small network."""
    checks.check_parameter_counts(TINY)


def check_first_values() -> None:
    """Distributions of a small network's first values."""
    checks.check_initial_values(MINI)


def check_steps() -> None:
    """The first epoch and one step of the second."""
    training.check_trajectory(num_steps=8)


check_epoch_is_whole = on_shards(checks.check_epoch_is_whole)
check_orders = on_shards(checks.check_orders_are_unrelated)
check_turns = on_shards(checks.check_shards_are_read_in_turn)
check_skipping = on_shards(checks.check_skipping)
check_shares = on_shards(checks.check_shares)


@dataclass(frozen=True)
class Mutation:
    """One wrong science."""

    module: ModuleType
    right: str
    """Text that stands exactly once in the module."""
    wrong: str
    """What it is replaced by."""
    check: Callable[[], Any]
    """The check that must fail."""


MUTATIONS = {
    # --- network ---
    "He's scale of the first values": Mutation(
        model, "VarianceScaling(1.0", "VarianceScaling(2.0", check_first_values
    ),
    "first values not truncated": Mutation(
        model, '"truncated_normal"', '"untruncated_normal"', check_first_values
    ),
    "dense layer starts normal": Mutation(
        model,
        "layers.Dense(num_classes)",
        'layers.Dense(num_classes, kernel_initializer="glorot_normal")',
        check_first_values,
    ),
    "L2 on batch normalisation": Mutation(
        model, 'return "batch_normalization" not in variable.path', "return True", check_sizes
    ),
    "no L2 on the dense bias": Mutation(
        model,
        'return "batch_normalization" not in variable.path',
        'return "batch_normalization" not in variable.path and "bias" not in variable.path',
        check_sizes,
    ),
    "biases in the convolutions": Mutation(model, "use_bias=False", "use_bias=True", check_sizes),
    "statistics decay by 0.99": Mutation(
        model, "BATCH_NORM_DECAY = 0.9", "BATCH_NORM_DECAY = 0.99", checks.check_training_forward
    ),
    "Keras's epsilon": Mutation(
        model,
        "BATCH_NORM_EPSILON = 1e-5",
        "BATCH_NORM_EPSILON = 1e-3",
        checks.check_training_forward,
    ),
    "biased variance in the statistics": Mutation(
        model,
        "self.running_variance.assign(variance)",
        "self.running_variance.assign(0.9 * self.running_variance"
        " + 0.1 * tf.math.reduce_variance(inputs, [0, 1, 2]))",
        checks.check_training_forward,
    ),
    "stride on the first 1x1 convolution": Mutation(
        model,
        "(convolution(x, num_filters, 1, 1)))\n"
        "    x = layers.ReLU()(BatchNormalization()(convolution(x, num_filters, 3, stride)))",
        "(convolution(x, num_filters, 1, stride)))\n"
        "    x = layers.ReLU()(BatchNormalization()(convolution(x, num_filters, 3, 1)))",
        checks.check_training_forward,
    ),
    "max-pooling padded alike on both sides": Mutation(
        model,
        'layers.MaxPooling2D(3, 2, padding="same")(x)',
        "layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D(1)(x))",
        checks.check_training_forward,
    ),
    "strided convolutions padded below and to the right": Mutation(
        model,
        "x = layers.ZeroPadding2D((kernel - 1) // 2)(x)",
        "x = layers.ZeroPadding2D(((kernel // 2 - 1, kernel // 2),) * 2)(x)",
        checks.check_training_forward,
    ),
    "no ReLU after the addition": Mutation(
        model,
        "return layers.ReLU()(layers.Add()([x, shortcut]))",
        "return layers.Add()([x, shortcut])",
        checks.check_training_forward,
    ),
    # --- optimiser ---
    "Keras's momentum rule": Mutation(
        optimizer,
        "self.momentum * accumulator + gradient)\n"
        "        self.assign_sub(variable, learning_rate * accumulator)",
        "self.momentum * accumulator + learning_rate * gradient)\n"
        "        self.assign_sub(variable, accumulator)",
        checks.check_momentum,
    ),
    "Nesterov's momentum": Mutation(
        optimizer,
        "learning_rate * accumulator)",
        "learning_rate * (self.momentum * accumulator + gradient))",
        checks.check_momentum,
    ),
    "rate falls a step early": Mutation(
        optimizer, "step > self.boundaries", "step >= self.boundaries", checks.check_learning_rate
    ),
    "warm-up begins above 0": Mutation(
        optimizer,
        "tf.cast(step, tf.float32) /",
        "tf.cast(step + 1, tf.float32) /",
        checks.check_learning_rate,
    ),
    "whole batches of an epoch counted": Mutation(
        optimizer,
        "config.num_train_images / config.batch_size",
        "-(-config.num_train_images // config.batch_size)",
        checks.check_learning_rate,
    ),
    "rate whatever the batch": Mutation(
        optimizer,
        "config.base_learning_rate * config.batch_size / BASE_BATCH_SIZE",
        "config.base_learning_rate",
        checks.check_learning_rate,
    ),
    # --- images ---
    "TensorFlow 2's grid": Mutation(
        images,
        "size=[height, width])",
        "size=[height, width], half_pixel_centers=True)",
        checks.check_resize,
    ),
    "corners aligned": Mutation(
        images,
        "size=[height, width])",
        "size=[height, width], align_corners=True)",
        checks.check_resize,
    ),
    "means left in": Mutation(
        images, "image - tf.constant(CHANNEL_MEANS)", "image", checks.check_eval_images
    ),
    "blue first": Mutation(
        images,
        "image - tf.constant(CHANNEL_MEANS)",
        "image - tf.constant(CHANNEL_MEANS[::-1])",
        checks.check_eval_images,
    ),
    "divided by the deviation": Mutation(
        images,
        "image - tf.constant(CHANNEL_MEANS)",
        "(image - tf.constant(CHANNEL_MEANS)) / 58.0",
        checks.check_eval_images,
    ),
    "corner instead of centre": Mutation(
        images,
        "(height - config.train_size) // 2, (width - config.train_size) // 2",
        "0, 0",
        checks.check_eval_images,
    ),
    "longer side to 256": Mutation(
        images, "tf.reduce_min(sides)", "tf.reduce_max(sides)", checks.check_eval_images
    ),
    "always mirrored": Mutation(
        images,
        "tf.image.stateless_random_flip_left_right(image, flip_seed)",
        "tf.image.flip_left_right(image)",
        checks.check_mirroring,
    ),
    "mirrored by the crop's own numbers": Mutation(
        images,
        "stateless_random_flip_left_right(image, flip_seed)",
        "stateless_random_flip_left_right(image, seed)",
        checks.check_mirroring,
    ),
    "crops from a fifth of the image": Mutation(
        images,
        "area_range=(config.min_crop_area, 1.0)",
        "area_range=(4 * config.min_crop_area, 1.0)",
        checks.check_crops,
    ),
    "crops of less than a tenth": Mutation(
        images, "min_object_covered=0.1", "min_object_covered=0.0", checks.check_crops
    ),
    "no narrow crops": Mutation(
        images,
        "aspect_ratio_range=(config.min_crop_aspect, config.max_crop_aspect)",
        "aspect_ratio_range=(1.0, config.max_crop_aspect)",
        checks.check_crops,
    ),
    # --- order ---
    "label shifted by one": Mutation(
        data,
        'tf.cast(example["image/class/label"], tf.int32)',
        'tf.cast(example["image/class/label"], tf.int32) - 1',
        check_epoch_is_whole,
    ),
    "last batch dropped": Mutation(
        data,
        "dataset.batch(config.batch_size // num_processes())",
        "dataset.batch(config.batch_size // num_processes(), drop_remainder=True)",
        check_epoch_is_whole,
    ),
    "the same crops in every epoch": Mutation(
        data,
        'derive_seed(seed, "augmentation", epoch, bits=63)',
        'derive_seed(seed, "augmentation", bits=63)',
        training.check_augmentation,
    ),
    "seed without effect on the crops": Mutation(
        data,
        'derive_seed(seed, "augmentation", epoch, bits=63)',
        'derive_seed(1, "augmentation", epoch, bits=63)',
        training.check_augmentation,
    ),
    "the same crop for every image": Mutation(
        data,
        "tf.stack([augment_seed, place])",
        "tf.stack([augment_seed, 0 * place])",
        training.check_augmentation,
    ),
    "the same mixing in every epoch": Mutation(
        data,
        'derive_seed(seed, "shuffle", epoch, bits=63)',
        'derive_seed(seed, "shuffle", bits=63)',
        training.check_mixing,
    ),
    "shards read one after the other": Mutation(
        data, "SHARDS_AT_A_TIME = 16", "SHARDS_AT_A_TIME = 1", check_turns
    ),
    "shards in one order": Mutation(data, "if order_seed is not None:", "if False:", check_turns),
    "resumed epoch begun anew": Mutation(
        data, ".skip(first_step * config.batch_size)", ".skip(0)", check_skipping
    ),
    "whole batch in every process": Mutation(
        data, "return start + first <= place and place < start + last", "return True", check_shares
    ),
    # --- quality ---
    "right class wins ties": Mutation(
        evaluate,
        "(logits > right) | ((logits == right) & is_lower)",
        "(logits > right)",
        checks.check_hits,
    ),
    "top-2 for top-1": Mutation(evaluate, "(ranks < k)", "(ranks <= k)", checks.check_hits),
    "last batch not evaluated": Mutation(
        evaluate,
        "for images, labels in batches:",
        "for images, labels in list(batches)[:-1] or batches:",
        checks.check_evaluation,
    ),
    "mean over batches": Mutation(
        evaluate,
        'return {"top_1": top_1 / num_images',
        'num_images = len(list(batches)) * len(images)\n    return {"top_1": top_1 / num_images',
        checks.check_evaluation,
    ),
    # --- training ---
    "loss divided by the share": Mutation(
        train,
        "tf.reduce_sum(losses) / tf.cast(size, tf.float32)",
        "tf.reduce_mean(losses)",
        training.check_replicas,
    ),
    "loss divided by the replicas twice": Mutation(
        train,
        "tf.cast(size, tf.float32)",
        "tf.cast(size * num_replicas, tf.float32)",
        training.check_replicas,
    ),
    "L2 from each replica": Mutation(
        train, "tf.add_n(norms) / num_replicas", "tf.add_n(norms)", training.check_replicas
    ),
    "gradients left scaled": Mutation(
        train, "[gradient / scale for", "[gradient for", training.check_replicas
    ),
    "short batch divided by the full size": Mutation(
        train,
        "tf.cast(size, tf.float32)",
        "tf.cast(config.batch_size, tf.float32)",
        training.check_replicas,
    ),
    "L2 twice": Mutation(
        train, "tf.nn.l2_loss(v.value)", "2 * tf.nn.l2_loss(v.value)", training.check_replicas
    ),
    "trained with the running statistics": Mutation(
        train,
        "model(images, training=True)",
        "model(images, training=False)",
        training.check_replicas,
    ),
    "the first epoch's images in every epoch": Mutation(
        train,
        "options.seed, epoch, num_done)",
        "options.seed, 1, num_done)",
        check_steps,
    ),
    "warm-up left in the weights": Mutation(
        train, "        variable.assign(value)\n", "        pass\n", check_steps
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_wrong_science_is_caught(name, tmp_path):
    mutation = MUTATIONS[name]
    source = Path(str(mutation.module.__file__)).read_text()
    assert source.count(mutation.right) == 1, f"{mutation.right!r} stands not once: mend this test"
    changed = source.replace(mutation.right, mutation.wrong)
    with contextlib.ExitStack() as stack:
        training.put_into_place(mutation.module, changed, stack, tmp_path)
        with pytest.raises((AssertionError, UsageError)):  # the code itself refuses some
            mutation.check()


MODULES = sorted({mutation.module for mutation in MUTATIONS.values()}, key=lambda m: m.__name__)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_a_loaded_copy_of_the_right_source_passes(module, tmp_path):
    """It is the mutation that a check catches, not the way in which it is put into place."""
    source = Path(str(module.__file__)).read_text()
    with contextlib.ExitStack() as stack:
        training.put_into_place(module, source, stack, tmp_path)
        for check in {
            mutation.check for mutation in MUTATIONS.values() if mutation.module is module
        }:
            check()
