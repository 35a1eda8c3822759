"""Accept the suite on this GPU, and this GPU for the suite: parity, memory, throughput, a record.

    ./gpu_acceptance.sh                      # makes the environment, then runs this
    python -m harness acceptance NAME...     # in an environment, or an image, that is there

For each benchmark (default: all), through its public command line only:

data         the mini data set is fetched, verified and prepared
parity       20 steps of the mini preset in float32: the losses of CPU and GPU agree (see
             loss_parity.py), and those of another seed do not
memory       peak of the reference preset on made-up data, against the P100's 16,280 MiB
throughput   the reference preset on made-up data in each precision, with and without --compile
record       the mini preset trained to its target; its log passes `python -m harness check`

Without a GPU (or with NUM_GPUS=0) it is a self-test: CPU against CPU, the mini preset throughout.
Of several GPUs the first of CUDA_VISIBLE_DEVICES is taken, numbered as nvidia-smi does.

RESULTS_DIR/acceptance/<UTC start>/ gets acceptance.json, summary.md and the folder of every run;
the record also stands where every run does, for `python -m harness report`. Exit status: 0 all
passed, 1 a check failed or could not be done, 2 wrong usage, 128 + signal.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro

from harness import system
from harness.acceptance_checks import (
    VARIANTS,
    Check,
    FailedError,
    NotDoneError,
    Trial,
    check_memory,
    check_parity,
    describe_gpu,
    expected_record_s,
    get_data,
    measure_throughput,
    query_gpu,
    say,
    train_record,
)
from harness.checkpoint import write_atomically, write_json
from harness.child import StoppedError, StopRequest
from harness.errors import UsageError
from harness.options import REPOSITORY, default_options, exit_with, one_line_errors
from harness.run_records import ACCEPTANCE_FOLDER

NUM_CHECKS = 4 + len(VARIANTS)
"""Checks of one benchmark."""


@dataclass(frozen=True)
class AcceptanceOptions:
    """Accept the suite on this GPU, and this GPU for the suite."""

    benchmarks: tyro.conf.Positional[tuple[str, ...]] = ()
    """Folders of benchmarks; by default all."""


class Acceptance:
    """The checks of some benchmarks, and the files that say how they went."""

    def __init__(self, benchmarks: Sequence[str], gpu: str | None, results_dir: Path) -> None:
        self.gpu = gpu
        self.gpu_name = describe_gpu(gpu) if gpu is not None else None
        self.results_dir = results_dir
        self.checks: dict[str, list[Check]] = {benchmark: [] for benchmark in benchmarks}
        self.stop = StopRequest()
        self.start_utc_s = time.time()
        start = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self.start_utc_s))
        self.folder = results_dir / ACCEPTANCE_FOLDER / start
        try:
            self.folder.mkdir(parents=True)
        except OSError as error:
            cause = f"cannot make {self.folder}: {error.strerror}"
            raise UsageError(f"{cause}; run this again, or set RESULTS_DIR") from error
        self.system = system.describe()

    def run(self) -> None:
        """Do all checks of all benchmarks."""
        for benchmark in self.checks:
            trial = Trial(benchmark, self.folder, self.results_dir, self.gpu, self.stop)
            data = self.perform(trial, "data", get_data)
            made_up = data.result != "PASS"
            self.perform(trial, "parity", check_parity, made_up)
            self.perform(trial, "memory", check_memory)
            for variant in VARIANTS:
                name = " ".join(("throughput", *variant))
                self.perform(trial, name, measure_throughput, *variant)
            self.perform(trial, "record", train_record, data, expected_record_s(trial))

    def perform(
        self, trial: Trial, name: str, function: Callable[..., Check], *arguments: Any
    ) -> Check:
        """Do one check, say how it went, and write all results so far."""
        done = sum(map(len, self.checks.values()))
        place = f"[{done + 1}/{NUM_CHECKS * len(self.checks)}] {trial.benchmark}, {name}"
        say(place)
        start_s = time.monotonic()
        try:
            check = function(trial, *arguments)
        except (FailedError, OSError) as error:
            check = Check("FAIL", str(error))
        except NotDoneError as error:
            check = Check("not done", str(error))
        check.name = name
        check.seconds = round(time.monotonic() - start_s, 1)
        self.checks[trial.benchmark].append(check)
        say(f"  {check.result}: {check.text} ({check.seconds:,.0f} s)")
        self.write()
        return check

    @property
    def counts(self) -> dict[str, int]:
        """How many checks stand in the way of passing, by how they went."""
        results = [check.result for checks in self.checks.values() for check in checks]
        left = NUM_CHECKS * len(self.checks) - len(results)
        failed, undone = results.count("FAIL"), results.count("not done")
        return {"failed": failed, "not done": undone, "not reached": left}

    @property
    def passed(self) -> bool:
        """Whether nothing failed and nothing is left to do."""
        return not any(self.counts.values())

    @property
    def verdict(self) -> str:
        """The last line."""
        found = ", ".join(f"{number} {name}" for name, number in self.counts.items())
        if self.stop.number is not None:
            return f"STOPPED by signal {self.stop.number}: {found}."
        if self.gpu is None:
            ended = "passed" if self.passed else f"did not pass: {found}"
            return (
                f"SELF-TEST {ended}. No GPU was tested: parity compared the CPU with itself, and "
                "memory and throughput are the mini preset's on this CPU. Only data and record "
                "mean what they mean on a GPU machine."
            )
        return f"ACCEPTED on {self.gpu_name}." if self.passed else f"NOT ACCEPTED: {found}."

    def write(self) -> None:
        """acceptance.json and summary.md, as far as it got."""
        record = {
            "start_utc_s": self.start_utc_s,
            "gpu": self.gpu_name,
            "is_self_test": self.gpu is None,
            "passed": self.passed,
            "verdict": self.verdict,
            "system": self.system,
            "benchmarks": {name: list(map(asdict, rows)) for name, rows in self.checks.items()},
        }
        write_json(self.folder / "acceptance.json", record)
        write_atomically(self.folder / "summary.md", self.summary().encode())

    def summary(self) -> str:
        """All results as Markdown."""
        start = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(self.start_utc_s))
        machine = f"{self.system['cpu']}, {self.system['num_cores']} cores"
        parts = [
            f"# {'Self-test without a GPU' if self.gpu is None else 'GPU acceptance'}, {start}",
            f"Machine: {self.gpu_name or 'no GPU'}; {machine}; commit {self.system['git_commit']}.",
        ]
        for benchmark, checks in self.checks.items():
            rows = [(check.name, check.result, check.text.replace("|", r"\|")) for check in checks]
            parts += [f"## {benchmark}", _table(("check", "result", "figures"), rows)]
        parts.append(self.verdict)
        return "\n\n".join(parts) + "\n"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table whose columns line up on a terminal too, but for the last."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head) - 1)]
    lines = [head, tuple("-" * 3 for _ in head), *rows]
    return "\n".join(
        "| "
        + " | ".join(f"{cell:<{width}}" for cell, width in zip(line, [*widths, 0], strict=True))
        + " |"
        for line in lines
    )


def choose_gpu() -> str | None:
    """The GPU to accept, as nvidia-smi numbers it; None where there is none, or NUM_GPUS=0."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    if os.environ.get("NUM_GPUS") == "0" or visible in ("", "-1") or not query_gpu(None, "name"):
        return None
    if not query_gpu(visible, "name"):
        cause = f"nvidia-smi knows no GPU {visible!r}"
        raise UsageError(f"{cause}; set CUDA_VISIBLE_DEVICES to one of nvidia-smi --list-gpus")
    return visible


