"""The tables of comparisons, out of their records.

    .venv/bin/python -m comparisons.report                   # the newest of each, on stdout
    .venv/bin/python -m comparisons.report --write-readme    # into comparisons/README.md

A record of fewer than 7 whole pairs is labelled as too few for a claim and is written nowhere.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from comparisons.pairs import MIN_PAIRS, OURS, PEER, Measure, show, summarise
from harness.checkpoint import write_atomically
from harness.errors import UsageError
from harness.options import REPOSITORY, default_options, exit_with, one_line_errors

README = REPOSITORY / "comparisons" / "README.md"
BEGIN = "<!-- {}: made by python -m comparisons.report -->"
END = "<!-- end of {} -->"
FRAMEWORKS = ("torch", "tensorflow")

Record = Mapping[str, Any]


@dataclass(frozen=True)
class ReportOptions:
    """What to report on."""

    records: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Records; by default the newest of each benchmark below $RESULTS_DIR, else results."""
    write_readme: bool = False
    """Write each table into comparisons/README.md, between the benchmark's two comments there."""


def num_whole_pairs(record: Record) -> int:
    """Pairs of which both runs are there."""
    sides = [
        {run["pair"] for run in record["runs"] if run["side"] == side} for side in (OURS, PEER)
    ]
    return len(sides[0] & sides[1])


def table(record: Record) -> str:
    """Markdown: a row for each measure, then how it was measured, and on what."""
    peer = record["peer"]
    lines = [
        f"| | ours | {peer} | times as fast: median of the pairs (lowest to highest) | hoped for |",
        "| --- | --- | --- | --- | --- |",
    ]
    num_pairs = num_whole_pairs(record)
    notes = []
    for values in record["measures"]:
        measure = Measure(**values)
        summary = summarise(record["runs"], measure)
        ratios = summary.ratios
        ratio = (
            f"{summary.ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else "none"
        )
        lines.append(
            f"| {measure.title} | {show(summary.ours)} | {show(summary.peer)} | {ratio} "
            f"| {measure.hoped_ratio:g} |"
        )
        if len(ratios) < num_pairs:
            have = ", ".join(
                f"{_num_values(record, measure, side)} runs of {name}"
                for side, name in ((OURS, "ours"), (PEER, peer))
            )
            notes.append(f"{measure.title}: {have} have a value, {len(ratios)} pairs count.")
    if num_pairs < MIN_PAIRS:
        notes.insert(0, f"**Too few pairs for a claim: {num_pairs}, and {MIN_PAIRS} are needed.**")
    return "\n".join([*lines, "", *notes, *_how(record, num_pairs)])


def _num_values(record: Record, measure: Measure, side: str) -> int:
    runs = [run for run in record["runs"] if run["side"] == side]
    return sum(run["measures"][measure.key] is not None for run in runs)


def _how(record: Record, num_pairs: int) -> list[str]:
    """Sentences under the table: pairs, threads, noise, machine, versions, commit, day."""
    runs, machine = record["runs"], record["system"]
    seeds = sorted({run["seed"] for run in runs})
    gpus = ", ".join(f"{gpu['name']} (not used)" for gpu in machine["gpus"]) or "no GPU"
    return [
        f"Pairs of runs: {num_pairs}, in alternating order, seeds {seeds[0]} to {seeds[-1]}; each "
        f"run on {len(record['cores'])} cores with as many threads; the values are medians.",
        f"Other work took at most {max(run['busy_cores_of_others'] for run in runs):.2f} cores "
        f"during a run (load average before a run: at most "
        f"{max(run['load_average_before'] for run in runs):.1f}).",
        f"Machine: {machine['cpu']}, {machine['num_cores']} cores, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB, {gpus}; python {machine['python']}, "
        f"{_versions(machine['packages'], record['peer_packages'])}; commit "
        f"{machine['git_commit']}; {record['start_utc'][:10]}.",
    ]


def _versions(ours: Mapping[str, str], peers: Mapping[str, str]) -> str:
    """Frameworks of both sides."""
    sides = [
        ", ".join(f"{name} {packages[name]}" for name in FRAMEWORKS if name in packages)
        for packages in (ours, peers)
    ]
    return f"{sides[0]} on both sides" if sides[0] == sides[1] else f"{sides[0]} beside {sides[1]}"


def write_readme(record: Record, readme: Path) -> None:
    """Put a record's table between its two comments. UsageError where it supports no claim."""
    benchmark, num_pairs = record["benchmark"], num_whole_pairs(record)
    if num_pairs < MIN_PAIRS:
        raise UsageError(
            f"the record of {benchmark} has {num_pairs} whole pairs, too few for a claim; "
            f"measure at least {MIN_PAIRS}"
        )
    begin, end = BEGIN.format(benchmark), END.format(benchmark)
    before, found_begin, rest = readme.read_text().partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise UsageError(f"{readme} lacks the comments {begin} and {end}; add them")
    write_atomically(readme, f"{before}{begin}\n{table(record)}\n{end}{after}".encode())


def newest_records(folder: Path) -> list[Path]:
    """The newest record of each benchmark in a results folder."""
    folders = sorted(path for path in (folder / "comparisons").glob("*") if path.is_dir())
    return [max(path.glob("*.json")) for path in folders if any(path.glob("*.json"))]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print or write the tables; returns the exit status."""
    try:
        with one_line_errors():
            options = tyro.cli(ReportOptions, prog="python -m comparisons.report", args=arguments)
        results_dir = default_options("", "").results_dir
        paths = options.records or newest_records(results_dir)
        if not paths:
            raise UsageError(
                f"no record below {results_dir}; run python -m comparisons.recommendation"
            )
        for path in paths:
            try:
                record = json.loads(path.read_text())
            except (OSError, ValueError) as error:
                raise UsageError(f"{path} cannot be read: {error}; name a record") from error
            if options.write_readme:
                write_readme(record, README)
            else:
                print(f"# {record['benchmark']}\n\n{table(record)}\n")
    except UsageError as error:
        return exit_with(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
