"""From word ids to batches: the order of an epoch, the windows of each review.

The order is a pure function of (seed, epoch), so a resumed run needs no state to find its place.

Shapes: N reviews of a batch, W distinct words, n reviews of a group, L windows of the longest of
them, K words of a window.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from harness import torch_support
from harness.errors import UsageError
from harness.options import RunOptions
from harness.seeds import derive_seed
from sentiment_analysis.config import Config
from sentiment_analysis.model import window_reach
from sentiment_analysis.prepare import (
    ARRAYS,
    UNKNOWN_WORD,
    Half,
    IntArray,
    Reviews,
    find_prepared,
    source_file,
)

BATCHES_PER_POOL = 16
"""With bucketed batches, reviews are sorted by length within this many batches of the shuffle."""

WINDOWS_PER_GROUP = {"cpu": 1 << 12, "cuda": 1 << 17}
"""Windows (padded) that are gone through at a time: their sums fit the CPU's cache, and a GPU is
kept busy."""

MADE_UP_SEED = 0
"""Seed of made-up reviews: the same for every run."""
NUM_TELLING = 40
"""Made-up words that tell the label; an even number."""


class Sizes(NamedTuple):
    """What is known of a data set before it is read."""

    num_words: int
    num_train: int
    num_test: int
    num_train_words: int


@dataclass(frozen=True)
class Batch:
    """Reviews as windows of the words that occur in them."""

    words: Tensor  # [W] int64: the distinct words of these reviews, ascending
    groups: list[Tensor]  # windows [n, L, K] int64, as places in `words`; W is outside of a review
    labels: Tensor  # [N] int64, in the order of the groups
    reviews: Tensor  # [N] int64: place of each in its half of the data set
    step_words: Tensor  # distinct words of the whole step, those of other processes included


def prepared(config: Config, options: RunOptions) -> Path | None:
    """The folder of the prepared reviews; None where they are made up.

    Raises UsageError where the data set is not there or not prepared. It reads the whole archive,
    for its digest: not for the clock.
    """
    if options.synthetic_data or config.dataset == "made-up":
        return None
    folder = find_prepared(config, options.data_dir)
    if folder is None:
        source = source_file(config, options.data_dir)
        command = f"python -m sentiment_analysis.prepare {config.preset}"
        for name in ("dataset", "word_cutoff", "vocabulary_from"):
            if name in options.modified:
                command += f" --{name.replace('_', '-')} {getattr(config, name)}"
        raise UsageError(f"{source} is not prepared for this configuration; run {command}")
    return folder


def sizes(config: Config, folder: Path | None) -> Sizes:
    """How many words and reviews there are in `prepared`'s folder, without reading any."""
    if folder is None:
        count = config.made_up_reviews
        num_train_words = int(made_up_lengths(config).sum())
        return Sizes(config.made_up_vocabulary, count, count, num_train_words)
    meta = json.loads((folder / "meta.json").read_text())
    return Sizes(**{name: meta[name] for name in Sizes._fields})


def load(config: Config, folder: Path | None) -> dict[Half, Reviews]:
    """Both halves out of `prepared`'s folder, memory-mapped; or made-up reviews.

    Raises UsageError where a file is missing or is not whole: each header and size must be right.
    """
    if folder is None:
        return {"train": make_up(config, "train"), "test": make_up(config, "test")}
    try:
        return {half: _load_half(folder, half) for half in ("train", "test")}
    except (OSError, ValueError) as error:
        cause = f"{folder} is damaged ({error})"
        raise UsageError(f"{cause}; remove it and run sentiment_analysis.prepare again") from error


def _load_half(folder: Path, half: Half) -> Reviews:
    arrays = (numpy.load(folder / f"{half}_{name}.npy", mmap_mode="r") for name in ARRAYS)
    return Reviews(*arrays)


def vocabulary(config: Config, folder: Path | None) -> list[bytes]:
    """The words by their ids; made-up words are numbers."""
    if folder is None:
        numbers = range(config.made_up_vocabulary - 1)
        return [*(str(number).encode() for number in numbers), UNKNOWN_WORD]
    return (folder / "vocabulary.txt").read_bytes().split(b"\n")[:-1]


def made_up_lengths(config: Config) -> IntArray:
    """Words of each made-up review [N], with the configuration's quantiles, straight between."""
    count = config.made_up_reviews
    percents, quantiles = map(numpy.array, zip(*config.made_up_lengths, strict=True))
    rank = numpy.arange(count) * 7919 % count  # long and short ones mixed
    bounds = percents * count
    below = numpy.searchsorted(bounds, 100 * rank, side="right") - 1
    rise = numpy.diff(quantiles)[below] * (100 * rank - bounds[below])
    return quantiles[below] + rise // numpy.diff(bounds)[below]


