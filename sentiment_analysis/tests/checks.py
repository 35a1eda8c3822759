"""What must hold of the science, as plain functions.

The tests of each subject call them on the code as it is; test_mutations.py calls the same ones on
code that was made wrong on purpose, and expects an AssertionError.

They reach the code through its modules (`data.make_batch`, not `make_batch`), so that they see
what a mutation put there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from unittest import mock

import numpy
import torch
from torch import Tensor
from torch.nn import functional

from harness import torch_support
from harness.stop_rule import QualityTarget
from sentiment_analysis import data, evaluate, model, optimizer, prepare, train
from sentiment_analysis.config import MINI, REFERENCE, TINY, Config
from sentiment_analysis.tests import oracles

CPU = torch.device("cpu")
WIDTHS = REFERENCE.filter_widths
LENGTHS = (3, 1, 2, 7, 1, 19, 4, 2, 30, 5, 3, 12)
"""Of reviews: each edge case more than once, and in no order."""
SMALL = dataclasses.replace(
    TINY,
    quality_targets=(QualityTarget("accuracy", 200.0),),
    checkpoint_interval_s=1e9,
    embedding_size=5,
    num_filters=7,
    batch_size=8,
    eval_batch_size=8,
    learning_rate=2e-3,
    max_epochs=20,
    made_up_vocabulary=80,
    made_up_reviews=90,
    made_up_lengths=((0, 1), (25, 2), (50, 3), (75, 9), (100, 25)),
)
"""12 steps an epoch, the last with two reviews."""


# --- helpers --------------------------------------------------------------------------------------


def some_reviews(
    lengths: Sequence[int] = LENGTHS, num_words: int = 23, seed: int = 1
) -> prepare.Reviews:
    """Random reviews of these lengths."""
    generator = numpy.random.default_rng(seed)
    return prepare.Reviews(
        generator.integers(num_words, size=sum(lengths)).astype(numpy.uint16),
        numpy.concatenate([[0], numpy.cumsum(lengths)]).astype(numpy.int64),
        generator.integers(2, size=len(lengths)),
    )


def text_of(reviews: prepare.Reviews, number: int) -> Tensor:
    """The words of one review."""
    start, stop = reviews.offsets[number : number + 2]
    return torch.from_numpy(reviews.tokens[start:stop].astype(numpy.int64))


def some_model(widths: Sequence[int] = (3, 4), num_words: int = 23) -> model.SequenceCNN:
    """A small network in float64 whose weights are large enough that ELU bends, biases too."""
    torch.manual_seed(5)
    network = model.SequenceCNN(num_words, 12, 10, widths).double()
    with torch.no_grad():
        for weights in network.parameters():
            weights.uniform_(-0.5, 0.5)
    return network


@contextlib.contextmanager
def windows_per_group(number: int) -> Iterator[None]:
    """make_windows cuts its groups at this size."""
    sizes = data.make_windows.__globals__["WINDOWS_PER_GROUP"]  # a mutated one has its own
    with mock.patch.dict(sizes, {"cpu": number}):
        yield


@contextlib.contextmanager
def as_process(rank: int, num_processes: int) -> Iterator[None]:
    """This process plays one of several, whose collectives do nothing."""
    environment = {"RANK": str(rank), "WORLD_SIZE": str(num_processes)}
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, environment))
        for name in ("all_reduce", "broadcast_object_list", "init_process_group"):
            stack.enter_context(mock.patch.object(torch.distributed, name))
        # Where the loop itself looks for it: a mutated loop lives in a module of its own.
        loop = sys.modules[train.train.__module__]
        stack.enter_context(mock.patch.object(loop, "DistributedDataParallel", lambda m: m))
        yield


def largest_difference(one: Tensor, other: Tensor) -> float:
    """Absolute; not finite where a value of either is not."""
    assert one.shape == other.shape
    return float((one - other).abs().max())


# --- network --------------------------------------------------------------------------------------


def assert_equals_convolution(widths: Sequence[int]) -> None:
    """Logits, loss and every gradient equal those of a padded conv1d, however windows are put
    into groups.
    """
    reviews = some_reviews()
    network = some_model(widths)
    names = dict(network.named_parameters())
    for limit in (1, 7, 40, 10**6):
        with windows_per_group(limit):
            batch = data.make_batch(reviews, numpy.arange(len(reviews)), widths, CPU)
        logits = network(batch.words, batch.groups)
        weights = oracles.paddle_layout(names, widths)
        for value in weights.values():
            value.requires_grad_()
        texts = [text_of(reviews, number) for number in batch.reviews.tolist()]
        expected = oracles.plain_logits(weights, texts, widths)
        assert largest_difference(logits, expected) < 1e-12, limit
        labels = torch.from_numpy(reviews.labels[batch.reviews.numpy()])
        assert torch.equal(batch.labels, labels)
        functional.cross_entropy(logits, batch.labels).backward()
        functional.cross_entropy(expected, labels).backward()
        gradients = {name: weight.grad for name, weight in names.items()}
        gradients = oracles.paddle_layout(gradients, widths)
        assert gradients.keys() == weights.keys()
        for name, value in weights.items():
            assert largest_difference(gradients[name], value.grad) < 1e-12, (limit, name)
            assert float(value.grad.abs().max()) > 1e-4, name
        network.zero_grad()


def check_convolution() -> None:
    """v0.5's widths."""
    assert_equals_convolution((3, 4))


