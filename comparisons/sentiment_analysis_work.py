"""What all programs of comparisons.sentiment_analysis work on, how they are timed and checked.

    .venv/bin/python -m comparisons.sentiment_analysis_work --folder FOLDER

It writes the reviews into FOLDER, once. Then each program reads them there, draws the same weights,
and leaves its losses and predictions there for the next ones, which must come to the same. Nothing
but NumPy is imported, because a peer's environment has nothing else of ours.

Shapes: N reviews, V words, E embedding_size, H num_filters, k width of a convolution.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray

FloatArray = NDArray[numpy.float32]
IntArray = NDArray[numpy.integer]

# v0.5's recipe. Ours states its own configuration, and the frame refuses other values.
WIDTHS = (3, 4)
NUM_CLASSES = 2
LEARNING_RATE = 5e-4
BETA_1, BETA_2 = 0.9, 0.999
EPSILON = 1e-8

NUM_THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))
"""The frame says it to all programs alike."""
LOSS_TOLERANCE = 1e-3
"""Relative."""
LOGIT_TOLERANCE = 1e-4
"""Between two programs, of the difference of a review's two logits; the differences are near 1."""


@dataclass(frozen=True)
class Work:
    """How much of it; the defaults are what is compared."""

    seed: int
    """Of the weights; the reviews are the same for every seed."""
    folder: Path
    """Where the reviews and what programs found lie."""
    num_words: int = 5_147
    """V; as IMDB's."""
    num_reviews: int = 25_000
    """Made-up reviews of each half, out of which batches are taken."""
    longest: int = 2_469
    """Words of the longest review; the others are shortened in proportion."""
    embedding_size: int = 1_024
    num_filters: int = 1_024
    batch_size: int = 128
    num_steps: int = 2
    """Training steps on the clock, after one that is not."""
    num_test_batches: int = 2
    """Batches of test reviews that all programs answer."""
    num_more_test_batches: int = 6
    """Batches that ours answers besides, so that its evaluation is not all preparation."""


@dataclass(frozen=True)
class Batch:
    """Reviews of like length."""

    texts: tuple[IntArray, ...]
    """Word ids of each review."""
    labels: IntArray
    """[N] int64."""

    @property
    def num_tokens(self) -> int:
        """Words of all its reviews."""
        return sum(map(len, self.texts))


@dataclass(frozen=True)
class Weights:
    """Initial weights in v0.5's layout."""

    embedding: FloatArray
    """[V, E]."""
    filters: tuple[FloatArray, ...]
    """[k E, H] for each width, the places one after another."""
    filter_biases: tuple[FloatArray, ...]
    """[H] for each width."""
    output: tuple[FloatArray, ...]
    """[H, 2] for each width."""
    output_bias: FloatArray
    """[2]."""


def parse_arguments(arguments: Sequence[str] | None = None) -> Work:
    """The work out of the command line."""
    parser = argparse.ArgumentParser()
    for field in dataclasses.fields(Work):
        is_needed = field.default is dataclasses.MISSING
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=Path if field.name == "folder" else int,
            required=is_needed,
            default=None if is_needed else field.default,
        )
    return Work(**vars(parser.parse_args(arguments)))


# --- reviews and weights --------------------------------------------------------------------------


def typical(num_tokens: IntArray, count: int) -> list[int]:
    """The batches [count] nearest to the mean of all, by their numbers of tokens."""
    nearest = numpy.argsort(numpy.abs(num_tokens - num_tokens.mean()), kind="stable")
    return [int(batch) for batch in nearest[:count]]


