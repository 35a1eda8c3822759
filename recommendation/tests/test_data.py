"""Training examples: the mixing function, negatives, order, batches; and the made-up data."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy
import pytest
import torch

from harness import torch_support
from harness.seeds import derive_seed
from recommendation import data
from recommendation.config import TINY
from recommendation.tests import checks
from recommendation.tests.oracles import plain_seed, plain_split

TINY_SHA256 = "76870c888f95bca1d4fc45a6d261d7acbea10cc377ae3ec2c453edbfc3a8033f"
"""Of the tiny preset's made-up arrays, one after the other as 64-bit integers."""


def test_seeds_equal_the_plain_ones():
    for names in (("order", 1), ("negatives", 20, 3), ("made-up", "choice"), ()):
        for seed in (0, 1, 12345):
            assert derive_seed(seed, *names) == plain_seed(seed, *names)


def test_random_bits_equal_those_of_python_integers():
    checks.check_random_bits()


def test_random_bits_are_even_in_every_bit():
    counters = torch.arange(1 << 16)
    drawn = data.random_bits(12345, counters)
    assert drawn.dtype == torch.int64 and drawn.min() >= 0
    assert len(drawn.unique()) == len(drawn)
    ones = [int(((drawn >> place) & 1).sum()) for place in range(63)]
    assert all(abs(number - (1 << 15)) < 5 * 2**7 for number in ones)  # a deviation is 128


def test_neighbouring_keys_and_counters_are_unrelated():
    counters = torch.arange(1 << 16)
    first = data.random_bits(7, counters)
    for other in (data.random_bits(8, counters), data.random_bits(7, counters + 1)):
        differing = first ^ other
        ones = sum(int(((differing >> place) & 1).sum()) for place in range(63))
        assert abs(ones / (63 << 16) - 0.5) < 5 * 0.5 / (63 << 16) ** 0.5


def test_no_negative_was_rated():
    checks.check_negatives_are_unrated()


def test_negatives_are_uniform_over_what_was_not_rated():
    checks.check_negatives_are_uniform()


def test_an_epoch_is_whole():
    checks.check_epoch_is_whole()


def test_an_epoch_equals_the_plain_one():
    checks.check_epoch_equals_plain()


def test_epochs_and_seeds_are_unrelated():
    checks.check_epochs_are_unrelated()


def test_the_order_spreads_positives_evenly():
    interactions, training_set = checks.small_training_set()
    counts = numpy.zeros(10)
    for epoch in range(1, 31):
        labels = checks.examples_of(training_set.epoch(1, epoch))[:, 2]
        counts += [part.sum() for part in numpy.array_split(labels, 10)]
    expected = numpy.full(10, 30 * len(interactions.train_users) / 10)
    checks.assert_uniform(counts, expected, num_constraints=1)


@pytest.mark.parametrize("chunk", [7, 1000])
def test_an_epoch_does_not_depend_on_how_many_are_drawn_at_a_time(monkeypatch, chunk):
    monkeypatch.setattr(data, "CHUNK", chunk)
    checks.check_epoch_equals_plain()


def test_an_epoch_does_not_depend_on_what_was_drawn_before():
    _, training_set = checks.small_training_set()
    _, fresh = checks.small_training_set()
    torch.manual_seed(1)
    for epoch in (1, 2, 5):
        training_set.epoch(9, epoch)
    torch.manual_seed(2)
    assert torch.equal(training_set.epoch(9, 4).items, fresh.epoch(9, 4).items)
    assert torch.equal(training_set.epoch(9, 4).order, fresh.epoch(9, 4).order)


