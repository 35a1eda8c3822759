"""What must hold of the loop of train.py, as plain functions.

They reach the code through its modules, as checks.py says: test_mutations.py puts wrong ones there.
"""

from __future__ import annotations

import contextlib
import csv
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from harness.options import RunOptions
from sentiment_analysis import data, model, prepare, train
from sentiment_analysis.config import Config
from sentiment_analysis.tests import oracles
from sentiment_analysis.tests.checks import SMALL, as_process, text_of


@dataclass
class Recording:
    """What a training did, step by step; weights and gradients in v0.5's layout."""

    losses: list[float] = field(default_factory=list)
    batches: list[data.Batch] = field(default_factory=list)
    first_weights: dict[str, Tensor] = field(default_factory=dict)
    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    weights: list[dict[str, Tensor]] = field(default_factory=list)
    """After each step."""


def record_training(config: Config, num_steps: int, seed: int = 1) -> Recording:
    """Run the real loop of train.py in float64 on made-up data, and look on.

    float64: it is made the default type, and `.float()` in our code is turned into `.double()`.
    """
    recording = Recording()
    widths = config.filter_widths
    loop = sys.modules[train.train.__module__]
    real_batches = data.train_batches

    def train_batches(*arguments: Any) -> Iterator[data.Batch]:
        for batch in real_batches(*arguments):
            recording.batches.append(batch)
            yield batch

    class Watched(loop.LazyAdam):  # type: ignore[name-defined, misc]
        """The optimiser, with weights and gradients written down."""

        def __init__(self, network: model.SequenceCNN, config: Config) -> None:
            super().__init__(network, config)
            self.network = network
            recording.first_weights = oracles.paddle_layout(network.state_dict(), widths)

        def step(self, *arguments: Any) -> None:
            gradients = {name: w.grad.clone() for name, w in self.network.named_parameters()}
            recording.gradients.append(oracles.paddle_layout(gradients, widths))
            super().step(*arguments)
            weights = self.network.state_dict()
            recording.weights.append(oracles.paddle_layout(weights, widths))

    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float64)
        stack.enter_context(mock.patch.object(Tensor, "float", Tensor.double))
        stack.enter_context(mock.patch.object(loop, "LazyAdam", Watched))
        stack.enter_context(mock.patch.object(loop, "report_speed"))
        stack.enter_context(mock.patch.object(data, "train_batches", train_batches))
        options = RunOptions(
            seed=seed, data_dir=folder, results_dir=folder, device="cpu", num_steps=num_steps
        )
        if train.train(config, options):
            raise RuntimeError("the training crashed")  # which is no wrong science caught
        for path in folder.rglob("losses.csv"):  # none from any process but the first
            with path.open() as file:
                recording.losses = [float(value) for _, value in csv.reader(file)]
    return recording


def norm(tensors: dict[str, Tensor]) -> float:
    """Euclidean norm over all tensors together."""
    return math.sqrt(sum(float((tensor**2).sum()) for tensor in tensors.values()))


def relative_difference(ours: dict[str, Tensor], plain: dict[str, Tensor]) -> float:
    """The largest over the tensors of |ours - plain| / |plain|, in the Euclidean norm."""
    assert ours.keys() == plain.keys()
    return max(
        float((ours[name] - value).norm() / value.norm().clamp(min=1e-9))
        for name, value in plain.items()
    )


def plain_gradients(
    weights: dict[str, Tensor], numbers: Sequence[int], reviews: prepare.Reviews, config: Config
) -> tuple[float, dict[str, Tensor]]:
    """Mean loss of these reviews, and its gradients."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in weights.items()}
    texts = [text_of(reviews, number) for number in numbers]
    logits = oracles.plain_logits(leaves, texts, config.filter_widths)
    of_label = logits.softmax(dim=1)[range(len(numbers)), reviews.labels[list(numbers)]]
    loss = -of_label.log().mean()
    loss.backward()
    return float(loss), {name: value.grad for name, value in leaves.items()}


def check_trajectory(num_steps: int = 30, bound: float = 1e-9) -> tuple[float, ...]:
    """Our loop and a plain one go the same way, step by step in float64.

    From the same first weights and reviews: loss, gradient norm and weights. Returns the largest
    relative differences.
    """
    reviews = data.make_up(SMALL, "train")
    recording = record_training(SMALL, num_steps)
    assert len(recording.losses) == len(recording.weights) == num_steps
    plain = oracles.PlainLazyAdam(
        {name: value.clone() for name, value in recording.first_weights.items()},
        SMALL.learning_rate,
        SMALL.adam_beta1,
        SMALL.adam_beta2,
        SMALL.adam_epsilon,
    )
    for start in range(0, num_steps - 11, 12):  # each epoch has each review once
        of_epoch = torch.cat([batch.reviews for batch in recording.batches[start : start + 12]])
        assert torch.equal(of_epoch.sort().values, torch.arange(len(reviews)))
    worst = (0.0,) * 3
    for step in range(num_steps):
        numbers = recording.batches[step].reviews.tolist()
        loss, gradients = plain_gradients(plain.weights, numbers, reviews, SMALL)
        words = torch.cat([text_of(reviews, number) for number in numbers]).unique()
        plain.step(gradients, words)
        found = (
            abs(recording.losses[step] / loss - 1),
            abs(norm(recording.gradients[step]) / norm(gradients) - 1),
            relative_difference(recording.weights[step], plain.weights),
        )
        assert max(found) <= bound, f"step {step + 1}: loss, gradient, weights {found}"
        worst = tuple(max(pair) for pair in zip(worst, found, strict=True))
    return worst


def check_gradient_is_mean_over_processes() -> None:
    """Processes with shares of a batch: their mean gradient is that of the whole batch."""
    reviews = data.make_up(SMALL, "train")
    shares = []
    for rank in range(2):
        with as_process(rank, 2):
            shares.append(record_training(SMALL, num_steps=1))
    assert all(
        torch.equal(value, shares[1].first_weights[name])
        for name, value in shares[0].first_weights.items()
    )
    numbers = [number for share in shares for number in share.batches[0].reviews.tolist()]
    assert len(set(numbers)) == SMALL.batch_size
    _, gradients = plain_gradients(shares[0].first_weights, numbers, reviews, SMALL)
    means = {
        name: (value + shares[1].gradients[0][name]) / 2
        for name, value in shares[0].gradients[0].items()
    }
    assert relative_difference(means, gradients) < 1e-9
