"""What all runs below a results folder say: tables, a page with plots, and comparisons.

    python -m harness report                            # of results/
    python -m harness report results other-results      # the second beside the first
    python -m harness report --card recommendation      # tables into that folder's README.md
    python -m harness report --convergence recommendation  # epochs into its convergence.json

Prints tables in Markdown and writes a page (index.html, which needs no other file), its pictures
and two tables for a spreadsheet (runs.csv, evaluations.csv) into the first results folder's
`report`. The newest run of each seed counts. Resumed and modified runs stand apart; runs that are
not finished or ended by --num-steps are counted and left out.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from harness import convergence
from harness.checkpoint import write_atomically
from harness.errors import UsageError
from harness.options import REPOSITORY, default_options, exit_with, one_line_errors
from harness.report_tables import Results, Section, card, markdown, sections
from harness.run_records import read_records

BEGIN, END = "<!-- known runs: made by python -m harness report -->", "<!-- end of known runs -->"


@dataclass(frozen=True)
class ReportOptions:
    """What to report on."""

    results: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Results folders, the first beside each other one; by default $RESULTS_DIR, else results."""
    output: Path | None = None
    """Folder for the page, the pictures and the CSV files; by default `report` in the first."""
    card: str | None = None
    """Write the tables of this benchmark into its README.md instead, between the comments there."""
    convergence: str | None = None
    """Write the epochs that this benchmark's runs needed into its convergence.json instead."""


def read_results(folders: Sequence[Path]) -> list[Results]:
    """The runs of each folder. Raises UsageError where there is none in any."""
    results = [Results(str(folder), *read_records(folder)) for folder in folders]
    for one in results:
        for line in one.unreadable:
            print(line, file=sys.stderr)
    if not any(one.records for one in results):
        raise UsageError(f"no run below {', '.join(map(str, folders))}; train first")
    return results


def write_card(path: Path, text: str) -> None:
    """Put `text` between the two comments of a card. UsageError where they are not there."""
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UsageError(f"{path} lacks the comments {BEGIN} and {END}; add them")
    write_atomically(path, f"{before}{BEGIN}\n{text}\n{END}{after}".encode())


def report(options: ReportOptions) -> None:
    """Do what the options say. Raises UsageError where there is nothing to report on."""
    folders = options.results or (default_options("", "").results_dir,)
    results = read_results(folders)
    found = sections(results)
    for benchmark in (options.card, options.convergence):
        if benchmark is not None and benchmark not in {section.benchmark for section in found}:
            known = ", ".join(sorted({section.benchmark for section in found}))
            raise UsageError(f"no run of {benchmark}; there are runs of {known}")
    if options.card is not None:
        write_card(REPOSITORY / options.card / "README.md", card(found, options.card))
    if options.convergence is not None:
        records = [record for one in results for record in one.records]
        for points in convergence.write(options.convergence, records):
            epochs = ", ".join(f"{number:g}" for number in points.epochs_by_seed.values())
            print(f"{points.key}: {epochs or 'none reached'} epochs", file=sys.stderr)
    if options.card is None and options.convergence is None:
        print("\n\n".join(map(markdown, found)))
        _write_page(results, found, options.output or folders[0] / "report")


def _write_page(results: Sequence[Results], found: Sequence[Section], folder: Path) -> None:
    from harness.report_page import write_page

    try:
        page = write_page(results, found, folder)
    except OSError as error:
        cause = f"cannot write to {folder}: {error.strerror}"
        raise UsageError(f"{cause}; name another folder with --output") from error
    print(f"page: {page}", file=sys.stderr)


def main(arguments: list[str]) -> int:
    """Print the tables and write the page, or write one benchmark's files; returns the status."""
    try:
        with one_line_errors():
            options = tyro.cli(ReportOptions, prog="python -m harness report", args=arguments)
        report(options)
    except UsageError as error:
        return exit_with(error)
    return 0
