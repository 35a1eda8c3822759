"""The machine's description: cores from affinity and quota, faked GPUs, missing tools."""

import json
import os
from pathlib import Path

import pytest

from harness import system


def test_description_is_complete_and_json():
    description = json.loads(json.dumps(system.describe()))
    assert description["num_cores"] >= 1
    assert description["memory_bytes"] > 2**28
    assert description["packages"]["mlperf-logging"]
    assert description["git_commit"]
    assert description["cpu"]


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"/sys/fs/cgroup/cpu.max": "max 100000"}, 8),
        ({"/sys/fs/cgroup/cpu.max": "250000 100000"}, 2),
        ({"/sys/fs/cgroup/cpu.max": "50000 100000"}, 1),
        ({"/sys/fs/cgroup/a/b/cpu.max": "max 100000", "/sys/fs/cgroup/a/cpu.max": "3 1"}, 3),
        (
            {
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            4,
        ),
        (
            {
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            8,
        ),
    ],
)
def test_cores_from_affinity_and_quota(monkeypatch, files, cores):
    files = {"/proc/self/cgroup": "0::/a/b\n", **files}
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setattr(system, "_read", lambda path: files.get(str(path), ""))
    assert system.num_cores() == cores


def test_gpus_are_read_from_nvidia_smi(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'Tesla P100-PCIE-16GB, 580.65.06, 16384 MiB, 6.0'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    (gpu,) = system.describe()["gpus"]
    assert gpu["name"] == "Tesla P100-PCIE-16GB"
    assert gpu["compute_cap"] == "6.0"


def test_an_image_knows_its_commit(monkeypatch):
    monkeypatch.setenv("GIT_COMMIT", "v1.0-3-gabcdef-dirty")
    assert system.git_commit() == "v1.0-3-gabcdef-dirty"


def test_without_any_tool(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("GIT_COMMIT", raising=False)
    description = system.describe()
    assert description["gpus"] == []
    assert description["git_commit"] == "unknown"


def test_thread_variables_are_stored(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert system.describe()["environment"]["OMP_NUM_THREADS"] == "3"


def test_repository_is_where_the_harness_lies():
    assert (Path(system.REPOSITORY) / "harness" / "system.py").exists()
