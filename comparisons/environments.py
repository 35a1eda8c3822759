"""The locked environment of a peer: .environments/<name>/, out of comparisons/<name>.txt.

Made once, and made anew when the lock or the interpreter has changed. Each peer has its own, since
peers want versions of packages that agree neither with ours nor with each other's. Only wheels are
installed, with the digests of the lock. `--no-deps`: the lock holds all that the peer needs,
without what <name>.excludes leaves out of what its packages ask for.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from harness.errors import UsageError
from harness.options import REPOSITORY

ENVIRONMENTS = REPOSITORY / ".environments"
LOCKS = REPOSITORY / "comparisons"


def make(name: str, newest_python: tuple[int, int] = (3, 13)) -> Path:
    """The interpreter of the environment `name`, which is made where it is missing or outdated.

    Raises UsageError where this Python is too new for the lock, or pip cannot install it.
    """
    if sys.version_info[:2] > newest_python:
        newest = ".".join(map(str, newest_python))
        raise UsageError(
            f"{name} can be installed with Python up to {newest}, and this is "
            f"{platform.python_version()}; run this with an older one"
        )
    lock, folder = LOCKS / f"{name}.txt", ENVIRONMENTS / name
    python, made_from = folder / "bin" / "python", folder / "made-from.txt"
    wanted = f"{digest(lock)} python {platform.python_version()}\n"
    if made_from.exists() and made_from.read_text() == wanted:
        return python
    print(f"making {folder}: this takes minutes and gigabytes", file=sys.stderr)
    if folder.exists():
        shutil.rmtree(folder)
    _run([sys.executable, "-m", "venv", str(folder)], folder, "venv")
    # pip's temporary files are as large as what it fetches, and /tmp may be held in memory.
    temporary = folder / "tmp"
    temporary.mkdir()
    pip = [str(python), "-m", "pip", "install", "--no-input", "--progress-bar", "off"]
    what = ["--only-binary", ":all:", "--require-hashes", "--no-deps", "--requirement", str(lock)]
    _run([*pip, *what], folder, "pip", TMPDIR=str(temporary))
    shutil.rmtree(temporary)
    made_from.write_text(wanted)  # last: an environment without it is made anew
    return python


def digest(lock: Path) -> str:
    """SHA-256 of a lock."""
    try:
        return hashlib.sha256(lock.read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(
            f"{lock} cannot be read: {error.strerror}; tools/lock.sh makes it"
        ) from error


def packages(python: Path) -> dict[str, str]:
    """Names and versions of what an environment holds."""
    command = [str(python), "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {entry["name"].lower(): entry["version"] for entry in json.loads(done.stdout)}


def _run(command: list[str], folder: Path, program: str, **variables: str) -> None:
    """Run a command with its output in a log beside the environment. UsageError where it fails."""
    log = folder.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **variables}
        done = subprocess.run(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    if done.returncode:
        lines = log.read_text().strip().splitlines()
        errors = [line for line in lines if "ERROR" in line] or lines or ["it said nothing"]
        cause = f"{program} could not make {folder}: {errors[-1].strip()}"
        raise UsageError(f"{cause}; see {log}, mend the cause and run this again")