def check_alignment() -> None:
    """An even width has its odd word on the left, whatever widths stand beside it."""
    assert model.window_reach((3, 4)) == (2, 1)
    assert_equals_convolution((3, 4, 5))


def check_parameter_counts() -> None:
    """As v0.5's, to the number."""
    for config, num_words, expected in ((REFERENCE, 5_147, 12_616_706), (MINI, 9_260, 621_698)):
        with mock.patch.object(model.SequenceCNN, "reset_parameters"):
            network = model.SequenceCNN(
                num_words, config.embedding_size, config.num_filters, config.filter_widths
            )
        assert sum(weights.numel() for weights in network.parameters()) == expected


def check_initial_values() -> None:
    """Spec 2: Xavier's limits of v0.5's matrices at its own sizes, uniform between; biases 0."""
    widths = REFERENCE.filter_widths
    network = train.make_model(REFERENCE, 5_147, seed=1)
    weights = oracles.paddle_layout(dict(network.named_parameters()), widths)
    limits = {
        "embedding": 0.031182,
        "filter_3": 0.038273,
        "filter_4": 0.034233,
        "output_3": 0.076472,
        "output_4": 0.076472,
    }
    for name, limit in limits.items():
        values = weights.pop(name)
        assert math.isclose(float(values.max()), limit, rel_tol=0.005), name
        assert math.isclose(float(values.min()), -limit, rel_tol=0.005), name
        assert math.isclose(float(values.std()), limit / math.sqrt(3), rel_tol=0.03), name
        assert float(values.abs().max()) <= limit * 1.00002, name
        assert abs(float(values.mean())) < 5 * limit / math.sqrt(3 * values.numel()), name
    assert sorted(weights) == ["filter_bias_3", "filter_bias_4", "output_bias"]
    assert all(not value.any() for value in weights.values())


def assert_one_stream(matrices: dict[str, Tensor], bound: float) -> None:
    """Every matrix, over its limit, begins as the largest one does; the fc parts are equal."""
    uniform = {}
    for name, matrix in matrices.items():
        limit = math.sqrt(6 / sum(matrix.shape))
        uniform[name] = matrix.double().flatten() / limit
    longest = max(uniform.values(), key=len)
    for name, values in uniform.items():
        assert largest_difference(values, longest[: len(values)]) < bound, name
    assert torch.equal(matrices["output_3"], matrices["output_4"])


def check_shared_stream() -> None:
    """All matrices are scaled copies of one stream's beginning; independent ones are not."""
    config = dataclasses.replace(MINI, initialization="paddle_shared_stream")
    widths = config.filter_widths
    network = train.make_model(config, 900, seed=1)
    weights = oracles.paddle_layout(dict(network.named_parameters()), widths)
    assert all(not weights.pop(name).any() for name in list(weights) if "bias" in name)
    assert_one_stream(weights, 1e-6)
    again = train.make_model(config, 900, seed=1)
    other = train.make_model(config, 900, seed=2)
    assert torch.equal(network.embedding, again.embedding)
    assert not torch.equal(network.embedding, other.embedding)
    independent = train.make_model(MINI, 900, seed=1)
    own = oracles.paddle_layout(dict(independent.named_parameters()), widths)
    for name in ("filter_3", "filter_4"):
        both = torch.stack([own[name].flatten()[:4096], own["embedding"].flatten()[:4096]])
        assert abs(float(torch.corrcoef(both)[0, 1])) < 0.1, name
    assert not torch.equal(own["output_3"], own["output_4"])