def choose_benchmarks(names: Sequence[str]) -> list[str]:
    """The folders that are asked for. Raises UsageError where one is not there."""
    known = sorted(path.parent.name for path in REPOSITORY.glob("*/run_and_time.sh"))
    known.remove("harness")
    for name in names:
        if name not in known:
            raise UsageError(f'there is no benchmark "{name}" here; choose from: {" ".join(known)}')
    chosen = list(dict.fromkeys(names or known))
    if len(chosen) > 1 and os.environ.get("DATA_DIR"):
        cause = "DATA_DIR is one data set's folder, and several benchmarks are asked for"
        raise UsageError(f"{cause}; unset DATA_DIR")
    return chosen


def main(arguments: list[str]) -> int:
    """Run the acceptance; the summary goes to stdout. Returns the exit status."""
    try:
        with one_line_errors():
            options = tyro.cli(
                AcceptanceOptions, prog="python -m harness acceptance", args=arguments
            )
        benchmarks = choose_benchmarks(options.benchmarks)
        gpu = choose_gpu()
        acceptance = Acceptance(benchmarks, gpu, default_options("", "").results_dir)
    except UsageError as error:
        return exit_with(error)
    say("self-test without a GPU" if gpu is None else f"on {acceptance.gpu_name}")
    with acceptance.stop, contextlib.suppress(StoppedError):
        acceptance.run()
    acceptance.write()
    print(acceptance.summary(), end="", flush=True)
    say(f"To report this: send the folder {acceptance.folder}")
    if acceptance.stop.number is not None:
        return 128 + acceptance.stop.number
    return 0 if acceptance.passed else 1
