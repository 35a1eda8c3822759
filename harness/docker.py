"""Builds a benchmark's image and trains in it, and prints the docker commands that do the same.

    python -m harness docker recommendation --preset mini
    python -m harness docker all --seed 3

Options mean what they mean on the host, and so do PRESET, DATA_DIR, RESULTS_DIR, NUM_GPUS and
RESUME. stdout and the exit status are the container's, 1 where the build fails; of several
benchmarks the worst status counts.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import docker
import requests
import tyro
import urllib3

from harness import system
from harness.container import NO_GPU_ACCESS, BuildError, ContainerPlan, build, run
from harness.errors import UsageError
from harness.options import REPOSITORY, default_options, exit_with, one_line_errors

ENGINE_TIMEOUT_S = 600
"""For an answer of the engine; starting a container on a busy machine takes a while."""

ENGINE_ERRORS = (
    docker.errors.DockerException,
    requests.RequestException,
    urllib3.exceptions.HTTPError,
)
"""What the SDK raises where the engine refuses something or cannot be reached any more."""


def _num_gpus_of_environment() -> int | None:
    text = os.environ.get("NUM_GPUS") or None
    if text and not text.isdecimal():
        raise UsageError(f"NUM_GPUS={text!r} is not a whole number; leave it unset")
    return int(text) if text else None


@dataclass(frozen=True)
class DockerOptions:
    """What to train, and where."""

    benchmark: tyro.conf.Positional[str]
    """A benchmark's folder, or `all`: one after the other."""
    preset: str = field(default_factory=lambda: os.environ.get("PRESET") or "reference")
    """reference, mini, or another that the card names. $PRESET sets the default."""
    seed: int = 1
    """Decides everything that is random."""
    target: str | None = None
    """Quality to reach in place of the preset's; several are joined by a slash."""
    num_gpus: int | None = field(default_factory=_num_gpus_of_environment)
    """GPUs to train on, 0 for the CPU; by default 1 where there is one. $NUM_GPUS sets it too."""
    data_dir: Path | None = None
    """Folder of the data set; by default $DATA_DIR, else data/<benchmark>/<preset>
    (both detectors: data/coco/<preset>)."""
    results_dir: Path | None = None
    """Folder for logs and checkpoints; by default $RESULTS_DIR, else results."""
    requirements: str | None = None
    """Lock that the image is built with; by default the one for this machine's GPU."""
    resume: bool = False
    """Go on with this seed's unfinished run. RESUME=1 does too."""
    only: Literal["build", "run"] | None = None
    """Build the image without training, or train in the image that is there."""


@dataclass(frozen=True)
class Outcome:
    """How one benchmark ended."""

    benchmark: str
    status: int
    duration_s: float
    text: str
    """Its RESULT or ABORTED line, or what was wrong."""
    received: int | None = None
    """The signal that interrupted it, if one did."""


# --- what is there -------------------------------------------------------------------------------


def benchmarks_here() -> list[str]:
    """Folders that have a Dockerfile."""
    return sorted(path.parent.name for path in REPOSITORY.glob("*/Dockerfile"))


def connect() -> docker.DockerClient:
    """A client of the engine that $DOCKER_HOST names, else of this machine's."""
    try:
        return docker.from_env(timeout=ENGINE_TIMEOUT_S)
    except docker.errors.DockerException as error:
        if "Permission denied" in str(error):
            cause = "the Docker engine does not let this user in"
            step = "join the group docker with sudo usermod -aG docker $USER and log in again"
        else:
            cause = "no Docker engine answers"
            step = "start it with sudo systemctl start docker, or set it up with"
            step += " ./install_cuda_docker.sh"
        raise UsageError(f"{cause}; {step}") from error


