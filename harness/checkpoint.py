"""Checkpoint files that are whole or refused: temporary name, fsync, rename, digest.

A checkpoint is two files: `step-<n>.<suffix>` holds what the framework wrote, and
`step-<n>.json`, written last, says where the run stood and the digest of the first. A
checkpoint without its JSON, or whose digest differs, does not count.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

NUM_KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    path: Path
    """The framework's file."""
    position: dict[str, Any]
    """Where the run stood: step, epoch, clock, log offsets."""


def write_atomically(path: Path, data: bytes) -> None:
    """Put `data` at `path` so that a reader finds the old file or the new one, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            _sync(file)
        temporary.replace(path)
        _sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


@contextmanager
def write_checkpoint(
    folder: Path, step: int, suffix: str, position: dict[str, Any]
) -> Iterator[BinaryIO]:
    """Open a file for the framework's state; it becomes a checkpoint when the block ends well.

    Afterwards the newest NUM_KEPT checkpoints are kept and older ones removed. Raises OSError
    (a full disk, say) with nothing half-written left behind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:09d}.{suffix}"
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            _sync(file)
        whole = {"sha256": _sha256(temporary), "size_bytes": temporary.stat().st_size}
        # A checkpoint of this very step may be there (a signal right after a regular one): its
        # JSON goes first, so that the pair on disk never disagrees.
        path.with_suffix(".json").unlink(missing_ok=True)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    write_json(path.with_suffix(".json"), {"file": path.name, **whole, "position": position})
    for old in sorted(folder.glob("step-*.json"), reverse=True)[NUM_KEPT:]:
        record = json.loads(old.read_text())
        old.unlink()
        (folder / record["file"]).unlink(missing_ok=True)


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint in `folder`, or None.

    A damaged one is named on stderr, set aside under another name, and the one before it is used.
    """
    for record_path in sorted(folder.glob("step-*.json"), reverse=True):
        try:
            record = json.loads(record_path.read_text())
            path = folder / record["file"]
            size_bytes = path.stat().st_size
            if size_bytes != record["size_bytes"]:
                raise ValueError(f"{size_bytes} bytes, expected {record['size_bytes']}")
            if (found := _sha256(path)) != record["sha256"]:
                raise ValueError(f"sha256 {found}, expected {record['sha256']}")
            return Checkpoint(path, record["position"])
        except (OSError, ValueError, KeyError) as error:
            print(
                f"checkpoint {record_path.stem} is damaged and not used: {error}", file=sys.stderr
            )
            record_path.rename(record_path.with_name(record_path.name + ".damaged"))
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