def check_dropout() -> None:
    """A training step leaves out a share of the pooled filters and scales the rest; no more."""
    reviews = some_reviews()
    batch = data.make_batch(reviews, numpy.arange(len(reviews)), (3, 4), CPU)
    network = some_model()
    exact = network(batch.words, batch.groups)
    network.dropout = 0.25
    assert not torch.allclose(network(batch.words, batch.groups), exact)
    responses = network.responses(batch.words)
    of_last = batch.groups[-1][-1:].expand(4000, -1, -1)  # one review, many times
    mean = network.classify(responses, [of_last]).mean(dim=0)
    assert largest_difference(mean, exact[-1]) < 0.06
    network.eval()
    assert torch.equal(network(batch.words, batch.groups), exact)


# --- optimiser ------------------------------------------------------------------------------------


@dataclass
class Steps:
    """A network, its optimiser, and random gradients to take steps with."""

    network: model.SequenceCNN
    adam: optimizer.LazyAdam
    words: list[Tensor]
    gradients: list[dict[str, Tensor]]

    def take(self, number: int) -> None:
        """Step `number`, from 1."""
        for name, weights in self.network.named_parameters():
            weights.grad = self.gradients[number - 1][name].clone()
        scaler = torch.GradScaler("cpu", enabled=False)
        self.adam.step(scaler, self.words[number - 1], number)


def some_steps(count: int = 20, config: Config = SMALL) -> Steps:
    """Gradients about 0.01 large, tiny for some values; of some words of the batch all zero."""
    network = some_model()
    generator = torch.Generator().manual_seed(9)
    words, gradients = [], []
    for _ in range(count):
        chosen = torch.randperm(23, generator=generator)[:9].sort().values
        of_step = {}
        for name, weights in network.named_parameters():
            size = 10 ** -(2 + 7 * torch.rand(weights.shape, generator=generator).double())
            sign = torch.randn(weights.shape, generator=generator).double()
            of_step[name] = size * sign
        is_in_batch = torch.isin(torch.arange(23), chosen[:-2])  # the last two: zero gradients
        of_step["embedding"] *= is_in_batch[:, None]
        words.append(chosen)
        gradients.append(of_step)
    return Steps(network, optimizer.LazyAdam(network, config), words, gradients)


def check_lazy_adam() -> None:
    """Each step equals the formula of v0.5, in dense weights and in the rows of a batch."""
    config = dataclasses.replace(SMALL, adam_beta1=0.8, adam_beta2=0.99, adam_epsilon=1e-6)
    for recipe in (SMALL, config):
        steps = some_steps(config=recipe)
        plain = oracles.PlainLazyAdam(
            oracles.paddle_layout(steps.network.state_dict(), WIDTHS),
            recipe.learning_rate,
            recipe.adam_beta1,
            recipe.adam_beta2,
            recipe.adam_epsilon,
        )
        for number in range(1, 21):
            steps.take(number)
            gradients = oracles.paddle_layout(steps.gradients[number - 1], WIDTHS)
            plain.step(gradients, steps.words[number - 1])
            found = oracles.paddle_layout(steps.network.state_dict(), WIDTHS)
            for name, value in found.items():
                assert largest_difference(value, plain.weights[name]) < 1e-12, (number, name)


# --- data -----------------------------------------------------------------------------------------


def check_epoch_order() -> None:
    """A permutation, decided by seed and epoch; bucketed: batches of like length, in no order."""
    lengths = numpy.random.default_rng(3).integers(1, 200, size=1_003)
    for batching in ("bucketed", "shuffled"):
        config = dataclasses.replace(SMALL, batching=batching)
        order = data.epoch_order(lengths, config, 4, 2)
        assert sorted(order.tolist()) == list(range(1_003))
        assert numpy.array_equal(order, data.epoch_order(lengths, config, 4, 2))
        for seed, epoch in ((4, 3), (5, 2), (2, 4)):
            assert not numpy.array_equal(order, data.epoch_order(lengths, config, seed, epoch))
        batches = lengths[order[:1_000]].reshape(-1, 8)
        spread = float(numpy.ptp(batches, axis=1).mean())
        between = float(numpy.abs(numpy.diff(batches.mean(axis=1))).mean())
        if batching == "bucketed":
            assert spread < 20, spread
            assert between > 40, between  # sorted ones would be 1.5 apart
        else:
            assert spread > 100, spread
    few = numpy.array([4, 2, 9])
    assert sorted(data.epoch_order(few, SMALL, 1, 1).tolist()) == [0, 1, 2]  # less than a batch


