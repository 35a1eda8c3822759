"""The same science a second time: plain and slow, from the texts, sharing no code with ours.

Python integers and dictionaries for data and metric, NumPy for the network and its training.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

FloatArray = NDArray[numpy.float64]
Rating = tuple[int, int, int]  # user, item, time

# --- random numbers -------------------------------------------------------------------------------


def plain_seed(seed: int, *names: str | int) -> int:
    """63 bits from the head of SHA-256 over the seed and the names, joined by slashes."""
    text = "/".join(str(part) for part in (seed, *names))
    return int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) // 2


def plain_bits(key: int, counter: int) -> int:
    """Two keyed rounds of splitmix64 on unsigned 64-bit integers, without the top bit."""
    bits = counter
    for _ in range(2):
        bits = (bits * 0x9E3779B97F4A7C15 + key) % 2**64
        bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB % 2**64
        bits = bits ^ (bits >> 31)
    return bits % 2**63


# --- training examples ----------------------------------------------------------------------------


def plain_epoch(
    positives: Sequence[tuple[int, int]], num_items: int, num_negatives: int, seed: int, epoch: int
) -> list[tuple[int, int, int]]:
    """An epoch in order: (user, item, label), the negatives drawn until one was not rated."""
    rated = set(positives)
    examples = []
    for number, (user, item) in enumerate(positives):
        examples.append((user, item, 1))
        for slot in range(number * num_negatives, (number + 1) * num_negatives):
            attempt = 0
            while True:
                key = plain_seed(seed, "negatives", epoch, attempt)
                drawn = plain_bits(key, slot) % num_items
                if (user, drawn) not in rated:
                    break
                attempt += 1
            examples.append((user, drawn, 0))
    key = plain_seed(seed, "order", epoch)
    return [examples[n] for n in sorted(range(len(examples)), key=lambda n: plain_bits(key, n))]


# --- preparation ----------------------------------------------------------------------------------


@dataclass
class PlainSplit:
    """What preparation must find, with users and items numbered by first appearance."""

    user_ids: list[int]
    item_ids: list[int]
    train_items: list[set[int]]  # of each user
    test_items: list[int]


def plain_split(ratings: Sequence[Rating], min_ratings: int = 20) -> PlainSplit:
    """Leave one out by time; among equal times the last in the file is the latest."""
    counts: dict[int, int] = {}
    for user, _, _ in ratings:
        counts[user] = counts.get(user, 0) + 1
    kept = [rating for rating in ratings if counts[rating[0]] >= min_ratings]
    users = {user: n for n, user in enumerate(dict.fromkeys(user for user, _, _ in kept))}
    items = {item: n for n, item in enumerate(dict.fromkeys(item for _, item, _ in kept))}
    train_items: list[set[int]] = [set() for _ in users]
    latest: list[tuple[int, int] | None] = [None for _ in users]  # time, item
    for user, item, time in kept:
        number = users[user]
        before = latest[number]
        if before is None or time >= before[0]:
            if before is not None:
                train_items[number].add(before[1])
            latest[number] = time, items[item]
        else:
            train_items[number].add(items[item])
    test_items = [item for _, item in filter(None, latest)]
    return PlainSplit(list(users), list(items), train_items, test_items)


def plain_eval_negatives(
    train_items: Sequence[set[int]], num_items: int, draw: Callable[[int], Iterable[int]]
) -> list[list[int]]:
    """For each user in order, `draw(pool size)` places in the ascending pool of unrated items."""
    rows = []
    for rated in train_items:
        pool = [item for item in range(num_items) if item not in rated]
        rows.append([pool[place] for place in draw(len(pool))])
    return rows


# --- expansion ------------------------------------------------------------------------------------


def plain_stream(*names: str | int) -> numpy.random.RandomState:
    """The stream of a part of the expansion: 32 bits of its name's seed."""
    return numpy.random.RandomState(plain_seed(0, "expansion", *names) >> 31)


Decomposition = tuple[FloatArray, FloatArray, FloatArray]  # [U, K], [K] descending, [K, I]


def plain_svd(train_items: Sequence[set[int]], num_items: int) -> Decomposition:
    """All singular values of the dense training matrix, by LAPACK."""
    rows = [[float(item in items) for item in range(num_items)] for items in train_items]
    left, values, right = numpy.linalg.svd(numpy.array(rows), full_matrices=False)
    return left, values, right


