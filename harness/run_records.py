"""Run records: what the run folders below a results folder say, read for tables and plots."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ACCEPTANCE_FOLDER = "acceptance"
"""Folder in RESULTS_DIR that gpu_acceptance.sh keeps its runs in."""
FINISHED = ("reached", "missed", "non-finite", "crashed")
FRAMEWORKS = ("torch", "tensorflow", "tensorflow-cpu")
PHASES = ("init", "input", "training", "evaluation", "checkpoint", "downtime")


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a run."""

    epoch: float
    elapsed_s: float
    """Seconds since run_start."""
    quality: Mapping[str, float]


@dataclass(frozen=True)
class RunRecord:
    """One run: run.json, config.json and system.json of its folder."""

    folder: Path
    benchmark: str
    preset: str
    seed: int
    status: str
    modified: tuple[str, ...]
    targets: Mapping[str, float]
    start_utc_s: float
    run_seconds: float
    """run_stop - run_start; NaN while the run is not finished."""
    phase_seconds: Mapping[str, float]
    evaluations: tuple[Evaluation, ...]
    train_examples_per_s: float
    num_resumes: int
    valid: bool
    system: Mapping[str, Any]
    config: Mapping[str, Any]
    """The Config's fields."""
    precision: str
    is_compiled: bool
    device: str
    num_processes: int

    @property
    def is_finished(self) -> bool:
        """Whether the run came to its end, with or without its target."""
        return self.status in FINISHED

    @property
    def epochs(self) -> float:
        """Epochs trained until the last evaluation."""
        return self.evaluations[-1].epoch if self.evaluations else 0

    @property
    def quality(self) -> str:
        """The last evaluation's values of the qualities that have a target, as text."""
        if not self.evaluations:
            return "none"
        last = self.evaluations[-1].quality
        return " / ".join(f"{last[name]:.4f}" for name in self.targets)

    @property
    def why_apart(self) -> str:
        """Why the run does not count for a table of its preset; empty where it does."""
        if "num_steps" in self.modified or self.status == "num_steps":
            return "ended by --num-steps"
        if not self.is_finished:
            return "not finished"
        if not self.valid:
            return "invalid: the clock was set back between attempts"
        if self.modified:
            return f"modified: {', '.join(self.modified)}"
        return "resumed" if self.num_resumes else ""

    @property
    def setting(self) -> str:
        """On what and how it ran: runs that differ in it are not summed up together."""
        gpus = [gpu["name"] for gpu in self.system["gpus"]] if self.device != "cpu" else []
        if gpus:
            place = f"{self.num_processes} x {gpus[0]}"
        else:
            place = f"{self.system['cpu']}, {self.system['num_cores']} cores"
            if self.num_processes > 1:
                place += f", {self.num_processes} processes"
        packages = self.system["packages"]
        versions = [f"{name} {packages[name]}" for name in FRAMEWORKS if name in packages]
        return ", ".join([place, self.precision, *["compiled"] * self.is_compiled, *versions])


def read_record(folder: Path) -> RunRecord:
    """The record of one run. Raises OSError, ValueError, KeyError, TypeError where it is broken."""
    run = json.loads((folder / "run.json").read_text())
    stored = json.loads((folder / "config.json").read_text())
    system = json.loads((folder / "system.json").read_text())
    for name in ("cpu", "num_cores", "memory_bytes", "gpus", "python", "packages", "git_commit"):
        system[name]  # a record without them is broken
    targets = {name: float(value) for name, value in run["targets"].items()}
    evaluations = tuple(
        Evaluation(
            epoch=_whole(float(one["epoch"])),
            elapsed_s=float(one["elapsed_s"]),
            quality={name: float(value) for name, value in one["quality"].items()},
        )
        for one in run["evaluations"]
    )
    if any(name not in one.quality for one in evaluations for name in targets):
        raise ValueError(f"an evaluation lacks one of {', '.join(targets)}")
    if run["status"] == "reached" and not evaluations:
        raise ValueError("the target is reached without an evaluation")
    is_finished = run["status"] in FINISHED
    return RunRecord(
        folder=folder,
        benchmark=str(run["benchmark"]),
        preset=str(run["preset"]),
        seed=int(run["seed"]),
        status=str(run["status"]),
        modified=tuple(map(str, run["modified"])),
        targets=targets,
        start_utc_s=float(run["start_utc_s"]),
        run_seconds=float(run["run_seconds"]) if is_finished else math.nan,
        phase_seconds={name: float(run["phase_seconds"][name]) for name in PHASES},
        evaluations=evaluations,
        train_examples_per_s=float(run["train_examples_per_s"]),
        num_resumes=int(run["num_resumes"]),
        valid=bool(run["valid"]),
        system=system,
        config=dict(stored["config"]),
        precision=str(stored["options"]["precision"]),
        is_compiled=bool(stored["options"]["compile"]),
        device=str(stored["derived"]["device"]),
        num_processes=int(stored["derived"]["num_processes"]),
    )


def _whole(number: float) -> float:
    """An int where nothing is lost, so that it is written without a fraction."""
    return int(number) if number.is_integer() else number


def read_records(folder: Path) -> tuple[list[RunRecord], list[str]]:
    """All runs below a folder in the order of their start; and what could not be read, by line.

    The short runs of gpu_acceptance.sh are not among them.
    """
    records, unreadable = [], []
    for path in sorted(folder.glob("**/run.json")):
        if ACCEPTANCE_FOLDER in path.relative_to(folder).parts:
            continue
        try:
            records.append(read_record(path.parent))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            cause = " ".join(f"{type(error).__name__}: {error}".split())
            unreadable.append(f"{path.parent} is left out: {cause}")
    return sorted(records, key=lambda record: record.start_utc_s), unreadable


def by_benchmark(
    records: Iterable[RunRecord],
) -> dict[tuple[str, str], list[RunRecord]]:
    """Runs by (benchmark, preset), in the order of these names."""
    groups: dict[tuple[str, str], list[RunRecord]] = defaultdict(list)
    for record in records:
        groups[record.benchmark, record.preset].append(record)
    return dict(sorted(groups.items()))


def comparable_runs(records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """The runs of one benchmark and preset that count, by setting: the newest of each seed."""
    newest: dict[tuple[str, int], RunRecord] = {}
    for record in sorted(records, key=lambda record: record.start_utc_s):
        if not record.why_apart:
            newest[record.setting, record.seed] = record
    settings: dict[str, list[RunRecord]] = defaultdict(list)
    for (setting, _), record in sorted(newest.items()):
        settings[setting].append(record)
    return dict(settings)