def rebuilt(batch: data.Batch, reviews: prepare.Reviews, widths: Sequence[int]) -> None:
    """Words and windows of a batch give each text back, with nothing outside of its edges."""
    left, _ = model.window_reach(widths)
    words = [*batch.words.tolist(), None]
    row = 0
    for windows in batch.groups:
        for of_review in windows.tolist():
            number = int(batch.reviews[row])
            text = text_of(reviews, number).tolist()
            assert int(batch.labels[row]) == int(reviews.labels[number])
            for place, window in enumerate(of_review):
                middle = min(place, len(text) - 1)  # beyond its end: its last window once more
                seen = [words[index] for index in window]
                wanted = [
                    text[at] if 0 <= at < len(text) else None
                    for at in range(middle - left, middle - left + len(window))
                ]
                assert seen == wanted, (number, place)
            row += 1
    assert row == len(batch.labels) == len(batch.reviews)


def check_batches() -> None:
    """Texts come back out of batches; words are those of the batch, ascending, each once."""
    reviews = some_reviews()
    chosen = numpy.array([8, 1, 5, 0, 10, 4])
    for widths in ((3, 4), (1,), (5, 2), (3, 4, 5)):
        for limit in (1, 10, 10**6):
            with windows_per_group(limit):
                batch = data.make_batch(reviews, chosen, widths, CPU)
            rebuilt(batch, reviews, widths)
            assert sorted(batch.reviews.tolist()) == sorted(chosen.tolist())
            texts = torch.cat([text_of(reviews, number) for number in chosen.tolist()])
            assert torch.equal(batch.words, texts.unique())
            assert torch.equal(batch.step_words, batch.words)
            assert all(len(w) == 1 or w.shape[0] * w.shape[1] <= limit for w in batch.groups)


def check_shares() -> None:
    """Processes' shares are together the batch; each knows the words of all of it."""
    reviews = data.make_up(SMALL, "train")
    whole = list(data.train_batches(reviews, SMALL, 1, 3, 0, CPU))
    parts = []
    for rank in range(2):
        with as_process(rank, 2):
            parts.append(list(data.train_batches(reviews, SMALL, 1, 3, 0, CPU)))
    assert len(whole) == len(parts[0]) == len(parts[1]) == data.num_steps(SMALL, len(reviews)) == 12
    for batch, *shares in zip(whole, *parts, strict=True):
        numbers = [number for share in shares for number in share.reviews.tolist()]
        assert sorted(numbers) == sorted(batch.reviews.tolist())
        assert len(shares[0].labels) == len(shares[1].labels)
        for share in shares:
            rebuilt(share, reviews, SMALL.filter_widths)
            assert torch.equal(share.step_words, batch.words)
            assert bool(torch.isin(share.words, batch.words).all())
    assert sum(len(batch.labels) for batch in whole) == len(reviews)
    assert len(whole[-1].labels) == 2


def assert_largest_windows(lengths: Sequence[int], widths: Sequence[int], limit: int) -> None:
    """Each review's maximum over its windows is that of a plain loop over its words."""
    lengths = sorted(lengths)
    generator = numpy.random.default_rng(sum(lengths))
    num_words = 9
    places = generator.integers(num_words, size=sum(lengths))
    left, right = model.window_reach(widths)
    with windows_per_group(limit):
        groups = data.make_windows(places, lengths, num_words, widths, CPU)
    table = generator.normal(size=(num_words + 1, left + 1 + right))  # what a word gives where
    table[num_words] = 0
    columns = numpy.arange(table.shape[1])
    found = [
        value
        for windows in groups
        for value in table[windows.numpy(), columns].sum(axis=2).max(axis=1).tolist()
    ]
    expected, start = [], 0
    for length in lengths:
        text = places[start : start + length]
        start += length
        best = -math.inf
        for middle in range(length):
            inside = [
                table[text[at], at - middle + left]
                for at in range(max(0, middle - left), min(length, middle + right + 1))
            ]
            best = max(best, sum(inside))
        expected.append(best)
    assert numpy.allclose(found, expected, rtol=0, atol=1e-12)


# --- evaluation -----------------------------------------------------------------------------------


