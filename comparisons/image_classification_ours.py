"""One run of our side of comparisons.image_classification: pipeline, steps, and both together.

    .venv/bin/python -m comparisons.image_classification_ours --photos FOLDER --seed 1

It calls what image_classification.train calls, in the reference configuration. The shards are
written off the clock, by the converter of image_classification.prepare.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path

# First: it imports TensorFlow without its start-up notes.
from harness import tensorflow_support  # isort: split

import tensorflow as tf
import tyro

from comparisons.image_classification_work import (
    NUM_WARM_UP_STEPS,
    Work,
    measure_input,
    measure_steps,
    print_result,
)
from harness.options import RunOptions
from image_classification import data
from image_classification.config import CHANNEL_MEANS, REFERENCE, Config
from image_classification.model import resnet
from image_classification.optimizer import LearningRate, Momentum
from image_classification.prepare import write_shard
from image_classification.sources import Source
from image_classification.train import Step, make_train_step

NUM_WAITING_STEPS = 3
"""Steps whose wait for a batch of photos is measured, after the first."""


def main() -> None:
    """Measure and print the result."""
    work = tyro.cli(Work)
    options = RunOptions(seed=work.seed, device="cpu")
    strategy = tensorflow_support.set_up(options)
    config = dataclasses.replace(REFERENCE, train_size=work.image_size, batch_size=work.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        images = write_photos(work, Path(folder))
        alone = dataclasses.replace(config, batch_size=work.input_batch_size)
        batches = iter(data.train_batches(images, alone, work.seed, 1, 0))
        input_images_per_s, last_images = measure_input(batches, work)
        del batches  # its threads would work on beside the training

        model = resnet(
            config.num_classes,
            config.num_blocks,
            config.num_filters,
            config.stem_kernel,
            config.stem_stride,
            config.train_size,
        )
        optimizer = Momentum(LearningRate(config), config.momentum)
        optimizer.build(model.trainable_variables)
        train_step = make_train_step(model, optimizer, strategy, config, options)

        shape = (config.batch_size, config.train_size, config.train_size, 3)
        made_up = tf.random.normal(shape)
        labels = tf.random.uniform(shape[:1], 1, config.num_classes, tf.int32)
        train_images_per_s, details = measure_steps(
            lambda: step_once(train_step, made_up, labels), work
        )
        wait_percent, waits_s = measure_wait(train_step, images, config, work)

    print_result(
        train_images_per_s,
        input_images_per_s,
        wait_percent,
        facts={
            "precision": made_up.dtype.name,
            "batch_size": len(made_up),
            "image_size": made_up.shape[1],
            "num_classes": model.output_shape[-1],
            "num_parameters": sum(v.numpy().size for v in model.trainable_variables),
            "momentum": optimizer.momentum,
            "num_threads": tf.config.threading.get_intra_op_parallelism_threads(),
            "input_batch_size": len(last_images),
            "input_image_size": last_images.shape[1],
            "num_input_batches": work.num_input_batches,
            "num_images": images.num_images,
            "crop_area": [config.min_crop_area, 1.0],
            "crop_aspect": [config.min_crop_aspect, config.max_crop_aspect],
            "channel_means": CHANNEL_MEANS,
        },
        details={
            **details,
            "waits_s": waits_s,
            "pixel_mean": float(tf.reduce_mean(last_images)),
            "pixel_deviation": float(tf.math.reduce_std(last_images)),
        },
    )


def write_photos(work: Work, folder: Path) -> data.Images:
    """A shard of all photos, which is read as often as each photo is needed."""
    shard = folder / "train-00000-of-00001"
    photos = work.find_photos()
    synsets = sorted({photo.parent.name for photo in photos})
    sources = [
        Source(
            label=1 + synsets.index(photo.parent.name),
            synset=photo.parent.name,
            filename=photo.name,
            path=photo,
            size_bytes=photo.stat().st_size,
        )
        for photo in photos
    ]
    write_shard(shard, sources)
    return data.Images(len(photos) * work.num_copies(), (str(shard),) * work.num_copies())


def step_once(train_step: Step, images: tf.Tensor, labels: tf.Tensor) -> float:
    """One step as the loop of train.py makes it on a CPU, where it looks at each loss."""
    losses = train_step(images, labels, tf.constant(len(images)), tf.constant(False))
    return float(losses.numpy()[0])


def measure_wait(
    train_step: Step, images: data.Images, config: Config, work: Work
) -> tuple[float, list[float]]:
    """Seconds in which steps wait for their photos, in per cent of the whole loop, and each."""
    batches = iter(data.train_batches(images, config, work.seed, 2, 0))
    waits_s, steps_s = [], []
    for _ in range(NUM_WARM_UP_STEPS + NUM_WAITING_STEPS):
        start_s = time.perf_counter()
        photos, labels = next(batches)
        waits_s.append(time.perf_counter() - start_s)
        step_once(train_step, photos, labels)
        steps_s.append(time.perf_counter() - start_s)
    num_left_out = NUM_WARM_UP_STEPS
    return 100 * sum(waits_s[num_left_out:]) / sum(steps_s[num_left_out:]), waits_s


if __name__ == "__main__":
    main()
