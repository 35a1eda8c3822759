"""The checks of an acceptance, each a function: what it runs, what it judges, what it shows.

`python -m harness acceptance` does them one after the other for each benchmark.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from harness import loss_parity
from harness.child import Ended, StopRequest, peak_memory_mib, run_child
from harness.options import REPOSITORY

P100_MEMORY_MIB = 16_280
"""What the reference machine's GPU holds, of its nominal 16 GB."""
NUM_PARITY_STEPS = 20
NUM_MEMORY_STEPS = 40
NUM_THROUGHPUT_STEPS = 100
NUM_SELF_TEST_STEPS = 10
"""Steps of memory and throughput in a self-test."""
STEPS_LIMIT_S = 1800.0
"""Time limit of a run of --num-steps, and of each step of fetching data."""
RECORD_LIMIT_S = 3600.0
"""Time limit of the mini preset's training, which a laptop does in about two minutes."""
OTHER_KERNELS = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "TF_ENABLE_ONEDNN_OPTS": "0",
}
"""Makes PyTorch and TensorFlow add in another order on the CPU: the noise of rounding."""
NO_TF32 = {"NVIDIA_TF32_OVERRIDE": "0"}
"""Keeps NVIDIA's libraries from rounding float32 inputs to ten bits, whatever a framework asks."""
MEMORY_AS_NEEDED = {"TF_FORCE_GPU_ALLOW_GROWTH": "true"}
"""Keeps TensorFlow from taking the whole GPU at its start. PyTorch takes what it needs."""
VARIANTS = tuple(
    (precision, *compiled)
    for precision in ("fp32", "bf16", "fp16")
    for compiled in ((), ("--compile",))
)
"""What throughput is measured for: --precision, and --compile or nothing."""


class FailedError(Exception):
    """A check failed: one line with the cause."""


class RefusedError(FailedError):
    """A training refused its command line: status 2 and one line with the cause."""


class NotDoneError(Exception):
    """A check could not be done here: one line with the cause."""


@dataclass
class Check:
    """One row of the result."""

    result: str
    """PASS, FAIL or not done; where nothing is judged: measured, refused or self-test."""
    text: str
    figures: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    seconds: float = 0.0


@dataclass
class Trial:
    """One benchmark in one acceptance: what its runs run on, and where they go."""

    benchmark: str
    folder: Path
    """The acceptance's own folder."""
    results_dir: Path
    gpu: str | None
    """What nvidia-smi calls the GPU, a number or a UUID; None: a self-test on the CPU."""
    stop: StopRequest
    seconds: dict[str, float] = field(default_factory=dict)
    """How long the last run of a kind took, for what the next one may take."""

    @property
    def device(self) -> str:
        """The device under test, as --device takes it."""
        return "cpu" if self.gpu is None else "cuda"

    @property
    def preset(self) -> str:
        """The preset whose memory and throughput are measured; a CPU takes ages for reference."""
        return "mini" if self.gpu is None else "reference"

    def call(
        self,
        name: str,
        command: Sequence[str | Path],
        limit_s: float,
        environment: Mapping[str, str] | None = None,
        measure: Callable[[int], int | None] | None = None,
    ) -> Ended:
        """Run a command; what it prints goes to runs/<benchmark>/<name>/output.txt."""
        settings = {key: value for key, value in os.environ.items() if key != "RESUME"}
        settings |= {
            "PYTHON": sys.executable,
            "PYTHONPATH": str(REPOSITORY),
            "PYTHONSAFEPATH": "1",
            "RESULTS_DIR": str(self.results_dir),
            "NUM_GPUS": "0" if self.gpu is None else "1",
            "PRESET": "mini",
        }
        if self.gpu is not None:
            # In this order the frameworks count as nvidia-smi does.
            settings |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": self.gpu}
        output = self.runs / name / "output.txt"
        settings |= environment or {}
        return run_child(command, output, settings, REPOSITORY, limit_s, self.stop, measure)

    @property
    def runs(self) -> Path:
        """Folder of this benchmark's runs in the acceptance."""
        return self.folder / "runs" / self.benchmark

    def train(
        self,
        name: str,
        preset: str,
        device: str,
        num_steps: int,
        *options: str,
        environment: Mapping[str, str] | None = None,
        measure: Callable[[int], int | None] | None = None,
    ) -> tuple[Path, Ended]:
        """Train some steps; returns the run's folder and how the process ended.

        Raises RefusedError or FailedError where it does not end with status 0.
        """
        kind = f"{preset} {device} {'--compile' in options}"
        _say_expected(name, self.seconds.get(kind), STEPS_LIMIT_S)
        folder = self.runs / name
        command = [sys.executable, "-m", f"{self.benchmark}.train", preset, "--device", device]
        command += ["--num-steps", str(num_steps), "--results-dir", str(folder), *options]
        ended = self.call(name, command, STEPS_LIMIT_S, environment, measure)
        if ended.status == 2:
            raise RefusedError(ended.cause)
        if ended.status != 0:
            raise FailedError(ended.cause)
        self.seconds[kind] = ended.seconds
        (record,) = folder.glob("**/run.json")
        return record.parent, ended


