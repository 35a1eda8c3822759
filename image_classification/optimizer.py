"""TensorFlow 1's momentum rule, and v0.5's learning rate."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy
import tensorflow as tf

from image_classification.config import BASE_BATCH_SIZE, Config


class Momentum(keras.optimizers.Optimizer):
    """Accumulates gradients, and multiplies by the rate what has accumulated.

        accumulator = momentum * accumulator + gradient
        weight = weight - learning_rate * accumulator

    Keras's SGD accumulates gradients times rate, which is another rule once the rate changes.
    """

    def __init__(self, learning_rate: LearningRate, momentum: float) -> None:
        super().__init__(learning_rate=learning_rate, name="momentum")
        self.momentum = momentum

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Make the accumulators."""
        super().build(variables)
        self.accumulators = [
            self.add_variable_from_reference(variable, name="accumulator") for variable in variables
        ]

    def update_step(
        self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor
    ) -> None:
        """Update one variable."""
        accumulator = self.accumulators[self._get_variable_index(variable)]
        self.assign(accumulator, self.momentum * accumulator + gradient)
        self.assign_sub(variable, learning_rate * accumulator)


class LearningRate(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up from 0, then a tenth of the rate after each boundary.

    Steps count from 0, and the first has the rate 0. A boundary's own step still has the rate
    before it (tf.compat.v1.train.piecewise_constant).
    """

    def __init__(self, config: Config) -> None:
        batches_per_epoch = config.num_train_images / config.batch_size
        self.peak = config.base_learning_rate * config.batch_size / BASE_BATCH_SIZE
        self.num_warmup_steps = int(config.warmup_epochs * batches_per_epoch)
        boundaries = [int(batches_per_epoch * epoch) for epoch in config.decay_epochs]
        self.boundaries = numpy.array(boundaries, numpy.int64)

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """The rate of a step, float32."""
        step = tf.cast(step, tf.int64)
        num_passed = tf.reduce_sum(tf.cast(step > self.boundaries, tf.int32))
        rates = tf.constant([self.peak * 0.1**n for n in range(len(self.boundaries) + 1)])
        warming = self.peak * tf.cast(step, tf.float32) / max(1, self.num_warmup_steps)
        return tf.where(step < self.num_warmup_steps, warming, rates[num_passed])
