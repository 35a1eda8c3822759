"""A job of several processes: which one this is, and what is its share of the work."""

from __future__ import annotations

import json
import os
from typing import Any

from harness.errors import UsageError


def join_tensorflow_job() -> None:
    """Take this process's place from $TF_CONFIG, for all of the harness.

    Raises UsageError where it says nothing of that kind.
    """
    try:
        job = json.loads(os.environ["TF_CONFIG"])
        os.environ["WORLD_SIZE"] = str(len(job["cluster"]["worker"]))
        os.environ["RANK"] = str(int(job["task"]["index"]))
    except (ValueError, TypeError, KeyError) as error:
        cause = f"TF_CONFIG names no cluster of workers and a task of it ({error!r})"
        raise UsageError(f"{cause}; see tf.distribute.MultiWorkerMirroredStrategy") from error


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
