"""The fractal expansion: left matrix, blocks, held-out films, what lies on disk, training on it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy
import pytest
import torch

from harness.errors import UsageError
from harness.options import REPOSITORY, RunOptions
from recommendation import data, expand, prepare
from recommendation.config import MINI
from recommendation.evaluate import EvaluationSet
from recommendation.tests import checks
from recommendation.tests.oracles import (
    Decomposition,
    plain_expansion,
    plain_keep_rates,
    plain_svd,
)

TWO_BY_THREE = dataclasses.replace(MINI, expansion=(2, 3))
RATES = numpy.array([[62259, 17842, 655], [15813, 20063, 22497]])
"""MovieLens 100K's left matrix of 2 x 3, fixed: what the SVD's last digits cannot change."""
EXPANDED_SHA256 = "52bce09076f2c2c4adab6e3840d0e6f8c0b92b35191083d367bd8b1f98c5330f"
"""Of all users, items and held-out films with these rates, as 64-bit integers."""


@pytest.fixture(scope="module")
def interactions_100k(ml_100k) -> prepare.Interactions:
    """MovieLens 100K, as it is."""
    columns = prepare.read_ratings(ml_100k / "ml-100k.inter", "ml-100k")
    return prepare.split_interactions(*columns, 1)


@pytest.fixture(scope="module")
def svd_100k(interactions_100k) -> Decomposition:
    """Its singular vectors and values by the plain way."""
    return plain_svd(checks.train_items_of(interactions_100k), interactions_100k.num_items)


@pytest.fixture
def data_dir(tmp_path, ml_100k) -> Path:
    """A data folder of the mini preset, not prepared."""
    folder = tmp_path / "data set"
    folder.mkdir()
    (folder / "ml-100k.inter").symlink_to(ml_100k / "ml-100k.inter")
    return folder


# --- the left matrix ------------------------------------------------------------------------------


def test_keep_rates_equal_the_plain_ones():
    checks.check_keep_rates()


@pytest.mark.parametrize("expansion", [(2, 3), (4, 4), (16, 32)])
def test_keep_rates_of_movielens_equal_the_plain_ones(interactions_100k, svd_100k, expansion):
    rates = expand.keep_rates(interactions_100k, expansion)
    plain = plain_keep_rates(svd_100k, *expansion) * 65536
    assert rates.shape == expansion
    assert abs(rates - plain).max() < 0.501
    # Divided by its largest entry and clipped: both of v0.6's bounds are met.
    assert rates.max() == round(0.95 * 65536) and (rates == 65536).sum() == 0
    assert rates.min() == round(0.01 * 65536)


def test_the_reduced_matrix_keeps_the_singular_values(interactions_100k, svd_100k):
    """The paper's point: a small matrix with the leading spectrum of the large one."""
    _, exact, _ = svd_100k
    users, values, items = expand.leading_singular_vectors(interactions_100k, 16)
    assert numpy.allclose(numpy.sort(values)[::-1], exact[:16], rtol=1e-12)
    reduced = (expand.reduce_vectors(users, 16) * values) @ expand.reduce_vectors(items, 32).T
    assert reduced.shape == (16, 32)
    assert numpy.allclose(numpy.linalg.svd(reduced, compute_uv=False), exact[:16], rtol=1e-12)


def test_keep_rates_do_not_depend_on_signs_and_turns(interactions_100k, monkeypatch):
    """What a LAPACK is free to choose: signs, and the axes of equal singular values."""
    users, values, items = expand.leading_singular_vectors(interactions_100k, 4)
    values = numpy.where(numpy.arange(4) < 2, values[:2].mean(), values)  # two are equal now
    turn = numpy.diag([1.0, 1, -1, 1])
    turn[:2, :2] = [[0.6, -0.8], [0.8, 0.6]]
    found = []
    for change in (numpy.eye(4), turn):
        vectors = (users @ change, values, items @ change)
        monkeypatch.setattr(expand, "leading_singular_vectors", lambda *_, v=vectors: v)
        found.append(expand.keep_rates(interactions_100k, (4, 4)))
    assert (found[0] == found[1]).all()


def test_expansion_of_16_by_32_keeps_as_much_as_v06_did(interactions_100k):
    """v0.6: 1,223,962,043 training interactions of 512 times ml-20m's, 12.0 %."""
    rate = expand.keep_rates(interactions_100k, (16, 32)).mean() / 65536
    assert rate == pytest.approx(1_223_962_043 / (512 * 19_861_770), abs=0.01)  # 0.1238, 0.1204


