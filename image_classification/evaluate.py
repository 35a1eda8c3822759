"""Top-1 and top-5 accuracy: is the right class the likeliest, or among the five likeliest?"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import keras
import numpy
import tensorflow as tf

from harness import tensorflow_support
from harness.errors import UsageError


def count_hits(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Logits [N, C], labels [N] -> [3] int64: images, top-1 hits, top-5 hits.

    Where classes tie with the right one, the lower number is the likelier (as argmax has it). A
    logit that is not a number makes its image a miss.
    """
    right = tf.gather(logits, labels, batch_dims=1)[:, tf.newaxis]  # [N, 1]
    is_lower = tf.range(tf.shape(logits)[1]) < labels[:, tf.newaxis]  # [N, C]
    is_ahead = (logits > right) | ((logits == right) & is_lower)
    ranks = tf.reduce_sum(tf.cast(is_ahead, tf.int64), axis=1)
    is_number = ~tf.reduce_any(tf.math.is_nan(logits), axis=1)
    hits = [tf.math.count_nonzero((ranks < k) & is_number) for k in (1, 5)]
    return tf.stack([tf.size(labels, tf.int64), *hits])


def make_eval_step(
    model: keras.Model, strategy: tf.distribute.Strategy
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """A compiled function: this process's images and labels -> [3] counts over its replicas."""

    @tf.function(reduce_retracing=True)
    def eval_step(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        return strategy.run(
            lambda x, y: count_hits(model(x, training=False), y), args=(images, labels)
        )

    return eval_step


def evaluate(
    eval_step: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    strategy: tf.distribute.Strategy,
    batches: Iterable[tuple[tf.Tensor, tf.Tensor]],
    num_images: int,
) -> dict[str, float]:
    """Accuracies over all images of all processes, each image once.

    Raises UsageError where the batches do not hold `num_images`.
    """
    counts = numpy.zeros(3, numpy.int64)
    for images, labels in batches:
        found = eval_step(*tensorflow_support.split(strategy, images, labels))
        counts += strategy.reduce(tf.distribute.ReduceOp.SUM, found, axis=None).numpy()
    num_seen, top_1, top_5 = counts.tolist()
    if num_seen != num_images:
        cause = f"{num_seen:,} images were evaluated, not {num_images:,}"
        raise UsageError(f"{cause}; check the data with verify_dataset.sh")
    return {"top_1": top_1 / num_images, "top_5": top_5 / num_images}
