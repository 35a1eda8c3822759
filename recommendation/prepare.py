"""From the MovieLens files to arrays: who rated what, each user's held-out film, its negatives.

    .venv/bin/python -m recommendation.prepare mini

Off the clock, once per data set: writes DATA_DIR/prepared/, whole or not at all. ml-20m's
arrays take 0.7 GB. The order of the steps is v0.5's; where v0.5 left one open (ties in
time, the order of the training set) the rule is stated here. With --expansion 16 32 it writes
DATA_DIR/prepared-16x32/, many times as large (expand.py), one row of blocks after the other.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pandas
from numpy.typing import NDArray
from tqdm import tqdm

from harness.errors import UsageError
from harness.options import exit_with, parse_command_line
from harness.prepared import locked, write_manifest
from recommendation import expand
from recommendation.config import EVALUATION_SEED, MIN_RATINGS, PRESETS, Config, check_values

IntArray = NDArray[numpy.integer]

RATINGS_FILES = {
    "ml-20m": "ml-20m/ratings.csv",
    "ml-1m": "ml-1m/ratings.dat",
    "ml-100k": "ml-100k.inter",
}
FORMAT_VERSION = 1
"""Raised when the arrays change, so that older ones are made anew."""


@dataclass(frozen=True)
class Interactions:
    """A data set split for training and evaluation; users and items are numbered from 0.

    Shapes: P training positives, U users, N evaluation negatives.
    """

    num_users: int
    num_items: int
    train_users: IntArray  # [P] int32
    train_items: IntArray  # [P] int32, ascending within each user, each pair once
    test_items: IntArray  # [U] int32, the film each user rated last
    eval_negatives: IntArray  # [U, N] int32
    user_ids: IntArray  # [U] MovieLens ids
    item_ids: IntArray  # [num_items] MovieLens ids


ARRAYS = ("train_users", "train_items", "test_items", "eval_negatives", "user_ids", "item_ids")
SHARDED_ARRAYS = ARRAYS[:4]
"""Of expanded data, whose users and films are nobody's: one file for each row of blocks."""


def read_ratings(path: Path, dataset: str) -> tuple[IntArray, IntArray, IntArray]:
    """Users, items and Unix times of all ratings in file order; the rating's value is not used.

    Raises UsageError where the file is missing or is not of the format of `dataset`.
    """
    try:
        if dataset == "ml-20m":
            frame = pandas.read_csv(path, usecols=["userId", "movieId", "timestamp"])
            columns = [frame[name] for name in ("userId", "movieId", "timestamp")]
        elif dataset == "ml-1m":
            text = path.read_bytes().replace(b"::", b"\t")
            frame = pandas.read_csv(io.BytesIO(text), sep="\t", header=None)
            columns = [frame[column] for column in (0, 1, 3)]
        else:  # RecBole's copy of u.data
            frame = pandas.read_csv(path, sep="\t")
            columns = [
                frame[name] for name in ("user_id:token", "item_id:token", "timestamp:float")
            ]
        for column in columns:
            if column.dtype.kind != "i":  # a hole or a cut line turns whole numbers into others
                raise ValueError(f"{column.name} is not a whole number in every line")
        users, items, times = (column.to_numpy(dtype=numpy.int64) for column in columns)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; run download_dataset.sh first") from error
    except (ValueError, KeyError, pandas.errors.ParserError) as error:
        cause = " ".join(str(error).split())
        raise UsageError(f"{path} is not a {dataset} file ({cause}); download it again") from error
    return users, items, times


def split_interactions(
    users: IntArray, items: IntArray, times: IntArray, num_eval_negatives: int
) -> Interactions:
    """Leave one out by time: each user's last rating is for evaluation, all others for training.

    users, items, times: [R], in file order. Among ratings with the same time the one that stands
    last in the file counts as later (v0.5's sort left it open). Raises UsageError where no user
    has enough ratings, or one has rated everything, so that no negative is left.
    """
    user_of, counts = numpy.unique(users, return_inverse=True, return_counts=True)[1:]
    kept = counts[user_of] >= MIN_RATINGS
    if not kept.any():
        raise UsageError(f"no user has {MIN_RATINGS} ratings; check the ratings file")
    user_numbers, user_ids = pandas.factorize(users[kept])  # numbered by first appearance
    item_numbers, item_ids = pandas.factorize(items[kept])
    num_users, num_items = len(user_ids), len(item_ids)

    by_time = numpy.lexsort((times[kept], user_numbers))  # stable
    user_numbers, item_numbers = user_numbers[by_time], item_numbers[by_time]
    is_last = numpy.append(user_numbers[1:] != user_numbers[:-1], True)
    test_items = item_numbers[is_last]

    pairs = numpy.unique(user_numbers[~is_last] * num_items + item_numbers[~is_last])
    train_users, train_items = numpy.divmod(pairs, num_items)
    return Interactions(
        num_users=num_users,
        num_items=num_items,
        train_users=train_users.astype(numpy.int32),
        train_items=train_items.astype(numpy.int32),
        test_items=test_items.astype(numpy.int32),
        eval_negatives=_draw_eval_negatives(
            train_users, train_items, num_users, num_items, num_eval_negatives
        ),
        user_ids=numpy.asarray(user_ids),
        item_ids=numpy.asarray(item_ids),
    )


