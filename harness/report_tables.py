"""The report's content: for each benchmark and preset its runs, sums, and what differs."""

from __future__ import annotations

import itertools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.log_file import load
from harness.options import REPOSITORY
from harness.run_records import PHASES, RunRecord, by_benchmark, comparable_runs
from harness.run_statistics import Summary, ratio_of_medians, summarize


@dataclass(frozen=True)
class Results:
    """What lies in one results folder."""

    label: str
    records: list[RunRecord]
    unreadable: list[str]


@dataclass(frozen=True)
class Table:
    """Rows of text under a title."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Series:
    """Runs that are summed up together: one results folder, one setting, one run a seed."""

    results: str
    setting: str
    name: str
    """What tells these runs from the section's others."""
    runs: tuple[RunRecord, ...]

    @property
    def reached(self) -> list[RunRecord]:
        """Those that met their target."""
        return [run for run in self.runs if run.status == "reached"]


@dataclass(frozen=True)
class Section:
    """One preset of one benchmark."""

    benchmark: str
    preset: str
    series: tuple[Series, ...]
    counted: tuple[Table, ...]
    """Tables of the runs that count."""
    apart: tuple[Table, ...]
    """Resumed runs and modified runs."""
    comparisons: tuple[Table, ...]
    """Each other results folder beside the first."""
    notes: tuple[str, ...]

    @property
    def title(self) -> str:
        """Heading of the section."""
        return f"{self.benchmark}: {self.preset}"


# --- From records to sections -----------------------------------------------------------------


def sections(results: Sequence[Results]) -> list[Section]:
    """One section for each benchmark and preset that any of the results folders has."""
    grouped = [by_benchmark(one.records) for one in results]
    labels = [one.label for one in results]
    return [
        _section(*key, list(zip(labels, [group.get(key, []) for group in grouped], strict=True)))
        for key in sorted(set().union(*grouped))
    ]


def _section(
    benchmark: str, preset: str, labelled: Sequence[tuple[str, Sequence[RunRecord]]]
) -> Section:
    records = [record for _, runs in labelled for record in runs]
    series = _series({label: comparable_runs(runs) for label, runs in labelled})
    left_out, apart = _apart(records, {run.folder for one in series for run in one.runs})
    counted = (_summary(series), _phases(series), _runs(series)) if series else ()
    notes = [*_published(benchmark, preset, series), *_machines(series), *left_out]
    return Section(
        benchmark, preset, series, counted, apart, tuple(_comparisons(series)), tuple(notes)
    )


def _series(settings: Mapping[str, Mapping[str, Sequence[RunRecord]]]) -> tuple[Series, ...]:
    """Named by results folder, by setting, or by both, whichever tells them apart."""
    several_settings = len(set().union(*settings.values())) > 1
    found = []
    for label, runs_by_setting in settings.items():
        for setting, runs in runs_by_setting.items():
            if len(settings) == 1:
                name = setting
            else:
                name = f"{label}: {setting}" if several_settings else label
            found.append(Series(label, setting, name, tuple(runs)))
    return tuple(found)


def _apart(records: Sequence[RunRecord], counted: set[Path]) -> tuple[list[str], tuple[Table, ...]]:
    """How many runs are left out and why; tables of the finished ones that stand apart."""
    reasons: dict[str, int] = defaultdict(int)
    finished: dict[str, list[RunRecord]] = defaultdict(list)
    for record in records:
        if record.folder in counted:
            continue
        why = record.why_apart or "an older run of a seed"
        if why == "resumed" or why.startswith("modified"):
            finished["Resumed runs" if why == "resumed" else "Modified runs"].append(record)
        else:
            reasons[why] += 1
    left_out = [f"Left out: {number} ({why})." for why, number in sorted(reasons.items())]
    tables = tuple(_runs_apart(title, runs) for title, runs in sorted(finished.items()))
    return left_out, tables


# --- Tables of one section ----------------------------------------------------------------------


def _of(summary: Summary | None, digits: int) -> str:
    """Median and range as text."""
    if summary is None:
        return "none"
    median, low, high = (
        f"{value:,.{digits}f}" for value in (summary.median, summary.minimum, summary.maximum)
    )
    return f"{median} ({low} to {high})"


def _sum(runs: Sequence[RunRecord], value: Callable[[RunRecord], float]) -> Summary | None:
    return summarize([value(run) for run in runs]) if runs else None


