"""Whether two runs of the same training lost the same, step by step: what rounding may explain.

Two devices add in different orders, so their float32 losses differ in the last digits, and each
step hands the difference on to the next. How fast it grows belongs to the network: in 20 steps
NeuMF kept 1e-7, while a ResNet-18 at learning rate 0.1 (batch 32, batch norm) went from 7e-5 at
step 2 to 0.1 at step 7. So the growth is measured: a run on the CPU with other kernels is the
noise, and a difference may be NOISE_FACTOR times the largest noise so far. Where there is hardly
any, FIRST_TOLERANCE for each step done is allowed; the first losses come from identical weights.
On NeuMF that shows a learning rate that is 1 % off, and bfloat16, at step 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

FIRST_TOLERANCE = 1e-5
"""Relative difference that is allowed in the first step's loss."""
NOISE_FACTOR = 10
"""How many times the CPU's own noise another device may differ."""
MEANINGFUL = 0.05
"""A step with a larger tolerance is not counted as judged: other trainings would pass as well."""


def read_losses(path: Path) -> list[float]:
    """The losses of a run's losses.csv. Raises ValueError where its steps are not 1, 2, 3, ..."""
    rows = [line.split(",") for line in path.read_text().splitlines()]
    if [row[0] for row in rows] != [str(step) for step in range(1, len(rows) + 1)]:
        raise ValueError(f"the steps of {path} do not count from 1 without a gap")
    return [float(row[1]) for row in rows]


def relative_differences(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """|a - b| / max(|a|, |b|) of each step; raises ValueError where they cannot be compared."""
    if len(first) != len(second) or not first:
        raise ValueError(f"{len(first)} and {len(second)} steps were recorded")
    for step, pair in enumerate(zip(first, second, strict=True), start=1):
        if not all(map(math.isfinite, pair)):
            raise ValueError(f"the losses of step {step} are {pair[0]} and {pair[1]}")
    return [
        abs(a - b) / max(abs(a), abs(b)) if a != b else 0.0
        for a, b in zip(first, second, strict=True)
    ]


def tolerances(noise: Sequence[float]) -> list[float]:
    """The relative difference that is allowed at each step, from the noise of the steps."""
    largest = accumulate(noise, max)
    return [
        FIRST_TOLERANCE if step == 1 else max(FIRST_TOLERANCE * step, NOISE_FACTOR * so_far)
        for step, so_far in enumerate(largest, start=1)
    ]


def num_judged(allowed: Sequence[float]) -> int:
    """How many steps have a tolerance that other trainings would not meet."""
    return sum(tolerance <= MEANINGFUL for tolerance in allowed)


def first_over(differences: Sequence[float], allowed: Sequence[float]) -> int | None:
    """Number of the first step that differs by more than is allowed; None: all agree."""
    for step, pair in enumerate(zip(differences, allowed, strict=True), start=1):
        if pair[0] > pair[1]:
            return step
    return None
