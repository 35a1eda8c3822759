"""Our network, gradients and optimiser beside PaddlePaddle's own operators (the fixture)."""

import math

import pytest
import torch
from torch.nn import functional

from sentiment_analysis.tests import checks, oracles, paddle_checks


def test_forward_pass():
    paddle_checks.check_paddle_forward()


def test_gradients():
    paddle_checks.check_paddle_gradients()


def test_training_with_our_epsilon():
    paddle_checks.check_paddle_training()


def test_training_with_paddles_epsilon():
    paddle_checks.check_paddle_training_exactly()


def test_the_plain_oracles_equal_paddle_too():
    """So what the other tests compare with is v0.5's science."""
    fixture = paddle_checks.load_fixture()
    weights = {name: fixture[f"initial_{name}"].double() for name in paddle_checks.PARAMETERS}
    adam = oracles.PlainLazyAdam(weights, 5e-4, epsilon_inside=True)
    for number in range(12):
        texts = fixture["tokens"][number].split(fixture["lengths"][number].tolist())
        leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
        logits = oracles.plain_logits(leaves, texts, paddle_checks.WIDTHS)
        loss = functional.cross_entropy(logits, fixture["labels"][number])
        assert float(loss) == pytest.approx(float(fixture["losses"][number]), abs=1e-6)
        loss.backward()
        adam.step({n: w.grad for n, w in leaves.items()}, fixture["tokens"][number].unique())
    for name, value in weights.items():
        expected = fixture[f"step_12_{name}"].double()
        assert checks.largest_difference(value, expected) < 5e-7, name


def test_loss_of_an_impossible_label():
    """Where Paddle's loss stays below 1e20, ours is that of the same probability."""
    fixture = paddle_checks.load_fixture()
    of_label, losses = fixture["edge_probabilities"].double(), fixture["edge_losses"].double()
    for probability, expected in zip(of_label.tolist(), losses.tolist(), strict=True):
        if probability == 0:
            assert expected == pytest.approx(1e20)  # softmax never gives it to ours: see below
            continue
        both = torch.tensor([[probability, 1 - probability]], dtype=torch.float64).log()
        found = float(functional.cross_entropy(both, torch.tensor([0])))
        assert found == pytest.approx(expected, abs=1e-6)
    far = functional.cross_entropy(torch.tensor([[-500.0, 500.0]]), torch.tensor([0]))
    assert math.isfinite(float(far))


def test_paddle_draws_one_stream():
    """What the option paddle_shared_stream imitates, and the limits of its values."""
    fixture = paddle_checks.load_fixture()
    names = ("embedding", "filter_3", "filter_4", "output_3", "output_4")
    checks.assert_one_stream({name: fixture[f"init_{name}"] for name in names}, 1e-6)
    limits = (0.031182, 0.038273, 0.034233, 0.076472, 0.076472)
    for name, limit in zip(names, limits, strict=True):
        smallest, largest = fixture[f"init_range_{name}"].tolist()
        assert -smallest == pytest.approx(limit, rel=0.005)
        assert largest == pytest.approx(limit, rel=0.005)