def wants_gpus(num_gpus: int | None, num_gpus_here: int, engine: Mapping[str, Any]) -> bool:
    """Whether the container gets GPUs; UsageError where it shall and cannot.

    `num_gpus_here` is 0 where none is wanted; `engine` is what the engine says about itself. A GPU
    that is there but cannot be used is an error, never a slow run on the CPU.
    """
    if (num_gpus or 0) > num_gpus_here:
        cause = f"{num_gpus} GPUs are asked for and nvidia-smi lists {num_gpus_here}"
        raise UsageError(f"{cause}; lower --num-gpus or leave it out")
    if num_gpus_here == 0:
        return False
    devices = [device.get("ID", "") for device in engine.get("DiscoveredDevices") or ()]
    if not (
        "nvidia" in engine.get("Runtimes", {})
        or any(device.startswith("nvidia.com/gpu") for device in devices)
        or shutil.which("nvidia-container-runtime-hook")
    ):
        raise UsageError(NO_GPU_ACCESS)
    return True


def default_requirements(benchmark: str, gpus: Sequence[Mapping[str, str]]) -> str:
    """The lock whose PyTorch has code for all these GPUs: 2.7.1 goes to compute capability 9.0."""
    capabilities = [gpu["compute_cap"] for gpu in gpus]
    newer = any(re.fullmatch(r"\d+\.\d+", text) and float(text) > 9.0 for text in capabilities)
    newest = "requirements-newest.txt"
    if newer and (REPOSITORY / benchmark / newest).exists():
        return newest
    return "requirements.txt"


def require_data(benchmark: str, preset: str, data_dir: Path) -> None:
    """UsageError where the preset is not one, or its data set is not there.

    The presets, and which of them need no data, are read out of the download script's help.
    """
    script = REPOSITORY / benchmark / "download_dataset.sh"
    text = subprocess.run([script, "--help"], capture_output=True, text=True, check=True).stdout
    presets = dict(re.findall(r"(?m)^  (\S+) +(.+)$", text.partition("environment:")[0]))
    if preset not in presets:
        known = ", ".join(presets)
        raise UsageError(f"{benchmark} has no preset {preset!r}; choose from {known}")
    if re.search("nothing to fetch|made here", presets[preset]):
        data_dir.mkdir(parents=True, exist_ok=True)
    elif not data_dir.is_dir() or not any(data_dir.iterdir()):
        command = f"{benchmark}/download_dataset.sh {preset}"
        if data_dir != default_options(benchmark, preset).data_dir:
            command = f"DATA_DIR={shlex.quote(str(data_dir))} {command}"
        raise UsageError(f"{data_dir} is missing or empty; run {command}")


# --- one benchmark -------------------------------------------------------------------------------


def make_plan(
    options: DockerOptions, benchmark: str, gpus: Sequence[Mapping[str, str]], has_gpus: bool
) -> ContainerPlan:
    """The options as what Docker is told. UsageError where it cannot be told that."""
    host = default_options(benchmark, options.preset)
    data_dir = (options.data_dir or host.data_dir).absolute()
    results_dir = (options.results_dir or host.results_dir).absolute()
    for folder in (data_dir, results_dir):
        if ":" in str(folder):
            raise UsageError(f"{folder} has a colon, which docker run -v cannot mount; rename it")
    requirements = options.requirements or default_requirements(benchmark, gpus)
    if not (REPOSITORY / benchmark / requirements).is_file():
        locks = sorted(path.name for path in (REPOSITORY / benchmark).glob("requirements*.txt"))
        raise UsageError(f"{benchmark} has no {requirements}; choose from {', '.join(locks)}")
    build_arguments = {"GIT_COMMIT": system.git_commit()}
    if requirements != "requirements.txt":
        build_arguments["REQUIREMENTS"] = requirements
    environment = {"PRESET": options.preset}
    if options.num_gpus is not None:
        environment["NUM_GPUS"] = str(options.num_gpus)
    if options.resume or host.resume:
        environment["RESUME"] = "1"
    target = () if options.target is None else (options.target,)
    return ContainerPlan(
        benchmark=benchmark,
        build_arguments=build_arguments,
        environment=environment,
        data_dir=data_dir,
        results_dir=results_dir,
        user=f"{os.getuid()}:{os.getgid()}",
        has_gpus=has_gpus,
        arguments=(str(options.seed), *target),
    )


