"""What several runs say together: median and range, ratio with its spread, too few epochs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

Values = NDArray[numpy.float64]

MIN_RUNS_FOR_SPREAD = 3
"""Runs on each side below which a ratio has no spread, and a mean leaves nothing out."""
MIN_REFERENCE_RUNS = 5
"""Known runs that the t-test needs."""
SIGNIFICANCE = 0.05
"""Chance that the t-test flags honest runs."""


@dataclass(frozen=True)
class Summary:
    """Of the runs that reached their target, in the unit of what is summed up."""

    median: float
    minimum: float
    maximum: float
    mean_of_middle: float | None
    """Mean without the fastest and the slowest run, from three runs on."""


def summarize(values: Sequence[float]) -> Summary:
    """Raises statistics.StatisticsError for no value."""
    middle = sorted(values)[1:-1]
    enough = len(values) >= MIN_RUNS_FOR_SPREAD
    return Summary(
        median=statistics.median(values),
        minimum=min(values),
        maximum=max(values),
        mean_of_middle=statistics.fmean(middle) if enough else None,
    )


@dataclass(frozen=True)
class Ratio:
    """Second over first, by their medians."""

    value: float
    low: float | None
    high: float | None
    """Ends of the 95 % bootstrap interval; None with fewer than three values on a side."""


def ratio_of_medians(first: Sequence[float], second: Sequence[float]) -> Ratio:
    """median(second) / median(first), and between which values chance lets it lie.

    The interval is the percentile bootstrap's: both sides are drawn anew from their own values,
    9,999 times from a fixed seed, so that the same runs give the same interval.
    """
    from scipy.stats import bootstrap

    value = statistics.median(second) / statistics.median(first)
    if min(len(first), len(second)) < MIN_RUNS_FOR_SPREAD:
        return Ratio(value, None, None)

    def statistic(a: Values, b: Values, axis: int) -> Values:
        ratio: Values = numpy.median(b, axis=axis) / numpy.median(a, axis=axis)
        return ratio

    found = bootstrap(
        (numpy.asarray(first, float), numpy.asarray(second, float)),
        statistic,
        method="percentile",
        rng=numpy.random.default_rng(0),
    ).confidence_interval
    return Ratio(value, float(found.low), float(found.high))


def fewest_epochs(reference: Sequence[float], num_runs: int) -> float:
    """The mean number of epochs below which `num_runs` runs converged suspiciously early.

    A one-sided t-test at 5 % of their mean against the epochs of `reference`, with the reference's
    deviation for both. From three runs on both sides go without their fastest and slowest, as in
    MLPerf's Bounded Convergence document: 10 reference runs of mean 15.75 and deviation 0.43 after
    trimming let 5 runs have 15.21. One or two runs are held against the untrimmed reference.
    Raises ValueError with fewer than MIN_REFERENCE_RUNS.
    """
    from scipy.stats import t

    if len(reference) < MIN_REFERENCE_RUNS:
        raise ValueError(f"the t-test needs {MIN_REFERENCE_RUNS} reference runs")
    if num_runs >= MIN_RUNS_FOR_SPREAD:
        points, num_counted = sorted(reference)[1:-1], num_runs - 2
        deviation = statistics.pstdev(points)
    else:
        points, num_counted = list(reference), num_runs
        deviation = statistics.stdev(points)
    freedom = len(points) + num_counted - 2
    allowance = float(t.ppf(1 - SIGNIFICANCE, freedom))
    standard_error = deviation * math.sqrt(1 / len(points) + 1 / num_counted)
    return statistics.fmean(points) - allowance * standard_error


def mean_epochs(epochs: Sequence[float]) -> float:
    """What `fewest_epochs` bounds: the mean, from three runs on without the ends."""
    return statistics.fmean(sorted(epochs)[1:-1] if len(epochs) >= MIN_RUNS_FOR_SPREAD else epochs)
