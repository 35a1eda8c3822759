"""Training: the loop of train.py, step by step in float64, beside one of torchvision's parts."""

import pytest

from object_detection.tests import training_checks

pytestmark = pytest.mark.usefixtures("torch_state")


def test_100_steps_equal_the_independent_loop():
    """With the warm-up, both falls of the rate, images of two sizes and some without an object."""
    differences = training_checks.check_trajectory(num_steps=100)
    print("largest differences of loss, gradient norm, weights:", differences)


def test_gradient_is_the_mean_over_processes_and_passes():
    training_checks.check_gradient_of_processes_and_passes()