# --- the checks -----------------------------------------------------------------------------------


def get_data(trial: Trial) -> Check:
    """Fetch, verify and prepare the mini data set; what is there already is left as it is."""
    folder = REPOSITORY / trial.benchmark
    commands: dict[str, Sequence[str | Path]] = {
        "download": (folder / "download_dataset.sh", "mini"),
        "verify": (folder / "verify_dataset.sh", "mini"),
    }
    if (folder / "prepare.py").exists():
        commands["prepare"] = (sys.executable, "-m", f"{trial.benchmark}.prepare", "mini")
    for name, command in commands.items():
        ended = trial.call(f"data-{name}", command, STEPS_LIMIT_S)
        if ended.status != 0:
            raise NotDoneError(f"{name}: {ended.cause}")
    return Check("PASS", "mini data set fetched, verified and prepared")


def check_parity(trial: Trial, made_up: bool) -> Check:
    """The first losses of CPU and GPU, from the same seed and data, in float32 without TF32."""

    def losses(name: str, device: str, seed: str = "1", **more: str) -> list[float]:
        options = ("--precision", "fp32", "--seed", seed, *(["--synthetic-data"] * made_up))
        folder, _ = trial.train(
            f"parity-{name}",
            "mini",
            device,
            NUM_PARITY_STEPS,
            *options,
            environment=NO_TF32 | more,
        )
        return loss_parity.read_losses(folder / "losses.csv")

    try:
        expected = losses("cpu", "cpu")
        noisy = losses("cpu-other-kernels", "cpu", **OTHER_KERNELS)
        found = losses("cpu-again" if trial.gpu is None else "gpu", trial.device)
        other = losses("other-seed", trial.device, seed="2")
        noise = loss_parity.relative_differences(expected, noisy)
        differences = loss_parity.relative_differences(expected, found)
        control = loss_parity.relative_differences(expected, other)
    except ValueError as error:
        raise FailedError(str(error)) from error
    tolerances = loss_parity.tolerances(noise)
    allowed = [0.0] * len(tolerances) if trial.gpu is None else tolerances

    over = loss_parity.first_over(differences, allowed)
    seen = loss_parity.first_over(control, tolerances)
    largest = max(differences)
    step = differences.index(largest) + 1
    text = (
        f"{'CPU and CPU' if trial.gpu is None else 'CPU and GPU'}, {len(differences)} steps on "
        f"{'made-up' if made_up else 'the mini'} data: largest relative difference {largest:.1e} "
        f"at step {step} (allowed there: {allowed[step - 1]:.1e})"
    )
    if over is not None:
        text += f"; step {over} differs by {differences[over - 1]:.1e}, more than allowed"
    if trial.gpu is not None:
        text += f"; {loss_parity.num_judged(allowed)} steps have a tolerance that tells"
    text += (
        f"; another seed is told apart at step {seen}"
        if seen
        else "; ANOTHER SEED PASSES AS WELL, so this shows nothing"
    )
    figures = {
        "largest_relative_difference": largest,
        "largest_at_step": step,
        "made_up_data": made_up,
        "relative_differences": differences,
        "allowed": allowed,
        "cpu_noise": noise,
        "other_seed_seen_at_step": seen,
    }
    return Check("PASS" if over is None and seen else "FAIL", text, figures)


def check_memory(trial: Trial) -> Check:
    """Peak memory of a training process with the evaluation that --num-steps times.

    On a GPU with more memory than a P100 it is an upper bound: what the framework keeps cached is
    counted, and it would let go of some where memory is short.
    """
    options = ("memory", trial.preset, trial.device)
    if trial.gpu is None:
        _, ended = trial.train(
            *options, NUM_SELF_TEST_STEPS, "--synthetic-data", measure=peak_memory_mib
        )
        if ended.peak is None:
            raise NotDoneError("the process ended before its memory could be read")
        text = f"peak resident memory {ended.peak:,} MiB (mini preset): says nothing about a GPU"
        return Check("self-test", text, {"peak_resident_mib": ended.peak})

    gpu = trial.gpu
    before_mib = gpu_memory_mib(gpu)
    if before_mib is None:
        raise NotDoneError(f"nvidia-smi tells no memory.used of GPU {gpu}")

    def used_mib(_process_id: int) -> int | None:
        return gpu_memory_mib(gpu)

    _, ended = trial.train(
        *options,
        NUM_MEMORY_STEPS,
        "--synthetic-data",
        environment=MEMORY_AS_NEEDED,
        measure=used_mib,
    )
    if ended.peak is None:
        raise NotDoneError(f"nvidia-smi told no memory.used of GPU {gpu} while the run lasted")
    # Both frameworks keep what they once took, so that no peak hides between two looks.
    peak_mib = ended.peak - before_mib
    left_mib = P100_MEMORY_MIB - peak_mib
    text = f"peak {peak_mib:,} MiB of {P100_MEMORY_MIB:,}, context and caches included: "
    text += f"{left_mib:,} MiB left" if left_mib >= 0 else f"{-left_mib:,} MiB too much"
    if before_mib > 0:
        text += f" ({before_mib:,} MiB were in use before)"
    figures = {"peak_mib": peak_mib, "before_mib": before_mib, "limit_mib": P100_MEMORY_MIB}
    return Check("PASS" if left_mib >= 0 else "FAIL", text, figures)