def print_commands(plan: ContainerPlan, only: str | None) -> None:
    """What is done here, as commands for the root of the repository."""
    commands = [] if only == "run" else [plan.build_command()]
    if only != "build":
        commands += [["mkdir", "-p", str(plan.results_dir)], plan.run_command()]
    lines = ["# The same by hand, from the root of the repository:", *map(shlex.join, commands)]
    print(*lines, sep="\n", file=sys.stderr, flush=True)


def train(
    client: docker.DockerClient,
    options: DockerOptions,
    benchmark: str,
    gpus: Sequence[Mapping[str, str]],
    has_gpus: bool,
) -> Outcome:
    """Build and run one benchmark; what goes wrong with it is said and stands in the outcome."""
    start = time.monotonic()
    status, text, received = 0, f"built mlperf/{benchmark}", None
    try:
        plan = make_plan(options, benchmark, gpus, has_gpus)
        if options.only != "build":
            require_data(benchmark, options.preset, plan.data_dir)
        print_commands(plan, options.only)
        if options.only != "run":
            build(client, plan, REPOSITORY)
        if options.only != "build":
            plan.results_dir.mkdir(parents=True, exist_ok=True)
            status, text, received = run(client, plan)
    except (UsageError, BuildError, *ENGINE_ERRORS) as error:
        status = 2 if isinstance(error, UsageError) else 1
        engine = "the Docker engine: " if isinstance(error, ENGINE_ERRORS) else ""
        text = f"error: {engine}{' '.join(str(error).split())}"
        print(text, file=sys.stderr)
    return Outcome(benchmark, status, time.monotonic() - start, text, received)


def print_summary(outcomes: Sequence[Outcome]) -> None:
    """One line for each benchmark."""
    width = max(len("benchmark"), *(len(outcome.benchmark) for outcome in outcomes))
    print(f"\n{'benchmark':<{width}}  status  seconds  end", file=sys.stderr)
    for end in outcomes:
        line = f"{end.benchmark:<{width}}  {end.status:>6}  {end.duration_s:>7.0f}  {end.text}"
        print(line.rstrip(), file=sys.stderr)


def chosen(options: DockerOptions) -> list[str]:
    """The benchmarks that are asked for. UsageError where there is none of that name."""
    known = benchmarks_here()
    if options.benchmark != "all":
        if options.benchmark not in known:
            cause = f"there is no benchmark {options.benchmark!r} here"
            raise UsageError(f"{cause}; choose from {', '.join(known)} (or all)")
        return [options.benchmark]
    if options.data_dir or os.environ.get("DATA_DIR"):
        cause = "a data folder is one benchmark's, and all are asked for"
        raise UsageError(f"{cause}; leave out --data-dir and DATA_DIR")
    if options.target is not None:
        raise UsageError("a target is one benchmark's, and all are asked for; leave out --target")
    return known


def main(arguments: list[str]) -> int:
    """Build and train; returns the exit status."""
    try:
        with one_line_errors():
            options = tyro.cli(DockerOptions, prog="python -m harness docker", args=arguments)
        benchmarks = chosen(options)
        client = connect()
        gpus = [] if options.num_gpus == 0 else system.gpus()
        has_gpus = options.only != "build" and wants_gpus(
            options.num_gpus, len(gpus), client.info()
        )
        outcomes = []
        for benchmark in benchmarks:
            outcomes.append(train(client, options, benchmark, gpus, has_gpus))
            if outcomes[-1].received:  # whoever interrupts one wants none of the others
                break
        if options.benchmark == "all":
            print_summary(outcomes)
        if outcomes[-1].received and len(outcomes) < len(benchmarks):
            return 128 + outcomes[-1].received
        return max(outcome.status for outcome in outcomes)
    except UsageError as error:
        return exit_with(error)
    except KeyboardInterrupt:  # while no container runs
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
