"""TensorFlow's start-up notes do not reach stderr, and everything else does."""

from __future__ import annotations

import os

import pytest

from harness.start_notes import without_start_notes

NOTES = [
    "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
    "I0000 00:00:1 1 port.cc:153] oneDNN custom operations are on. You may see slightly different",
    "I0000 00:00:1 1 cudart_stub.cc:31] Could not find cuda drivers on your machine, GPU will not",
    "E0000 00:00:1 1 cuda_platform.cc:52] failed call to cuInit: INTERNAL: CUDA error: (303)",
]


def test_only_the_notes_are_dropped(capfd: pytest.CaptureFixture[str]) -> None:
    others = ["E0000 failed call to cuInit: INTERNAL: CUDA error: (999)", "error: no room"]
    with without_start_notes():
        for line in (others[0], *NOTES, others[1]):
            os.write(2, f"{line}\n".encode())
    os.write(2, b"after\n")
    assert capfd.readouterr().err.splitlines() == [*others, "after"]
