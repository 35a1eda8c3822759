"""Known runs: what the run records of a results folder say, as a table for people.

    python -m harness report                          # all of results/, on stdout
    python -m harness report --card recommendation    # into that folder's README.md

A table holds the newest unbroken run of each seed. Modified and resumed runs, runs that are not
finished and runs of --num-steps are counted and left out.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from harness.checkpoint import write_atomically
from harness.errors import UsageError
from harness.options import REPOSITORY, default_options, exit_with, one_line_errors

FINISHED = ("reached", "missed", "non-finite", "crashed")
FRAMEWORKS = ("torch", "tensorflow")
BEGIN, END = "<!-- known runs: made by python -m harness report -->", "<!-- end of known runs -->"


@dataclass(frozen=True)
class ReportOptions:
    """What to report on."""

    results: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Results folders; by default $RESULTS_DIR, else results."""
    card: str | None = None
    """Write the tables of this benchmark into its README.md, between the two comments there."""


Record = Mapping[str, Any]


def read_records(folders: Sequence[Path]) -> tuple[list[Record], list[str]]:
    """All run records below the folders, each with its `system`; and what could not be read."""
    records, unreadable = [], []
    for folder in folders:
        for path in sorted(folder.glob("**/run.json")):
            try:
                record = json.loads(path.read_text())
                record["system"] = json.loads((path.parent / "system.json").read_text())
                record["folder"] = str(path.parent)
                if record["status"] in FINISHED:
                    float(record["run_seconds"])
                records.append(record)
            except (OSError, ValueError, KeyError, TypeError) as error:
                unreadable.append(f"{path.parent} is left out: {type(error).__name__}: {error}")
    return records, unreadable


def is_comparable(record: Record) -> bool:
    """Whether a run counts for a table: finished in one piece, with its preset's own science."""
    whole = record["status"] in FINISHED and record["num_resumes"] == 0 and record["valid"]
    return whole and not record["modified"]


def known_runs(records: Sequence[Record]) -> str:
    """Markdown for the runs of one benchmark and preset: a row for each seed, then the spread."""
    newest: dict[int, Record] = {}
    for record in sorted(records, key=lambda record: record["start_utc_s"]):
        if is_comparable(record):
            newest[record["seed"]] = record
    left_out = len(records) - len(newest)
    runs = [newest[seed] for seed in sorted(newest)]
    if not runs:
        return f"No finished, unmodified run ({left_out} others)."
    names = list(runs[0]["targets"])
    targets = ", ".join(f"{name} (target {runs[0]['targets'][name]:g})" for name in names)
    lines = [f"| seed | end | seconds | epochs | {targets} | training examples/s |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for run in runs:
        last = run["evaluations"][-1] if run["evaluations"] else None
        quality = " / ".join(f"{last['quality'][name]:.4f}" for name in names) if last else "none"
        epochs = last["epoch"] if last else 0
        lines.append(
            f"| {run['seed']} | {run['status']} | {run['run_seconds']:.1f} | {epochs} | {quality} "
            f"| {run['train_examples_per_s']:,.0f} |"
        )
    return "\n".join([*lines, "", *_summary(runs), f"{left_out} other runs are left out."])


def _summary(runs: Sequence[Record]) -> list[str]:
    """Sentences under the table: how many reached, median and range, machines and versions."""
    reached = [run for run in runs if run["status"] == "reached"]
    sentences = [f"{len(reached)} of {len(runs)} reached the target."]
    if reached:
        seconds = [run["run_seconds"] for run in reached]
        epochs = [run["evaluations"][-1]["epoch"] for run in reached]
        sentences.append(
            f"Seconds to it: median {statistics.median(seconds):.1f} "
            f"({min(seconds):.1f} to {max(seconds):.1f}); epochs: median "
            f"{statistics.median(epochs):g} ({min(epochs)} to {max(epochs)})."
        )
    places = {_place(run): None for run in runs}
    return [*sentences, *(f"Machine: {place}." for place in places)]


def _place(run: Record) -> str:
    """Machine, versions, commit and day of a run."""
    system = run["system"]
    gpus = ", ".join(gpu["name"] for gpu in system["gpus"]) or "no GPU"
    versions = [f"python {system['python']}"]
    packages = system["packages"]
    versions += [f"{name} {packages[name]}" for name in FRAMEWORKS if name in packages]
    memory = system["memory_bytes"] / 2**30
    day = time.strftime("%Y-%m-%d", time.gmtime(run["start_utc_s"]))
    return (
        f"{system['cpu']}, {system['num_cores']} cores, {memory:.0f} GiB, {gpus}; "
        f"{', '.join(versions)}; commit {system['git_commit']}; {day}"
    )


def tables(records: Sequence[Record]) -> dict[str, str]:
    """Markdown by benchmark: a heading and a table for each preset."""
    groups: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        groups[record["benchmark"]][record["preset"]].append(record)
    return {
        benchmark: "\n\n".join(
            f"**{preset}**\n\n{known_runs(runs)}" for preset, runs in sorted(presets.items())
        )
        for benchmark, presets in sorted(groups.items())
    }


def write_card(card: Path, text: str) -> None:
    """Put `text` between the two comments of a card. UsageError where they are not there."""
    before, begin, rest = card.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UsageError(f"{card} lacks the comments {BEGIN} and {END}; add them")
    write_atomically(card, f"{before}{BEGIN}\n{text}\n{END}{after}".encode())


def main(arguments: list[str]) -> int:
    """Print the tables, or write one benchmark's card; returns the exit status."""
    try:
        with one_line_errors():
            options = tyro.cli(ReportOptions, prog="python -m harness report", args=arguments)
        folders = options.results or (default_options("", "").results_dir,)
        records, unreadable = read_records(folders)
        for line in unreadable:
            print(line, file=sys.stderr)
        if not records:
            raise UsageError(f"no run below {', '.join(map(str, folders))}; train first")
        found = tables(records)
        if options.card is None:
            print("\n\n".join(f"# {name}\n\n{text}" for name, text in found.items()))
        elif options.card not in found:
            raise UsageError(f"no run of {options.card}; there are runs of {', '.join(found)}")
        else:
            write_card(REPOSITORY / options.card / "README.md", found[options.card])
    except UsageError as error:
        return exit_with(error)
    return 0