def measure_throughput(trial: Trial, precision: str, *compiled: str) -> Check:
    """The pace that --num-steps measures once warm, and the time to the target that follows."""
    num_steps = NUM_SELF_TEST_STEPS if trial.gpu is None else NUM_THROUGHPUT_STEPS
    name = "-".join(["throughput", precision, *(option.strip("-") for option in compiled)])
    options = ("--synthetic-data", "--precision", precision, *compiled)
    try:
        folder, _ = trial.train(name, trial.preset, trial.device, num_steps, *options)
    except RefusedError as refusal:
        if (precision, *compiled) == VARIANTS[0]:
            raise  # what every device must be able to do
        return Check("refused", str(refusal))
    speed = _read_json(folder / "run.json")["speed"]
    if speed is None:
        raise FailedError(f"{folder / 'run.json'} has no speed")
    pace, seconds = speed["examples_per_s"], speed["seconds_to_target"]
    text = (
        f"{pace:,.{0 if pace >= 100 else 2}f} examples/s, {speed['step_s'] * 1000:,.2f} ms a step; "
        f"about {seconds:,.0f} s to the target ({trial.preset} preset)"
    )
    return Check("self-test" if trial.gpu is None else "measured", text, speed)


def train_record(trial: Trial, data: Check, expected_s: float | None) -> Check:
    """Train the mini preset to its target as everybody does, and judge its log."""
    if data.result != "PASS":
        raise NotDoneError(f"no mini data set; {data.text}")
    _say_expected("record", expected_s, RECORD_LIMIT_S)
    seed_folder = trial.results_dir / trial.benchmark / "mini" / "seed-1"
    before = set(seed_folder.glob("*/run.json"))
    script = REPOSITORY / trial.benchmark / "run_and_time.sh"
    ended = trial.call("record", (script,), RECORD_LIMIT_S)
    if ended.status != 0:
        raise FailedError(ended.cause)
    (path,) = set(seed_folder.glob("*/run.json")) - before
    run, folder = _read_json(path), path.parent
    # The acceptance's folder shall hold all that a person sends in; checkpoints are too large.
    copy = trial.folder / "records" / trial.benchmark
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("checkpoints", "lock"))
    judge = (sys.executable, "-m", "harness", "check", folder)
    judged = trial.call("record-check", judge, STEPS_LIMIT_S)
    if judged.status != 0:
        raise FailedError(f"the log breaks the rules: {judged.cause}")
    last = run["evaluations"][-1]
    quality = ", ".join(f"{name} {last['quality'][name]:.4f}" for name in run["targets"])
    text = f"target reached in {run['run_seconds']:,.1f} s: {quality}; its log passes: {folder}"
    names = ("run_seconds", "train_examples_per_s", "targets", "evaluations")
    return Check("PASS", text, {name: run[name] for name in names} | {"folder": str(folder)})


# --- small parts ----------------------------------------------------------------------------------


def query_gpu(gpu: str | None, fields: str) -> str:
    """What nvidia-smi says of one GPU, or of all; empty where it says nothing."""
    which = [] if gpu is None else [f"--id={gpu}"]
    command = ["nvidia-smi", *which, f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def describe_gpu(gpu: str) -> str:
    """Name and versions of a GPU, in a few words."""
    fields = {"name": "", "driver_version": "driver ", "compute_cap": "compute capability "}
    return ", ".join(text + query_gpu(gpu, name) for name, text in fields.items())


def gpu_memory_mib(gpu: str) -> int | None:
    """MiB of the GPU that are in use, by whomever; None where it does not tell."""
    used = query_gpu(gpu, "memory.used")
    return int(used) if used.isdecimal() else None


def expected_record_s(trial: Trial) -> float | None:
    """The time to the target that the device's own parity run estimated."""
    for path in trial.runs.glob("parity-*/**/run.json"):
        if path.relative_to(trial.runs).parts[0] in ("parity-gpu", "parity-cpu-again"):
            speed = _read_json(path)["speed"]
            return cast(float, speed["seconds_to_target"]) if speed else None
    return None


def say(text: str) -> None:
    """Tell the person who watches, at once."""
    print(text, file=sys.stderr, flush=True)


def _say_expected(name: str, expected_s: float | None, limit_s: float) -> None:
    expected = f"about {expected_s:,.0f} s, " if expected_s else ""
    say(f"  {name}: {expected}at most {limit_s / 60:.0f} min")


def _read_json(path: Path) -> dict[str, Any]:
    return cast(dict[str, Any], json.loads(path.read_text()))