def test_more_copies_than_the_data_has_users_or_films_is_an_error():
    interactions = checks.split(checks.make_ratings(0))
    for expansion in ((interactions.num_users, 2), (2, interactions.num_items)):
        with pytest.raises(UsageError, match="give an expansion below that"):
            expand.keep_rates(interactions, expansion)


# --- blocks ---------------------------------------------------------------------------------------


def test_expanded_rows_equal_the_plain_ones():
    checks.check_expanded_rows()


def test_movielens_expanded_equals_the_plain_expansion(interactions_100k):
    plain_train, plain_test = plain_expansion(
        checks.train_items_of(interactions_100k),
        interactions_100k.test_items.tolist(),
        interactions_100k.num_items,
        RATES.tolist(),
    )
    digest = hashlib.sha256()
    first = 0
    for row in range(2):
        users, items, test_items = expand.expand_row(interactions_100k, RATES, row)
        pairs = set(zip((users + first).tolist(), items.tolist(), strict=True))
        last = first + len(test_items)
        assert pairs == {(u, i) for u in range(first, last) for i in plain_train[u]}
        assert test_items.tolist() == plain_test[first:last]
        for array in (users, items, test_items):
            digest.update(array.astype("<i8").tobytes())
        first = last
    assert first == len(plain_test)
    assert digest.hexdigest() == EXPANDED_SHA256


def blocks_of(
    interactions: prepare.Interactions, rates: numpy.ndarray, row: int
) -> list[numpy.ndarray]:
    """The blocks of one row as dense matrices [U, I]; no user of it may have been left out."""
    users, items, test_items = expand.expand_row(interactions, rates, row)
    assert len(test_items) == interactions.num_users
    whole = numpy.zeros((len(test_items), interactions.num_items * rates.shape[1]))
    whole[users, items] = 1
    return numpy.split(whole, rates.shape[1], axis=1)


def test_each_block_keeps_its_share(interactions_100k):
    rates = expand.keep_rates(interactions_100k, (4, 4))
    num_train = len(interactions_100k.train_users)
    for row in range(4):
        for block, rate in zip(blocks_of(interactions_100k, rates, row), rates[row], strict=True):
            share = rate / 65536
            deviation = (num_train * share * (1 - share)) ** 0.5
            assert abs(block.sum() - num_train * share) < 5 * deviation


def test_a_whole_block_is_the_original_with_users_and_films_shuffled(interactions_100k, svd_100k):
    """Of its own shuffle, so the spectrum and all degrees are the original's, the order not."""
    original = numpy.zeros((interactions_100k.num_users, interactions_100k.num_items))
    original[interactions_100k.train_users, interactions_100k.train_items] = 1
    blocks = blocks_of(interactions_100k, numpy.full((1, 2), 65536), 0)
    for block in blocks:
        assert numpy.allclose(numpy.linalg.svd(block, compute_uv=False), svd_100k[1], atol=1e-9)
    for axis in (0, 1):
        degrees = [matrix.sum(axis=axis) for matrix in (original, *blocks)]
        assert all((numpy.sort(d) == numpy.sort(degrees[0])).all() for d in degrees)
        for one, other in ((0, 1), (0, 2), (1, 2)):
            assert (
                abs(numpy.corrcoef(degrees[one], degrees[other])[0, 1]) < 5 / len(degrees[0]) ** 0.5
            )


def test_a_sampled_block_is_part_of_the_whole_one(interactions_100k):
    (whole,) = blocks_of(interactions_100k, numpy.array([[65536]]), 0)
    (half,) = blocks_of(interactions_100k, numpy.array([[32768]]), 0)
    (more,) = blocks_of(interactions_100k, numpy.array([[40000]]), 0)
    assert (half <= more).all() and (more <= whole).all()
    # Each interaction has the same chance: a user's number of them is binomial.
    expected = whole.sum(axis=1) / 2
    statistic = ((half.sum(axis=1) - expected) ** 2 / (expected / 2)).sum()
    assert abs(statistic - len(whole)) < 5 * (2 * len(whole)) ** 0.5