def check_metric() -> None:
    """Spec 4: 196 batches of IMDB's test half with one weight each, the last with 40 reviews."""
    is_right = numpy.random.default_rng(2).random(25_000) < 0.9
    is_right[-40:] = numpy.arange(40) % 2 == 0
    found = evaluate.accuracies(torch.from_numpy(is_right), 128)
    of_batches, exact = oracles.plain_accuracies(is_right.tolist(), 128)
    assert found.keys() == {"accuracy", "exact_accuracy"}
    assert math.isclose(found["accuracy"], of_batches, abs_tol=1e-10)
    assert math.isclose(found["exact_accuracy"], exact, abs_tol=1e-10)
    assert abs(of_batches - exact) > 0.1
    gains = []
    for place in (0, 24_999):  # a right answer more in a full batch, and in the last one
        one_right = torch.zeros(25_000, dtype=torch.bool)
        one_right[place] = True
        gains.append(evaluate.accuracies(one_right, 128)["accuracy"])
    assert math.isclose(gains[0], 100 / 196 / 128, rel_tol=1e-12)
    assert math.isclose(gains[1] / gains[0], 3.2, rel_tol=1e-12)


def confident_model(reviews: prepare.Reviews, config: Config, num_words: int) -> model.SequenceCNN:
    """A network whose answers are mixed: the logits' difference has its median at zero."""
    torch.manual_seed(8)
    network = model.SequenceCNN(num_words, 6, 5, config.filter_widths, 0.5)
    weights = oracles.paddle_layout(dict(network.named_parameters()), config.filter_widths)
    texts = [text_of(reviews, number) for number in range(len(reviews))]
    logits = oracles.plain_logits(weights, texts, config.filter_widths)
    with torch.no_grad():
        network.output.bias[0] -= (logits[:, 0] - logits[:, 1]).median() - 1e-4
    return network


def check_evaluation() -> None:
    """All reviews equal a loop over them one by one; nothing of the network is changed."""
    config = dataclasses.replace(SMALL, eval_batch_size=16)
    reviews = some_reviews(lengths=LENGTHS * 5, num_words=40)
    network = confident_model(reviews, config, 40)
    network.train()
    weights = oracles.paddle_layout(dict(network.named_parameters()), config.filter_widths)
    is_right = []
    for number in range(len(reviews)):
        logits = oracles.plain_logits(weights, [text_of(reviews, number)], config.filter_widths)
        is_right.append(int(logits.argmax()) == int(reviews.labels[number]))
    assert 0.2 < sum(is_right) / len(is_right) < 0.8
    expected = oracles.plain_accuracies(is_right, 16)
    for size in (1, 7, 1024):
        with mock.patch.dict(evaluate.evaluate.__globals__, {"REVIEWS_AT_A_TIME": size}):
            found = evaluate.evaluate(network, reviews, config, CPU)
        assert math.isclose(found["accuracy"], expected[0], abs_tol=1e-10), size
        assert math.isclose(found["exact_accuracy"], expected[1], abs_tol=1e-10), size
    assert network.training
    for name, value in oracles.paddle_layout(network.state_dict(), config.filter_widths).items():
        assert torch.equal(value, weights[name])


def check_each_review_once() -> None:
    """However many processes there are, each review is counted by one of them."""
    reviews = some_reviews(lengths=LENGTHS * 5, num_words=40)
    network = confident_model(reviews, SMALL, 40)
    expected = evaluate.evaluate(network, reviews, SMALL, CPU)
    all_positive = prepare.Reviews(reviews.tokens, reviews.offsets, 0 * reviews.labels)
    with torch.no_grad():
        certain = confident_model(reviews, SMALL, 40)
        certain.output.bias[0] += 1e3
    for count in (1, 2, 3, 7):
        for of_model, texts in ((network, reviews), (certain, all_positive)):
            parts: list[Tensor] = []

            def add_up(value: Tensor, parts: list[Tensor] = parts) -> Tensor:
                parts.append(value.clone())
                return value.copy_(sum(parts))

            for rank in range(count):
                with (
                    mock.patch.object(torch_support, "rank", lambda rank=rank: rank),
                    mock.patch.object(torch_support, "num_processes", lambda count=count: count),
                    mock.patch.object(torch_support, "sum_over_processes", add_up),
                ):
                    found = evaluate.evaluate(of_model, texts, SMALL, CPU)
            if of_model is network:
                assert found == expected, count
            else:  # every answer is right: each review is in exactly one part
                assert torch.equal(sum(parts), torch.ones(len(reviews), dtype=torch.int64))
                assert found == {"accuracy": 100.0, "exact_accuracy": 100.0}
