"""Training: the loop of train.py, step by step in float64, beside an independent one in PyTorch."""

from __future__ import annotations

import numpy
import pytest
import tensorflow as tf
import torch

from image_classification.tests import training


@pytest.fixture(autouse=True)
def torch_threads():
    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(num_threads)


def test_100_steps_equal_the_independent_loop():
    """Fourteen epochs: warm-up, two falls of the rate, eleven short batches.

    Loss, gradient norm, weights and running statistics at each step, to 1e-6 relative: the rates
    themselves are float32.
    """
    differences = training.check_trajectory(num_steps=100, bound=1e-6)
    print("largest differences of loss, gradient norm, weights, statistics:", differences)


def test_the_rates_of_100_steps_change_twice():
    """So that the trajectory crosses each boundary."""
    plain = training.PlainTraining(training.SMALL, *first_values())
    rates = []
    for _ in range(100):
        rates.append(plain.rate())
        plain.num_steps += 1
    peak = 0.2 * 16 / 256
    assert rates[:7] == pytest.approx([peak * step / 6 for step in range(7)])
    changes = [step for step in range(7, 100) if rates[step] != rates[step - 1]]
    assert changes == [27, 59]  # the steps after 4 and 9 epochs of six and a half batches
    assert [rates[27], rates[59]] == pytest.approx([peak / 10, peak / 100])


def first_values():
    network = training.PlainResNet(training.SMALL)
    return training.arrays(network.trained()), training.arrays(network.statistics())


def test_the_definition_of_batch_normalisation_is_the_kernels():
    """In float32, in training and in evaluation: outputs, and statistics afterwards."""
    stream = numpy.random.RandomState(0)
    x = stream.normal(3, 2, size=(4, 5, 6, 7)).astype(numpy.float32)
    scale, offset, mean = stream.normal(size=(3, 7)).astype(numpy.float32)
    variance = stream.uniform(0.5, 2, 7).astype(numpy.float32)
    for is_training in (True, False):
        options = {
            "epsilon": 1e-5,
            "exponential_avg_factor": 0.1 if is_training else 1.0,
            "is_training": is_training,
        }
        kernel = tf.raw_ops.FusedBatchNormV3(
            x=x, scale=scale, offset=offset, mean=mean, variance=variance, **options
        )
        defined = training.defined_batch_norm(x, scale, offset, mean, variance, **options)
        for ours, theirs in zip(defined[: 3 if is_training else 1], kernel[:3], strict=False):
            numpy.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