def _seconds(run: RunRecord) -> float:
    return run.run_seconds


def _epochs(run: RunRecord) -> float:
    return run.epochs


def _examples_per_s(run: RunRecord) -> float:
    return run.train_examples_per_s


def _summary(series: Sequence[Series]) -> Table:
    targets = series[0].runs[0].targets
    rows = []
    for one in series:
        seconds = _sum(one.reached, _seconds)
        middle = seconds.mean_of_middle if seconds else None
        last = [run.evaluations[-1].quality for run in one.reached]
        qualities = [
            _of(summarize([quality[name] for quality in last]) if last else None, 4)
            for name in targets
        ]
        rows.append(
            (
                one.name,
                f"{len(one.reached)} of {len(one.runs)}",
                _of(seconds, 1),
                f"{middle:,.1f}" if middle is not None else "",
                _of(_sum(one.reached, _epochs), 0),
                *qualities,
                _of(_sum(one.reached, _examples_per_s), 0),
            )
        )
    head = (
        "runs",
        "reached",
        "seconds to the target",
        "mean without fastest and slowest",
        "epochs",
        *(f"{name} (target {target:g})" for name, target in targets.items()),
        "training examples/s",
    )
    note = "Median (range) of the runs that reached the target."
    return Table("Summary", head, tuple(rows), note)


def _phases(series: Sequence[Series]) -> Table:
    rows = []
    names = [name for name in PHASES if name != "downtime"]
    for one in series:
        medians = [statistics.median(run.phase_seconds[name] for run in one.runs) for name in names]
        rows.append((one.name, *(f"{value:,.1f}" for value in medians)))
    note = "Medians of all runs above. init is before the clock; the others add up to a run's time."
    return Table("Seconds by phase", ("runs", *names), tuple(rows), note)


def _runs(series: Sequence[Series]) -> Table:
    rows = []
    for one in series:
        for run in one.runs:
            row = (
                str(run.seed),
                run.status,
                f"{run.run_seconds:,.1f}",
                f"{run.epochs:g}",
                run.quality,
                f"{run.train_examples_per_s:,.0f}",
                run.folder.name,
            )
            rows.append((one.name, *row) if len(series) > 1 else row)
    quality = _quality_head(series[0].runs)
    head = ("seed", "end", "seconds", "epochs", quality, "training examples/s", "start")
    return Table("Runs", ("runs", *head) if len(series) > 1 else head, tuple(rows))


def _quality_head(runs: Sequence[RunRecord]) -> str:
    return " / ".join(runs[0].targets)


def _runs_apart(title: str, runs: Sequence[RunRecord]) -> Table:
    rows = tuple(
        (
            str(run.seed),
            run.why_apart.removeprefix("modified: "),
            run.setting,
            run.status,
            f"{run.run_seconds:,.1f}",
            f"{run.phase_seconds['downtime']:,.1f}",
            f"{run.epochs:g}",
            run.quality,
            run.folder.name,
        )
        for run in runs
    )
    head = ("seed", "why apart", "run on", "end", "seconds", "of it downtime", "epochs")
    return Table(title, (*head, _quality_head(runs), "start"), rows)


# --- Sentences ------------------------------------------------------------------------------------


def _published(benchmark: str, preset: str, series: Sequence[Series]) -> Iterator[str]:
    """The time of 2018 with what was timed, beside the preset that it belongs to."""
    path = REPOSITORY / benchmark / "rules.toml"
    published = load(path).get("published") if path.exists() else None
    if published is None or preset != "reference":
        return
    seconds = published["seconds"]
    spread = f" (median of {len(seconds)}, {min(seconds):,} to {max(seconds):,})"
    median = statistics.median(seconds)
    spread = spread if len(seconds) > 1 else ""
    text = f"2018: {median:,} s{spread} on 16 CPU cores and one P100, for {published['timed']}."
    if not published["same_task"]:
        yield f"{text} That is another task, so there is no ratio."
        return
    yield text
    for one in series:
        if one.reached:
            ratio = median / statistics.median(run.run_seconds for run in one.reached)
            yield f"{one.name}: {ratio:.2f} times as fast as that."


