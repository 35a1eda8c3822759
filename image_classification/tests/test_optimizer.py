"""The rule and its rate, beside TensorFlow 1's, torch's and the specification's numbers."""

from __future__ import annotations

import dataclasses

import keras
import numpy
import pytest
import tensorflow as tf

from image_classification import optimizer
from image_classification.config import MINI, REFERENCE, TINY
from image_classification.tests import checks
from image_classification.tests.oracles import plain_learning_rate


def test_the_rule_is_tensorflow_1s():
    checks.check_momentum()


def test_the_rate_at_every_corner():
    checks.check_learning_rate()


@pytest.mark.parametrize("config", [MINI, TINY], ids=lambda config: config.preset)
def test_every_rate_of_a_small_preset(config):
    rate = optimizer.LearningRate(config)
    num_steps = int(config.max_epochs * config.num_train_images / config.batch_size)
    found = rate_of_steps(rate, num_steps)
    recipe = (
        config.batch_size,
        config.num_train_images,
        config.base_learning_rate,
        config.warmup_epochs,
        config.decay_epochs,
    )
    plain = [plain_learning_rate(step, *recipe) for step in range(num_steps)]
    numpy.testing.assert_allclose(found, plain, rtol=3e-7)
    assert len({round(rate, 9) for rate in plain[rate_warmup(config) :]}) == 1 + len(
        config.decay_epochs
    )


def rate_warmup(config):
    return optimizer.LearningRate(config).num_warmup_steps


def rate_of_steps(rate, num_steps):
    """The rates of all steps, as the compiled training step works them out."""
    one = tf.function(rate)
    return [float(one(tf.constant(step, tf.int64))) for step in range(num_steps)]


def test_without_warm_up_the_first_step_has_the_peak():
    rate = optimizer.LearningRate(dataclasses.replace(REFERENCE, warmup_epochs=0))
    assert float(rate(tf.constant(0, tf.int64))) == pytest.approx(0.032)


def test_without_boundaries_the_rate_stays():
    rate = optimizer.LearningRate(dataclasses.replace(REFERENCE, decay_epochs=()))
    assert float(rate(tf.constant(5_000_000, tf.int64))) == pytest.approx(0.032)


def test_the_rate_grows_with_the_batch():
    peaks = [
        optimizer.LearningRate(dataclasses.replace(REFERENCE, batch_size=size)).peak
        for size in (64, 256, 1024)
    ]
    assert peaks == pytest.approx([0.032, 0.128, 0.512])


def test_each_variable_has_an_accumulator_of_its_own():
    """Two variables of one shape, as most of the network's have a twin."""
    variables = [keras.Variable(numpy.zeros(3, numpy.float32)) for _ in range(2)]
    rule = optimizer.Momentum(
        optimizer.LearningRate(dataclasses.replace(checks.CHANGING, warmup_epochs=0)), 0.9
    )
    rule.build(variables)
    for _ in range(2):
        rule.apply([tf.ones(3), -tf.ones(3)], variables)
    first, second = (variable.numpy() for variable in variables)
    numpy.testing.assert_allclose(first, -0.032 * (1 + 1.9) * numpy.ones(3), rtol=1e-6)
    numpy.testing.assert_array_equal(first, -second)
    assert int(rule.iterations) == 2
    state = [variable.numpy().ravel().tolist() for variable in rule.variables]
    numpy.testing.assert_allclose(state[-2:], [[1.9] * 3, [-1.9] * 3], rtol=1e-6)
