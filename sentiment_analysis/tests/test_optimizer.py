"""Lazy Adam beside the formula by hand, PyTorch's SparseAdam and Keras's Adam."""

import pytest
import torch

from sentiment_analysis.optimizer import LazyAdam
from sentiment_analysis.tests import checks


def test_each_step_equals_the_formula():
    checks.check_lazy_adam()


def test_embedding_equals_sparse_adam():
    steps = checks.some_steps()
    weights = torch.nn.Parameter(steps.network.embedding.detach().clone())
    adam = torch.optim.SparseAdam([weights], lr=checks.SMALL.learning_rate, eps=1e-8)
    for number, words in enumerate(steps.words, 1):
        steps.take(number)
        gradient = steps.gradients[number - 1]["embedding"]
        doubled = torch.cat([words, words])  # SparseAdam adds up what a row has twice
        values = torch.cat([gradient[words] / 4, gradient[words] * 3 / 4])
        weights.grad = torch.sparse_coo_tensor(doubled[None], values, gradient.shape)
        adam.step()
        assert checks.largest_difference(steps.network.embedding, weights) < 1e-12


@pytest.mark.usefixtures("tensorflow_threads")
def test_dense_weights_equal_keras():
    import keras

    steps = checks.some_steps()
    variable = keras.Variable(steps.network.filters[0].detach().numpy(), dtype="float64")
    adam = keras.optimizers.Adam(checks.SMALL.learning_rate, epsilon=1e-8)
    adam.build([variable])
    for number in range(1, 21):
        steps.take(number)
        gradient = steps.gradients[number - 1]["filters.0"]
        adam.apply([keras.ops.convert_to_tensor(gradient.numpy(), dtype="float64")])
    found = torch.from_numpy(keras.ops.convert_to_numpy(variable))
    assert checks.largest_difference(steps.network.filters[0], found) < 1e-6


def test_pytorchs_adam_is_another():
    """In dense weights by the place of epsilon, in the embedding by the rows that rest."""
    steps = checks.some_steps()
    other = checks.some_model()
    adam = torch.optim.Adam(other.parameters(), lr=checks.SMALL.learning_rate, eps=1e-8)
    for number in range(1, 21):
        steps.take(number)
        for name, weights in other.named_parameters():
            weights.grad = steps.gradients[number - 1][name].clone()
        adam.step()
    ours = dict(steps.network.named_parameters())
    for name, weights in other.named_parameters():
        least = 1e-3 if name == "embedding" else 1e-6
        assert checks.largest_difference(ours[name], weights) > least, name


def test_goes_on_from_its_state_bitwise():
    unbroken, broken = checks.some_steps(), checks.some_steps()
    for number in range(1, 21):
        unbroken.take(number)
        if number == 8:
            state = broken.adam.state_dict()
            broken.adam = LazyAdam(broken.network, checks.SMALL)
            broken.adam.load_state_dict(state)
        broken.take(number)
    for name, value in unbroken.network.state_dict().items():
        assert torch.equal(value, broken.network.state_dict()[name]), name


def test_zero_grad_forgets_all():
    steps = checks.some_steps()
    steps.take(1)
    steps.adam.zero_grad()
    assert all(w.grad is None or not w.grad.to_dense().any() for w in steps.network.parameters())