def _machines(series: Sequence[Series]) -> Iterator[str]:
    """Machine, versions, commits and days of the runs that count."""
    for one in series:
        places: dict[str, set[str]] = defaultdict(set)
        for run in one.runs:
            system = run.system
            memory = f"{system['memory_bytes'] / 2**30:.0f} GiB"
            day = time.strftime("%Y-%m-%d", time.gmtime(run.start_utc_s))
            prefix = "" if one.name == one.setting else f"{one.results}: "
            machine = f"{prefix}{one.setting}, {memory}; python {system['python']}"
            places[machine].add(f"commit {system['git_commit']}; {day}")
        for machine, builds in places.items():
            yield f"Machine: {machine}; {'; '.join(sorted(builds))}."


# --- One results folder beside another ----------------------------------------------------------


def _comparisons(series: Sequence[Series]) -> Iterator[Table]:
    """Each setting of the first results folder beside each of the others."""
    for first, second in itertools.combinations(series, 2):
        if first.results != second.results and first.results == series[0].results:
            if first.reached and second.reached:
                yield _ratios(first, second)
            yield _differences(first, second)


def _ratios(first: Series, second: Series) -> Table:
    measures: list[tuple[str, Callable[[RunRecord], float], int]] = [
        ("seconds to the target", _seconds, 1),
        ("epochs to the target", _epochs, 0),
        ("training examples/s", _examples_per_s, 0),
    ]
    rows = []
    for name, value, digits in measures:
        ratio = ratio_of_medians(
            [value(run) for run in first.reached], [value(run) for run in second.reached]
        )
        spread = "too few runs"
        if ratio.low is not None and ratio.high is not None:
            spread = f"{ratio.low:.2f} to {ratio.high:.2f}"
        sides = (_of(_sum(one.reached, value), digits) for one in (first, second))
        rows.append((name, *sides, f"{ratio.value:.2f}", spread, _by_seed(first, second, value)))
    note = (
        "Median (range) of the runs that reached the target. 95 % interval: the bootstrap's for "
        "the ratio of the medians; where it holds 1, the two may be alike. By seed: the ratio of "
        "the two runs of one seed, median (range)."
    )
    head = ("", first.name, second.name, "second / first", "95 % interval", "by seed")
    return Table("Side by side", head, tuple(rows), note)


def _by_seed(first: Series, second: Series, value: Callable[[RunRecord], float]) -> str:
    """Ratios of the runs that share their seed, and so their data order and first weights."""
    others = {run.seed: value(run) for run in second.reached}
    ratios = [others[run.seed] / value(run) for run in first.reached if run.seed in others]
    return _of(summarize(ratios), 2) if ratios else "no seed in common"


def _differences(first: Series, second: Series) -> Table:
    rows = []
    sides = [_facts(one.runs) for one in (first, second)]
    for name in sorted(set(sides[0]) | set(sides[1])):
        values = [", ".join(sorted(side.get(name, {"none"}))) for side in sides]
        if values[0] != values[1]:
            rows.append((name, *values))
    title = "What differs between the two" if rows else "Nothing differs between the two"
    return Table(title, ("", first.name, second.name), tuple(rows))


def _facts(runs: Sequence[RunRecord]) -> dict[str, set[str]]:
    """Every fact about machine, software and setting, with all the values that runs have."""
    facts: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        setting = {
            "precision": run.precision,
            "compiled": run.is_compiled,
            "device": run.device,
            "processes": run.num_processes,
        }
        for name, value in _flat({**run.system, **setting}):
            facts[name].add(str(value))
    return facts


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}: ")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for number, item in enumerate(value):
                yield from _flat(item, f"{prefix}{name} {number}: ")
        else:
            yield f"{prefix}{name}", value


# --- As Markdown ----------------------------------------------------------------------------------


def markdown(section: Section) -> str:
    """A whole section."""
    tables = [*section.counted, *section.comparisons, *section.apart]
    parts = [f"# {section.title}", *map(_markdown_table, tables), "\n".join(section.notes)]
    return "\n\n".join(part for part in parts if part)


def card(found: Sequence[Section], benchmark: str) -> str:
    """The runs that count, for each preset of a benchmark."""
    parts = []
    for section in found:
        if section.benchmark == benchmark:
            tables = map(_markdown_table, section.counted)
            text = [f"**{section.preset}**", *tables, "\n".join(section.notes)]
            parts.append("\n\n".join(part for part in text if part))
    return "\n\n".join(parts)


def _markdown_table(table: Table) -> str:
    rows = [table.head, tuple("---" for _ in table.head), *table.rows]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([f"{table.title}:", "", *(lines if table.rows else [])]) + (
        f"\n\n{table.note}" if table.note else ""
    )
