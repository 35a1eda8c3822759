"""What PaddlePaddle's own operators gave must be what ours give, as plain functions.

They reach the code through its modules, as checks.py says: test_mutations.py puts wrong ones there.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy
import torch
from torch import Tensor
from torch.nn import functional

from sentiment_analysis import data, model, optimizer, prepare
from sentiment_analysis.config import REFERENCE
from sentiment_analysis.tests import oracles
from sentiment_analysis.tests.checks import CPU, WIDTHS, largest_difference

PARAMETERS = (
    "embedding",
    *(f"{kind}_{width}" for kind in ("filter", "filter_bias", "output") for width in WIDTHS),
    "output_bias",
)


def load_fixture() -> dict[str, Tensor]:
    """What PaddlePaddle's own operators gave: see make_paddle_fixture.py."""
    with numpy.load(Path(__file__).with_name("paddle_fixture.npz")) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


def paddle_model(fixture: dict[str, Tensor]) -> model.SequenceCNN:
    """Our network with the fixture's weights."""
    initial = {name: fixture[f"initial_{name}"] for name in PARAMETERS}
    network = model.SequenceCNN(*initial["embedding"].shape, len(initial["output_3"]), WIDTHS)
    network.load_state_dict(oracles.our_layout(initial, WIDTHS), strict=True)
    return network


def paddle_batch(fixture: dict[str, Tensor], number: int) -> data.Batch:
    """Batch `number` of the fixture."""
    lengths = fixture["lengths"][number].numpy()
    reviews = prepare.Reviews(
        fixture["tokens"][number].numpy(),
        numpy.concatenate([[0], numpy.cumsum(lengths)]),
        fixture["labels"][number].numpy(),
    )
    return data.make_batch(reviews, numpy.arange(len(lengths)), WIDTHS, CPU)


def check_paddle_forward() -> None:
    """Each window's value, their maxima, probabilities and loss of the first batch."""
    fixture = load_fixture()
    network = paddle_model(fixture)
    batch = paddle_batch(fixture, 0)
    responses = network.responses(batch.words)
    pooled = network.pool(responses, batch.groups)
    starts = (fixture["lengths"][0].cumsum(0) - fixture["lengths"][0]).tolist()
    for place, width in enumerate(WIDTHS):
        expected = fixture[f"pooled_{width}"][batch.reviews]
        assert largest_difference(pooled[place][0], expected) < 1e-6, width
        first = network.left - width // 2
        row = 0
        for windows in batch.groups:  # [n, L, K]
            sums = torch.zeros(*windows.shape[:2], responses[place].shape[2])
            for column in range(width):
                sums += responses[place][windows[:, :, first + column], column]
            values = functional.elu(sums + network.filter_biases[place])
            for of_review in values:
                number = int(batch.reviews[row])
                length = int(fixture["lengths"][0][number])
                start = starts[number]
                wanted = fixture[f"convolved_{width}"][start : start + length]
                assert largest_difference(of_review[:length], wanted) < 1e-6, (width, number)
                row += 1
    logits = network(batch.words, batch.groups)
    probabilities = fixture["probabilities"][batch.reviews]
    assert largest_difference(logits.softmax(dim=1), probabilities) < 1e-6
    loss = functional.cross_entropy(logits, batch.labels)
    assert largest_difference(loss, fixture["loss"]) < 1e-6


def check_paddle_gradients() -> None:
    """Of every weight, in the first batch."""
    fixture = load_fixture()
    network = paddle_model(fixture)
    batch = paddle_batch(fixture, 0)
    assert torch.equal(batch.words, fixture["gradient_embedding_rows"])
    assert torch.equal(batch.step_words, batch.words)
    functional.cross_entropy(network(batch.words, batch.groups), batch.labels).backward()
    gradients = {name: weights.grad for name, weights in network.named_parameters()}
    for name, value in oracles.paddle_layout(gradients, WIDTHS).items():
        assert largest_difference(value, fixture[f"gradient_{name}"]) < 1e-6, name


def moments_of(adam: optimizer.LazyAdam, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Adam's two moments of a weight."""
    of_which = adam.sparse if weights is adam.embedding else adam.dense
    state = of_which.state[weights]
    return state["exp_avg"], state["exp_avg_sq"]


def assert_paddle_training(epsilon_inside: bool, bound: float) -> None:
    """12 steps: losses, weights, moments; rows of absent words stay, bit for bit.

    epsilon_inside: ours is given an epsilon that undoes the difference from Paddle 2.6.2.
    """
    fixture = load_fixture()
    network = paddle_model(fixture)
    config = dataclasses.replace(REFERENCE, embedding_size=12, num_filters=10)
    adam = optimizer.LazyAdam(network, config)
    scaler = torch.GradScaler("cpu", enabled=False)
    num_zero_rows = 0
    for number in range(1, 13):
        batch = paddle_batch(fixture, number - 1)
        loss = functional.cross_entropy(network(batch.words, batch.groups), batch.labels)
        assert largest_difference(loss, fixture["losses"][number - 1]) < max(bound, 1e-6), number
        adam.zero_grad()
        loss.backward()
        if epsilon_inside:
            adam.epsilon = 1e-8 * math.sqrt(1 - 0.999**number)
            adam.sparse.param_groups[0]["eps"] = adam.epsilon
        before = network.embedding.detach().clone()
        gradient = network.embedding.grad.clone()
        old = [m.clone() for m in moments_of(adam, network.embedding)] if number > 1 else []
        adam.step(scaler, batch.step_words, number)
        is_in_batch = torch.isin(torch.arange(len(before)), batch.words)
        assert torch.equal(network.embedding[~is_in_batch], before[~is_in_batch])
        for moment, old_moment in zip(moments_of(adam, network.embedding), old, strict=False):
            assert torch.equal(moment[~is_in_batch], old_moment[~is_in_batch])
        if old:
            has_moments = is_in_batch & (gradient == 0).all(dim=1) & (old[0] != 0).any(dim=1)
            assert bool((network.embedding != before)[has_moments].any(dim=1).all())
            num_zero_rows += int(has_moments.sum())
        if number not in (1, 2, 12):
            continue
        for name, value in oracles.paddle_layout(network.state_dict(), WIDTHS).items():
            difference = largest_difference(value, fixture[f"step_{number}_{name}"])
            assert difference < bound, (number, name)
        for name, weights in (("embedding", network.embedding), ("filter_3", network.filters[0])):
            for kind, moment in zip(("first", "second"), moments_of(adam, weights), strict=True):
                if name == "filter_3":
                    moment = torch.cat(list(moment.transpose(1, 2)))  # [k, H, E] -> [k E, H]
                expected = fixture[f"step_{number}_{kind}_moment_{name}"]
                limit = bound * float(expected.abs().max())
                assert largest_difference(moment, expected) < max(limit, 1e-8), (number, name)
    assert num_zero_rows > 0
    batch = paddle_batch(fixture, 0)
    loss = functional.cross_entropy(network(batch.words, batch.groups), batch.labels)
    assert largest_difference(loss, fixture["step_12_loss"]) < max(bound, 1e-6)


def check_paddle_training() -> None:
    """With our own epsilon: as near as another place of epsilon allows."""
    assert_paddle_training(epsilon_inside=False, bound=3e-5)


def check_paddle_training_exactly() -> None:
    """With epsilon in Paddle 2.6.2's place."""
    assert_paddle_training(epsilon_inside=True, bound=5e-7)
