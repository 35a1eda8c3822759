"""The life of one run: from init_start to its last line on stdout.

A training script opens a `Run`, calls it at the moments that count, and keeps its own loop:

    with Run("recommendation", config, options) as run:
        ...                                 # set-up that touches no data
        run.start()                         # the clock runs
        for epoch in range(...):
            run.epoch_start(epoch)
            ...                             # steps: record_losses, checkpoint, obey
            run.epoch_stop(epoch)
            run.eval_start(epoch)
            if run.eval_stop(epoch, evaluate(...)):
                break                       # the target is reached
    return run.exit_status
"""

from __future__ import annotations

import errno
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

from mlperf_logging.mllog import constants

from harness.checkpoint import Checkpoint, write_checkpoint, write_json
from harness.clock import Clock
from harness.errors import (
    InterruptedRunError,
    NonFiniteLossError,
    NumStepsDoneError,
    UsageError,
)
from harness.options import BenchmarkConfig, RunOptions
from harness.run_folder import RunFolder, plain
from harness.run_log import RunLog
from harness.signals import StopSignal
from harness.stop_rule import all_met, better, show

RESULT_TIME_FORMAT = "%Y-%m-%d %I:%M:%S %p"


class Run:
    """One attempt at training a benchmark to its target.

    In a job of several processes each has a Run, but only the first (`is_main`) writes anything.
    """

    def __init__(self, benchmark: str, config: BenchmarkConfig, options: RunOptions) -> None:
        self.clock = Clock()
        self.log = RunLog(self.clock)
        self.benchmark = benchmark
        self.config = config
        self.options = options
        self.is_main = int(os.environ.get("RANK", "0")) == 0
        self.step = 0
        """Training steps done, over all attempts."""
        self.num_examples = 0
        """Training examples done, over all attempts."""
        self.evaluations: list[dict[str, Any]] = []
        self.resume_from: Checkpoint | None = None
        """The checkpoint to load before `start`, where the run goes on with an earlier attempt."""
        self.status = "running"
        self.exit_status = 1
        self._started = False
        self._run_s: float | None = None  # run_stop - run_start
        self._phase_s: dict[str, float] = {}
        self._seconds_by_step: list[float] = []
        self._speed: dict[str, float] | None = None  # what report_speed prints
        self._epoch_loss_sum, self._epoch_num_steps = 0.0, 0

    # --- from the command line to run_start -------------------------------------------------

    def __enter__(self) -> Run:
        """Open the run's folder. Raises UsageError, with nothing written, where that fails."""
        if self.is_main:
            self._folder = RunFolder.open(self.benchmark, self.config, self.options)
            self.resume_from = self._folder.resume_from
            if self.resume_from is None:
                self.log.open(self.folder / "log.txt")
        self.stop_signal = StopSignal(self._close_on_deadline)
        self.log.event(constants.INIT_START)
        self.log.event(constants.SUBMISSION_BENCHMARK, self.benchmark)
        self.log.event("preset", self.config.preset)
        self.log.event(constants.SEED, self.options.seed)
        self.log.event("quality_target", self._targets())
        self.log.event("modified", list(self.options.modified))
        return self

    def describe(self, derived: Mapping[str, Any]) -> None:
        """Print the resolved configuration and `derived` values to stderr, and store both."""
        if not self.is_main:
            return
        config, options = plain(self.config), plain(self.options)
        print(f"{self.benchmark}: preset {self.config.preset}", file=sys.stderr)
        values = {**config, **options, **derived, "folder": self.folder}
        values["quality_targets"] = ", ".join(map(str, self.config.quality_targets))
        for name, value in values.items():
            if value is not None and name not in ("preset", "target"):
                shown = f"{value:,}" if isinstance(value, int) and value >= 10_000 else value
                print(f"  {name:<26} {shown}", file=sys.stderr)
        if self.resume_from is None:
            record = {"config": config, "options": options, "derived": dict(derived)}
            write_json(self.folder / "config.json", record)

    def start(self) -> None:
        """run_start: the clock runs, or goes on where `resume_from` stood. No data was read yet."""
        if self.resume_from:
            position = self.resume_from.position
            downtime_s = self.clock.resume(position["clock"])
            self.step = position["step"]
            self.num_examples = position["num_examples"]
            self.evaluations = position["evaluations"]
            self._epoch_loss_sum, self._epoch_num_steps = position["epoch_loss"]
        if self.is_main:
            self._losses = (self.folder / "losses.csv").open("a")
        if self.resume_from and self.is_main:
            self._losses.truncate(position["losses_bytes"])
            self.log.open(self.folder / "log.txt", position["log_bytes"])
            self.log.event("resumed", self.step, downtime_s=downtime_s, valid=self.clock.valid)
        elif not self.resume_from:
            self.log.event(constants.INIT_STOP)
            self.clock.start_run()
            self.log.event(constants.RUN_START)
        self.log.open_stdout(f"STARTING TIMING RUN AT {self._time_of_day(0)}")
        self._last_checkpoint_s = self._last_losses_s = time.monotonic()
        self._started = True
        self._write_record()

    # --- in the loop --------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        """The run's folder; first process only."""
        return self._folder.path

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Count what happens inside as `input` (waiting for batches) or another clock phase."""
        return self.clock.phase(name)

    def epoch_start(self, epoch: int) -> None:
        """An epoch begins; epochs count from 1."""
        self.log.start(constants.EPOCH_START, epoch_num=epoch)

    def epoch_stop(self, epoch: int) -> None:
        """An epoch ends; its mean loss is logged with the throughput so far."""
        stats = {
            "train_loss": self._epoch_loss_sum / self._epoch_num_steps,
            "train_examples_per_s": self._examples_per_s(),
        }
        self._epoch_loss_sum, self._epoch_num_steps = 0.0, 0
        self.log.event("tracked_stats", stats, epoch_num=epoch, step_num=self.step)
        self.log.end(constants.EPOCH_STOP, epoch_num=epoch)

    def record_losses(self, losses: Sequence[float], num_examples: int) -> None:
        """Count the steps whose `losses` these are and store each with its step number.

        `num_examples` is what these steps trained on, over all processes. Raises
        NonFiniteLossError at the first loss that is not finite.
        """
        if self.options.num_steps:
            now_s = time.monotonic()
            self._seconds_by_step += [(now_s - self._last_losses_s) / len(losses)] * len(losses)
            self._last_losses_s = now_s
        for number, loss in enumerate(losses, start=self.step + 1):
            if not math.isfinite(loss):
                self.step = number
                raise NonFiniteLossError(f"the loss of step {number} is {loss}")
            if self.is_main:
                self._losses.write(f"{number},{loss!r}\n")
            self._epoch_loss_sum += loss
            self._epoch_num_steps += 1
        self.step += len(losses)
        self.num_examples += num_examples

    def checkpoint_due(self) -> bool:
        """Whether checkpoint_interval_s has passed since the last checkpoint (first process)."""
        waited_s = time.monotonic() - self._last_checkpoint_s
        return self.is_main and waited_s >= self.config.checkpoint_interval_s

    @property
    def stop_requested(self) -> bool:
        """Whether SIGTERM or SIGINT has come: save a checkpoint at this boundary, then `obey`."""
        return self.stop_signal.received is not None

    @contextmanager
    def checkpoint(self, epoch: int, step_in_epoch: int, suffix: str) -> Iterator[BinaryIO]:
        """Open a file for the framework's state; first process only.

        `epoch` and `step_in_epoch` say where training goes on: that many steps of that epoch are
        done. Raises OSError where it cannot be written; the checkpoint before it then stands.
        """
        with self.clock.phase("checkpoint"):
            self._losses.flush()
            position = {
                "step": self.step,
                "num_examples": self.num_examples,
                "epoch": epoch,
                "step_in_epoch": step_in_epoch,
                "evaluations": self.evaluations,
                "epoch_loss": [self._epoch_loss_sum, self._epoch_num_steps],
                "losses_bytes": os.fstat(self._losses.fileno()).st_size,
                "log_bytes": self.log.sync(),
                "clock": self.clock.state(),
            }
            folder = self.folder / "checkpoints"
            with write_checkpoint(folder, self.step, suffix, position) as file:
                yield file
        self._last_checkpoint_s = time.monotonic()

    def obey(self, stop: bool) -> None:
        """End the run at this step boundary where it must.

        `stop`: whether any process was asked to stop. Raises InterruptedRunError, or
        NumStepsDoneError after --num-steps.
        """
        if stop:
            raise InterruptedRunError(f"stopped after step {self.step}")
        if self.step == self.options.num_steps:
            raise NumStepsDoneError(f"{self.step} steps done")

    def eval_start(self, epoch: int) -> None:
        """The evaluation after `epoch` begins (0: before training)."""
        self.log.start(constants.EVAL_START, epoch_num=epoch)
        self.clock.switch("evaluation")

    def eval_stop(self, epoch: int, quality: Mapping[str, float]) -> bool:
        """The evaluation is done; returns whether its `quality` meets every target.

        If so this moment is run_stop. Qualities without a target are logged beside the others.
        """
        reached = all_met(self.config.quality_targets, quality)
        if reached:
            self._stop_clock("reached")
        elapsed_s, now_ms = self._run_s or self.clock.elapsed_s, self.clock.unix_ms
        moment = {"epoch_num": epoch, "step_num": self.step, "time_ms": now_ms}
        for target in self.config.quality_targets:
            value = quality[target.name]
            self.log.event(constants.EVAL_ACCURACY, value, **moment, metric=target.name)
        self.log.event("tracked_stats", dict(quality), **moment)
        self.log.end(constants.EVAL_STOP, **moment)
        if reached:
            self.log.event(constants.RUN_STOP, status=constants.SUCCESS, **moment)
        evaluation = {"epoch": epoch, "step": self.step, "elapsed_s": elapsed_s}
        self.evaluations.append({**evaluation, "quality": dict(quality)})
        self.clock.switch("training")
        self._last_losses_s = time.monotonic()
        self._write_record()
        return reached

    def report_speed(
        self,
        steps_per_epoch: int,
        evaluation_s: float,
        input_examples_per_s: float | None = None,
    ) -> None:
        """Print pace and estimated time to the target; the first fifth of the steps is warm-up.

        `input_examples_per_s`: pace of the input pipeline alone, over all processes, where there
        is one that could hold the steps up. run.json has all of them as `speed`.
        """
        num_warm_up = max(1, len(self._seconds_by_step) // 5)
        paces_s = self._seconds_by_step[num_warm_up:] or self._seconds_by_step
        step_s = sum(paces_s) / len(paces_s)
        examples_per_s = self.num_examples / self.step / step_s
        epoch_s = steps_per_epoch * step_s + evaluation_s
        total_s = self.config.epochs_to_target * epoch_s
        self._speed = {
            "examples_per_s": examples_per_s,
            "step_s": step_s,
            "epoch_s": epoch_s,
            "seconds_to_target": total_s,
        }
        pace = f"{examples_per_s:,.0f} examples/s, {step_s * 1000:.2f} ms a step"
        if input_examples_per_s is not None:
            self._speed["input_examples_per_s"] = input_examples_per_s
            pace += f"; the input pipeline alone {input_examples_per_s:,.0f} examples/s"
        self._say(
            f"{pace}\n"
            f"an epoch: {steps_per_epoch:,} steps and an evaluation of {evaluation_s:,.1f} s, "
            f"together {epoch_s:,.1f} s\n"
            f"estimated time to the target: {total_s:,.0f} s "
            f"({self.config.epochs_to_target:g} epochs)"
        )

    # --- the end ------------------------------------------------------------------------------

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        """Close the log, print the last lines and set the exit status."""
        self.stop_signal.close()
        try:
            return self._end(_disk_error(error) or error) if self._started else False
        finally:
            if self.is_main:
                self._folder.lock.close()
                if not self._started:
                    self._folder.discard()

    def _end(self, error: BaseException | None) -> bool:
        """The run ended with `error`, or its loop did; returns whether that is dealt with."""
        if isinstance(error, InterruptedRunError):
            number = self.stop_signal.received or 2
            self.exit_status = 128 + number
            self._say(f"interrupted by signal {number} after step {self.step}; RESUME=1 goes on")
            self._finish_interrupted(number)
        elif isinstance(error, NumStepsDoneError):
            self.exit_status = 0
            self._stop_clock("num_steps")
            self._finish("num_steps")
        elif self.status == "reached":  # whatever happened after run_stop
            self.exit_status = 0
            if error is not None:
                self._say(f"error: {_one_line(error)}; the target had been reached before")
            self._finish(None)
        else:
            self.exit_status = 1
            status = "missed" if error is None else "crashed"
            if isinstance(error, NonFiniteLossError):
                status = "non-finite"
            if error is not None:
                self._say(f"error: {_one_line(error)}; the run is aborted at step {self.step}")
            self._stop_clock(status)
            self._finish(constants.ABORTED)
            if status == "crashed" and "RANK" in os.environ:
                return False  # one process of several must not end quietly while others wait
            if status == "crashed" and not isinstance(error, UsageError) and not _disk_error(error):
                traceback.print_exception(error)
        return True

    def _finish(self, run_stop_status: str | None) -> None:
        """Last records (run_stop first, where it is not there yet), ENDING, RESULT or ABORTED."""
        if not self.is_main:
            return
        run_s = cast(float, self._run_s)
        try:
            if run_stop_status:
                self.log.event(constants.RUN_STOP, status=run_stop_status, step_num=self.step)
            self.log.event("run_seconds", run_s)
            self.log.event("phase_seconds", self._phase_s)
            self.log.event("train_examples_per_s", self._examples_per_s())
            self.log.seal()
            self._losses.close()
            self._write_record()
        except OSError as error:  # a full disk: stdout must still tell how the run ended
            self._say(f"error: the log is incomplete: {_one_line(error)}")
        started = self._time_of_day(0)
        print(f"ENDING TIMING RUN AT {self._time_of_day(run_s)}")
        place = f"{self.benchmark},{self.options.seed},{math.floor(run_s)}"
        if self.status == "reached":
            print(f"RESULT,{place},{os.environ.get('USER') or os.getuid()},{started}")
        elif self.status != "num_steps":
            targets = show(self.config.quality_targets)
            print(f"ABORTED,{place},{self._best_quality()},{targets}")
        sys.stdout.flush()

    def _finish_interrupted(self, number: int) -> None:
        """Close the log of an attempt that a signal ended; no run_stop, it may go on."""
        self.status = "interrupted"
        try:
            self.log.event("interrupted", number, step_num=self.step)
            self.log.seal()
            self._write_record()
        except OSError as error:
            self._say(f"error: the log is incomplete: {_one_line(error)}")

    def _close_on_deadline(self, number: int) -> int:
        """No step boundary came in time: the last checkpoint stands, and the log names its step.

        Returns the exit status. A run that had reached its target keeps its result.
        """
        if self.status == "reached":
            self._finish(None)
            return 0
        if not self._started:
            if self.is_main:
                self._folder.discard()
            return 128 + number
        saved = sorted((self.folder / "checkpoints").glob("step-*.json")) if self.is_main else []
        step = json.loads(saved[-1].read_text())["position"]["step"] if saved else 0
        self._say(f"interrupted by signal {number} inside a long step; step {step} is saved")
        self.status = "interrupted"
        self.log.event("interrupted", number, step_num=self.step, checkpoint_step=step)
        self.log.seal()
        return 128 + number

    def _stop_clock(self, status: str) -> None:
        """run_stop: the time is what it is now."""
        self._run_s = self.clock.stop_run()
        self._phase_s = dict(self.clock.phase_s)
        self.status = status

    def _write_record(self) -> None:
        """run.json: what the report reads. Atomic, so that a kill leaves the one before."""
        if not self.is_main:
            return
        record = {
            "benchmark": self.benchmark,
            "preset": self.config.preset,
            "seed": self.options.seed,
            "status": self.status,
            "modified": list(self.options.modified),
            "targets": self._targets(),
            "start_utc_s": self.clock.run_start_utc_s,
            "run_seconds": self._run_s,
            "phase_seconds": self._phase_s or self.clock.phase_seconds(),
            "num_steps": self.step,
            "num_examples": self.num_examples,
            "train_examples_per_s": self._examples_per_s(),
            "speed": self._speed,
            "evaluations": self.evaluations,
            "num_resumes": self.clock.num_resumes,
            "valid": self.clock.valid,
        }
        write_json(self.folder / "run.json", record)

    # --- small facts --------------------------------------------------------------------------

    def _best_quality(self) -> str:
        """Quality of the best evaluation, as stdout writes it, or `none`."""
        best: Mapping[str, float] | None = None
        for evaluation in self.evaluations:
            if best is None or better(self.config.quality_targets, evaluation["quality"], best):
                best = evaluation["quality"]
        if best is None:
            return "none"
        return "/".join(repr(best[target.name]) for target in self.config.quality_targets)

    def _targets(self) -> dict[str, float]:
        return {target.name: target.value for target in self.config.quality_targets}

    def _examples_per_s(self) -> float:
        """Training examples per second of input and training time."""
        seconds = self._phase_s or self.clock.phase_seconds()
        busy_s = seconds["input"] + seconds["training"]
        return self.num_examples / busy_s if busy_s > 0 else 0.0

    def _time_of_day(self, elapsed_s: float) -> str:
        """Local time of the moment `elapsed_s` after run_start."""
        moment = time.localtime(self.clock.run_start_utc_s + elapsed_s)
        return time.strftime(RESULT_TIME_FORMAT, moment)

    def _say(self, text: str) -> None:
        if self.is_main:
            print(text, file=sys.stderr, flush=True)


def _disk_error(error: BaseException | None) -> OSError | None:
    """The full disk behind `error`, or None: PyTorch turns it into an error of its own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return error
        error = error.__cause__ or error.__context__
    return None


def _one_line(error: BaseException) -> str:
    if full := _disk_error(error):
        return f"no space left on the disk of {full.filename or 'the results folder'}"
    return " ".join(f"{type(error).__name__}: {error}".split())