def test_activity_and_popularity_keep_their_shape(interactions_100k):
    """The paper's claim: fat tails stay fat. The top tenth of films has 43 % of all ratings, that
    of users 32 %; a fifth of it may go, as each is the sum of copies of different ones.
    """

    def top_tenth(numbers: numpy.ndarray, size: int) -> float:
        counts = numpy.sort(numpy.bincount(numbers, minlength=size))[::-1]
        return float(counts[: size // 10].sum() / counts.sum())

    rates = expand.keep_rates(interactions_100k, (4, 4))
    num_users, num_items = interactions_100k.num_users, interactions_100k.num_items
    rows = [expand.expand_row(interactions_100k, rates, row) for row in range(4)]
    users = numpy.concatenate([users + n * num_users for n, (users, _, _) in enumerate(rows)])
    items = numpy.concatenate([items for _, items, _ in rows])
    shares = {
        "films": (
            top_tenth(interactions_100k.train_items, num_items), top_tenth(items, 4 * num_items),
        ),
        "users": (
            top_tenth(interactions_100k.train_users, num_users), top_tenth(users, 4 * num_users),
        ),
    }  # fmt: skip
    for before, after in shares.values():
        assert 0.8 * before < after < 1.05 * before


def test_the_held_out_film_comes_from_a_block_as_often_as_its_interactions(interactions_100k):
    num_items = interactions_100k.num_items
    for row in range(2):
        _, _, test_items = expand.expand_row(interactions_100k, RATES, row)
        counts = numpy.bincount(test_items // num_items, minlength=3)
        expected = RATES[row] / RATES[row].sum() * len(test_items)
        checks.assert_uniform(counts, expected, num_constraints=1)


def test_no_held_out_film_is_trained_on(interactions_100k):
    for rates in (RATES, numpy.full((1, 3), 65536)):
        for row in range(len(rates)):
            users, items, test_items = expand.expand_row(interactions_100k, rates, row)
            assert not (test_items[users] == items).any()


# --- on disk --------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_expanded_files_equal_the_plain_expansion():
    checks.check_expanded_files()


def test_expansion_on_disk(data_dir):
    prepare.prepare(MINI, data_dir)
    plain = contents(data_dir / "prepared")
    prepare.prepare(TWO_BY_THREE, data_dir)
    assert contents(data_dir / "prepared") == plain
    folder = data_dir / "prepared-2x3"
    command = ["sha256sum", "--check", "--strict", "--quiet", "MANIFEST.sha256"]
    assert subprocess.run(command, cwd=folder).returncode == 0
    names = {f"{name}-00{row}.npy" for name in prepare.SHARDED_ARRAYS for row in (0, 1)}
    listed = {line[66:] for line in (folder / "MANIFEST.sha256").read_text().splitlines()}
    assert (
        listed == names | {"meta.json"} == {p.name for p in folder.iterdir()} - {"MANIFEST.sha256"}
    )
    meta = json.loads((folder / "meta.json").read_text())
    assert (meta["num_users"], meta["num_items"]) == (2 * 943, 3 * 1682)
    assert abs(numpy.array(meta["keep_rates_in_65536ths"]) - RATES).max() <= 1
    assert meta["num_train"] == pytest.approx(RATES.sum() / 65536 * 99_057, rel=0.01)
    for name in names:
        assert numpy.load(folder / name, mmap_mode="r").dtype == "int32"

    # A second time nothing is done; made anew the bytes are the same.
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    prepare.prepare(TWO_BY_THREE, data_dir)
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == before
    bytes_before = contents(folder)
    (folder / "meta.json").unlink()
    assert not prepare.is_prepared(TWO_BY_THREE, data_dir)
    prepare.prepare(TWO_BY_THREE, data_dir)
    assert contents(folder) == bytes_before


def test_an_expansion_of_1_by_1_is_the_plain_data(data_dir):
    command = ["mini", "--data-dir", str(data_dir)]
    assert prepare.main(command) == 0
    plain = contents(data_dir)
    (data_dir / "prepared" / "meta.json").unlink()  # it is prepared anew
    assert prepare.main([*command, "--expansion", "1", "1"]) == 0
    assert contents(data_dir) == plain


def test_users_without_a_training_film_are_left_out(data_dir, interactions_100k, monkeypatch):
    """At the lowest keep rate a user of 20 ratings often has none left."""
    monkeypatch.setattr(expand, "keep_rates", lambda *_: numpy.full((3, 1), 655))
    config = dataclasses.replace(MINI, expansion=(3, 1), num_eval_negatives=9)
    prepare.prepare(config, data_dir)
    options = RunOptions(data_dir=data_dir)
    interactions = data.load(config, options)
    num_users, num_items, num_train = data.sizes(config, options)
    users = interactions.train_users[:]
    # Of the 3 x 943: each training positive was dropped with probability 1 - 655 / 65536.
    counts = numpy.bincount(interactions_100k.train_users)
    expected = 3 * (1 - (1 - 655 / 65536) ** counts).sum()
    assert abs(num_users - expected) < 5 * (3 * 943 / 4) ** 0.5
    assert num_users < 0.7 * 3 * 943
    assert numpy.unique(users).tolist() == list(range(num_users))  # each has one, none is skipped
    assert len(interactions.test_items) == len(interactions.eval_negatives) == num_users
    assert num_items == 1682 and num_train == len(users)


@pytest.mark.parametrize("earlier", [False, True])
def test_a_full_disk_leaves_nothing_half_written(data_dir, monkeypatch, earlier):
    fewer = dataclasses.replace(TWO_BY_THREE, num_eval_negatives=9)
    if earlier:
        prepare.prepare(fewer, data_dir)
    before = contents(data_dir)
    save, calls = numpy.save, []

    def full(path: Path, array: numpy.ndarray) -> None:
        calls.append(path)
        if len(calls) == 6:  # in the second row of blocks
            Path(path).write_bytes(b"half")
            raise OSError(28, os.strerror(28))
        save(path, array)

    monkeypatch.setattr(numpy, "save", full)
    with pytest.raises(UsageError, match=r"prepared-2x3: No space left on device"):
        prepare.prepare(TWO_BY_THREE, data_dir)
    assert contents(data_dir) == before
    assert prepare.is_prepared(fewer, data_dir) == earlier


KILLED = """
import os, signal, sys
import numpy
from recommendation import prepare
save, calls = numpy.save, []
def killed(path, array):
    calls.append(path)
    if len(calls) == 6:
        path.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    save(path, array)
numpy.save = killed
prepare.main(["mini", "--expansion", "2", "3", "--data-dir", sys.argv[1]])
"""


def test_a_killed_expansion_does_not_count_and_is_cleared_away(data_dir):
    done = subprocess.run([sys.executable, "-c", KILLED, str(data_dir)], cwd=REPOSITORY)
    assert done.returncode == -9
    assert {p.name for p in data_dir.iterdir()} == {"ml-100k.inter", "prepared-2x3.tmp"}
    assert not prepare.is_prepared(TWO_BY_THREE, data_dir)
    prepare.prepare(TWO_BY_THREE, data_dir)
    assert {p.name for p in data_dir.iterdir()} == {"ml-100k.inter", "prepared-2x3"}
    assert prepare.is_prepared(TWO_BY_THREE, data_dir)


def test_memory_does_not_grow_with_the_rows_of_blocks(data_dir):
    """Eight rows are written in the memory of two."""
    peaks, sizes = [], []
    for rows in (2, 8):
        config = dataclasses.replace(MINI, expansion=(rows, 2))
        tracemalloc.start()
        prepare.prepare(config, data_dir)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        folder = prepare.prepared_folder(config, data_dir)
        sizes.append(sum(path.stat().st_size for path in folder.iterdir()))
    print(f"peaks {peaks}, sizes on disk {sizes}")
    assert sizes[1] > 3.5 * sizes[0]
    assert peaks[1] < 1.1 * peaks[0]


# --- loading --------------------------------------------------------------------------------------


def test_slices_of_shards_are_those_of_one_array():
    parts = [numpy.arange(n) + first for first, n in ((0, 5), (5, 0), (5, 1), (6, 9), (15, 4))]
    shards, whole = data.Shards(parts), numpy.arange(19)
    assert len(shards) == 19
    for start in (None, 0, 1, 5, 6, 14, 18, 19, 25):
        for stop in (None, 0, 3, 5, 15, 19, 30):
            for step in (None, 1, 2, 3, 7, 20):
                rows = slice(start, stop, step)
                assert shards[rows].tolist() == whole[rows].tolist(), rows


def test_columns_reach_the_device_whole(monkeypatch):
    monkeypatch.setattr(data, "CHUNK", 4)
    parts = [numpy.arange(n, dtype=numpy.int32) for n in (5, 1, 8)]
    whole = data.on_device(data.Shards(parts), checks.CPU)
    assert whole.dtype == torch.int32
    assert whole.tolist() == numpy.concatenate(parts).tolist()


def test_an_order_that_needs_64_bits_has_them(monkeypatch):
    """At 16 x 32 an epoch of ml-20m has 6.1 thousand million examples."""
    interactions, training_set = checks.small_training_set()
    order = training_set.epoch(1, 1).order
    examples = checks.examples_of(training_set.epoch(1, 1))
    sizes = (interactions.num_users, len(training_set.users), 0)
    memory = data.estimate_memory_bytes(checks.SMALL, *sizes)
    monkeypatch.setattr(data, "LARGEST_INT32", len(order) - 1)
    longer = training_set.epoch(1, 1)
    assert (order.dtype, longer.order.dtype) == (torch.int32, torch.int64)
    assert longer.order.tolist() == order.tolist()
    assert (checks.examples_of(longer) == examples).all()
    assert data.estimate_memory_bytes(checks.SMALL, *sizes) == memory + 4 * len(order)


def test_every_process_gets_its_share_of_the_expanded_users(data_dir):
    config = dataclasses.replace(TWO_BY_THREE, num_eval_negatives=9)
    prepare.prepare(config, data_dir)
    interactions = data.load(config, RunOptions(data_dir=data_dir))
    whole = EvaluationSet(interactions, checks.CPU)
    for rank in range(3):
        with checks.as_process(rank, 3):
            share = EvaluationSet(interactions, checks.CPU)
        assert torch.equal(share.users, whole.users[rank::3])
        assert torch.equal(share.candidates, whole.candidates[rank::3])


# --- the programs ---------------------------------------------------------------------------------


def run_module(module: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program of ours as a person would, from the repository's root."""
    ours = ("DATA_DIR", "RESULTS_DIR", "PRESET", "RESUME", "NUM_GPUS", "STATUS_FILE")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)


def test_from_the_ratings_to_a_log_that_the_checker_accepts(data_dir, tmp_path):
    expansion = ("--expansion", "2", "2", "--num-eval-negatives", "99", "--data-dir", data_dir)
    run = ("mini", *expansion, "--device", "cpu", "--num-steps", "12", "--results-dir")
    early = run_module("recommendation.train", *run, tmp_path / "early")
    assert early.returncode == 2 and early.stderr.count("\n") == 1
    command = "run python -m recommendation.prepare mini --num-eval-negatives 99 --expansion 2 2"
    assert f"{command}\n" in early.stderr
    assert not (tmp_path / "early").exists()
    assert run_module("recommendation.prepare", "mini", *expansion).returncode == 0

    losses = []
    for name in ("one", "two"):
        done = run_module("recommendation.train", *run, tmp_path / name)
        assert done.returncode == 0, done.stderr
        (record,) = (tmp_path / name).rglob("run.json")
        losses.append((record.parent / "losses.csv").read_text())
    assert losses[0] == losses[1] and losses[0].count("\n") == 12
    first, last = (float(losses[0].splitlines()[n].split(",")[1]) for n in (0, -1))
    assert first == pytest.approx(0.69, abs=0.05) and last < first

    log = (record.parent / "log.txt").read_text()
    meta = json.loads((data_dir / "prepared-2x2" / "meta.json").read_text())
    values = {
        r["key"]: r["value"]
        for r in (json.loads(s.removeprefix(":::MLLOG")) for s in log.splitlines())
    }
    assert values["modified"] == ["num_eval_negatives", "expansion", "num_steps"]
    assert values["train_samples"] == 5 * meta["num_train"]
    assert values["eval_samples"] == meta["num_users"]
    checked = run_module("harness", "check", record.parent / "log.txt")
    assert checked.returncode == 0 and "expansion, num_steps" in checked.stdout


@pytest.mark.parametrize(
    ("module", "arguments", "words"),
    [
        ("prepare", ["mini", "--expansion", "0", "3"], "expansion is 0 3"),
        ("prepare", ["mini", "--expansion", "2"], "--expansion"),
        ("prepare", ["mini", "--expansion", "943", "2"], "only 943 users and 1682 films"),
        ("prepare", ["tiny", "--expansion", "2", "2"], "made-up data is not expanded"),
        ("train", ["tiny", "--expansion", "2", "2"], "made-up data is not expanded"),
        ("train", ["mini", "--expansion", "2", "2", "--synthetic-data"], "is not expanded"),
    ],
)
def test_wrong_use_is_one_line(data_dir, tmp_path, module, arguments, words):
    places = ["--data-dir", data_dir, "--results-dir", tmp_path / "results"]
    done = run_module(f"recommendation.{module}", *arguments, *places)
    assert done.returncode == 2
    (*_, line) = done.stderr.splitlines()
    assert line.startswith("error: ") and words in line
    assert {p.name for p in data_dir.iterdir()} == {"ml-100k.inter"}
    assert not (tmp_path / "results").exists()