@pytest.mark.parametrize("num_processes", [1, 2, 3, 8])
def test_processes_share_each_batch_without_loss(num_processes):
    whole = checks.examples_of(checks.small_training_set()[1].epoch(2, 1))
    num_examples, batch_size = len(whole), 250
    assert num_examples % batch_size  # the last batch is short
    parts: list[list[tuple[int, torch.Tensor]]] = []  # of each process, its share of each batch
    for rank in range(num_processes):
        with checks.as_process(rank, num_processes):
            epoch = checks.small_training_set()[1].epoch(2, 1)
            parts.append([])
            for start in range(0, num_examples, batch_size):
                size = min(batch_size, num_examples - start)
                first, last = torch_support.share(start, size)
                assert abs((last - first) - size / num_processes) < 1
                batch = torch.stack([column.long() for column in epoch.batch(first, last)], dim=1)
                parts[-1].append((first, batch))
    num_seen = 0
    for shares in zip(*parts, strict=True):  # batch by batch
        for first, batch in shares:
            assert first == num_seen
            assert (batch.numpy() == whole[first : first + len(batch)]).all()
            num_seen += len(batch)
    assert num_seen == num_examples


def test_batches_have_the_types_that_the_network_takes():
    _, training_set = checks.small_training_set()
    users, items, labels = training_set.epoch(1, 1).batch(0, 100)
    assert users.shape == items.shape == labels.shape == (100,)
    assert (users.dtype, items.dtype, labels.dtype) == (torch.int32, torch.int32, torch.float32)


def test_every_pair_is_found_or_not_in_the_training_set():
    interactions, training_set = checks.small_training_set()
    users, items = torch.cartesian_prod(
        torch.arange(interactions.num_users), torch.arange(interactions.num_items)
    ).T
    found = training_set.is_positive(users.int(), items).tolist()
    positives = set(checks.positives_of(interactions))
    expected = [pair in positives for pair in zip(users.tolist(), items.tolist(), strict=True)]
    assert found == expected
    assert not all(expected) and any(expected)


def test_keys_of_pairs_do_not_overflow_at_the_size_of_ml_20m():
    num_users, num_items = 138_493, 26_744  # their product needs 32 bits, unsigned
    last = numpy.array([num_users - 1], dtype=numpy.int32)
    interactions = dataclasses.replace(
        checks.random_interactions(0), num_users=num_users, num_items=num_items, train_users=last,
        train_items=numpy.array([num_items - 1], dtype=numpy.int32),
    )  # fmt: skip
    training_set = data.TrainingSet(interactions, checks.SMALL, checks.CPU)
    users = torch.tensor([num_users - 1, num_users - 1, 0], dtype=torch.int32)
    items = torch.tensor([num_items - 1, num_items - 2, num_items - 1])
    assert training_set.is_positive(users, items).tolist() == [True, False, False]


def test_made_up_data_is_the_same_everywhere():
    interactions = data.make_up(TINY)
    assert (interactions.num_users, interactions.num_items) == (200, 500)
    users = numpy.bincount(interactions.train_users)
    assert users.min() >= 19
    # Three of four ratings stay within the user's group: item ids modulo 10 tell it.
    user_groups = interactions.user_ids[interactions.train_users] % 10
    item_groups = interactions.item_ids[interactions.train_items] % 10
    assert 0.65 < (user_groups == item_groups).mean() < 0.85
    digest = hashlib.sha256()
    for name in ("train_users", "train_items", "test_items", "eval_negatives"):
        digest.update(getattr(interactions, name).astype("<i8").tobytes())
    assert digest.hexdigest() == TINY_SHA256


def test_made_up_data_is_split_as_any_other(monkeypatch):
    seen: list[tuple[int, int, int]] = []

    def look_on(users, items, times, num_eval_negatives):
        seen.extend(zip(users.tolist(), items.tolist(), times.tolist(), strict=True))
        return original(users, items, times, num_eval_negatives)

    original = data.split_interactions
    monkeypatch.setattr(data, "split_interactions", look_on)
    interactions = data.make_up(TINY)
    plain = plain_split(seen)
    assert interactions.test_items.tolist() == plain.test_items
    assert checks.train_items_of(interactions) == plain.train_items
    assert len({(user, item) for user, item, _ in seen}) == len(seen)
