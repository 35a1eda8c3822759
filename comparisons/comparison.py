"""A benchmark beside its peers: what they are, and the command that measures them.

    .venv/bin/python -m comparisons.recommendation                  # 7 pairs: a claim
    .venv/bin/python -m comparisons.recommendation --num-pairs 1    # a first look

Ours runs in the environment of this command, a peer there too or in its own locked one. The record
with every single value goes to RESULTS_DIR/comparisons/<benchmark>/<UTC start>.json, and the table
to stdout.
"""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from comparisons import environments, report
from comparisons.pairs import OURS, Measure, PairOptions, Program, choose_cores, run_pairs
from harness import system
from harness.errors import UsageError
from harness.options import REPOSITORY, default_options, exit_with, one_line_errors


@dataclass(frozen=True)
class Peer:
    """A program that ours is compared with."""

    key: str
    """What the record and its files call it."""
    name: str
    """What tables and messages call it."""
    script: str
    """File in comparisons/ that runs it once."""
    arguments: tuple[str, ...]
    packages: tuple[str, ...]
    """Packages that its environment and ours must both hold, in one version: what is not to be
    compared."""
    environment: str = ""
    """Name of its lock in comparisons/, without .txt; without one it runs in our environment."""
    newest_python: tuple[int, int] = (3, 13)
    """The newest Python that the lock's packages can be installed with."""


@dataclass(frozen=True)
class Comparison:
    """What is compared with what."""

    benchmark: str
    our_command: tuple[str, ...]
    """Runs ours once: a module and its arguments."""
    peers: tuple[Peer, ...]
    measures: tuple[Measure, ...]
    needs: tuple[tuple[Path, str], ...] = ()
    """Files or folders that must be there before anything starts, and what to do without them."""
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
    """Make what all sides need, run all pairs and return the record, which is also written."""
    if options.num_pairs < 1:
        raise UsageError(f"--num-pairs is {options.num_pairs}; give 1 or more")
    cores = choose_cores(options.num_threads)
    for path, advice in comparison.needs:
        if not path.exists():
            raise UsageError(f"{path} is not there; {advice}")
    description = system.describe()
    pythons, peers = {}, []
    for peer in comparison.peers:
        pythons[peer.key], packages = _environment(peer, description["packages"])
        _check_packages(comparison, peer, description["packages"], packages)
        peers.append(_describe(peer, packages))
    for command in comparison.preparation:
        if subprocess.run(command, cwd=REPOSITORY, stdout=sys.stderr).returncode:
            raise UsageError(f"{' '.join(command)} failed; see above")

    start = time.gmtime()
    folder = default_options("", "").results_dir / "comparisons" / comparison.benchmark
    record: dict[str, Any] = {
        "benchmark": comparison.benchmark,
        "start_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", start),
        "our_command": comparison.our_command,
        "peers": peers,
        "measures": [dataclasses.asdict(measure) for measure in comparison.measures],
        "system": description,
    }
    path = folder / f"{time.strftime('%Y%m%dT%H%M%SZ', start)}.json"
    print(f"record: {path}", file=sys.stderr)
    programs = _programs(comparison, pythons)
    run_pairs(programs, comparison.measures, options, cores, record, path)
    return record


def _environment(peer: Peer, our_packages: Mapping[str, str]) -> tuple[str, Mapping[str, str]]:
    """Interpreter and packages of a peer's environment, which is made where it is missing."""
    if not peer.environment:
        return sys.executable, our_packages
    python = environments.make(peer.environment, peer.newest_python)
    return str(python), environments.packages(python)


def _check_packages(
    comparison: Comparison, peer: Peer, ours: Mapping[str, str], peers: Mapping[str, str]
) -> None:
    """Raises UsageError where a package is missing or of another version."""
    benchmark_lock = f"{comparison.benchmark}/requirements.txt"
    lock = benchmark_lock if peer.environment else "requirements-dev.txt (./test.sh makes it)"
    for name in peer.packages:
        if name not in ours or ours[name] != peers.get(name):
            found = f"{name} is {ours.get(name, 'not installed')} here"
            if peer.environment:
                found += f" and {peers.get(name, 'not installed')} in the peer's environment"
            raise UsageError(f"{found}; run this in an environment of {lock}")


def _describe(peer: Peer, packages: Mapping[str, str]) -> dict[str, Any]:
    """What the record says of a peer."""
    lock = environments.LOCKS / f"{peer.environment}.txt"
    return {
        "key": peer.key,
        "name": peer.name,
        "arguments": peer.arguments,
        "packages": packages,
        "lock_sha256": environments.digest(lock) if peer.environment else None,
    }


def _programs(comparison: Comparison, pythons: Mapping[str, str]) -> dict[str, Program]:
    """Ours, then the peers. What runs in an environment of its own can import nothing of ours."""
    our_command = (sys.executable, "-m", *comparison.our_command)
    programs = {OURS: Program("ours", our_command, REPOSITORY)}
    for peer in comparison.peers:
        script = str(REPOSITORY / "comparisons" / peer.script)
        command = (pythons[peer.key], script, *peer.arguments)
        python_path = None if peer.environment else REPOSITORY
        programs[peer.key] = Program(peer.name, command, python_path)
    return programs
