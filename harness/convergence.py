"""Convergence points: how many epochs a benchmark's runs needed, by batch size and seed.

`<benchmark>/convergence.json` holds them. `python -m harness report --convergence BENCHMARK` writes
it from run records; `python -m harness check` holds new runs against it. A run that needed far
fewer epochs than these probably trained something else, or was chosen out of many.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.checkpoint import write_json
from harness.errors import UsageError
from harness.log_file import Log, load
from harness.options import REPOSITORY
from harness.run_records import RunRecord
from harness.run_statistics import MIN_REFERENCE_RUNS, fewest_epochs, mean_epochs

RATE_KEYS = ("opt_base_learning_rate", "opt_learning_rate")
"""Beginnings of the keys of what may change together with the batch size (RULES.md)."""


@dataclass(frozen=True)
class PointKey:
    """What runs must share for their epochs to be held against each other."""

    preset: str
    targets: tuple[tuple[str, float], ...]
    batch_size: int

    def __str__(self) -> str:
        return f"{self.preset} with batch {self.batch_size}"


@dataclass(frozen=True)
class Points:
    """The runs of one preset, target and batch size."""

    preset: str
    targets: dict[str, float]
    batch_size: int
    epochs_by_seed: dict[str, float]
    """Epochs until the target was met."""
    missed_seeds: list[int]
    """Runs that never met it."""
    git_commits: list[str]
    machines: list[str]

    @property
    def key(self) -> PointKey:
        """What these runs share."""
        return PointKey(self.preset, tuple(self.targets.items()), self.batch_size)


def path_of(benchmark: str) -> Path:
    """Where the points of a benchmark lie."""
    return REPOSITORY / benchmark / "convergence.json"


def read(benchmark: str) -> list[Points]:
    """The points of a benchmark; none where it has no file."""
    path = path_of(benchmark)
    if not path.exists():
        return []
    return [Points(**points) for points in json.loads(path.read_text())]


def write(benchmark: str, records: Iterable[RunRecord]) -> list[Points]:
    """Put what the records show in place of the points of the same key; returns what is new.

    Raises UsageError where no run of the benchmark can be a point.
    """
    groups: dict[PointKey, dict[int, RunRecord]] = defaultdict(dict)
    for record in records:
        if record.benchmark == benchmark and (key := _key_of_record(record)):
            groups[key][record.seed] = record  # the newest of a seed: they come by their start
    if not groups:
        cause = f"no run of {benchmark} can be a convergence point"
        raise UsageError(f"{cause}; finish unmodified runs (or with another batch size) first")
    new = [_points(key, runs) for key, runs in groups.items()]
    kept = [points for points in read(benchmark) if points.key not in groups]
    ordered = sorted([*kept, *new], key=lambda one: (one.preset, one.batch_size))
    write_json(path_of(benchmark), [asdict(points) for points in ordered])
    return new


def _points(key: PointKey, runs: Mapping[int, RunRecord]) -> Points:
    by_seed = [runs[seed] for seed in sorted(runs)]
    return Points(
        preset=key.preset,
        targets=dict(key.targets),
        batch_size=key.batch_size,
        epochs_by_seed={str(run.seed): run.epochs for run in by_seed if run.status == "reached"},
        missed_seeds=[run.seed for run in by_seed if run.status != "reached"],
        git_commits=sorted({str(run.system["git_commit"]) for run in by_seed}),
        machines=sorted({run.setting for run in by_seed}),
    )


def _rules(benchmark: str) -> dict[str, Any] | None:
    path = REPOSITORY / benchmark / "rules.toml"
    return load(path) if path.exists() else None


def _changes(rules: Mapping[str, Any]) -> tuple[str, set[str]]:
    """Fields of Config: the batch size, and what may change together with it."""
    recipe = rules["recipe"]
    batch_field = str(recipe["global_batch_size"]["field"])
    rates = {
        str(rule["field"])
        for key, rule in recipe.items()
        if key.startswith(RATE_KEYS) and "field" in rule
    }
    return batch_field, rates | {batch_field}


def _key_of_record(record: RunRecord) -> PointKey | None:
    """None where the run is no point: unfinished, crashed, or of another science."""
    if record.status not in ("reached", "missed") or not record.valid:
        return None
    rules = _rules(record.benchmark)
    if rules is None:
        return None
    batch_field, may_change = _changes(rules)
    changed = set(record.modified)
    if changed and (changed - may_change or batch_field not in changed):
        return None
    batch_size = int(record.config[batch_field])
    return PointKey(record.preset, tuple(record.targets.items()), batch_size)


def _key_of_log(log: Log) -> tuple[str, PointKey] | None:
    """Benchmark and key of a log; None where its epochs say nothing: another science, no target."""
    benchmark, preset, target, batch = (
        log.one(key)
        for key in ("submission_benchmark", "preset", "quality_target", "global_batch_size")
    )
    if not (benchmark and preset and target and batch) or log.status != "success":
        return None
    rules = _rules(benchmark.value)
    if rules is None or set(log.modified) - _changes(rules)[1]:
        return None
    return benchmark.value, PointKey(preset.value, tuple(target.value.items()), batch.value)


@dataclass(frozen=True)
class Flag:
    """Runs that reached their target suspiciously early."""

    paths: tuple[Path, ...]
    text: str


def judge(logs: Sequence[tuple[Path, Log]]) -> Iterator[Flag]:
    """Hold whole logs against the points of their benchmark.

    Three or more runs of one preset, target and batch size are judged together, fewer each alone.
    """
    groups: dict[tuple[str, PointKey], list[tuple[Path, float]]] = defaultdict(list)
    for path, log in logs:
        stop = log.one("run_stop")
        if (found := _key_of_log(log)) and stop:
            groups[found].append((path, stop.metadata["epoch_num"]))
    for (benchmark, key), runs in groups.items():
        reference = next((one for one in read(benchmark) if one.key == key), None)
        if reference is None or len(reference.epochs_by_seed) < MIN_REFERENCE_RUNS:
            continue
        epochs = list(reference.epochs_by_seed.values())
        for together in [runs] if len(runs) > 2 else [[run] for run in runs]:
            mean = mean_epochs([number for _, number in together])
            least = fewest_epochs(epochs, len(together))
            if mean < least:
                who = f"the mean of {len(together)} runs is" if len(together) > 1 else "it took"
                text = (
                    f"{who} {mean:g} epochs; {len(epochs)} known runs of {key} needed "
                    f"{statistics.fmean(epochs):.1f} on average, and less than {least:.2f} is "
                    "improbable (one-sided t-test at 5 %)"
                )
                yield Flag(tuple(path for path, _ in together), text)