def make_up(config: Config, half: Half) -> Reviews:
    """Made-up reviews with something to learn: one word in four tells the label, mostly rightly.

    Low ids are frequent, as in a real vocabulary. The last NUM_TELLING words before the unknown one
    tell: even ones a positive review, odd ones a negative one. Integer arithmetic only, so that
    they are the same everywhere.
    """
    lengths = made_up_lengths(config)
    labels = numpy.arange(config.made_up_reviews) * 2 // config.made_up_reviews
    stream = numpy.random.PCG64(derive_seed(MADE_UP_SEED, "made-up", half))
    draws = stream.random_raw(3 * int(lengths.sum())).reshape(3, -1) >> numpy.uint64(32)
    first, second, choice = draws.astype(numpy.int64)
    num_words = config.made_up_vocabulary
    words = (first % num_words) * (second % num_words) // num_words
    tells = numpy.repeat(labels, lengths) ^ (choice // 4 % 8 == 0)  # one in eight tells wrongly
    telling = (num_words - 1 - NUM_TELLING) // 2 * 2 + first % (NUM_TELLING // 2) * 2 + tells
    words = numpy.where(choice % 4 == 0, telling, words)
    offsets = numpy.concatenate([[0], numpy.cumsum(lengths)])
    return Reviews(words.astype(numpy.uint16), offsets, labels)


def num_steps(config: Config, num_reviews: int) -> int:
    """Steps of an epoch; the last batch may be smaller."""
    return math.ceil(num_reviews / config.batch_size)


def epoch_order(lengths: IntArray, config: Config, seed: int, epoch: int) -> IntArray:
    """The reviews of an epoch, in the order of training: [N], a permutation.

    Bucketed: the shuffle is cut into pools of BATCHES_PER_POOL batches, each pool sorted by length
    and cut into batches, and the full batches shuffled; what is left over comes last. So the
    reviews of a batch have about one length, and which they are is still left to chance.
    """
    stream = numpy.random.Generator(numpy.random.PCG64(derive_seed(seed, "order", epoch)))
    order = stream.permutation(len(lengths))
    if config.batching == "shuffled":
        return order
    num_full = len(order) // config.batch_size
    full, rest = numpy.split(order, [num_full * config.batch_size])
    pool_size = BATCHES_PER_POOL * config.batch_size
    pools = [full[start : start + pool_size] for start in range(0, len(full), pool_size)]
    ordered = [pool[numpy.argsort(lengths[pool], kind="stable")] for pool in pools]
    batches = numpy.concatenate([*ordered, full[:0]]).reshape(num_full, config.batch_size)
    return numpy.concatenate([stream.permutation(batches).ravel(), rest])


def train_batches(
    reviews: Reviews, config: Config, seed: int, epoch: int, first_step: int, device: torch.device
) -> Iterator[Batch]:
    """This process's share of the batches of an epoch, from `first_step` on."""
    order = epoch_order(reviews.lengths, config, seed, epoch)
    for start in range(first_step * config.batch_size, len(order), config.batch_size):
        step = order[start : start + config.batch_size]
        first, stop = torch_support.share(0, len(step))
        mine = make_batch(reviews, step[first:stop], config.filter_widths, device)
        if torch_support.num_processes() > 1:
            words = numpy.unique(numpy.concatenate(texts_of(reviews, step)))
            yield Batch(mine.words, mine.groups, mine.labels, mine.reviews, on(device, words))
        else:
            yield mine


def texts_of(reviews: Reviews, chosen: IntArray) -> list[IntArray]:
    """The words of these reviews."""
    bounds = zip(reviews.offsets[chosen], reviews.offsets[chosen + 1], strict=True)
    return [reviews.tokens[start:stop] for start, stop in bounds]


def make_batch(
    reviews: Reviews, chosen: IntArray, filter_widths: Sequence[int], device: torch.device
) -> Batch:
    """A batch of these reviews [N], sorted by length within it."""
    chosen = chosen[numpy.argsort(reviews.lengths[chosen], kind="stable")]
    texts = texts_of(reviews, chosen)
    words, places = numpy.unique(numpy.concatenate(texts), return_inverse=True)
    all_words = on(device, words)
    return Batch(
        words=all_words,
        groups=make_windows(places, list(map(len, texts)), len(words), filter_widths, device),
        labels=on(device, reviews.labels[chosen]),
        reviews=on(device, chosen),
        step_words=all_words,
    )


def make_windows(
    places: IntArray,
    lengths: Sequence[int],
    outside: int,
    filter_widths: Sequence[int],
    device: torch.device,
) -> list[Tensor]:
    """Windows of reviews that lie one after another in `places` and are sorted by length.

    Neighbours of like length share a group. A review that is shorter than the longest of its group
    has its last window again in the places left: that changes no maximum. Returns [n, L, K] each.
    """
    left, right = window_reach(filter_widths)
    reach = torch.arange(-left, right + 1, device=device)  # [K]
    all_places = on(device, places)
    all_lengths = on(device, numpy.asarray(lengths))
    all_starts = all_lengths.cumsum(0) - all_lengths
    groups = []
    first = 0
    while first < len(lengths):
        stop = first + 1
        while stop < len(lengths) and (
            (stop + 1 - first) * lengths[stop] <= WINDOWS_PER_GROUP[device.type]
        ):
            stop += 1
        length = all_lengths[first:stop, None, None]  # [n, 1, 1]
        position = torch.arange(lengths[stop - 1], device=device)[:, None]  # [L, 1]
        seen = position.minimum(length - 1) + reach  # [n, L, K] places in the review
        is_inside = (seen >= 0) & (seen < length)
        start = all_starts[first:stop, None, None]
        words = all_places[start + seen.clamp(min=0).minimum(length - 1)]
        groups.append(words.where(is_inside, outside))
        first = stop
    return groups


def on(device: torch.device, array: IntArray) -> Tensor:
    """A copy of integers on a device, as int64."""
    return torch.from_numpy(numpy.ascontiguousarray(array, dtype=numpy.int64)).to(device)