def plain_keep_rates(decomposition: Decomposition, num_rows: int, num_columns: int) -> FloatArray:
    """The left matrix [R, C], before rounding."""
    user_vectors, values, item_vectors = decomposition
    rank = min(num_rows, num_columns)
    factors = []
    for vectors, size in ((user_vectors, num_rows), (item_vectors.T, num_columns)):
        short, num_long = divmod(len(vectors), size)  # the first groups have one more
        means, start = numpy.zeros((size, rank)), 0
        for group in range(size):
            stop = start + short + (group < num_long)
            means[group] = sum(vectors[start:stop, :rank]) / (stop - start)
            start = stop
        # X (X'X)^(-1/2): the orthonormal columns that are nearest to X.
        squares, axes = numpy.linalg.eigh(means.T @ means)
        factors.append(means @ axes @ numpy.diag(squares**-0.5) @ axes.T)
    reduced = sum(values[k] * numpy.outer(factors[0][:, k], factors[1][:, k]) for k in range(rank))
    return numpy.clip(reduced / abs(reduced).max(), 0.01, 0.95)


def plain_expansion(
    train_items: Sequence[set[int]],
    test_items: Sequence[int],
    num_items: int,
    rates: Sequence[Sequence[int]],
) -> tuple[list[set[int]], list[int]]:
    """Training items and test item of every user of the expansion, interaction by interaction."""
    pairs = [(user, item) for user, items in enumerate(train_items) for item in sorted(items)]
    num_users = len(train_items)
    expanded_train, expanded_test = [], []
    for row, row_rates in enumerate(rates):
        rated: list[set[int]] = [set() for _ in range(num_users)]
        copied: list[dict[int, int]] = []  # of each block: new user to copy of the test item
        for column, rate in enumerate(row_rates):
            stream = plain_stream("block", row, column)
            new_user = stream.permutation(num_users).tolist()
            new_item = [column * num_items + i for i in stream.permutation(num_items).tolist()]
            bits = stream.randint(0, 65536, size=len(pairs), dtype=numpy.uint16).tolist()
            for (user, item), number in zip(pairs, bits, strict=True):
                if number < rate:
                    rated[new_user[user]].add(new_item[item])
            copied.append({new_user[u]: new_item[i] for u, i in enumerate(test_items)})
        drawn = plain_stream("held-out", row).randint(0, sum(row_rates), size=num_users).tolist()
        for user in range(num_users):
            column = 0
            while drawn[user] >= sum(row_rates[: column + 1]):
                column += 1
            if rated[user]:
                expanded_train.append(rated[user])
                expanded_test.append(copied[column][user])
    return expanded_train, expanded_test


# --- metric ---------------------------------------------------------------------------------------


def plain_rank(candidates: Sequence[int], scores: Sequence[float]) -> int:
    """Place of the last candidate, 0 the best, among the distinct candidates in a stable order."""
    score_of: dict[int, float] = {}  # in the order of first occurrence
    for item, score in zip(candidates, scores, strict=True):
        score_of.setdefault(item, score)
    best_first = sorted(score_of, key=lambda item: -score_of[item])
    return best_first.index(candidates[-1])


def plain_metric(ranks: Sequence[int], top_k: int) -> tuple[int, float]:
    """Number of hits, and NDCG: the mean of ln 2 / ln(rank + 2) over hits, 0 for the others."""
    gains = [math.log(2) / math.log(rank + 2) if rank < top_k else 0.0 for rank in ranks]
    return sum(rank < top_k for rank in ranks), math.fsum(gains) / len(ranks)


# --- network and training -------------------------------------------------------------------------


