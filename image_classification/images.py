"""From JPEG bytes to what the network sees: v0.5's crops, TensorFlow 1's resize, channel means."""

from __future__ import annotations

import tensorflow as tf

from image_classification.config import CHANNEL_MEANS, Config


def resize(image: tf.Tensor, height: tf.Tensor | int, width: tf.Tensor | int) -> tf.Tensor:
    """Bilinear on TensorFlow 1's grid: [H, W, 3] uint8 -> [height, width, 3] float32.

    Pixel i of the result lies at i * H / height of the image, not at (i + 0.5) * H / height - 0.5
    as in TensorFlow 2.
    """
    return tf.raw_ops.ResizeBilinear(images=image[tf.newaxis], size=[height, width])[0]


def train_image(encoded: tf.Tensor, seed: tf.Tensor, config: Config) -> tf.Tensor:
    """A random crop, perhaps mirrored, of one size: JPEG bytes -> [S, S, 3] float32.

    seed: two integers that decide crop and mirroring. Only the crop is decoded.
    """
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.image.extract_jpeg_shape(encoded),
        bounding_boxes=tf.zeros((1, 0, 4)),
        seed=seed,
        min_object_covered=0.1,
        aspect_ratio_range=(config.min_crop_aspect, config.max_crop_aspect),
        area_range=(config.min_crop_area, 1.0),
        max_attempts=100,
        use_image_if_no_bounding_boxes=True,
    )
    window = tf.concat([begin[:2], size[:2]], axis=0)
    image = tf.image.decode_and_crop_jpeg(encoded, window, channels=3)
    if config.random_flip:
        # With the crop's seed both would draw the same numbers, and the narrow crops be mirrored.
        flip_seed = tf.random.fold_in(seed, tf.ones((), seed.dtype))
        image = tf.image.stateless_random_flip_left_right(image, flip_seed)
    image = resize(image, config.train_size, config.train_size)
    return subtract_means(image)


def eval_image(encoded: tf.Tensor, config: Config) -> tf.Tensor:
    """The centre of the image: JPEG bytes -> [S, S, 3] float32.

    The shorter side becomes `eval_resize` pixels, the longer keeps the ratio, rounded down.
    """
    image = tf.io.decode_jpeg(encoded, channels=3)
    sides = tf.cast(tf.shape(image)[:2], tf.float32)
    sides = tf.cast(sides * (config.eval_resize / tf.reduce_min(sides)), tf.int32)
    # Rounding may leave the shorter side a pixel less than eval_resize, which train_size may equal.
    height, width = tf.unstack(tf.maximum(sides, config.train_size))
    image = resize(image, height, width)
    top, left = (height - config.train_size) // 2, (width - config.train_size) // 2
    image = image[top : top + config.train_size, left : left + config.train_size]
    return subtract_means(image)


def subtract_means(image: tf.Tensor) -> tf.Tensor:
    """Pixels 0 to 255 -> about -124 to 151."""
    return image - tf.constant(CHANNEL_MEANS)
