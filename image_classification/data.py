"""From shards to batches with tf.data: order and augmentation are functions of the seed alone.

The order of an epoch is decided by (seed, epoch): the shards are shuffled, read sixteen at a time
in turn, and mixed in a buffer. An image's crop is decided by (seed, epoch, its place in that
order). Neither depends on how many threads work, and a resumed run skips what is done without
decoding it.

Shapes: B images of a process's share of a batch, S the side that the network sees.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy
import tensorflow as tf

from harness.errors import UsageError
from harness.options import RunOptions
from harness.processes import num_processes, share
from harness.seeds import derive_seed
from harness.system import num_cores
from image_classification.config import CONVERSION_SEED, Config
from image_classification.images import eval_image, train_image
from image_classification.prepare import is_prepared, make_example, missing_files
from image_classification.sources import encode_jpeg

SHARDS_AT_A_TIME = 16
"""Shards that are read in turn, a record of each."""


@dataclass(frozen=True)
class Images:
    """One split: the records of shards, or made-up ones."""

    num_images: int
    shards: tuple[str, ...] = ()
    made_up: tuple[bytes, ...] = ()
    """Serialised examples, used again and again where there are fewer than num_images."""
    num_threads: int = 0
    """Threads that read, decode and augment; 0: one for each core."""

    def records(self, order_seed: int | None) -> tf.data.Dataset:
        """Serialised examples, shard by shard; with a seed the shards come in another order."""
        if self.made_up:
            return (
                tf.data.Dataset.from_tensor_slices(list(self.made_up))
                .repeat()
                .take(self.num_images)
            )
        shards = numpy.asarray(self.shards)
        if order_seed is not None:
            shards = numpy.random.Generator(numpy.random.PCG64(order_seed)).permutation(shards)
        return tf.data.Dataset.from_tensor_slices(shards).interleave(
            lambda name: tf.data.TFRecordDataset(name, buffer_size=1 << 20),
            cycle_length=SHARDS_AT_A_TIME,
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )


def check_files(config: Config, options: RunOptions) -> None:
    """Raises UsageError where the data set is not there or not prepared. Reads no image."""
    if _is_made_up(config, options) or is_prepared(config, options.data_dir):
        return
    if missing := missing_files(config, options.data_dir):
        cause = f"{options.data_dir} lacks {', '.join(missing)}"
        raise UsageError(f"{cause}; run image_classification/download_dataset.sh {config.preset}")
    command = f"python -m image_classification.prepare {config.preset}"
    raise UsageError(f"{options.data_dir} is not prepared; run {command}")


def load(config: Config, options: RunOptions) -> tuple[Images, Images]:
    """The training and the validation set. No image is read yet."""
    counts = {"train": config.num_train_images, "validation": config.num_eval_images}
    if _is_made_up(config, options):
        train, validation = (make_up(config, split, count) for split, count in counts.items())
    else:
        folder = options.data_dir / "prepared"
        train, validation = (
            Images(count, tuple(map(str, sorted(folder.glob(f"{split}-*-of-*")))))
            for split, count in counts.items()
        )
    num_threads = options.num_workers
    return (
        dataclasses.replace(train, num_threads=num_threads),
        dataclasses.replace(validation, num_threads=num_threads),
    )


def _is_made_up(config: Config, options: RunOptions) -> bool:
    return options.synthetic_data or config.dataset == "made-up"


def make_up(config: Config, split: str, num_images: int) -> Images:
    """Made-up images: each class has its own colours and stripes, under noise.

    Up to 256 different ones of 320 x 384 pixels in the reference configuration (of ImageNet's
    classes the 100 photos that were at hand have 0.17 megapixels on average). Pixels are whole
    numbers from a fixed stream, so that they are the same everywhere.
    """
    height, width = config.eval_resize * 5 // 4, config.eval_resize * 3 // 2
    stream = numpy.random.RandomState(CONVERSION_SEED + (split == "validation"))
    examples = []
    for number in range(min(num_images, 256)):
        label = 1 + number % (config.num_classes - 1)
        colour = numpy.asarray([label * factor % 7 * 30 + 20 for factor in (1, 3, 5)])
        stripes = numpy.arange(width)[:, None] // (2 + label % 5) % 2 * 30
        noise = stream.randint(0, 24, size=(height, width, 3))
        pixels = (colour + stripes + noise).astype(numpy.uint8)
        examples.append(make_example(encode_jpeg(pixels), label, f"{split} {number}"))
    return Images(num_images, made_up=tuple(examples))


def check_batches(config: Config, num_replicas: int) -> None:
    """Raises UsageError where a replica would find a batch without an image for it."""
    counts = (config.batch_size, config.num_train_images, config.num_eval_images)
    lasts = [count % config.batch_size or config.batch_size for count in counts]
    if config.batch_size % num_replicas or min(lasts) < num_replicas:
        cause = f"batches of {config.batch_size} and at last {min(lasts)} images cannot be cut"
        raise UsageError(f"{cause} into {num_replicas} parts; give another --batch-size")


def num_steps(config: Config) -> int:
    """Steps of an epoch; the last batch may be smaller."""
    return math.ceil(config.num_train_images / config.batch_size)


def train_batches(
    images: Images, config: Config, seed: int, epoch: int, first_step: int
) -> tf.data.Dataset:
    """This process's share of each batch of an epoch: images [B, S, S, 3], labels [B] int32.

    Begins at `first_step` of the epoch.
    """
    augment_seed = derive_seed(seed, "augmentation", epoch, bits=63)

    def decode(place: tf.Tensor, record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        encoded, label = parse(record)
        return train_image(encoded, tf.stack([augment_seed, place]), config), label

    records = images.records(derive_seed(seed, "shards", epoch, bits=63))
    records = records.shuffle(
        config.shuffle_buffer,
        seed=derive_seed(seed, "shuffle", epoch, bits=63),
        reshuffle_each_iteration=False,
    )
    numbered = records.enumerate().skip(first_step * config.batch_size)
    return _batches(numbered, decode, config, images)


def eval_batches(images: Images, config: Config) -> tf.data.Dataset:
    """This process's share of the validation set, each image once: images, labels."""

    def decode(_: tf.Tensor, record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        encoded, label = parse(record)
        return eval_image(encoded, config), label

    return _batches(images.records(None).enumerate(), decode, config, images)


def parse(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """A serialised example -> JPEG bytes, label (int32)."""
    features = {
        "image/encoded": tf.io.FixedLenFeature([], tf.string),
        "image/class/label": tf.io.FixedLenFeature([], tf.int64),
    }
    example = tf.io.parse_single_example(record, features)
    return example["image/encoded"], tf.cast(example["image/class/label"], tf.int32)


def _batches(
    numbered: tf.data.Dataset, decode: object, config: Config, images: Images
) -> tf.data.Dataset:
    if num_processes() > 1:

        def is_mine(place: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
            start = place // config.batch_size * config.batch_size
            size = tf.minimum(images.num_images - start, config.batch_size)
            first, last = share(size)
            return start + first <= place and place < start + last

        numbered = numbered.filter(is_mine)
    dataset = numbered.map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    dataset = dataset.batch(config.batch_size // num_processes()).prefetch(tf.data.AUTOTUNE)
    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = images.num_threads or num_cores()
    return dataset.with_options(options)
