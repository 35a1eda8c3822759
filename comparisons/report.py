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

from comparisons.pairs import MIN_PAIRS, OURS, Measure, show, summarise
from harness.checkpoint import write_atomically
from harness.errors import UsageError
from harness.options import REPOSITORY, default_options, exit_with, one_line_errors

README = REPOSITORY / "comparisons" / "README.md"
BEGIN = "<!-- {}: made by python -m comparisons.report -->"
END = "<!-- end of {} -->"
FRAMEWORKS = ("torch", "torchvision", "tensorflow", "keras", "paddlepaddle")

Record = Mapping[str, Any]


@dataclass(frozen=True)
class ReportOptions:
    """What to report on."""

    records: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Records; by default the newest of each benchmark below $RESULTS_DIR, else results."""
    write_readme: bool = False
    """Write each table into comparisons/README.md, between the benchmark's two comments there."""


def peers_of(record: Record) -> list[Record]:
    """Key, name and packages of each peer. Early records have one, without a key."""
    if "peers" in record:
        return list(record["peers"])
    return [{"key": "peer", "name": record["peer"], "packages": record["peer_packages"]}]


def num_whole_pairs(record: Record) -> int:
    """Pairs of which all runs are there."""
    return len(_whole_pairs(record))


def _whole_pairs(record: Record) -> set[int]:
    sides = (OURS, *(peer["key"] for peer in peers_of(record)))
    runs = record["runs"]
    return set.intersection(
        *({run["pair"] for run in runs if run["side"] == side} for side in sides)
    )


def table(record: Record) -> str:
    """Markdown: a row for each measure, then how it was measured, and on what."""
    peers, whole = peers_of(record), _whole_pairs(record)
    runs = [run for run in record["runs"] if run["pair"] in whole]
    heads = ["", "ours"]
    for peer in peers:
        heads += [peer["name"], "times as fast: median of the pairs (lowest to highest)"]
    lines = [_row([*heads, "hoped for"]), _row(["---"] * (len(heads) + 1))]
    notes = []
    for values in record["measures"]:
        measure = Measure(**values)
        summaries = [summarise(runs, measure, peer["key"]) for peer in peers]
        cells = [measure.title, show(summaries[0].ours)]
        for peer, summary in zip(peers, summaries, strict=True):
            ratios = summary.ratios
            cells += [
                show(summary.peer),
                f"{summary.ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
                if ratios
                else "none",
            ]
            if len(ratios) < len(whole) and measure.hoped_ratio is not None:
                have = ", ".join(
                    f"{_num_values(record, measure, side)} runs of {name}"
                    for side, name in ((OURS, "ours"), (peer["key"], peer["name"]))
                )
                notes.append(f"{measure.title}: {have} have a value, {len(ratios)} pairs count.")
        lines.append(_row([*cells, _hoped(measure)]))
    if len(whole) < MIN_PAIRS:
        notes.insert(0, f"**Too few pairs for a claim: {len(whole)}, and {MIN_PAIRS} are needed.**")
    return "\n".join([*lines, "", *notes, *_how(record, peers, len(whole))])


def _row(cells: Sequence[str]) -> str:
    return "|".join(["", *(f" {cell} " if cell else " " for cell in cells), ""])


def _hoped(measure: Measure) -> str:
    if measure.hoped_ratio is None:
        return f"below {measure.hoped_value:g}"
    return f"{measure.hoped_ratio:g}"


def _num_values(record: Record, measure: Measure, side: str) -> int:
    runs = [run for run in record["runs"] if run["side"] == side]
    return sum(run["measures"][measure.key] is not None for run in runs)


def _how(record: Record, peers: Sequence[Record], num_pairs: int) -> list[str]:
    """Sentences under the table: pairs, threads, noise, machine, versions, commit, day."""
    runs, machine = record["runs"], record["system"]
    seeds = sorted({run["seed"] for run in runs})
    gpus = ", ".join(f"{gpu['name']} (not used)" for gpu in machine["gpus"]) or "no GPU"
    with_each = " with each peer" if len(peers) > 1 else ""
    return [
        f"Pairs of runs: {num_pairs}{with_each}, in alternating order, seeds {seeds[0]} to "
        f"{seeds[-1]}; each run on {len(record['cores'])} cores with as many threads; the values "
        "are medians.",
        f"Other work took at most {max(run['busy_cores_of_others'] for run in runs):.2f} cores "
        f"during a run (load average before a run: at most "
        f"{max(run['load_average_before'] for run in runs):.1f}).",
        f"Machine: {machine['cpu']}, {machine['num_cores']} cores, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB, {gpus}; python {machine['python']}, "
        f"{_versions([machine['packages'], *(peer['packages'] for peer in peers)])}; commit "
        f"{machine['git_commit']}; {record['start_utc'][:10]}.",
    ]


def _versions(sides: Sequence[Mapping[str, str]]) -> str:
    """Frameworks of all sides, ours first."""
    versions = [
        ", ".join(f"{name} {packages[name]}" for name in FRAMEWORKS if name in packages)
        for packages in sides
    ]
    if len(set(versions)) == 1:
        return f"{versions[0]} on {'both' if len(sides) == 2 else 'all'} sides"
    return " beside ".join(versions)


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
