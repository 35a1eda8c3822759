"""One run of Keras in comparisons.sentiment_analysis: v0.5's network over padded batches.

A subclassed model and a training step in tf.function, compiled once for batches of any length.
Reviews are padded to the longest of their batch: zeros are what the convolutions see there, and no
place of the padding can be the largest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras
import numpy
import tensorflow as tf

from comparisons.sentiment_analysis_work import (
    BETA_1,
    BETA_2,
    EPSILON,
    LEARNING_RATE,
    NUM_CLASSES,
    NUM_THREADS,
    WIDTHS,
    Batch,
    FloatArray,
    Work,
    draw_weights,
    measure,
    parse_arguments,
)

LEFT, RIGHT = 2, 1
"""Words that width 4 sees beside its own; width 3 sees one less to the left."""


def main() -> None:
    """Measure and print the result."""
    work = parse_arguments()
    # As the frame's environment variable says; only what is set here can be read back.
    tf.config.threading.set_intra_op_parallelism_threads(NUM_THREADS)
    model = build(work)
    optimizer = keras.optimizers.Adam(LEARNING_RATE, BETA_1, BETA_2, EPSILON)
    optimizer.build(model.trainable_variables)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    tokens_like = tf.TensorSpec([None, None], tf.int32)
    numbers_like = tf.TensorSpec([None], tf.int32)

    @tf.function(input_signature=[tokens_like, numbers_like, numbers_like])
    def train(tokens: tf.Tensor, lengths: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = loss_of(labels, model(tokens, lengths, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        # The embedding's is a row for each token; with those the next loss is not the others'.
        gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    @tf.function(input_signature=[tokens_like, numbers_like])
    def predict(tokens: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        return model(tokens, lengths, training=False)

    def step(batch: Batch) -> float:
        return float(train(*padded(batch), batch.labels.astype(numpy.int32)))

    def answer(batches: Sequence[Batch]) -> FloatArray:
        logits = numpy.concatenate([predict(*padded(batch)).numpy() for batch in batches])
        return logits[:, 0] - logits[:, 1]

    measure(
        work,
        step=step,
        answer=answer,
        facts={
            "num_words": model.embedding.input_dim,
            "embedding_size": model.embedding.output_dim,
            "num_filters": [layer.filters for layer in model.convolutions],
            "filter_widths": [layer.kernel_size[0] for layer in model.convolutions],
            "num_parameters": sum(
                math.prod(weights.shape) for weights in model.trainable_variables
            ),
            "learning_rate": LEARNING_RATE,
            "adam_betas": [optimizer.beta_1, optimizer.beta_2],
            "adam_epsilon": optimizer.epsilon,
            "num_threads": tf.config.threading.get_intra_op_parallelism_threads(),
        },
    )


class SequenceCNN(keras.Model):
    """v0.5's network for padded reviews."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.embedding = keras.layers.Embedding(work.num_words, work.embedding_size)
        self.surround = keras.layers.ZeroPadding1D((LEFT, RIGHT))
        self.convolutions = [
            keras.layers.Conv1D(work.num_filters, width, padding="valid", activation="elu")
            for width in WIDTHS
        ]
        self.output_layer = keras.layers.Dense(NUM_CLASSES)

    def call(self, tokens: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        """Logits [N, 2] of reviews [N, L], padded behind their lengths [N]."""
        is_word = tf.sequence_mask(lengths, tf.shape(tokens)[1])[..., None]  # [N, L, 1]
        embedded = self.embedding(tokens) * tf.cast(is_word, tf.float32)
        surrounded = self.surround(embedded)  # [N, LEFT + L + RIGHT, E]
        pooled = []
        for width, convolution in zip(WIDTHS, self.convolutions, strict=True):
            first = LEFT - width // 2
            values = convolution(surrounded[:, first:] if first else surrounded)  # [N, L, H]
            pooled.append(tf.reduce_max(tf.where(is_word, values, -math.inf), axis=1))
        return self.output_layer(tf.concat(pooled, axis=1))


def build(work: Work) -> SequenceCNN:
    """The network with the weights that all programs start from."""
    drawn = draw_weights(work)
    model = SequenceCNN(work)
    model(numpy.zeros((1, 4), numpy.int32), numpy.array([4], numpy.int32))  # makes its weights
    model.embedding.set_weights([drawn.embedding])
    for convolution, matrix, bias in zip(
        model.convolutions, drawn.filters, drawn.filter_biases, strict=True
    ):
        shape = (*convolution.kernel_size, work.embedding_size, work.num_filters)
        convolution.set_weights([matrix.reshape(shape), bias])
    model.output_layer.set_weights([numpy.concatenate(drawn.output), drawn.output_bias])
    return model


def padded(batch: Batch) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Reviews [N, L] int32, padded with zeros to the longest, and their lengths [N] int32."""
    lengths = numpy.array([len(text) for text in batch.texts], numpy.int32)
    tokens = numpy.zeros((len(lengths), lengths.max()), numpy.int32)
    for row, text in zip(tokens, batch.texts, strict=True):
        row[: len(text)] = text
    return tokens, lengths


if __name__ == "__main__":
    main()
