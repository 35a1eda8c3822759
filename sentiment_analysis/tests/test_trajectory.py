"""Training: the loop of train.py, step by step in float64, beside a plain one."""

import pytest

from sentiment_analysis.tests import training_checks

pytestmark = pytest.mark.usefixtures("torch_state")


def test_100_steps_equal_the_independent_loop():
    """Padded convolutions and Adam by hand, over nine epochs that end in a small batch."""
    differences = training_checks.check_trajectory(num_steps=100, bound=1e-9)
    print("largest differences of loss, gradient norm, weights:", differences)


def test_gradient_is_the_mean_over_processes():
    training_checks.check_gradient_is_mean_over_processes()
