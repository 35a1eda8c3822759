"""A benchmark beside its peer: what the two are, and the command that measures them.

    .venv/bin/python -m comparisons.recommendation                  # 7 pairs: a claim
    .venv/bin/python -m comparisons.recommendation --num-pairs 1    # a first look

Ours runs in the environment of this command, the peer in its own locked one. The record with every
single value goes to RESULTS_DIR/comparisons/<benchmark>/<UTC start>.json, and the table to stdout.
"""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from comparisons import environments, report
from comparisons.pairs import (
    OURS,
    PEER,
    Measure,
    PairOptions,
    Program,
    choose_cores,
    run_pairs,
)
from harness import system
from harness.errors import UsageError
from harness.options import REPOSITORY, default_options, exit_with, one_line_errors


@dataclass(frozen=True)
class Comparison:
    """What is compared with what."""

    benchmark: str
    our_arguments: tuple[str, ...]
    """Preset and options for our train module."""
    peer: str
    """Name and version of the peer."""
    peer_environment: str
    """Name of the peer's lock in comparisons/, without .txt."""
    peer_script: str
    """File in comparisons/ that runs the peer once, in the peer's environment."""
    peer_arguments: tuple[str, ...]
    newest_python: tuple[int, int]
    """The newest Python that the peer's packages can be installed with."""
    same_packages: tuple[str, ...]
    """Packages that both environments must hold in one version: what is not to be compared."""
    measures: tuple[Measure, ...]
    preparation: tuple[tuple[str, ...], ...] = ()
    """Commands that bring the data, off every clock; a second call must do nothing."""


def three_measures(train: float, evaluation: float, target: float) -> tuple[Measure, ...]:
    """What `our_run` measures of every benchmark, with the ratios that we hope for."""
    return (
        Measure("train_examples_per_s", "training, examples/s", True, train),
        Measure("evaluation_s", "one evaluation, s", False, evaluation),
        Measure("time_to_target_s", "time to the target, s", False, target),
    )


def main(comparison: Comparison, arguments: Sequence[str] | None = None) -> int:
    """Read the command line, measure, print the table; returns the exit status."""
    try:
        program = f"python -m comparisons.{comparison.benchmark}"
        with one_line_errors():
            options = tyro.cli(PairOptions, prog=program, args=arguments)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        record = measure(comparison, options)
        print(report.table(record))
    except UsageError as error:
        return exit_with(error)
    except KeyboardInterrupt:
        print("interrupted; the record has the runs that had ended", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def measure(comparison: Comparison, options: PairOptions) -> dict[str, Any]:
    """Make what both need, run all pairs and return the record, which is also written."""
    if options.num_pairs < 1:
        raise UsageError(f"--num-pairs is {options.num_pairs}; give 1 or more")
    cores = choose_cores(options.num_threads)
    peer_python = environments.make(comparison.peer_environment, comparison.newest_python)
    description = system.describe()
    peer_packages = environments.packages(peer_python)
    for name in comparison.same_packages:
        ours, peers = description["packages"].get(name), peer_packages.get(name)
        if ours != peers:
            raise UsageError(
                f"{name} is {ours} here and {peers} in the peer's environment; run this in an "
                f"environment of {comparison.benchmark}/requirements.txt"
            )
    for command in comparison.preparation:
        if subprocess.run(command, cwd=REPOSITORY, stdout=sys.stderr).returncode:
            raise UsageError(f"{' '.join(command)} failed; see above")

    start = time.gmtime()
    folder = default_options("", "").results_dir / "comparisons" / comparison.benchmark
    record: dict[str, Any] = {
        "benchmark": comparison.benchmark,
        "peer": comparison.peer,
        "start_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", start),
        "our_arguments": comparison.our_arguments,
        "peer_arguments": comparison.peer_arguments,
        "measures": [dataclasses.asdict(measure) for measure in comparison.measures],
        "system": description,
        "peer_packages": peer_packages,
        "peer_lock_sha256": environments.digest(
            environments.LOCKS / f"{comparison.peer_environment}.txt"
        ),
    }
    path = folder / f"{time.strftime('%Y%m%dT%H%M%SZ', start)}.json"
    print(f"record: {path}", file=sys.stderr)
    programs = _programs(comparison, peer_python)
    run_pairs(programs, comparison.measures, options, cores, record, path)
    return record


def _programs(comparison: Comparison, peer_python: Path) -> dict[str, Program]:
    our_module = (sys.executable, "-m", "comparisons.our_run", comparison.benchmark)
    script = REPOSITORY / "comparisons" / comparison.peer_script
    return {
        OURS: Program("ours", (*our_module, *comparison.our_arguments), REPOSITORY),
        PEER: Program(comparison.peer, (str(peer_python), str(script), *comparison.peer_arguments)),
    }
