"""What the run ran on: cpu, memory, gpu and driver, versions, commit, container. Stored with it."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.options import REPOSITORY

CUDA_LIBRARIES = ("CUDA_", "CUBLAS_", "NCCL_", "NVIDIA_TF32")
ENVIRONMENT = ("OMP_", "GOMP_", "MKL_", "TF_", "XLA_", *CUDA_LIBRARIES)
"""Beginnings of the environment variables that change how fast or how exactly a run computes."""


def num_cores() -> int:
    """CPU cores that this process may use: its affinity, cut by the cgroup's quota; at least 1."""
    cores = len(os.sched_getaffinity(0))
    for quota in (_cgroup_v2_quota(), _cgroup_v1_quota()):
        if quota is not None:
            cores = min(cores, max(1, math.floor(quota)))
    return cores


def require_compiler() -> None:
    """Raises UsageError where what torch.compile builds its code with is missing."""
    headers = Path(sysconfig.get_path("include"), "Python.h")
    if not (shutil.which("g++") and headers.exists()):
        cause = "--compile needs g++ and Python's headers"
        raise UsageError(f"{cause}; run apt-get install -y g++ python3-dev")


def describe() -> dict[str, Any]:
    """Everything about the machine and the software that a reader of the time must know."""
    return {
        "cpu": _cpu_model(),
        "num_cores": num_cores(),
        "num_cores_of_machine": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": gpus(),
        "operating_system": platform.platform(),
        "container": _container(),
        "python": platform.python_version(),
        "packages": _packages(),
        "git_commit": git_commit(),
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(ENVIRONMENT)
        },
    }


def git_commit() -> str:
    """`git describe --always --dirty` of this checkout; in an image, what it was built from."""
    if commit := os.environ.get("GIT_COMMIT"):
        return commit
    return _output("git", "-C", str(REPOSITORY), "describe", "--always", "--dirty") or "unknown"


def _output(*command: str) -> str:
    """Stdout of a command, stripped; empty where it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _cpu_model() -> str:
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def gpus() -> list[dict[str, str]]:
    """Name, driver, memory and compute capability of each NVIDIA GPU that nvidia-smi lists."""
    fields = ("name", "driver_version", "memory.total", "compute_cap")
    query = f"--query-gpu={','.join(fields)}"
    rows = _output("nvidia-smi", query, "--format=csv,noheader").splitlines()
    return [
        dict(zip(fields, (cell.strip() for cell in row.split(",")), strict=True)) for row in rows
    ]


def _container() -> str | None:
    """The kind of container this runs in, or None on a host."""
    if Path("/.dockerenv").exists():
        return "docker"
    if Path("/run/.containerenv").exists():
        return "podman"
    return "kubernetes" if "KUBERNETES_SERVICE_HOST" in os.environ else None


def _packages() -> dict[str, str]:
    """Installed distributions and their versions."""
    found = importlib.metadata.distributions()
    return dict(sorted((package.metadata["Name"].lower(), package.version) for package in found))


def _cgroup_v2_quota() -> float | None:
    """Cores that the tightest cpu.max above this process allows."""
    own = _read(Path("/proc/self/cgroup")).strip().rpartition("::")[2].lstrip("/")
    root = Path("/sys/fs/cgroup")
    quotas = []
    for folder in (root / own, *(root / own).parents):
        quota, _, period = _read(folder / "cpu.max").strip().partition(" ")
        if period and quota != "max":
            quotas.append(int(quota) / int(period))
        if folder == root:
            break
    return min(quotas, default=None)


def _cgroup_v1_quota() -> float | None:
    folder = Path("/sys/fs/cgroup/cpu")
    quota, period = (_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    return int(quota) / int(period) if quota and period and int(quota) > 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
