"""Keep TensorFlow's start-up notes off stderr: they are no news, and no setting turns them off."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

NOTES = (
    "All log messages before absl::InitializeLog",
    "oneDNN custom operations are on",
    "Could not find cuda drivers on your machine",  # where a host has no CUDA libraries either
    r"failed call to cuInit: .*\(303\)",  # no NVIDIA driver; who asks for a GPU is told
)


@contextlib.contextmanager
def without_start_notes() -> Iterator[None]:
    """Drop these lines from file descriptor 2 inside the block.

    All others pass at once, through a process of its own, so that even the last words of a crash
    inside a library are seen.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    grep = ["grep", "--text", "--line-buffered", "--invert-match", "--extended-regexp"]
    filtering = subprocess.Popen([*grep, "|".join(NOTES)], stdin=subprocess.PIPE, stdout=stderr)
    assert filtering.stdin
    os.dup2(filtering.stdin.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(stderr, 2)
        os.close(stderr)
        filtering.stdin.close()
        filtering.wait()
