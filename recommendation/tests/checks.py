"""What must hold of the science, as plain functions.

The tests of each subject call them on the code as it is; test_mutations.py calls the same ones on
code that was made wrong on purpose, and expects an AssertionError.

They reach the code through its modules (`data.TrainingSet`, not `TrainingSet`), so that they see
what a mutation put there.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from harness.options import RunOptions
from recommendation import data, evaluate, expand, model, prepare, train
from recommendation.config import MINI, ML_1M, REFERENCE, TINY, Config
from recommendation.tests.oracles import (
    FloatArray,
    PlainAdam,
    PlainNeuMF,
    Rating,
    plain_bits,
    plain_epoch,
    plain_eval_negatives,
    plain_expansion,
    plain_keep_rates,
    plain_metric,
    plain_rank,
    plain_split,
    plain_stream,
    plain_svd,
)

CPU = torch.device("cpu")
SMALL = dataclasses.replace(
    TINY,
    mlp_layers=(16, 12, 8, 6),
    num_factors=5,
    batch_size=255,
    made_up_users=60,
    made_up_items=200,
    made_up_ratings_per_user=60,
    checkpoint_interval_s=1e9,
)
"""A recipe small enough for the plain oracles: about 38 steps an epoch, the last one short."""

# --- helpers --------------------------------------------------------------------------------------


def make_ratings(seed: int) -> list[Rating]:
    """Ratings in a shuffled file order: scattered ids, few distinct times, users of 18 to 40."""
    stream = numpy.random.RandomState(seed)
    item_ids = stream.choice(10_000, 60, replace=False)
    ratings = [
        (int(user), int(item), int(stream.randint(0, 6)))
        for number, user in enumerate(stream.choice(5_000, 30, replace=False))
        for item in stream.choice(item_ids, 18 + number % 23, replace=False)
    ]
    ratings.append((77_777, 88_888, 3))  # a film that only one dropped user rated
    return [ratings[place] for place in stream.permutation(len(ratings))]


def split(ratings: list[Rating], num_eval_negatives: int = 50) -> prepare.Interactions:
    """Our split of these ratings."""
    users, items, times = (numpy.array(column) for column in zip(*ratings, strict=True))
    return prepare.split_interactions(users, items, times, num_eval_negatives)


def train_items_of(interactions: prepare.Interactions) -> list[set[int]]:
    """Training items of each user."""
    items: list[set[int]] = [set() for _ in range(interactions.num_users)]
    for user, item in positives_of(interactions):
        items[user].add(item)
    return items


def positives_of(interactions: prepare.Interactions) -> list[tuple[int, int]]:
    """Training pairs in their order."""
    pairs = zip(interactions.train_users, interactions.train_items, strict=True)
    return [(int(user), int(item)) for user, item in pairs]


def small_training_set(seed: int = 5) -> tuple[prepare.Interactions, data.TrainingSet]:
    """Some 20 users and 60 items, and the training set over them."""
    interactions = split(make_ratings(seed))
    return interactions, data.TrainingSet(interactions, SMALL, CPU)


def examples_of(epoch: data.Epoch, batch_size: int = 64) -> NDArray[numpy.int64]:
    """All examples of an epoch in order, read in batches: rows of user, item, label [E, 3]."""
    batches = []
    for start in range(0, len(epoch.order), batch_size):
        users, items, labels = epoch.batch(start, min(start + batch_size, len(epoch.order)))
        assert set(labels.tolist()) <= {0.0, 1.0}
        batches.append(torch.stack([users.long(), items.long(), labels.long()], dim=1))
    return torch.cat(batches).numpy()


def assert_uniform(counts: NDArray[Any], expected: NDArray[Any], num_constraints: int) -> None:
    """Chi-square of counts against their expectations, within 5 standard deviations both ways."""
    statistic = float((((counts - expected) ** 2) / expected).sum())
    freedom = counts.size - num_constraints
    assert abs(statistic - freedom) < 5 * math.sqrt(2 * freedom), (statistic, freedom)


# --- preparation ----------------------------------------------------------------------------------


def check_split() -> None:
    """Filter, numbering, held-out film and training pairs equal the plain ones."""
    for seed in range(3):
        ratings = make_ratings(seed)
        ours, plain = split(ratings), plain_split(ratings)
        assert ours.user_ids.tolist() == plain.user_ids
        assert ours.item_ids.tolist() == plain.item_ids
        assert (ours.num_users, ours.num_items) == (len(plain.user_ids), len(plain.item_ids))
        assert ours.test_items.tolist() == plain.test_items
        pairs = [(u, i) for u, items in enumerate(plain.train_items) for i in sorted(items)]
        assert positives_of(ours) == pairs


def check_eval_negatives() -> None:
    """The candidates are drawn from all but the training items, and any of those can come."""
    interactions = split(make_ratings(0), num_eval_negatives=2000)
    train_items = train_items_of(interactions)
    rows = interactions.eval_negatives.tolist()
    for rated, test_item, row in zip(train_items, interactions.test_items, rows, strict=True):
        assert len(row) == 2000
        pool = set(range(interactions.num_items)) - rated
        assert set(row) == pool and int(test_item) in pool
    assert any(0 in row for row in rows)
    assert any(interactions.num_items - 1 in row for row in rows)

    stream = numpy.random.RandomState(0)
    plain = plain_eval_negatives(
        train_items, interactions.num_items, lambda size: stream.randint(0, size, size=2000)
    )
    assert rows == plain


# --- expansion ------------------------------------------------------------------------------------

SMALL_RATES = numpy.array([[62259, 655, 20000], [655, 3000, 655]])
"""Of two rows of three blocks: at both bounds, and a row that leaves many users without a film."""


def check_keep_rates() -> None:
    """The left matrix is the plain one, to a rounded part, for square, wide, flat and tall ones."""
    for seed, expansion in enumerate([(2, 3), (4, 4), (3, 8), (5, 1), (1, 4)]):
        interactions = split(make_ratings(seed))
        decomposition = plain_svd(train_items_of(interactions), interactions.num_items)
        plain = plain_keep_rates(decomposition, *expansion) * 65536
        assert abs(expand.keep_rates(interactions, expansion) - plain).max() < 0.501, expansion


def check_expanded_rows() -> None:
    """Training pairs and held-out films of all rows equal the plain ones, in their order."""
    interactions = split(make_ratings(0))
    plain_train, plain_test = plain_expansion(
        train_items_of(interactions), interactions.test_items.tolist(), interactions.num_items,
        SMALL_RATES.tolist(),
    )  # fmt: skip
    assert interactions.num_users < len(plain_test) < 2 * interactions.num_users
    for row in range(2):
        users, items, test_items = expand.expand_row(interactions, SMALL_RATES, row)
        assert {users.dtype, items.dtype, test_items.dtype} == {numpy.dtype("int32")}
        size = len(test_items)
        expected = [(u, i) for u, rated in enumerate(plain_train[:size]) for i in sorted(rated)]
        assert list(zip(users.tolist(), items.tolist(), strict=True)) == expected
        assert test_items.tolist() == plain_test[:size]
        del plain_train[:size], plain_test[:size]
    assert not plain_test


def check_expanded_files() -> None:
    """What lies on disk, read as training reads it: users of all rows in a row, and negatives."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
        lines += [f"{user}\t{item}\t1\t{time}" for user, item, time in make_ratings(1)]
        (folder / "ml-100k.inter").write_text("\n".join(lines) + "\n")
        config = dataclasses.replace(MINI, expansion=(2, 3), num_eval_negatives=500)
        prepare.prepare(config, folder)
        options = RunOptions(data_dir=folder, device="cpu")
        expanded = data.load(config, options)
        num_users, num_items, num_train = data.sizes(config, options)
        original = split(make_ratings(1))
        rates = expand.keep_rates(original, (2, 3)).tolist()
        plain_train, plain_test = plain_expansion(
            train_items_of(original), original.test_items.tolist(), original.num_items, rates
        )
        assert (expanded.num_users, expanded.num_items) == (num_users, num_items)
        assert (num_users, num_items) == (len(plain_test), 3 * original.num_items)
        positives = [(u, i) for u, rated in enumerate(plain_train) for i in sorted(rated)]
        training_set = data.TrainingSet(expanded, SMALL, CPU)
        pairs = zip(training_set.users.tolist(), training_set.items.tolist(), strict=True)
        assert list(pairs) == positives and num_train == len(positives)

        candidates = evaluate.EvaluationSet(expanded, CPU).candidates.tolist()
        assert [row.pop() for row in candidates] == plain_test
        size_of_row = [len(numpy.load(path)) for path in sorted(folder.glob("*/test_items-*"))]
        first = 0
        for row, size in enumerate(size_of_row):
            stream = plain_stream("negatives", row)
            mine = slice(first, first + size)
            assert candidates[mine] == plain_eval_negatives(
                plain_train[mine], num_items,
                lambda pool_size: stream.randint(0, pool_size, size=500),  # noqa: B023
            )  # fmt: skip
            first += size
        assert first == num_users


