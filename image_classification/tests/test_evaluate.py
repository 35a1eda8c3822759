"""Top-1 and top-5: beside plain ones and Keras's, over any batches."""

from __future__ import annotations

import dataclasses

import numpy
import pytest
import tensorflow as tf

from harness.errors import UsageError
from image_classification import data, evaluate
from image_classification.config import TINY
from image_classification.tests import checks
from image_classification.tests.oracles import plain_hits


def test_the_plain_metric_on_cases_done_by_hand():
    logits = numpy.array([[0, 3, 1, 2, 1, 1, 1], [5, 5, 5, 5, 5, 5, 5]], numpy.float32)
    assert [plain_hits(logits, labels, 1) for labels in ([1, 0], [3, 1])] == [2, 0]
    # The second row's order is that of the numbers; in the first 1, 3, 2, 4, 5 lead.
    assert [plain_hits(logits, labels, 5) for labels in ([5, 4], [6, 5], [0, 4])] == [2, 0, 1]


def test_hits_equal_the_plain_ones():
    checks.check_hits()


def test_top_1_is_where_argmax_points():
    logits, labels = checks.tied_logits(5, 3)
    found = evaluate.count_hits(tf.constant(logits), tf.constant(labels)).numpy()
    assert found[1] == (logits.argmax(axis=1) == labels).sum() > 0
    assert found[1] == (tf.argmax(logits, axis=1).numpy() == labels).sum()


def test_quality_is_over_all_images_whatever_the_batch():
    checks.check_evaluation()


def test_a_constant_model_scores_nothing():
    checks.check_constant_model_scores_nothing()


def test_one_logit_that_is_not_a_number_makes_a_miss():
    logits = numpy.zeros((3, 11), numpy.float32)
    logits[:, 4] = 1
    logits[1, 4] = logits[2, 10] = numpy.nan
    found = evaluate.count_hits(tf.constant(logits), tf.constant([4, 4, 4])).numpy()
    assert found.tolist() == [3, 1, 1]


def test_sixteen_bit_logits_never_come():
    """The network's output is float32 under every precision; a tie in bfloat16 would be a hit."""
    logits = tf.constant([[1.0, 1.001]])
    assert evaluate.count_hits(logits, tf.constant([0])).numpy().tolist() == [1, 0, 1]
    low = tf.cast(logits, tf.bfloat16)
    assert evaluate.count_hits(low, tf.constant([0])).numpy().tolist() == [1, 1, 1]


@pytest.mark.parametrize("batch_size", [16, 50])
def test_a_network_is_evaluated_as_its_logits_say(batch_size):
    """The whole path on made-up images: pipeline, network, metric, against the plain metric."""
    made_up = data.make_up(TINY, "validation", TINY.num_eval_images)
    network = checks.make_network(TINY)
    config = dataclasses.replace(TINY, batch_size=batch_size)
    batches = list(data.eval_batches(made_up, config))
    logits = numpy.concatenate([network(pixels, training=False) for pixels, _ in batches])
    labels = numpy.concatenate([labels for _, labels in batches]).tolist()
    assert len(labels) == 50 and set(labels) == {1, 2, 3, 4}
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    eval_step = evaluate.make_eval_step(network, strategy)
    batches = data.eval_batches(made_up, config)
    quality = evaluate.evaluate(eval_step, strategy, batches, made_up.num_images)
    assert quality == {"top_1": plain_hits(logits, labels, 1) / 50, "top_5": 1.0}
    assert 0 < quality["top_1"] < 1


def test_images_that_are_missing_are_no_smaller_test():
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    batches = [(tf.zeros((4, 1, 1, 3)), tf.ones(4, tf.int32))]
    eval_step = evaluate.make_eval_step(checks.TableModel(numpy.zeros((1, 5))), strategy)
    with pytest.raises(UsageError, match="4 images were evaluated, not 5; check the data"):
        evaluate.evaluate(eval_step, strategy, batches, 5)