class PlainNeuMF:
    """NeuMF in NumPy, with gradients derived by hand.

    Weights in this order: MF user, MF item, MLP user, MLP item, then weight and bias of each
    perceptron layer and of the output. B pairs; hidden activations [B, width].
    """

    def __init__(self, weights: Sequence[FloatArray]) -> None:
        self.weights = [numpy.array(array, dtype=numpy.float64) for array in weights]
        self.num_layers = (len(weights) - 6) // 2

    def layer(self, number: int) -> tuple[FloatArray, FloatArray]:
        """Weight and bias of perceptron layer `number`; the last one is the output layer."""
        return self.weights[4 + 2 * number], self.weights[5 + 2 * number]

    def forward(self, users: NDArray[numpy.int64], items: NDArray[numpy.int64]) -> FloatArray:
        """Logits [B]."""
        return self._activations(users, items)[2]

    def _activations(
        self, users: NDArray[numpy.int64], items: NDArray[numpy.int64]
    ) -> tuple[FloatArray, list[FloatArray], FloatArray]:
        mf_user, mf_item, mlp_user, mlp_item = self.weights[:4]
        factors = mf_user[users] * mf_item[items]
        hidden = [numpy.concatenate([mlp_user[users], mlp_item[items]], axis=1)]
        for number in range(self.num_layers):
            weight, bias = self.layer(number)
            hidden.append(numpy.maximum(hidden[-1] @ weight.T + bias, 0))
        weight, bias = self.layer(self.num_layers)
        joined = numpy.concatenate([factors, hidden[-1]], axis=1)
        return factors, hidden, joined @ weight[0] + bias[0]

    def loss(
        self, users: NDArray[numpy.int64], items: NDArray[numpy.int64], labels: FloatArray
    ) -> float:
        """Mean binary cross-entropy: ln(1 + e^logit) - label * logit."""
        logits = self.forward(users, items)
        return float(numpy.mean(numpy.logaddexp(0, logits) - labels * logits))

    def gradients(
        self, users: NDArray[numpy.int64], items: NDArray[numpy.int64], labels: FloatArray
    ) -> list[FloatArray]:
        """Derivatives of the loss, in the order of the weights."""
        factors, hidden, logits = self._activations(users, items)
        by_logit = (1 / (1 + numpy.exp(-logits)) - labels) / len(labels)  # [B]
        weight, _ = self.layer(self.num_layers)
        joined = numpy.concatenate([factors, hidden[-1]], axis=1)
        by_layers = [(by_logit @ joined)[None], numpy.array([by_logit.sum()])]
        by_joined = by_logit[:, None] * weight
        by_factors, by_hidden = numpy.split(by_joined, [factors.shape[1]], axis=1)
        for number in reversed(range(self.num_layers)):
            weight, _ = self.layer(number)
            by_sum = by_hidden * (hidden[number + 1] > 0)
            by_layers = [by_sum.T @ hidden[number], by_sum.sum(axis=0), *by_layers]
            by_hidden = by_sum @ weight
        by_mlp_user, by_mlp_item = numpy.split(by_hidden, 2, axis=1)
        mf_user, mf_item = self.weights[:2]
        by_rows = [
            (users, by_factors * mf_item[items]),
            (items, by_factors * mf_user[users]),
            (users, by_mlp_user),
            (items, by_mlp_item),
        ]
        by_embeddings = [numpy.zeros_like(array) for array in self.weights[:4]]
        for gradient, (rows, values) in zip(by_embeddings, by_rows, strict=True):
            numpy.add.at(gradient, rows, values)
        return [*by_embeddings, *by_layers]


class PlainAdam:
    """Kingma and Ba, Adam, ICLR 2015, algorithm 1, on every weight whether its row was used."""

    def __init__(
        self,
        weights: list[FloatArray],
        learning_rate: float,
        beta1: float,
        beta2: float,
        eps: float,
    ) -> None:
        self.weights = weights
        self.learning_rate, self.beta1, self.beta2, self.epsilon = learning_rate, beta1, beta2, eps
        self.means = [numpy.zeros_like(array) for array in weights]
        self.squares = [numpy.zeros_like(array) for array in weights]
        self.num_steps = 0

    def step(self, gradients: Sequence[FloatArray]) -> None:
        """Change the weights in place."""
        self.num_steps += 1
        for number, gradient in enumerate(gradients):
            mean = self.beta1 * self.means[number] + (1 - self.beta1) * gradient
            square = self.beta2 * self.squares[number] + (1 - self.beta2) * gradient**2
            self.means[number], self.squares[number] = mean, square
            mean_estimate = mean / (1 - self.beta1**self.num_steps)
            square_estimate = square / (1 - self.beta2**self.num_steps)
            change = mean_estimate / (numpy.sqrt(square_estimate) + self.epsilon)
            self.weights[number] -= self.learning_rate * change
