"""A job of several processes: which one this is, and what is its share of the work."""

from __future__ import annotations

import json
import os
from typing import Any

from harness.errors import UsageError


def join_tensorflow_job() -> None:
    """Take this process's place from $TF_CONFIG, for all of the harness.

    Raises UsageError where it does not say which of some workers this is. TensorFlow knows other
    tasks too, such as a chief; here the first worker is the one that writes.
    """
    try:
        job = json.loads(os.environ["TF_CONFIG"])
        (workers,) = (job["cluster"][kind] for kind in {"worker", *job["cluster"]})
        index = int(job["task"]["index"])
        if job["task"]["type"] != "worker" or not 0 <= index < len(workers):
            raise ValueError(job["task"])
    except (ValueError, TypeError, KeyError) as error:
        cause = f"TF_CONFIG names no cluster of workers alone and one of them ({error!r})"
        raise UsageError(f"{cause}; see tf.distribute.MultiWorkerMirroredStrategy") from error
    os.environ |= {"WORLD_SIZE": str(len(workers)), "RANK": str(index)}


def num_gpus_asked_for() -> int:
    """What $NUM_GPUS says; 1 where it says nothing. Raises UsageError for what is no number."""
    text = os.environ.get("NUM_GPUS") or "1"
    if not text.isdecimal():
        raise UsageError(f"NUM_GPUS='{text}' is not a whole number; leave it unset")
    return int(text)


def num_processes() -> int:
    """Processes of this job; 1 where it is alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Number of this process in the job, from 0; the first alone writes anything."""
    return int(os.environ.get("RANK", "0"))


def share(size: Any) -> tuple[Any, Any]:
    """Which of a batch's `size` examples are this process's: the first, and one past the last.

    `size` is a whole number, or a tensor of a framework.
    """
    return size * rank() // num_processes(), size * (rank() + 1) // num_processes()