def write_reviews(work: Work) -> None:
    """Write the reviews of the training and test batches, made up by our benchmark.

    Training batches are taken out of an epoch as our training orders it, test batches out of the
    test reviews sorted by length.
    """
    # Here, because it needs PyTorch.
    from sentiment_analysis.config import REFERENCE
    from sentiment_analysis.data import epoch_order, make_up, texts_of

    shortening = work.longest / REFERENCE.made_up_lengths[-1][1]
    config = dataclasses.replace(
        REFERENCE,
        batch_size=work.batch_size,
        made_up_vocabulary=work.num_words,
        made_up_reviews=work.num_reviews,
        made_up_lengths=tuple(
            (percent, max(1, int(length * shortening)))
            for percent, length in REFERENCE.made_up_lengths
        ),
    )
    train, test = make_up(config, "train"), make_up(config, "test")
    num_test = work.num_test_batches + work.num_more_test_batches
    arrays: dict[str, IntArray] = {}
    for half, reviews, order, count in (
        ("train", train, epoch_order(train.lengths, config, 0, 1), 1 + work.num_steps),
        ("test", test, numpy.argsort(test.lengths, kind="stable"), num_test),
    ):
        batches = order[: len(order) // work.batch_size * work.batch_size]
        batches = batches.reshape(-1, work.batch_size)
        chosen = batches[typical(reviews.lengths[batches].sum(axis=1), count)].ravel()
        arrays[f"{half}_tokens"] = numpy.concatenate(texts_of(reviews, chosen)).astype(numpy.int64)
        arrays[f"{half}_lengths"] = reviews.lengths[chosen]
        arrays[f"{half}_labels"] = reviews.labels[chosen]
    numpy.savez(work.folder / "reviews.npz", **arrays)  # type: ignore[arg-type]


def read_batches(work: Work, half: str) -> list[Batch]:
    """The batches that `write_reviews` wrote, "train" or "test"."""
    with numpy.load(work.folder / "reviews.npz") as arrays:
        tokens, lengths, labels = (
            arrays[f"{half}_{name}"] for name in ("tokens", "lengths", "labels")
        )
    texts = numpy.split(tokens, numpy.cumsum(lengths)[:-1])
    starts = range(0, len(labels), work.batch_size)
    return [
        Batch(
            tuple(texts[start : start + work.batch_size]), labels[start : start + work.batch_size]
        )
        for start in starts
    ]


def draw_weights(work: Work) -> Weights:
    """Xavier's uniform values for all matrices, as v0.5; small biases, that none may be lost."""
    stream = numpy.random.default_rng(work.seed)
    words, size, num_filters = work.num_words, work.embedding_size, work.num_filters

    def draw(rows: int, columns: int) -> FloatArray:
        limit = math.sqrt(6 / (rows + columns))
        return stream.uniform(-limit, limit, (rows, columns)).astype(numpy.float32)

    def draw_bias(length: int) -> FloatArray:
        return stream.uniform(-0.02, 0.02, length).astype(numpy.float32)

    return Weights(
        embedding=draw(words, size),
        filters=tuple(draw(width * size, num_filters) for width in WIDTHS),
        filter_biases=tuple(draw_bias(num_filters) for _ in WIDTHS),
        output=tuple(draw(num_filters, NUM_CLASSES) for _ in WIDTHS),
        output_bias=draw_bias(NUM_CLASSES),
    )


# --- clock, check and result ----------------------------------------------------------------------


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and its seconds."""
    start_s = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start_s


def agree(work: Work, found: Mapping[str, FloatArray]) -> None:
    """Compare losses and logits with the first program's of this seed; the first leaves its own.

    Raises SystemExit, which is one line on stderr, where they are not the same.
    """
    path = work.folder / f"found-{work.seed}.npz"
    if not path.exists():
        numpy.savez(path, **found)  # type: ignore[arg-type]
        return
    tolerances = {"losses": (LOSS_TOLERANCE, 0), "logit_differences": (0, LOGIT_TOLERANCE)}
    with numpy.load(path) as expected:
        for name, (relative, absolute) in tolerances.items():
            same = expected[name].shape == found[name].shape and numpy.allclose(
                found[name], expected[name], rtol=relative, atol=absolute
            )
            if not same:
                raise SystemExit(
                    f"error: not the same work: {name} are {found[name][:4].tolist()}..., and "
                    f"{expected[name][:4].tolist()}... in the program before; make them equal"
                )


def measure(
    work: Work,
    step: Callable[[Batch], float],
    answer: Callable[[Sequence[Batch]], FloatArray],
    facts: Mapping[str, Any],
    evaluate: Callable[[Sequence[Batch]], Any] | None = None,
) -> None:
    """Time evaluation and training steps, check what came out, and print the frame's line.

    step: trains on a batch and returns its loss from before.
    answer: differences [N] of the reviews' two logits, the first label's less the second's.
    evaluate: what is timed in place of `answer`; it is given all test batches.
    """
    train, test = read_batches(work, "train"), read_batches(work, "test")
    shared = test[: work.num_test_batches]
    evaluated = test if evaluate else shared
    (evaluate or answer)(shared[:1])  # off the clock: kernels are chosen, functions traced
    differences, evaluation_s = timed(lambda: (evaluate or answer)(evaluated))
    if evaluate:
        differences = answer(shared)
    steps = [timed(functools.partial(step, batch)) for batch in train]
    losses, steps_s = zip(*steps, strict=True)
    found = {"losses": numpy.array(losses), "logit_differences": numpy.array(differences)}
    agree(work, found)

    num_evaluated = sum(len(batch.labels) for batch in evaluated)
    print(
        json.dumps(
            {
                "measures": {
                    "train_reviews_per_s": work.batch_size * work.num_steps / sum(steps_s[1:]),
                    "evaluation_reviews_per_s": num_evaluated / evaluation_s,
                },
                "facts": {
                    **facts,
                    "batch_size": len(train[0].labels),
                    "num_train_tokens": [batch.num_tokens for batch in train],
                    "num_test_tokens": [batch.num_tokens for batch in shared],
                },
                "details": {
                    "losses": losses,
                    "num_positive": int((found["logit_differences"] > 0).sum()),
                    "num_right": sum(
                        int(((part < 0) == batch.labels).sum())
                        for batch, part in zip(
                            shared,
                            numpy.split(found["logit_differences"], len(shared)),
                            strict=True,
                        )
                    ),
                    "num_evaluated": num_evaluated,
                    "num_evaluated_tokens": sum(batch.num_tokens for batch in evaluated),
                    "evaluation_s": evaluation_s,
                    "steps_s": steps_s,
                },
            }
        )
    )


if __name__ == "__main__":
    write_reviews(parse_arguments(["--seed", "0", *sys.argv[1:]]))
