"""Training: the loop of train.py, step by step in float64, beside one of torchvision's parts."""

import pytest

from single_stage_detector.tests import checks

pytestmark = pytest.mark.usefixtures("torch_state")


def test_100_steps_equal_the_independent_loop():
    """SGD as the reference has it, over fourteen epochs, two falls of the rate among them."""
    differences = checks.check_trajectory(num_steps=100, bound=1e-9)
    print("largest differences of loss, gradient norm, weights, statistics:", differences)


def test_the_minis_optimiser_equals_the_independent_loop():
    checks.check_adamw_trajectory()


def test_gradient_is_the_mean_over_processes():
    checks.check_gradient_is_mean_over_processes()
