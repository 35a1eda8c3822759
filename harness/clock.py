"""The one clock: monotonic wall time since run_start that cannot be paused, and where it went."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

PHASES = ("init", "input", "training", "evaluation", "checkpoint", "downtime")


@dataclass
class Clock:
    """Wall time of a run, split into phases without a gap: exactly one phase runs at any moment.

    `init` runs from construction to `start_run`; the others add up to `elapsed_s`. Time between
    the attempts of a resumed run is `downtime`: it counts, and only there is UTC used.
    """

    phase_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    run_start_utc_s: float = 0.0
    num_resumes: int = 0
    valid: bool = True
    _phase: str = "init"
    _phase_since_s: float = field(default_factory=time.monotonic)
    _created_utc_s: float = field(default_factory=time.time)
    _created_s: float = field(default_factory=time.monotonic)
    _run_start_s: float | None = None  # monotonic; shifted back by what earlier attempts took
    _run_stop_s: float | None = None

    def start_run(self) -> None:
        """Mark run_start: from here on every second counts."""
        self.switch("training")
        self._run_start_s = self._phase_since_s
        self.run_start_utc_s = self._created_utc_s + self._run_start_s - self._created_s

    def stop_run(self) -> float:
        """Mark run_stop: time stands still for good; returns the seconds since run_start."""
        self.switch(self._phase)
        self._run_stop_s = self._phase_since_s
        return self.elapsed_s

    @property
    def elapsed_s(self) -> float:
        """Seconds since run_start, downtime included; negative before run_start."""
        if self._run_start_s is None:
            return -(time.monotonic() - self._phase_since_s)
        return (self._run_stop_s or time.monotonic()) - self._run_start_s

    @property
    def unix_ms(self) -> int:
        """Time of day for a log record: UTC was read once, the monotonic clock does the rest."""
        if self._run_start_s is None:
            return int((self._created_utc_s + time.monotonic() - self._created_s) * 1000)
        return int((self.run_start_utc_s + self.elapsed_s) * 1000)

    def phase_seconds(self) -> dict[str, float]:
        """Seconds spent in each phase up to now."""
        self.switch(self._phase)
        return dict(self.phase_s)

    def switch(self, phase: str) -> None:
        """From now on time counts as `phase`."""
        now_s = time.monotonic()
        self.phase_s[self._phase] += now_s - self._phase_since_s
        self._phase, self._phase_since_s = phase, now_s

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what happens inside as phase `name`, then return to the phase before it."""
        previous = self._phase
        self.switch(name)
        try:
            yield
        finally:
            self.switch(previous)

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold so that `resume` can go on."""
        return {
            "phase_s": self.phase_seconds(),
            "elapsed_s": self.elapsed_s,
            "run_start_utc_s": self.run_start_utc_s,
            "saved_utc_s": time.time(),
            "num_resumes": self.num_resumes,
            "valid": self.valid,
        }

    def resume(self, state: dict[str, Any]) -> float:
        """Go on from a checkpoint's `state`; returns the downtime in seconds.

        All time since the checkpoint counts, the lost steps and this attempt's set-up too. A UTC
        clock that was set back in between makes the downtime negative: the run is marked invalid.
        """
        downtime_s = time.time() - state["saved_utc_s"]
        self.valid = state["valid"] and downtime_s >= 0
        self.run_start_utc_s = state["run_start_utc_s"]
        self.num_resumes = state["num_resumes"] + 1
        self.phase_s = dict(state["phase_s"])
        self.phase_s["downtime"] += downtime_s
        self._phase, self._phase_since_s = "training", time.monotonic()
        self._run_start_s = self._phase_since_s - state["elapsed_s"] - downtime_s
        return float(downtime_s)