def _draw_eval_negatives(
    train_users: IntArray,
    train_items: IntArray,
    num_users: int,
    num_items: int,
    num_drawn: int,
    seed: int = EVALUATION_SEED,
) -> IntArray:
    """For each user, items drawn with replacement from all but its training items: [U, num_drawn].

    One NumPy stream over the users in order, as v0.5 does; NumPy keeps this stream unchanged. The
    held-out film is in the pool, and an item may come twice: the metric sees to both.
    """
    stream = numpy.random.RandomState(seed)
    negatives = numpy.empty((num_users, num_drawn), dtype=numpy.int32)
    starts = numpy.searchsorted(train_users, numpy.arange(num_users + 1))
    for user in tqdm(range(num_users), desc="evaluation negatives", disable=None, leave=False):
        rated = train_items[starts[user] : starts[user + 1]]  # ascending
        pool_size = num_items - len(rated)
        if pool_size == 0:
            raise UsageError(f"user number {user} has rated every item; no negative is left")
        drawn = stream.randint(0, pool_size, size=num_drawn)
        # The k-th item that is not rated is k plus the number of rated items before it.
        gaps = rated - numpy.arange(len(rated))
        negatives[user] = drawn + numpy.searchsorted(gaps, drawn, side="right")
    return negatives


def prepared_folder(config: Config, data_dir: Path) -> Path:
    """Where the arrays of this configuration lie."""
    if config.expansion == (1, 1):
        return data_dir / "prepared"
    return data_dir / "prepared-{}x{}".format(*config.expansion)


def expected_meta(config: Config) -> dict[str, int | str]:
    """What decides the prepared arrays beside the ratings file and the folder's name."""
    return {
        "format_version": FORMAT_VERSION,
        "dataset": config.dataset,
        "num_eval_negatives": config.num_eval_negatives,
    }


def is_prepared(config: Config, data_dir: Path) -> bool:
    """Whether the folder of this configuration holds its arrays."""
    try:
        meta = json.loads((prepared_folder(config, data_dir) / "meta.json").read_text())
    except (OSError, ValueError):
        return False
    ratings = data_dir / RATINGS_FILES[config.dataset]
    if ratings.exists() and meta.get("ratings_bytes") != ratings.stat().st_size:
        return False
    return all(meta.get(name) == value for name, value in expected_meta(config).items())


def prepare(config: Config, data_dir: Path) -> None:
    """Make the folder of this configuration where it is missing or of another one.

    Raises UsageError where the ratings are missing or the folder cannot be written.
    """
    if config.dataset == "made-up" or is_prepared(config, data_dir):
        return
    source = data_dir / RATINGS_FILES[config.dataset]
    users, items, times = read_ratings(source, config.dataset)
    print(f"preparing {source}: {len(users):,} ratings", file=sys.stderr)
    is_expanded = config.expansion != (1, 1)
    num_eval_negatives = 0 if is_expanded else config.num_eval_negatives
    interactions = split_interactions(users, items, times, num_eval_negatives)
    try:
        with locked(data_dir):
            if is_prepared(config, data_dir):  # by another process, meanwhile
                return
            _write(interactions, config, source, data_dir)
    except OSError as error:
        cause = f"cannot write {prepared_folder(config, data_dir)}: {error.strerror}"
        raise UsageError(f"{cause}; make room, or prepare where it can be written") from error


def _write(interactions: Interactions, config: Config, source: Path, data_dir: Path) -> None:
    """Write the arrays under a temporary name; the folder gets its own when all are there."""
    folder = prepared_folder(config, data_dir)
    temporary = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a preparation that was killed
    try:
        temporary.mkdir()
        if config.expansion == (1, 1):
            sizes = _save_arrays(interactions, temporary)
        else:
            sizes = _save_expanded(interactions, config, temporary)
        meta = {
            **expected_meta(config),
            "ratings_bytes": source.stat().st_size,
            **sizes,
        }
        (temporary / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
        write_manifest(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _save_arrays(interactions: Interactions, folder: Path) -> dict[str, Any]:
    """Write the arrays as they are; returns what meta.json says of them."""
    for name in ARRAYS:
        numpy.save(folder / f"{name}.npy", getattr(interactions, name))
    return {
        "num_users": interactions.num_users,
        "num_items": interactions.num_items,
        "num_train": len(interactions.train_users),
    }


def _save_expanded(interactions: Interactions, config: Config, folder: Path) -> dict[str, Any]:
    """Expand and write the arrays, one row of blocks at a time; returns what meta.json says."""
    rates = expand.keep_rates(interactions, config.expansion)
    num_rows, num_columns = config.expansion
    num_items = interactions.num_items * num_columns
    num_users = num_train = 0
    for row in tqdm(range(num_rows), desc="rows of blocks", disable=None):
        users, items, test_items = expand.expand_row(interactions, rates, row)
        negatives = _draw_eval_negatives(
            users,
            items,
            len(test_items),
            num_items,
            config.num_eval_negatives,
            seed=expand.negatives_seed(row),
        )
        users += num_users  # those of the rows before
        arrays = (users, items, test_items, negatives)
        for name, array in zip(SHARDED_ARRAYS, arrays, strict=True):
            numpy.save(folder / shard_name(name, row), array)
        num_users += len(test_items)
        num_train += len(users)
    return {
        "num_users": num_users,
        "num_items": num_items,
        "num_train": num_train,
        f"keep_rates_in_{expand.RATE_UNIT}ths": rates.tolist(),
    }


def shard_name(name: str, row: int) -> str:
    """File of an array's part for one row of blocks."""
    return f"{name}-{row:03d}.npy"


def main(arguments: list[str] | None = None) -> int:
    """Prepare the data of one preset; returns the exit status."""
    try:
        config, options = parse_command_line("recommendation", PRESETS, arguments)
        check_values(config)
        prepare(config, options.data_dir)
    except UsageError as error:
        return exit_with(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
