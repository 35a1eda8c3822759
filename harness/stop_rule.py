"""When a run has reached its target: finite, and at or beyond every target in one evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from harness.errors import UsageError


@dataclass(frozen=True)
class QualityTarget:
    """One quality that must be met."""

    name: str
    """Key of the quality in what the evaluation returns, such as `hr_at_10`."""
    value: float
    """The target itself, in the unit of the quality."""
    higher_is_better: bool = True
    """False for an error rate: then a quality at or below the value meets it."""

    def __str__(self) -> str:
        return f"{self.name} {'>=' if self.higher_is_better else '<='} {self.value:g}"

    def is_met_by(self, quality: float) -> bool:
        """Equal counts as met; NaN and infinities never do."""
        if not math.isfinite(quality):
            return False
        return quality >= self.value if self.higher_is_better else quality <= self.value


def all_met(targets: Sequence[QualityTarget], quality: Mapping[str, float]) -> bool:
    """Whether one evaluation's `quality` (name to value) meets every target.

    Raises KeyError where the evaluation did not return a quality that has a target.
    """
    return all(target.is_met_by(quality[target.name]) for target in targets)


def better(
    targets: Sequence[QualityTarget], first: Mapping[str, float], second: Mapping[str, float]
) -> bool:
    """Whether `first` lies nearer to (or further beyond) its targets than `second`.

    Several targets are compared by the one that is furthest from being met.
    """

    def margin(quality: Mapping[str, float]) -> float:
        """Smallest distance beyond a target, relative to the target's size; NaN is the worst."""
        margins = []
        for target in targets:
            value = quality[target.name]
            signed = value - target.value if target.higher_is_better else target.value - value
            scaled = signed / (abs(target.value) or 1.0)
            margins.append(scaled if math.isfinite(scaled) else -math.inf)
        return min(margins)

    return margin(first) > margin(second)


def parse_targets(text: str, preset: Sequence[QualityTarget]) -> tuple[QualityTarget, ...]:
    """Targets from the command line, `0.635` or `0.377/0.339`, in the order of the preset's.

    Raises UsageError where the number of values differs or one is not a finite number.
    """
    parts = text.split("/")
    names = "/".join(target.name for target in preset)
    if len(parts) != len(preset):
        raise UsageError(f"target {text!r} has {len(parts)} values; give {names}, joined by /")
    try:
        values = [float(part) for part in parts]
    except ValueError:
        values = [math.nan]
    if not all(math.isfinite(value) for value in values):
        raise UsageError(f"target {text!r} is not a number; give {names}, such as {show(preset)}")
    return tuple(replace(target, value=value) for target, value in zip(preset, values, strict=True))


def show(targets: Sequence[QualityTarget]) -> str:
    """The targets as stdout and the command line write them, joined by `/`."""
    return "/".join(repr(target.value) for target in targets)
