"""The log of a run: mlperf-logging records in log.txt and on stdout, sealed with a digest."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from mlperf_logging.mllog import mllog

from harness.clock import Clock

SEAL_KEY = "log_sha256"
"""Key of the last record: digest of all lines before it, and the head of each line's own."""
PREFIX = ":::MLLOG "


def seal_value(lines: Sequence[str]) -> dict[str, Any]:
    """What the last record says of the record lines before it (without their newlines).

    `sha256` covers all of them; `line_sha256` has the first 8 hex digits for each line, so that a
    checker can name the line that was changed, dropped, doubled or moved.
    """
    text = "".join(line + "\n" for line in lines)
    return {
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "line_sha256": [hashlib.sha256(line.encode()).hexdigest()[:8] for line in lines],
    }


class _LastLine(logging.Handler):
    """Keeps the line that mllog has formatted; writing it is ours, so that no error is lost."""

    line = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.line = record.getMessage()


class RunLog:
    """Append-only log of one run.

    Until `open` is called records go nowhere: so in every process but the first, and in a
    resumed attempt until the log has been cut back to its checkpoint. Records are held back from
    stdout until `open_stdout`, so that STARTING is its first line.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._handler = _LastLine()
        logger = logging.Logger("mlperf")
        logger.addHandler(self._handler)
        root = str(Path(__file__).resolve().parent.parent)
        self._mllogger = mllog.MLLogger(logger, default_stack_offset=3, root_dir=root)
        self._file: TextIO | None = None
        self._lock = threading.RLock()  # the deadline thread of a signal writes the last records
        self._lines: list[str] = []
        self._num_shown: int | None = None  # None: stdout not open yet

    def open(self, path: Path, keep_bytes: int = 0) -> None:
        """Write to `path` from now on, after its first `keep_bytes`; the rest is set aside.

        What came after a checkpoint that a run goes on from is kept in log.tail-<n>.txt.
        """
        if path.exists():
            whole = path.read_bytes()
            number = len(list(path.parent.glob("log.tail-*.txt"))) + 1
            path.with_name(f"log.tail-{number}.txt").write_bytes(whole[keep_bytes:])
            os.truncate(path, keep_bytes)
            self._lines = whole[:keep_bytes].decode().splitlines()
        self._file = path.open("a", encoding="utf-8")

    # Each record's time is the clock's, or `time_ms` where several record one moment.

    def start(self, key: str, value: Any = None, **metadata: Any) -> None:
        """Record the start of an interval such as epoch_start."""
        self._write(self._mllogger.start, key, value, metadata)

    def end(self, key: str, value: Any = None, **metadata: Any) -> None:
        """Record the end of an interval such as epoch_stop."""
        self._write(self._mllogger.end, key, value, metadata)

    def event(self, key: str, value: Any = None, **metadata: Any) -> None:
        """Record a point in time. Numbers that are not finite become text: JSON has none."""
        self._write(self._mllogger.event, key, value, metadata)

    def open_stdout(self, first_line: str) -> None:
        """Print `first_line` and the records so far; from now on each appears as it is made."""
        with self._lock:
            if self._file:
                print(first_line)
                self._num_shown = 0
                self._show()

    def seal(self) -> None:
        """Write the last record and close the file."""
        with self._lock:
            if self._file:
                self.event(SEAL_KEY, seal_value(self._lines))
                self.sync()
                self._file.close()
                self._file = None

    def sync(self) -> int:
        """Bring every line to the disk; returns the size of the log in bytes."""
        with self._lock:
            if not self._file:
                return 0
            os.fsync(self._file.fileno())
            return self._file.tell()

    def _write(
        self, log: Callable[..., None], key: str, value: Any, metadata: dict[str, Any]
    ) -> None:
        with self._lock:
            if not self._file:
                return
            time_ms = metadata.pop("time_ms", None) or self.clock.unix_ms
            log(key, _finite(value), metadata=metadata, time_ms=time_ms)
            line = self._handler.line
            self._file.write(line + "\n")
            self._file.flush()
            self._lines.append(line)
            self._show()

    def _show(self) -> None:
        if self._num_shown is not None:
            for line in self._lines[self._num_shown :]:
                print(line)
            sys.stdout.flush()
            self._num_shown = len(self._lines)


def _finite(value: Any) -> Any:
    """`value` with non-finite floats as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return value
