"""A benchmark's real entry points in subprocesses, as the test_train.py of a folder calls them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlperf_logging.compliance_checker import mlp_parser

ROOT = Path(__file__).resolve().parents[1]
TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [AP]M"
CONTRACT = ("DATA_DIR", "RESULTS_DIR", "PRESET", "RESUME", "NUM_GPUS", "STATUS_FILE", "TF_CONFIG")
KILL_AT = """
import importlib, os, signal, sys, time
from harness.run import Run
original = Run.record_losses
def record_losses(self, *arguments):
    original(self, *arguments)
    if self.step == {step}:
        print("signalled at", time.monotonic(), file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.{name})
Run.record_losses = record_losses
sys.exit(importlib.import_module("{benchmark}.train").main(sys.argv[1:]))
"""
"""Training that gets a signal right after a step."""


def environment(**variables: Any) -> dict[str, str]:
    """The environment without the variables of the contract, plus these."""
    clean = {name: value for name, value in os.environ.items() if name not in CONTRACT}
    paths = {"PYTHONPATH": str(ROOT), "PYTHON": sys.executable}
    return {**clean, **paths, **{name: str(value) for name, value in variables.items()}}


def start(*command: object, cwd: Path = ROOT, **variables: Any) -> subprocess.Popen[str]:
    """Start a command whose output is captured."""
    return subprocess.Popen(
        [str(part) for part in command],
        cwd=cwd,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """Wait for a command, and return what became of it."""
    output, errors = process.communicate(timeout=600)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def run(*command: object, cwd: Path = ROOT, **variables: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return finish(start(*command, cwd=cwd, **variables))


@dataclass(frozen=True)
class Benchmark:
    """Trainings of one benchmark on the CPU."""

    name: str

    @property
    def script(self) -> Path:
        """Its run_and_time.sh."""
        return ROOT / self.name / "run_and_time.sh"

    def start(
        self, results: Path, *arguments: object, preset: str = "tiny"
    ) -> subprocess.Popen[str]:
        """Start a training."""
        module = ("-m", f"{self.name}.train", preset, "--device", "cpu", "--results-dir", results)
        return start(sys.executable, *module, *arguments)

    def train(
        self, results: Path, *arguments: object, preset: str = "tiny"
    ) -> subprocess.CompletedProcess[str]:
        """Run a training to its end."""
        return finish(self.start(results, *arguments, preset=preset))

    def start_killed(
        self, step: int, signal_name: str, results: Path, *arguments: object
    ) -> subprocess.Popen[str]:
        """Start a training that gets a signal after `step`."""
        code = KILL_AT.format(step=step, name=signal_name, benchmark=self.name)
        options = ("tiny", "--device", "cpu", "--results-dir", results, *arguments)
        return start(sys.executable, "-c", code, *options)

    def start_parallel(
        self, num_processes: int, results: Path, status: Path, *arguments: object
    ) -> subprocess.Popen[str]:
        """Start a training of several processes, whose status comes to lie in the file."""
        launcher = ("-m", "torch.distributed.run", "--standalone")
        processes = ("--nproc-per-node", num_processes, "-m", f"{self.name}.train", "tiny")
        options = ("--device", "cpu", "--results-dir", results, *arguments)
        return start(sys.executable, *launcher, *processes, *options, STATUS_FILE=status)


def only_run(results: Path) -> Path:
    """The folder of the only run below `results`."""
    (record,) = Path(results).glob("**/run.json")
    return record.parent


def last_run(results: Path) -> Path:
    """The folder of the run started last: a kill before the first checkpoint leaves another."""
    return max(Path(results).glob("**/run.json")).parent


def record_of(results: Path) -> dict[str, Any]:
    """The record of the only run."""
    record: dict[str, Any] = json.loads((only_run(results) / "run.json").read_text())
    return record


def losses(folder: Path) -> bytes:
    """A run's file of per-step losses: equal bytes are equal floats."""
    return (folder / "losses.csv").read_bytes()


def loss_values(folder: Path) -> list[float]:
    """A run's losses, step by step."""
    return [float(line.split(",")[1]) for line in losses(folder).decode().split()]


def torch_state(folder: Path) -> dict[str, Any]:
    """Weights, and running statistics where there are any, of a run's last checkpoint."""
    import torch

    path = max(folder.glob("checkpoints/*.pt"))
    model: dict[str, Any] = torch.load(path, weights_only=True)["model"]
    return model


def assert_same_torch_training(folder: Path, expected: Path) -> None:
    """Losses, last state and evaluations, bit for bit."""
    assert losses(folder) == losses(expected)
    ours, others = torch_state(folder), torch_state(expected)
    assert ours.keys() == others.keys()
    assert all(value.equal(others[name]) for name, value in ours.items())
    records = [json.loads((path / "run.json").read_text()) for path in (folder, expected)]
    one, other = ([(e["step"], e["quality"]) for e in r["evaluations"]] for r in records)
    assert one == other


@contextlib.contextmanager
def disk_of(size: str, parent: Path) -> Iterator[Path]:
    """A file system of a size, as mount has it (`8m`); skips the test where none can be made."""
    folder = parent / "small disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(folder: Path, leave_bytes: int) -> None:
    """Take the room of a file system, but for about so much."""
    ballast = os.open(folder / "ballast", os.O_CREAT | os.O_WRONLY)
    with contextlib.suppress(OSError):
        while True:
            os.write(ballast, b"x" * 1024)
    os.truncate(folder / "ballast", max(0, os.fstat(ballast).st_size - leave_bytes))
    os.close(ballast)


def seconds_to_react(done: subprocess.CompletedProcess[str], ended_s: float) -> float:
    """How long a run that `start_killed` signalled took to end."""
    return ended_s - float(re.findall(r"signalled at ([\d.]+)", done.stderr)[0])


def assert_usage_error(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Status 2, one line on stderr that names the cause, nothing on stdout."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr


def assert_right_log(folder: Path, stdout: str, scratch: Path) -> None:
    """The harness's check and the official parser take the log and the captured stdout."""
    captured = scratch / "stdout.txt"
    captured.write_text(stdout)
    done = run(sys.executable, "-m", "harness", "check", folder / "log.txt", captured)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("OK: ") == 2
    for path in (folder / "log.txt", captured):
        parsed, failed = mlp_parser.parse_file(str(path), ruleset="5.1.0")
        assert failed == []
        assert len(parsed) == len((folder / "log.txt").read_text().splitlines())


def assert_speed(done: subprocess.CompletedProcess[str]) -> float:
    """Pace of the steps and of the input pipeline, and an estimate that follows from them.

    Returns the number of steps of an epoch.
    """
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("ENDING")
    pace, epoch, estimate = done.stderr.splitlines()[-3:]
    number = r"([\d,.]+)"
    found = re.fullmatch(
        f"{number} examples/s, {number} ms a step; the input pipeline alone {number} examples/s",
        pace,
    )
    assert found
    examples_per_s, step_ms, input_per_s = (float(x.replace(",", "")) for x in found.groups())
    assert min(input_per_s, examples_per_s) > 0
    found = re.fullmatch(
        f"an epoch: {number} steps and an evaluation of {number} s, together {number} s", epoch
    )
    assert found
    num_steps, evaluation_s, epoch_s = (float(x.replace(",", "")) for x in found.groups())
    assert abs(epoch_s - num_steps * step_ms / 1000 - evaluation_s) < 0.2
    assert re.fullmatch(rf"estimated time to the target: {number} s \([\d.]+ epochs\)", estimate)
    return num_steps
