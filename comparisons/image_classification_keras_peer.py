"""One run of Keras in comparisons.image_classification: its ResNet50 and its image pipeline.

As Keras's documentation says: image_dataset_from_directory, then the augmentation mapped over its
batches; compile, then train_on_batch. Keras has no layer that crops at random to random sizes, so
the crops are tf.image.crop_and_resize, on photos that image_dataset_from_directory has brought to
its default of 256x256 pixels.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import keras
import tensorflow as tf
import tyro

from comparisons.image_classification_work import (
    CHANNEL_MEANS,
    CROP_AREA,
    CROP_ASPECT,
    LEARNING_RATE,
    MOMENTUM,
    Work,
    link_photos,
    measure_input,
    measure_steps,
    num_cores,
    print_result,
)


def main() -> None:
    """Measure and print the result."""
    work = tyro.cli(Work)
    # As the frame's environment variable says; only what is set here can be read back.
    tf.config.threading.set_intra_op_parallelism_threads(num_cores())
    keras.utils.set_random_seed(work.seed)
    with tempfile.TemporaryDirectory() as folder:
        dataset = keras.utils.image_dataset_from_directory(
            link_photos(work, Path(folder)), batch_size=work.input_batch_size, verbose=False
        )
        num_images = len(dataset.file_paths)
        batches = iter(augmented(dataset, work))
        input_images_per_s, last_images = measure_input(batches, work)
        del batches  # its threads would work on beside the training

    model = keras.applications.ResNet50(
        weights=None,
        input_shape=(work.image_size, work.image_size, 3),
        classes=work.num_classes,
    )
    optimizer = keras.optimizers.SGD(LEARNING_RATE, momentum=MOMENTUM)
    model.compile(optimizer, loss="sparse_categorical_crossentropy")
    shape = (work.batch_size, work.image_size, work.image_size, 3)
    images = tf.random.normal(shape)
    labels = tf.random.uniform(shape[:1], 1, work.num_classes, tf.int32)
    train_images_per_s, details = measure_steps(
        lambda: float(model.train_on_batch(images, labels)), work
    )

    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    num_biases = sum(layer.filters for layer in convolutions if layer.use_bias)
    num_trained = sum(math.prod(variable.shape) for variable in model.trainable_variables)
    print_result(
        train_images_per_s,
        input_images_per_s,
        None,
        facts={
            "precision": images.dtype.name,
            "batch_size": len(images),
            "image_size": images.shape[1],
            "num_classes": model.output_shape[-1],
            "num_parameters": num_trained - num_biases,  # the others have none before batch norm
            "momentum": optimizer.momentum,
            "num_threads": tf.config.threading.get_intra_op_parallelism_threads(),
            "input_batch_size": len(last_images),
            "input_image_size": last_images.shape[1],
            "num_input_batches": work.num_input_batches,
            "num_images": num_images,
            "crop_area": CROP_AREA,
            "crop_aspect": CROP_ASPECT,
            "channel_means": CHANNEL_MEANS,
        },
        details={
            **details,
            "num_convolution_biases": num_biases,
            "pixel_mean": float(tf.reduce_mean(last_images)),
            "pixel_deviation": float(tf.math.reduce_std(last_images)),
        },
    )


def augmented(dataset: tf.data.Dataset, work: Work) -> tf.data.Dataset:
    """Batches of random crops of one size, half of them mirrored, less the channels' means."""
    flip = keras.layers.RandomFlip("horizontal", seed=work.seed)
    subtract_means = keras.layers.Rescaling(1.0, offset=[-mean for mean in CHANNEL_MEANS])

    def augment(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return subtract_means(flip(random_crops(images, work.image_size), training=True)), labels

    return dataset.map(augment, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def random_crops(images: tf.Tensor, size: int) -> tf.Tensor:
    """[B, H, W, 3] -> [B, size, size, 3]: of each image a part of random area, aspect and place."""
    num_images = tf.shape(images)[0]
    shape = (num_images,)
    area = tf.random.uniform(shape, *CROP_AREA)
    aspect = tf.exp(tf.random.uniform(shape, *map(math.log, CROP_ASPECT)))
    height = tf.minimum(tf.sqrt(area / aspect), 1.0)
    width = tf.minimum(tf.sqrt(area * aspect), 1.0)
    top = tf.random.uniform(shape) * (1.0 - height)
    left = tf.random.uniform(shape) * (1.0 - width)
    boxes = tf.stack([top, left, top + height, left + width], axis=-1)
    return tf.image.crop_and_resize(images, boxes, tf.range(num_images), (size, size))


if __name__ == "__main__":
    main()
