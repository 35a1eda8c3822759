"""Training: the loop of train.py, step by step in float64, beside a plain loop in NumPy."""

from __future__ import annotations

import pytest

from recommendation.tests import checks

pytestmark = pytest.mark.usefixtures("torch_state")


def test_gradients_are_difference_quotients():
    checks.check_gradients_by_finite_differences()


def test_100_steps_equal_the_plain_loop():
    """Nearly three epochs: loss, gradient norm and weights at each step, to 1e-9 relative."""
    differences = checks.check_trajectory(num_steps=100, bound=1e-9)
    print("largest relative differences of loss, gradient norm, weights:", differences)


def test_gradient_is_the_mean_over_processes():
    checks.check_gradient_is_mean_over_processes()
