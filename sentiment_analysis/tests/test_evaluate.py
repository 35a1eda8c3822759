"""The metric of v0.5 and the exact one, over each review once."""

import math

import pytest
import torch

from sentiment_analysis import evaluate
from sentiment_analysis.tests import checks


def test_metric_is_the_mean_over_batches():
    checks.check_metric()


@pytest.mark.parametrize(("count", "batch_size"), [(1, 128), (5, 1), (7, 7), (8, 7), (300, 64)])
def test_metric_of_other_sizes(count, batch_size):
    generator = torch.Generator().manual_seed(count)
    is_right = torch.rand(count, generator=generator) < 0.5
    found = evaluate.accuracies(is_right, batch_size)
    expected = checks.oracles.plain_accuracies(is_right.tolist(), batch_size)
    assert found["accuracy"] == pytest.approx(expected[0], abs=1e-10)
    assert found["exact_accuracy"] == pytest.approx(expected[1], abs=1e-10)


def test_all_reviews_equal_a_loop_over_single_ones():
    checks.check_evaluation()


def test_each_review_is_counted_once_by_any_number_of_processes():
    checks.check_each_review_once()


@pytest.mark.parametrize("name", ["embedding", "filters.0", "output.bias"])
def test_a_broken_model_is_no_better_than_a_constant_answer(name):
    """NaN in its weights: a finite accuracy, far from any target."""
    reviews = checks.data.make_up(checks.SMALL, "test")
    network = checks.model.SequenceCNN(80, 5, 7, (3, 4))
    with torch.no_grad():
        network.get_parameter(name).fill_(math.nan)
    found = evaluate.evaluate(network, reviews, checks.SMALL, checks.CPU)
    assert found["exact_accuracy"] == pytest.approx(50.0)
    assert abs(found["accuracy"] - 50) < 100 / 12


def test_training_mode_is_put_back_and_dropout_is_off():
    reviews = checks.data.make_up(checks.SMALL, "test")
    torch.manual_seed(3)
    network = checks.model.SequenceCNN(80, 5, 7, (3, 4), dropout=0.9)
    found = [evaluate.evaluate(network, reviews, checks.SMALL, checks.CPU) for _ in range(3)]
    assert found[0] == found[1] == found[2]
    assert network.training
    network.eval()
    assert evaluate.evaluate(network, reviews, checks.SMALL, checks.CPU) == found[0]
    assert not network.training
