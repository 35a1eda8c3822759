"""Command line and folders: the options that all benchmarks share, joined with a Config by tyro."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, Protocol, TypeVar, cast

import tyro

from harness.errors import UsageError
from harness.stop_rule import QualityTarget, parse_targets

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED_DATA = {"single_stage_detector": "coco", "object_detection": "coco"}
"""Benchmarks whose data set has a folder below data/ of another name, which others use too."""


class BenchmarkConfig(Protocol):
    """What the harness reads of a benchmark's Config; the rest is the benchmark's science."""

    @property
    def preset(self) -> str:
        """Name of the preset that the values come from."""

    @property
    def quality_targets(self) -> tuple[QualityTarget, ...]:
        """What must be met, all in the same evaluation."""

    @property
    def max_epochs(self) -> int:
        """Epochs after which a run that has not reached its target gives up."""

    @property
    def epochs_to_target(self) -> float:
        """Epochs that a run is expected to need, for the time estimate."""

    @property
    def checkpoint_interval_s(self) -> float:
        """Seconds between checkpoints."""


@dataclass(frozen=True)
class RunOptions:
    """How and where to run; none of these changes what is trained, but --target and --num-steps."""

    seed: int = 1
    """Decides everything that is random: weights, data order, sampling."""
    target: str | None = None
    """Quality to reach in place of the preset's; several are joined by a slash."""
    data_dir: Path = Path()
    """Folder of the data set. $DATA_DIR sets the default."""
    results_dir: Path = Path()
    """Folder for logs and checkpoints. $RESULTS_DIR sets the default."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes the GPU where there is one."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the forward and backward pass; weights and optimiser stay float32."""
    compile: bool = False
    """Compile the model (torch.compile or XLA)."""
    num_workers: int = 0
    """Loader processes beside the training process; with TensorFlow, threads that decode and
    augment. 0 leaves it to the benchmark."""
    resume: bool = False
    """Go on from the newest whole checkpoint of this seed's unfinished run. RESUME=1 does too."""
    synthetic_data: bool = False
    """Train on made-up data of the same shape: speed without a data set."""
    num_steps: int | None = None
    """Stop after this many steps and print the throughput and the estimated time to the target."""
    modified: tyro.conf.Suppress[tuple[str, ...]] = ()
    """Fields that differ from the preset; filled in here, never given."""


ConfigType = TypeVar("ConfigType", bound=BenchmarkConfig)


def parse_command_line(
    benchmark: str,
    presets: Mapping[str, tuple[str, ConfigType]],
    arguments: list[str] | None = None,
) -> tuple[ConfigType, RunOptions]:
    """Read `<preset> [--option value ...]`; folders, target and `modified` come back resolved.

    `presets` maps a name to (one line of help, Config). Raises UsageError, in one line, for
    anything that is not understood; `--help` exits with 0.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or (not arguments[0].startswith("-") and arguments[0] not in presets):
        given = f"there is no preset {arguments[0]!r}" if arguments else "the preset is missing"
        raise UsageError(f"{given}; choose from {', '.join(presets)}")
    config_type = type(next(iter(presets.values()))[1])
    command_type = dataclasses.make_dataclass(
        "Command", [("config", config_type), ("options", RunOptions)], frozen=True
    )
    commands = {
        name: (text, command_type(config, default_options(benchmark, name)))
        for name, (text, config) in presets.items()
    }
    with one_line_errors():
        command = tyro.extras.overridable_config_cli(
            commands,
            prog=f"python -m {benchmark}.train",
            args=arguments,
            config=(tyro.conf.OmitArgPrefixes,),
        )
    options = command.options
    config = command.config
    if options.target is not None:
        targets = parse_targets(options.target, config.quality_targets)
        config = cast(ConfigType, dataclasses.replace(cast(Any, config), quality_targets=targets))
    if options.num_workers < 0:
        raise UsageError(f"--num-workers is {options.num_workers}; give 0 or more")
    if options.num_steps is not None and options.num_steps < 1:
        raise UsageError(
            f"--num-steps {options.num_steps} is not a positive number; give 1 or more"
        )
    modified = _modified(config, presets[config.preset][1], options)
    return config, dataclasses.replace(options, modified=modified)


def default_options(benchmark: str, preset: str) -> RunOptions:
    """The options as the environment sets them."""
    data_name = SHARED_DATA.get(benchmark, benchmark)
    data_dir = os.environ.get("DATA_DIR") or REPOSITORY / "data" / data_name / preset
    results_dir = os.environ.get("RESULTS_DIR") or REPOSITORY / "results"
    return RunOptions(
        data_dir=Path(data_dir).absolute(),
        results_dir=Path(results_dir).absolute(),
        resume=os.environ.get("RESUME") == "1",
    )


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Around a call of tyro: what it says in a box about a command line becomes a UsageError."""
    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            yield
    except SystemExit as end:
        if not end.code:  # --help
            raise
        raise UsageError(f"{_cause(captured.getvalue())}; see --help") from None


def _modified(
    config: BenchmarkConfig, preset: BenchmarkConfig, options: RunOptions
) -> tuple[str, ...]:
    """Names of the fields in which this run's science or target differs from its preset."""
    now, then = dataclasses.asdict(cast(Any, config)), dataclasses.asdict(cast(Any, preset))
    fields = [name for name in now if now[name] != then[name] and name != "checkpoint_interval_s"]
    fields += ["synthetic_data"] if options.synthetic_data else []
    fields += ["num_steps"] if options.num_steps else []
    return tuple(fields)


def _cause(box: str) -> str:
    """First statement of tyro's boxed error text, as one line."""
    lines = [line.strip(" │╭╰╮╯─") for line in box.splitlines() if not line.startswith("╭")]
    first = lines[: lines.index("")] if "" in lines else lines
    return " ".join(first) or "the command line is not understood"


def exit_with(error: UsageError) -> int:
    """Print a usage error as its one line, in the first process; returns the exit status 2."""
    if os.environ.get("RANK", "0") == "0":
        print(f"error: {error}", file=sys.stderr)
    return 2


def leave(status: int) -> NoReturn:
    """End the process with `status`.

    Under torchrun, which makes every status 1 and prints a page about it, the first process
    leaves the status in $STATUS_FILE for run_and_time.sh, and all end with 0. Not after a usage
    error, which may be the first process's alone: torchrun must then end the others.
    """
    if status_file := os.environ.get("STATUS_FILE"):
        if os.environ.get("RANK", "0") == "0":
            Path(status_file).write_text(f"{status}\n")
        status = 2 if status == 2 else 0
    sys.exit(status)
