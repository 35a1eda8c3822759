"""A command as a child process: output in a file, a time limit, peak memory, no child left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType

POLL_S = 0.2
"""Seconds between two looks at the child."""
GRACE_S = 15.0
"""Seconds that a child has to end after SIGTERM; a training closes its log within 10."""
NEWS_S = 60.0
"""Seconds between two lines that say that the child is still running."""


class StoppedError(Exception):
    """A StopRequest came."""


class StopRequest:
    """Inside a `with` of it, SIGINT, SIGTERM and SIGHUP are remembered, for `run_child` to obey.

    What is ignored already (SIGHUP under nohup) stays so.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        """The first signal that came."""
        self._previous: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.number = self.number or number


@dataclass(frozen=True)
class Ended:
    """How a child ended."""

    status: int | None
    """Exit status, negative for a signal; None where the time limit ended it."""
    seconds: float
    output: Path
    peak: int | None
    """The largest value that was measured while it ran."""

    @property
    def cause(self) -> str:
        """Why it failed, in one line: its last line that begins with `error:`, else the last."""
        if self.status is None:
            return f"stopped after {self.seconds:,.0f} s, see {self.output}"
        lines = [line for line in self.output.read_text(errors="replace").splitlines() if line]
        errors = [line for line in lines if line.startswith("error: ")]
        last = (errors or lines or ["it printed nothing"])[-1]
        return last.removeprefix("error: ") or f"status {self.status}"


def run_child(
    command: Sequence[str | Path],
    output: Path,
    environment: Mapping[str, str],
    folder: Path,
    limit_s: float,
    stop: StopRequest,
    measure: Callable[[int], int | None] | None = None,
) -> Ended:
    """Run a command in `folder` to its end, stdout and stderr in `output`.

    `measure` is called with the process id every POLL_S. The child leads a process group of its
    own; whatever ends this function early (the limit, `stop`) ends the whole group. Raises
    StoppedError where `stop` says so.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    start_s = news_s = time.monotonic()
    peak = None
    with output.open("wb") as file:
        process = subprocess.Popen(
            list(map(str, command)),
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while process.poll() is None and time.monotonic() - start_s < limit_s:
                if stop.number is not None:
                    raise StoppedError
                if measure is not None and (value := measure(process.pid)) is not None:
                    peak = max(value, peak or 0)
                if time.monotonic() - news_s >= NEWS_S:
                    news_s = time.monotonic()
                    print(f"  ... {news_s - start_s:,.0f} s, still running", file=sys.stderr)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_S)
            status = process.poll()
        finally:
            _end_group(process)
    return Ended(status, time.monotonic() - start_s, output, peak)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM where the child still runs, then SIGKILL to whatever is left of its group."""
    with contextlib.suppress(ProcessLookupError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def peak_memory_mib(process_id: int) -> int | None:
    """Peak resident memory of a process so far, in MiB; None where it has just ended."""
    try:
        status = Path(f"/proc/{process_id}/status").read_text()
    except OSError:
        return None
    sizes_kib = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(sizes_kib[0]) // 1024 if sizes_kib else None
