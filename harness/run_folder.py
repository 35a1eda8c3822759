"""Where a run writes: a new folder, or the unfinished one that RESUME goes on with."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, cast

from harness import system
from harness.checkpoint import Checkpoint, newest_checkpoint, write_json
from harness.errors import UsageError
from harness.options import BenchmarkConfig, RunOptions

RESUMABLE = ("running", "interrupted", "crashed")
"""Statuses of a run that `--resume` may go on with."""
SCIENCE_OPTIONS = ("seed", "precision", "compile", "synthetic_data", "num_steps")
"""Run options that a resumed attempt must share with the first, beside the whole Config."""


@dataclass
class RunFolder:
    """`RESULTS_DIR/<benchmark>/<preset>/seed-<n>/<UTC start>/`, locked for this process."""

    path: Path
    lock: TextIO
    made: tuple[Path, ...] = ()
    """The folders that were made for this run, the innermost first."""
    resume_from: Checkpoint | None = None

    @classmethod
    def open(cls, benchmark: str, config: BenchmarkConfig, options: RunOptions) -> RunFolder:
        """Choose the unfinished run to go on with, or make the folder of a new one.

        Raises UsageError, with nothing written, where the folder cannot be made, the unfinished
        run is still running, or its configuration differs.
        """
        results = options.results_dir
        seed_folder = results / benchmark / config.preset / f"seed-{options.seed}"
        try:
            unfinished = _find_unfinished(seed_folder, config, options) if options.resume else None
            return unfinished or cls._new(seed_folder)
        except OSError as error:
            cause = f"cannot write to {results}: {error.strerror}"
            raise UsageError(f"{cause}; make room there or set RESULTS_DIR") from error

    @classmethod
    def _new(cls, seed_folder: Path) -> RunFolder:
        start = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        path = seed_folder / start
        number = 1
        while path.exists():  # two runs may start in the same second
            number += 1
            path = seed_folder / f"{start}-{number}"
        made = tuple(folder for folder in (path, *path.parents) if not folder.exists())
        path.mkdir(parents=True)
        folder = cls(path, _take_lock(path), made)
        try:
            write_json(path / "system.json", system.describe())
        except OSError:
            folder.discard()
            raise
        return folder

    def discard(self) -> None:
        """The run never started: leave nothing behind but what earlier runs wrote."""
        self.lock.close()
        for folder in self.made:
            if folder == self.path:
                shutil.rmtree(folder)
            elif not any(folder.iterdir()):
                folder.rmdir()


def plain(value: Any) -> dict[str, Any]:
    """A dataclass as JSON would give it back."""
    return cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(value), default=str)))


def _find_unfinished(
    seed_folder: Path, config: BenchmarkConfig, options: RunOptions
) -> RunFolder | None:
    """The newest unfinished run with a whole checkpoint, or None after saying why on stderr."""
    for record_path in sorted(seed_folder.glob("*/run.json"), reverse=True):
        if json.loads(record_path.read_text())["status"] not in RESUMABLE:
            continue
        path = record_path.parent
        folder = RunFolder(path, _take_lock(path))
        _compare_configuration(path, config, options)
        for part in (path / "checkpoints").glob("*.tmp"):
            part.unlink()  # of an attempt that was killed while it wrote
        folder.resume_from = newest_checkpoint(path / "checkpoints")
        if folder.resume_from:
            step = folder.resume_from.position["step"]
            print(f"going on with {path} at step {step}", file=sys.stderr)
            return folder
        print(f"{path} has no whole checkpoint: starting anew", file=sys.stderr)
        folder.lock.close()
        return None
    print(f"no unfinished run below {seed_folder}: starting anew", file=sys.stderr)
    return None


def _compare_configuration(path: Path, config: BenchmarkConfig, options: RunOptions) -> None:
    """Raises UsageError naming the first field in which this run differs from the stored one."""
    stored = json.loads((path / "config.json").read_text())
    now = {**plain(config), **plain(options)}
    then = {**stored["config"], **stored["options"]}
    for name in [*plain(config), *SCIENCE_OPTIONS]:
        if now[name] != then.get(name):
            raise UsageError(
                f"cannot go on with {path}: {name} was {then.get(name)} and is {now[name]}; "
                "give the same value, or start anew without RESUME"
            )


def _take_lock(path: Path) -> TextIO:
    """Two processes must not write one run. The lock ends with the process."""
    lock = (path / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise UsageError(f"{path} is still running; wait for it, or stop it first") from None
    return lock
