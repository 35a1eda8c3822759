"""The ways in which a run ends before its loop does; `Run` turns each into its exit status."""

from __future__ import annotations


class UsageError(Exception):
    """Wrong options or data: one line with the cause and the next step, exit status 2."""


class NonFiniteLossError(Exception):
    """The loss of a step is infinite or not a number: the run aborts at that step, status 1."""


class InterruptedRunError(Exception):
    """SIGTERM or SIGINT was obeyed at a step boundary: exit status 128 + signal."""


class NumStepsDoneError(Exception):
    """The steps of `--num-steps` are done: exit status 0, neither RESULT nor ABORTED."""