# --- training examples ----------------------------------------------------------------------------


def check_random_bits() -> None:
    """The mixing function equals the one on Python's integers, for extreme values too."""
    counters = [0, 1, 2, 3, 2**31 - 1, 2**31, 2**32, 2**40 + 17, 2**63 - 1, 99_308_849]
    for key in (0, 1, 0x9E3779B97F4A7C15 // 2, 2**62, 2**63 - 1):
        drawn = data.random_bits(key, torch.tensor(counters)).tolist()
        assert drawn == [plain_bits(key, counter) for counter in counters]


def check_negatives_are_unrated() -> None:
    """No negative of any epoch stands in its user's training set."""
    interactions, training_set = small_training_set()
    rated = train_items_of(interactions)
    for seed in (1, 2, 3):
        for epoch in range(1, 4):
            negatives = training_set.draw_negatives(seed, epoch)
            for user, row in zip(interactions.train_users, negatives.tolist(), strict=True):
                assert not rated[user] & set(row)


def check_negatives_are_uniform() -> None:
    """Each user's negatives fall evenly on all items that it has not rated, first to last."""
    interactions, training_set = small_training_set()
    num_users, num_items = interactions.num_users, interactions.num_items
    is_free = numpy.ones((num_users, num_items), dtype=bool)
    is_free[interactions.train_users, interactions.train_items] = False
    users = numpy.repeat(interactions.train_users, SMALL.num_train_negatives)
    for seed in (1, 2, 3):
        counts = numpy.zeros((num_users, num_items))
        for epoch in range(1, 41):
            drawn = training_set.draw_negatives(seed, epoch).reshape(-1).numpy()
            numpy.add.at(counts, (users, drawn), 1)
        assert counts[:, 0].sum() > 0 and counts[:, -1].sum() > 0
        num_drawn = counts.sum(axis=1, keepdims=True)
        expected = num_drawn / is_free.sum(axis=1, keepdims=True) * is_free
        assert_uniform(counts[is_free], expected[is_free], num_constraints=num_users)


def check_epoch_is_whole() -> None:
    """Every positive comes once with label 1, and for each its user's K negatives, label 0."""
    interactions, training_set = small_training_set()
    num_negatives = SMALL.num_train_negatives
    for seed, number in ((1, 1), (1, 2), (2, 1)):
        epoch = training_set.epoch(seed, number)
        assert training_set.num_examples == len(interactions.train_users) * (1 + num_negatives)
        assert sorted(epoch.order.tolist()) == list(range(training_set.num_examples))
        examples = examples_of(epoch)
        positives = [(u, i) for u, i, label in examples.tolist() if label == 1]
        negatives = [(u, i) for u, i, label in examples.tolist() if label == 0]
        assert sorted(positives) == sorted(positives_of(interactions))
        assert not set(negatives) & set(positives)
        times_of_users = numpy.bincount([user for user, _ in negatives])
        assert (times_of_users == num_negatives * numpy.bincount(interactions.train_users)).all()


def check_epoch_equals_plain() -> None:
    """Users, items and labels in the plain epoch's order."""
    interactions, training_set = small_training_set()
    for seed, number in ((1, 1), (1, 2), (4, 1)):
        examples = examples_of(training_set.epoch(seed, number))
        plain = plain_epoch(
            positives_of(interactions), interactions.num_items, SMALL.num_train_negatives, seed,
            number,
        )  # fmt: skip
        assert examples.tolist() == [list(example) for example in plain]


def check_epochs_are_unrelated() -> None:
    """Negatives and order of two epochs, or of two seeds, agree no more than by chance."""
    interactions, training_set = small_training_set()
    bound = 5 / math.sqrt(training_set.num_examples)  # of a correlation, 5 standard deviations
    chance = 1 / interactions.num_items  # a little more, as the rated ones are never drawn
    for first, second in (((1, 1), (1, 2)), ((1, 1), (2, 1)), ((1, 2), (2, 1)), ((7, 3), (8, 3))):
        orders = [training_set.epoch(*place).order.numpy() for place in (first, second)]
        assert abs(numpy.corrcoef(orders)[0, 1]) < bound
        drawn = [training_set.draw_negatives(*place).numpy() for place in (first, second)]
        assert (drawn[0] == drawn[1]).mean() < 3 * chance
        # Within its user's free items each draw is even, so only that pool may correlate them.
        centred = [numpy.empty(array.shape) for array in drawn]
        for user in range(interactions.num_users):
            mine = interactions.train_users == user
            for array, result in zip(drawn, centred, strict=True):
                result[mine] = array[mine] - array[mine].mean()
        assert abs(numpy.corrcoef(centred[0].ravel(), centred[1].ravel())[0, 1]) < bound * 1.2


# --- model ----------------------------------------------------------------------------------------

NUM_USERS_AND_ITEMS = {
    "ml-100k": (943, 1_682),
    "ml-1m": (6_040, 3_706),
    "ml-20m": (138_493, 26_744),
}
NUM_PARAMETERS = {
    # set: f=64 L=256,256,128,64 | f=64 L=256,128,64 | f=8 L=64,32,16,8 (specification, section 2)
    "ml-100k": (611_073, 545_281, 107_761),
    "ml-1m": (1_978_305, 1_912_513, 392_601),
    "ml-20m": (31_832_577, 31_766_785, 6_612_241),
}
NETWORKS = ((64, (256, 256, 128, 64)), (64, (256, 128, 64)), (8, (64, 32, 16, 8)))


def count_parameters(num_users: int, num_items: int, factors: int, layers: tuple[int, ...]) -> int:
    """Trainable numbers of a network; none of them is allocated."""
    with torch.device("meta"):
        network = model.NeuMF(num_users, num_items, factors, layers)
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def check_parameter_counts() -> None:
    """Exactly the specification's table; the presets' networks among them."""
    for name, counts in NUM_PARAMETERS.items():
        for (factors, layers), count in zip(NETWORKS, counts, strict=True):
            assert count_parameters(*NUM_USERS_AND_ITEMS[name], factors, layers) == count
    for config, count in ((REFERENCE, 31_832_577), (MINI, 611_073), (ML_1M, 392_601)):
        sizes = NUM_USERS_AND_ITEMS[config.dataset]
        assert count_parameters(*sizes, config.num_factors, config.mlp_layers) == count


def assert_distributed(
    values: Tensor, *, limit: float | None = None, std: float | None = None
) -> None:
    """Uniform in +-limit, or normal with this std: moments within 6 standard errors, and range."""
    numbers = values.detach().double().numpy().ravel()
    count = len(numbers)
    if limit is not None:
        assert 0.99 * limit < abs(numbers).max() <= limit * (1 + 1e-6) or count < 1000
        assert abs(numbers).max() <= limit * (1 + 1e-6)
        std, kurtosis, within_half = limit / math.sqrt(3), 1.8, 0.5
        half = limit / 2
    else:
        assert std is not None
        kurtosis, within_half, half = 3.0, 0.6826894921, std
    assert abs(numbers.mean()) < 6 * std / math.sqrt(count)
    square_error = std**2 * math.sqrt((kurtosis - 1) / count)
    assert abs((numbers**2).mean() - std**2) < 6 * square_error
    assert abs((abs(numbers) < half).mean() - within_half) < 6 * 0.5 / math.sqrt(count)


def check_initial_values() -> None:
    """The specification's distributions, section 2."""
    torch.manual_seed(3)
    networks = [model.NeuMF(900, 700, 64, (256, 256, 128, 64)) for _ in range(4)]
    first = networks[0]
    for embedding in (first.mf_user, first.mf_item, first.mlp_user, first.mlp_item):
        assert_distributed(embedding.weight, std=0.01)
    for layer in first.mlp:
        assert_distributed(layer.weight, limit=math.sqrt(6 / sum(layer.weight.shape)))
        assert_distributed(layer.bias, limit=1 / math.sqrt(layer.in_features))
    outputs = torch.cat([network.output.weight for network in networks])
    assert_distributed(outputs, limit=math.sqrt(3 / 128))
    biases = torch.cat([network.output.bias for network in networks])
    assert (biases.abs() <= 1 / math.sqrt(128)).all() and len(set(biases.tolist())) == 4


def lively_network(seed: int, num_users: int = 30, num_items: int = 80) -> model.NeuMF:
    """A float64 network of which every unit matters: at its first values the MLP hardly does."""
    torch.manual_seed(seed)
    network = model.NeuMF(num_users, num_items, SMALL.num_factors, SMALL.mlp_layers).double()
    with torch.no_grad():
        for weights in network.parameters():
            weights.normal_(std=0.5)
    return network


def plain_network(network: model.NeuMF) -> PlainNeuMF:
    """The same weights in NumPy."""
    return PlainNeuMF([weights.detach().numpy() for weights in network.parameters()])


def check_forward() -> None:
    """Logits of all pairs equal the plain network's."""
    for seed in (1, 2):
        network = lively_network(seed)
        users, items = torch.cartesian_prod(torch.arange(30), torch.arange(80)).T
        logits = network(users, items).detach().numpy()
        expected = plain_network(network).forward(users.numpy(), items.numpy())
        assert logits.shape == expected.shape
        assert abs(logits - expected).max() < 1e-12
        assert (logits < 0).any() and (logits > 1).any()  # no probabilities


def check_score_candidates() -> None:
    """The evaluation's shortcut gives forward's numbers: 1e-12 in float64, 1e-5 in float32."""
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        network = lively_network(4).to(dtype)
        users = torch.tensor([3, 29, 0, 3])
        candidates = torch.randint(0, 80, (4, 50), generator=torch.Generator().manual_seed(0))
        candidates[:, 7] = candidates[:, 3]
        with torch.no_grad():
            scores = network.score_candidates(users, candidates.int(), network.split_first_layer())
            pairs = users.repeat_interleave(50), candidates.reshape(-1)
            expected = network(*pairs).view(4, 50)
        assert scores.shape == expected.shape and scores.dtype == dtype
        assert expected.std() > 1
        assert (scores - expected).abs().max() < bound


# --- evaluation -----------------------------------------------------------------------------------


class TableModel(model.NeuMF):
    """Scores out of a table [U, items], in place of a network."""

    def __init__(self, table: Tensor) -> None:
        nn.Module.__init__(self)
        self.table = table

    def split_first_layer(self) -> tuple[Tensor, Tensor]:
        """A table has no layers."""
        return torch.empty(0), torch.empty(0)

    def score_candidates(
        self, users: Tensor, candidates: Tensor, first_layer: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Scores [B, C]."""
        assert len(first_layer) == 2
        return self.table[users.unsqueeze(1), candidates.long()]


def random_interactions(seed: int, num_negatives: int = 99) -> prepare.Interactions:
    """60 users with candidates out of 70 items: many duplicates, and positives among negatives."""
    stream = numpy.random.RandomState(seed)
    return prepare.Interactions(
        num_users=60,
        num_items=70,
        train_users=numpy.zeros(1, dtype=numpy.int32),
        train_items=numpy.zeros(1, dtype=numpy.int32),
        test_items=stream.randint(0, 70, 60).astype(numpy.int32),
        eval_negatives=stream.randint(0, 70, (60, num_negatives)).astype(numpy.int32),
        user_ids=numpy.arange(60),
        item_ids=numpy.arange(70),
    )


def tied_scores(seed: int, num_levels: int) -> Tensor:
    """A table of scores [60, 70] with only so many different values."""
    stream = numpy.random.RandomState(seed)
    return torch.from_numpy(stream.randint(0, num_levels, (60, 70)) / num_levels).float()


def plain_quality(
    interactions: prepare.Interactions, table: Tensor, top_k: int
) -> tuple[int, float]:
    """Hits and NDCG by the plain metric: the negatives, then the held-out film."""
    ranks = []
    for user, negatives in enumerate(interactions.eval_negatives.tolist()):
        candidates = [*negatives, int(interactions.test_items[user])]
        ranks.append(plain_rank(candidates, table[user, candidates].tolist()))
    return plain_metric(ranks, top_k)


def check_ranks() -> None:
    """Ranks equal the plain ones, whatever the ties and duplicates."""
    for seed in range(3):
        interactions = random_interactions(seed)
        candidates = torch.from_numpy(
            numpy.column_stack([interactions.eval_negatives, interactions.test_items])
        )
        scores = torch.take_along_dim(tied_scores(seed, 8), candidates.long(), dim=1)
        ranks = evaluate.rank_of_positive(scores, candidates, evaluate.mark_repeats(candidates))
        plain = [
            plain_rank(items, values)
            for items, values in zip(candidates.tolist(), scores.tolist(), strict=True)
        ]
        assert ranks.tolist() == plain
        assert len(set(plain)) > 15


def check_evaluation() -> None:
    """Hits exactly, and NDCG to 1e-12, as the plain metric has them; all candidates count."""
    for seed in range(4):
        interactions = random_interactions(seed)
        evaluation_set = evaluate.EvaluationSet(interactions, CPU)
        assert evaluation_set.num_candidates == 100
        for num_levels in (3, 20, 10_000):
            table = tied_scores(seed, num_levels)
            for top_k in (1, 10, 25):
                quality = evaluate.evaluate(TableModel(table), evaluation_set, top_k)
                hits, ndcg = plain_quality(interactions, table, top_k)
                assert quality[f"hr_at_{top_k}"] == hits / 60
                assert abs(quality[f"ndcg_at_{top_k}"] - ndcg) < 1e-12


def check_constant_model_scores_nothing() -> None:
    """Where all scores are equal, only films that were drawn early as negatives can be hits."""
    interactions = random_interactions(0)
    quality = evaluate.evaluate(
        TableModel(torch.zeros(60, 70)), evaluate.EvaluationSet(interactions, CPU), 10
    )
    drawn_early = (interactions.eval_negatives[:, :10] == interactions.test_items[:, None]).any(1)
    assert quality["hr_at_10"] <= drawn_early.mean() + 0.05  # duplicates leave room for an 11th

    absent = dataclasses.replace(
        interactions, test_items=numpy.full(60, 69, numpy.int32),
        eval_negatives=interactions.eval_negatives % 69,
    )  # fmt: skip
    quality = evaluate.evaluate(
        TableModel(torch.zeros(60, 70)), evaluate.EvaluationSet(absent, CPU), 10
    )
    assert quality == {"hr_at_10": 0.0, "ndcg_at_10": 0.0}


@contextlib.contextmanager
def as_process(rank: int, num_processes: int) -> Iterator[None]:
    """This process plays one of several, whose collectives do nothing."""
    environment = {"RANK": str(rank), "WORLD_SIZE": str(num_processes)}
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, environment))
        collectives = ("all_reduce", "broadcast_object_list", "init_process_group")
        for name in collectives:
            stack.enter_context(mock.patch.object(torch.distributed, name))
        # Where the loop itself looks for it: a mutated loop lives in a module of its own.
        loop = sys.modules[train.train.__module__]
        stack.enter_context(mock.patch.object(loop, "DistributedDataParallel", lambda m: m))
        yield


def check_each_user_counts_once() -> None:
    """Over any number of processes each user is evaluated once, and the shares add up."""
    interactions, table = random_interactions(1), tied_scores(1, 50)
    hits, ndcg = plain_quality(interactions, table, 10)
    for num_processes in (1, 2, 3, 7):
        users: list[int] = []
        qualities = []
        for rank in range(num_processes):
            with as_process(rank, num_processes):
                evaluation_set = evaluate.EvaluationSet(interactions, CPU)
                users += evaluation_set.users.tolist()
                qualities.append(evaluate.evaluate(TableModel(table), evaluation_set, 10))
        assert sorted(users) == list(range(60))
        assert abs(sum(quality["hr_at_10"] for quality in qualities) - hits / 60) < 1e-12
        assert abs(sum(quality["ndcg_at_10"] for quality in qualities) - ndcg) < 1e-12


# --- training -------------------------------------------------------------------------------------


@dataclass
class Recording:
    """What a training did, step by step; weights in the order of PlainNeuMF."""

    losses: list[float] = field(default_factory=list)
    first_weights: list[FloatArray] = field(default_factory=list)
    gradients: list[list[FloatArray]] = field(default_factory=list)
    weights: list[list[FloatArray]] = field(default_factory=list)  # after each step


def record_training(config: Config, num_steps: int, seed: int = 1) -> Recording:
    """Run the real loop of train.py in float64 on made-up data, and look on.

    float64: it is made the default type, and `.float()` in our code is turned into `.double()`.
    """
    recording = Recording()

    def arrays(tensors: list[Tensor]) -> list[FloatArray]:
        return [tensor.detach().numpy().copy() for tensor in tensors]

    def before(optimizer: torch.optim.Optimizer, *_: object) -> None:
        parameters = optimizer.param_groups[0]["params"]
        if not recording.first_weights:
            recording.first_weights = arrays(parameters)
        recording.gradients.append(arrays([weights.grad for weights in parameters]))

    def after(optimizer: torch.optim.Optimizer, *_: object) -> None:
        recording.weights.append(arrays(optimizer.param_groups[0]["params"]))

    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float64)
        stack.enter_context(mock.patch.object(Tensor, "float", Tensor.double))
        stack.callback(register_optimizer_step_pre_hook(before).remove)
        stack.callback(register_optimizer_step_post_hook(after).remove)
        options = RunOptions(
            seed=seed, data_dir=folder, results_dir=folder, device="cpu", num_steps=num_steps
        )
        if train.train(config, options):
            raise RuntimeError("the training crashed")  # which is no wrong science caught
        for path in folder.rglob("losses.csv"):  # none from any process but the first
            with path.open() as file:
                recording.losses = [float(loss) for _, loss in csv.reader(file)]
    return recording


def relative_difference(ours: list[FloatArray], plain: list[FloatArray]) -> float:
    """The largest over the tensors of |ours - plain| / |plain|, in the Euclidean norm."""
    differences = [
        numpy.linalg.norm(one - other) / numpy.linalg.norm(other)
        for one, other in zip(ours, plain, strict=True)
    ]
    return float(max(differences))


def norm(arrays: list[FloatArray]) -> float:
    """Euclidean norm over all arrays together."""
    return math.sqrt(sum(float((array**2).sum()) for array in arrays))


def check_trajectory(num_steps: int = 45, bound: float = 1e-9) -> tuple[float, float, float]:
    """Our loop and the plain one go the same way: loss, gradient norm and weights at every step.

    From the same first weights; the batches come from the plain epoch. 45 steps reach into the
    second epoch. Returns the largest relative differences.
    """
    config = dataclasses.replace(SMALL, quality_targets=(dataclasses.replace(
        SMALL.quality_targets[0], value=2.0),))  # fmt: skip
    recording = record_training(config, num_steps)
    assert len(recording.losses) == len(recording.weights) == num_steps
    interactions = data.make_up(config)
    network = PlainNeuMF(recording.first_weights)
    adam = PlainAdam(network.weights, config.learning_rate, 0.9, 0.999, 1e-8)
    worst = [0.0, 0.0, 0.0]
    batches = plain_batches(interactions, config, seed=1)
    for step in range(num_steps):
        users, items, labels = next(batches)
        loss = network.loss(users, items, labels)
        gradients = network.gradients(users, items, labels)
        adam.step(gradients)
        found = (
            abs(recording.losses[step] / loss - 1),
            abs(norm(recording.gradients[step]) / norm(gradients) - 1),
            relative_difference(recording.weights[step], network.weights),
        )
        assert max(found) <= bound, f"step {step + 1}: loss, gradient norm, weights {found}"
        worst = [max(pair) for pair in zip(worst, found, strict=True)]
    return worst[0], worst[1], worst[2]


def plain_batches(
    interactions: prepare.Interactions, config: Config, seed: int
) -> Iterator[tuple[NDArray[numpy.int64], NDArray[numpy.int64], FloatArray]]:
    """Users, items and labels of one batch after the other, epoch after epoch."""
    epoch = 1
    while True:
        examples = numpy.array(
            plain_epoch(
                positives_of(interactions), interactions.num_items, config.num_train_negatives,
                seed, epoch,
            )
        )  # fmt: skip
        for start in range(0, len(examples), config.batch_size):
            users, items, labels = examples[start : start + config.batch_size].T
            yield users, items, labels.astype(numpy.float64)
        epoch += 1


def check_gradient_is_mean_over_processes() -> None:
    """Processes with unequal shares of a batch: their mean gradient is that of the whole batch."""
    whole = record_training(SMALL, num_steps=1)
    for num_processes in (2, 4):
        shares = []
        for rank in range(num_processes):
            with as_process(rank, num_processes):
                shares.append(record_training(SMALL, num_steps=1))
        for place, gradient in enumerate(whole.gradients[0]):
            mean = numpy.mean([share.gradients[0][place] for share in shares], axis=0)
            assert relative_difference([mean], [gradient]) < 1e-12


def check_gradients_by_finite_differences() -> None:
    """Autograd's derivative by every single weight of a tiny network is the difference quotient."""
    torch.manual_seed(11)
    network = model.NeuMF(4, 5, 3, (6, 5, 4)).double()
    with torch.no_grad():
        for weights in network.parameters():
            weights.normal_(std=0.7)
    users, items = torch.cartesian_prod(torch.arange(4), torch.arange(5)).T
    labels = torch.tensor([1.0, 0.0, 0.0, 0.0] * 5, dtype=torch.float64)

    def loss() -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(network(users, items), labels)

    loss().backward()
    step = 1e-6
    num_checked = 0
    for weights in network.parameters():
        assert weights.grad is not None
        for value, derivative in zip(weights.data.view(-1), weights.grad.view(-1), strict=True):
            middle = float(value)
            sides = []
            for moved in (middle + step, middle - step):
                value.fill_(moved)
                sides.append(float(loss().detach()))
            value.fill_(middle)
            assert abs((sides[0] - sides[1]) / (2 * step) - float(derivative)) < 1e-8
            num_checked += 1
    assert num_checked == 4 * 6 + 5 * 6 + 6 * 5 + 5 + 5 * 4 + 4 + 7 + 1
    plain = plain_network(network).gradients(users.numpy(), items.numpy(), labels.numpy())
    ours = [weights.grad.numpy() for weights in network.parameters() if weights.grad is not None]
    assert relative_difference(ours, plain) < 1e-12
