"""Orders, batches and windows: every word of every review in its place, the same way each time."""

import hashlib
import itertools

import numpy
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from harness.options import RunOptions
from sentiment_analysis import data
from sentiment_analysis.config import MINI, REFERENCE, TINY
from sentiment_analysis.tests import checks

MADE_UP_DIGESTS = {
    ("tiny", "train"): "feaacbbcba5383f5c211ab887dfa9ec30f5d27d2dff9915a54995f73584f0595",
    ("tiny", "test"): "3ebe57dd17cf92afd734d0c042092481847072aceb9b8a2d3e75be7c153be0c7",
}


def same(one, other):
    """Whether two batches are equal, bit for bit."""
    return (
        all(
            torch.equal(getattr(one, name), getattr(other, name))
            for name in ("words", "labels", "reviews", "step_words")
        )
        and len(one.groups) == len(other.groups)
        and all(map(torch.equal, one.groups, other.groups))
    )


def test_order_of_an_epoch():
    checks.check_epoch_order()


def test_the_last_batch_is_what_is_left_over():
    """Whichever it is, the pools and the shuffle of the batches leave it alone."""
    lengths = numpy.arange(1, 20_011) % 2_000
    for batching, seed in itertools.product(("bucketed", "shuffled"), range(3)):
        config = checks.dataclasses.replace(REFERENCE, batching=batching)
        order = data.epoch_order(lengths, config, seed, 1)
        assert data.num_steps(config, 20_010) == 157
        rest = lengths[order[156 * 128 :]]
        assert len(rest) == 42
        assert numpy.ptp(rest) > 1_000  # drawn by chance, of all lengths


def test_every_review_may_be_in_any_batch():
    """Over the epochs a short review has long neighbours too, and first and last steps."""
    lengths = numpy.arange(1, 97)
    firsts = [
        int(numpy.flatnonzero(data.epoch_order(lengths, checks.SMALL, 1, epoch) == 0)[0] // 8)
        for epoch in range(300)
    ]
    assert set(firsts) == set(range(12))


def test_batches_give_the_texts_back():
    checks.check_batches()


def test_shares_of_two_processes_are_the_batch():
    checks.check_shares()


def test_goes_on_from_any_step_with_the_same_batches():
    reviews = data.make_up(checks.SMALL, "train")
    whole = list(data.train_batches(reviews, checks.SMALL, 5, 2, 0, checks.CPU))
    for first in (1, 7, 11, 12):
        rest = list(data.train_batches(reviews, checks.SMALL, 5, 2, first, checks.CPU))
        assert len(rest) == 12 - first
        assert all(map(same, whole[first:], rest))


def test_windows_at_the_edges_of_a_review():
    """Zeros stand where there is no word; the shorter review has its only window twice."""
    reviews = checks.prepare.Reviews(
        numpy.array([70, 80, 90]), numpy.array([0, 1, 3]), numpy.array([0, 1])
    )
    batch = data.make_batch(reviews, numpy.array([1, 0]), (3, 4), checks.CPU)
    assert batch.words.tolist() == [70, 80, 90]
    (windows,) = batch.groups
    assert windows.tolist() == [[[3, 3, 0, 3], [3, 3, 0, 3]], [[3, 3, 1, 2], [3, 1, 2, 3]]]


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    widths=st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple),
    limit=st.integers(1, 200),
)
@example(lengths=[1], widths=(3, 4), limit=1)
@example(lengths=[1, 1, 2, 3], widths=(3, 4), limit=10**6)
@example(lengths=[2, 60], widths=(1,), limit=119)
def test_windows_have_the_maxima_of_a_plain_loop(lengths, widths, limit):
    checks.assert_largest_windows(lengths, widths, limit)


@pytest.mark.parametrize("half", ["train", "test"])
def test_made_up_reviews_are_the_same_everywhere(half):
    reviews = data.make_up(TINY, half)
    digest = hashlib.sha256()
    for array in (reviews.tokens, reviews.offsets, reviews.labels):
        digest.update(array.astype("<i8").tobytes())
    assert digest.hexdigest() == MADE_UP_DIGESTS["tiny", half]


def test_made_up_imdb_is_about_as_long_as_the_real_one():
    """Real reviews have 232.9 words in the mean, as the card's copy of them says."""
    assert 225 < data.made_up_lengths(REFERENCE).mean() < 245


@pytest.mark.parametrize("config", [TINY, MINI], ids=["tiny", "mini"])
def test_made_up_reviews_have_the_stated_shape(config):
    assert data.prepared(config, RunOptions(synthetic_data=True)) is None
    halves, sizes = data.load(config, None), data.sizes(config, None)
    assert len(data.vocabulary(config, None)) == sizes.num_words == config.made_up_vocabulary
    assert sizes.num_train == len(halves["train"]) == config.made_up_reviews
    assert sizes.num_test == len(halves["test"])
    assert sizes.num_train_words == len(halves["train"].tokens)
    assert not numpy.array_equal(halves["train"].tokens, halves["test"].tokens)
    for reviews in halves.values():
        assert int(reviews.tokens.max()) < sizes.num_words
        quantiles = numpy.quantile(reviews.lengths, numpy.linspace(0, 1, 11))
        percents, lengths = zip(*config.made_up_lengths, strict=True)
        wanted = numpy.interp(numpy.linspace(0, 100, 11), percents, lengths)
        assert numpy.abs(quantiles - wanted).max() <= 1.01
        assert reviews.labels.tolist() == sorted(reviews.labels.tolist())  # positives first
        assert int(reviews.labels.sum()) == len(reviews) // 2


def test_made_up_reviews_can_be_learnt():
    """Naive Bayes on the words finds most labels, and shuffled labels cannot be found."""
    train, test = (data.make_up(TINY, half) for half in ("train", "test"))
    mixed = numpy.random.default_rng(1).permutation(train.labels)
    right = {}
    for name, labels in (("true", train.labels), ("mixed", mixed)):
        counts = numpy.ones((2, TINY.made_up_vocabulary))
        numpy.add.at(counts, (numpy.repeat(labels, train.lengths), train.tokens), 1)
        log_odds = numpy.log(counts[1] / counts[1].sum()) - numpy.log(counts[0] / counts[0].sum())
        scores = numpy.add.reduceat(log_odds[test.tokens], test.offsets[:-1])
        right[name] = float(((scores > 0) == test.labels).mean())
    assert 0.9 < right["true"] < 0.999, right
    assert 0.35 < right["mixed"] < 0.65, right
