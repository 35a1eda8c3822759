"""What every prepare.py does the same way: one process at a time, a manifest of what it made."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes that prepare the same folder waiting."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def be_a_worker() -> None:
    """Initialiser of a pool's processes: they end with the process that started them.

    Whoever ends that one, by Ctrl-C or a kill, would otherwise leave them at work or asleep.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def write_manifest(folder: Path, known: Mapping[str, str] | None = None) -> None:
    """MANIFEST.sha256 over the files in and below `folder`, as sha256sum -c reads it; all synced.

    `known` gives digests (by name) that need not be computed again.
    """
    lines = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        with path.open("rb") as file:
            digest = (known or {}).get(name)
            if digest is None:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            lines.append(f"{digest}  {name}\n")
            os.fsync(file.fileno())
    with (folder / "MANIFEST.sha256").open("w") as manifest:
        manifest.writelines(lines)
        manifest.flush()
        os.fsync(manifest.fileno())
