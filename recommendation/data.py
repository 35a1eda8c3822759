"""From prepared arrays to batches: negatives and order drawn anew each epoch, on the device.

Every draw is a pure function of (seed, epoch, position): a mixing function applied to a counter,
not a generator with a state. So the CPU, any GPU and any number of processes see the same epoch,
and a resumed run needs no state to find its place.

Shapes: P training positives, K training negatives for each, E = P * (1 + K) examples of an epoch,
U users, N evaluation negatives, B examples of a batch.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from harness.errors import UsageError
from harness.options import RunOptions
from harness.seeds import derive_seed
from recommendation.config import EVALUATION_SEED, PRESETS, Config
from recommendation.prepare import (
    ARRAYS,
    RATINGS_FILES,
    SHARDED_ARRAYS,
    IntArray,
    Interactions,
    is_prepared,
    prepared_folder,
    shard_name,
    split_interactions,
)

CHUNK = 1 << 24
"""Examples that are drawn at a time, so that temporaries stay below a gigabyte."""
LARGEST_INT32 = 2**31 - 1
"""Up to this many examples an epoch's order takes four bytes for each, beyond it eight."""


def random_bits(key: int, counters: Tensor) -> Tensor:
    """Uniform integers in [0, 2**63), one for each counter: int64 in, int64 out, any shape.

    Two rounds of the splitmix64 finaliser (Steele et al., OOPSLA 2014), the key going in before
    each. Products wrap around modulo 2**64 on every device alike.
    """
    bits = counters
    for _ in range(2):
        bits = bits * -7046029254386353131 + key  # 0x9E3779B97F4A7C15, the golden ratio
        bits = (bits ^ _shift_right(bits, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
        bits = (bits ^ _shift_right(bits, 27)) * -7723592293110705685  # 0x94D049BB133111EB
        bits = bits ^ _shift_right(bits, 31)
    return bits & (2**63 - 1)


def _shift_right(bits: Tensor, count: int) -> Tensor:
    """Logical shift: int64's own one copies the sign."""
    return (bits >> count) & ((1 << (64 - count)) - 1)


def check_files(config: Config, options: RunOptions) -> None:
    """Raises UsageError where the data set is not there, not prepared, or cut. Reads no data."""
    data_dir = options.data_dir
    if _is_made_up(config, options):
        if config.expansion != (1, 1):
            raise UsageError("made-up data is not expanded; leave --expansion out")
        return
    if is_prepared(config, data_dir):
        load(config, options)  # opens each array: its header and size must be right
        return
    if not (data_dir / RATINGS_FILES[config.dataset]).exists():
        cause = f"{data_dir / RATINGS_FILES[config.dataset]} is missing"
        raise UsageError(f"{cause}; run recommendation/download_dataset.sh {config.preset}")
    command = f"python -m recommendation.prepare {config.preset}"
    if config.num_eval_negatives != PRESETS[config.preset][1].num_eval_negatives:
        command += f" --num-eval-negatives {config.num_eval_negatives}"
    if config.expansion != (1, 1):
        command += " --expansion {} {}".format(*config.expansion)
    raise UsageError(f"{data_dir} is not prepared for this configuration; run {command}")


def sizes(config: Config, options: RunOptions) -> tuple[int, int, int]:
    """Users, items and training positives, without reading any interaction.

    Of made-up data the positives are an upper bound: a pair that was drawn twice counts once.
    """
    if _is_made_up(config, options):
        num_positives = config.made_up_users * (config.made_up_ratings_per_user - 1)
        return config.made_up_users, config.made_up_items, num_positives
    meta = json.loads((prepared_folder(config, options.data_dir) / "meta.json").read_text())
    return meta["num_users"], meta["num_items"], meta["num_train"]


def num_steps(config: Config, num_positives: int) -> int:
    """Steps of an epoch; the last batch may be smaller."""
    return math.ceil(num_positives * (1 + config.num_train_negatives) / config.batch_size)


def estimate_memory_bytes(
    config: Config, num_users: int, num_positives: int, num_parameters: int
) -> int:
    """What training holds on the device at its peak, the shuffle of an epoch, without activations.

    Weights, gradients and Adam's two means are float32; a sort holds its int64 keys and places
    twice.
    """
    num_examples = num_positives * (1 + config.num_train_negatives)
    training_set = num_positives * (4 + 4 + 8)  # users, items, keys
    order = 4 if num_examples <= LARGEST_INT32 else 8
    epoch = num_examples * (4 + order + 4 * 8)  # items, order, the sort
    candidates = num_users * (1 + config.num_eval_negatives) * (4 + 1)  # items, repeats
    return 4 * 4 * num_parameters + training_set + epoch + candidates


def load(config: Config, options: RunOptions) -> Interactions:
    """The prepared arrays, memory-mapped; or made-up data.

    Raises UsageError where a file cannot be read or is not whole.
    """
    if _is_made_up(config, options):
        return make_up(config)
    folder = prepared_folder(config, options.data_dir)
    try:
        if config.expansion != (1, 1):
            return _load_expanded(config, options, folder)
        arrays = {name: numpy.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
    except (OSError, ValueError) as error:
        cause = f"{folder} is damaged ({error})"
        raise UsageError(f"{cause}; remove it and run recommendation.prepare again") from error
    return Interactions(
        num_users=len(arrays["user_ids"]), num_items=len(arrays["item_ids"]), **arrays
    )


def _load_expanded(config: Config, options: RunOptions, folder: Path) -> Interactions:
    """Expanded data: arrays in parts, one for each row of blocks. Its users and films are numbers.

    Raises OSError or ValueError where a file cannot be read or is not whole.
    """
    num_users, num_items, _ = sizes(config, options)
    arrays: dict[str, Any] = {
        name: Shards(
            [
                numpy.load(folder / shard_name(name, row), mmap_mode="r")
                for row in range(config.expansion[0])
            ]
        )
        for name in SHARDED_ARRAYS
    }
    return Interactions(
        num_users=num_users,
        num_items=num_items,
        user_ids=numpy.arange(num_users),
        item_ids=numpy.arange(num_items),
        **arrays,
    )


class Shards:
    """Arrays that follow one another, as one of which slices are taken."""

    def __init__(self, parts: list[IntArray]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, rows: slice) -> IntArray:
        """A copy of these rows, in ascending order."""
        start, stop, step = rows.indices(len(self))
        taken = []
        for part in self.parts:  # start and stop are counted from the beginning of each
            taken.append(part[start : max(stop, 0) : step])
            start -= len(part)
            start = start if start >= 0 else start % step
            stop -= len(part)
        return numpy.concatenate(taken)


def on_device(array: IntArray | Shards, device: torch.device) -> Tensor:
    """A copy of a column [P] int32; piece by piece, so that it never lies in memory twice."""
    tensor = torch.empty(len(array), dtype=torch.int32, device=device)
    for start in range(0, len(array), CHUNK):
        tensor[start : start + CHUNK] = torch.tensor(array[start : start + CHUNK])
    return tensor


def _is_made_up(config: Config, options: RunOptions) -> bool:
    return options.synthetic_data or config.dataset == "made-up"


def make_up(config: Config) -> Interactions:
    """A made-up data set with structure to learn: groups of users who keep to their own films.

    There are ten groups of users and ten of items. Three of four ratings stay within the user's
    group, the others fall anywhere. Integer arithmetic only, so that it is the same everywhere.
    """
    num_groups, draws = 10, config.made_up_ratings_per_user
    users = torch.arange(config.made_up_users).repeat_interleave(draws)
    counters = torch.arange(len(users))
    choice, where = (
        random_bits(derive_seed(EVALUATION_SEED, "made-up", name), counters)
        for name in ("choice", "where")
    )
    anywhere = where % config.made_up_items
    items_per_group = config.made_up_items // num_groups
    in_group = where % items_per_group * num_groups + users % num_groups
    items = torch.where(choice % 4 < 3, in_group, anywhere)
    pairs = (users * config.made_up_items + items).numpy()
    first = numpy.sort(numpy.unique(pairs, return_index=True)[1])  # a user rates an item once
    interactions = split_interactions(
        users.numpy()[first], items.numpy()[first], first, config.num_eval_negatives
    )
    found = interactions.num_users, interactions.num_items
    if found != (config.made_up_users, config.made_up_items):
        raise ValueError(f"made-up data has {found} users and items: too few ratings for all")
    return interactions


@dataclass(frozen=True)
class Epoch:
    """The examples of one epoch in the order of training, on the device."""

    train_users: Tensor  # [P] int32
    items: Tensor  # [P, 1 + K] int32: the positive, then its negatives
    order: Tensor  # [E] int32 (int64 where E asks for it): which example comes when

    def batch(self, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        """Examples number start to stop of the epoch: users [B], items [B], labels [B] (0 or 1)."""
        examples = self.order[start:stop]
        num_slots = self.items.shape[1]
        users = self.train_users[examples // num_slots]
        labels = (examples % num_slots == 0).float()
        return users, self.items.view(-1)[examples], labels


class TrainingSet:
    """The training positives on the device, from which each epoch is drawn."""

    def __init__(self, interactions: Interactions, config: Config, device: torch.device) -> None:
        self.num_items = interactions.num_items
        self.num_negatives = config.num_train_negatives
        self.users = on_device(interactions.train_users, device)  # [P] int32
        self.items = on_device(interactions.train_items, device)  # [P] int32
        # The positives come sorted by user, then item: their keys are a table to search in.
        self._positive_keys = self.users.long() * self.num_items + self.items  # [P] int64

    @property
    def num_examples(self) -> int:
        """Examples of an epoch, E."""
        return len(self.users) * (1 + self.num_negatives)

    def epoch(self, seed: int, epoch: int) -> Epoch:
        """Draw the negatives of an epoch and shuffle all its examples."""
        negatives = self.draw_negatives(seed, epoch)
        items = torch.cat([self.items.unsqueeze(1), negatives], dim=1)
        return Epoch(self.users, items, self._shuffle(seed, epoch))

    def draw_negatives(self, seed: int, epoch: int) -> Tensor:
        """Items that each positive's user has not rated: [P, K] int32, uniform over those.

        The held-out film is not known here, so it may be drawn; v0.5 does the same.
        """
        num_drawn = len(self.users) * self.num_negatives
        items = torch.empty(num_drawn, dtype=torch.int32, device=self.users.device)
        for start in range(0, num_drawn, CHUNK):
            pending = torch.arange(start, min(start + CHUNK, num_drawn), device=items.device)
            attempt = 0
            while len(pending):  # what falls on a rated item is drawn again
                key = derive_seed(seed, "negatives", epoch, attempt)
                drawn = random_bits(key, pending) % self.num_items
                items[pending] = drawn.int()
                pending = pending[
                    self.is_positive(self.users[pending // self.num_negatives], drawn)
                ]
                attempt += 1
        return items.view(-1, self.num_negatives)

    def is_positive(self, users: Tensor, items: Tensor) -> Tensor:
        """Whether each pair is in the training set: users [B], items [B] -> [B] bool."""
        keys = users.long() * self.num_items + items
        places = torch.searchsorted(self._positive_keys, keys)
        return self._positive_keys[places.clamp(max=len(self._positive_keys) - 1)] == keys

    def _shuffle(self, seed: int, epoch: int) -> Tensor:
        """A permutation of the epoch's examples: [E] int32, or int64 where E asks for it."""
        counters = torch.arange(self.num_examples, device=self.users.device)
        keys = random_bits(derive_seed(seed, "order", epoch), counters)
        order = torch.argsort(keys, stable=True)
        return order.int() if self.num_examples <= LARGEST_INT32 else order
