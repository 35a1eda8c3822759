"""Sums over runs, ratios and the t-test, with numbers worked out elsewhere."""

import statistics

import numpy
import pytest
from scipy.stats import t, ttest_ind

from harness.run_statistics import (
    fewest_epochs,
    mean_epochs,
    ratio_of_medians,
    summarize,
)


def test_summary():
    found = summarize([5.0, 1.0, 3.0, 100.0])
    assert (found.median, found.minimum, found.maximum) == (4.0, 1.0, 100.0)
    assert found.mean_of_middle == 4.0
    assert summarize([1.0, 2.0]).mean_of_middle is None
    with pytest.raises(statistics.StatisticsError):
        summarize([])


def test_ratio_and_its_spread():
    noise = numpy.random.default_rng(1).normal(0, 1, size=(2, 20))
    first, second = 100 + noise[0], 150 + noise[1]
    found = ratio_of_medians(list(first), list(second))
    assert found.value == statistics.median(second) / statistics.median(first)
    assert 1.45 < found.low < found.value < found.high < 1.55
    wider = ratio_of_medians(list(100 + 10 * noise[0]), list(150 + 10 * noise[1]))
    assert wider.high - wider.low > 5 * (found.high - found.low)
    assert ratio_of_medians([1.0, 2.0], [1.0, 2.0, 3.0]).low is None


@pytest.mark.parametrize(
    ("middle", "mean", "deviation", "fewest"),
    [
        ([15, 15, 16, 16, 16, 16, 16, 16], 15.75, 0.43, 15.21),
        ([20, 20, 20, 21, 21, 21, 21, 22], 20.75, 0.66, 19.93),
    ],
)
def test_worked_examples_of_the_bounded_convergence_document(middle, mean, deviation, fewest):
    assert round(statistics.fmean(middle), 2) == mean
    assert round(statistics.pstdev(middle), 2) == deviation
    reference = [1, *middle, 99]  # ten runs, whose fastest and slowest do not count
    assert round(fewest_epochs(reference, num_runs=5), 2) == fewest


def test_one_run_is_held_against_the_untrimmed_reference():
    """The bound lies where Student's t-test of one value against the reference turns 5 %."""
    reference = [8.0, 11.0, 10.0, 9.0, 10.0, 12.0]
    bound = fewest_epochs(reference, num_runs=1)
    found = ttest_ind([bound], reference, alternative="less")
    assert found.pvalue == pytest.approx(0.05, abs=1e-9)
    assert t(5).ppf(0.05) == pytest.approx(found.statistic)


def test_honest_runs_are_flagged_one_time_in_twenty():
    draws = numpy.random.default_rng(2).normal(10, 1, size=(4000, 11))
    flagged = [row[0] < fewest_epochs(list(row[1:]), num_runs=1) for row in draws]
    assert numpy.mean(flagged) == pytest.approx(0.05, abs=0.012)


def test_five_reference_runs_are_needed():
    with pytest.raises(ValueError, match="5 reference runs"):
        fewest_epochs([1, 2, 3, 4], num_runs=1)


def test_mean_epochs():
    assert mean_epochs([1, 5, 6, 100]) == 5.5
    assert mean_epochs([1, 5]) == 3
