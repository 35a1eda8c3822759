"""Fixtures that several files share: threads, the real MovieLens files, RecBole's wheel."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from harness.options import REPOSITORY

# Their asserts explain themselves as those of the test files do.
pytest.register_assert_rewrite("recommendation.tests.checks")

RECBOLE_WHEEL = "recbole-1.2.1-py3-none-any.whl"
RECBOLE_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
ML_100K_SHA256 = "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff"


@pytest.fixture(autouse=True, scope="session")
def two_threads() -> None:
    """More threads than cores make tests of small models many times slower."""
    torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test inherits a torchrun environment."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def short_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CI machine pytest works out differences in full: for long lists that takes minutes."""
    for name in ("CI", "BUILD_NUMBER"):
        monkeypatch.delenv(name, raising=False)


def sha256(path: Path) -> str:
    """Digest of a file; empty where it is not there."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


@pytest.fixture(scope="session")
def recbole_wheel(pytestconfig: pytest.Config) -> Path:
    """RecBole's wheel, kept in pytest's cache: an independent NeuMF, and MovieLens 100K."""
    folder = Path(pytestconfig.cache.mkdir("recbole"))
    wheel = folder / RECBOLE_WHEEL
    if sha256(wheel) == RECBOLE_SHA256:
        return wheel
    (folder / "requirement.txt").write_text(f"recbole==1.2.1 --hash=sha256:{RECBOLE_SHA256}\n")
    pip = [sys.executable, "-m", "pip", "download", "--no-input", "--disable-pip-version-check"]
    what = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--retries=1", "--timeout=20"]
    where = ["--requirement", str(folder / "requirement.txt"), "--dest", str(folder)]
    done = subprocess.run([*pip, *what, *where], capture_output=True, text=True)
    if done.returncode:
        assert "DO NOT MATCH THE HASHES" not in done.stderr, done.stderr
        last_line = (done.stderr.strip().splitlines() or ["no message"])[-1]
        pytest.skip(f"pip could not fetch recbole 1.2.1: {last_line}")
    assert sha256(wheel) == RECBOLE_SHA256
    return wheel


@pytest.fixture(scope="session")
def ml_100k(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with ml-100k.inter alone: the mini preset's download, else from the wheel."""
    downloaded = REPOSITORY / "data" / "recommendation" / "mini" / "ml-100k.inter"
    path = tmp_path_factory.mktemp("ml-100k") / "ml-100k.inter"
    if downloaded.exists():
        path.write_bytes(downloaded.read_bytes())
    else:
        with zipfile.ZipFile(request.getfixturevalue("recbole_wheel")) as wheel:
            path.write_bytes(wheel.read("recbole/dataset_example/ml-100k/ml-100k.inter"))
    assert sha256(path) == ML_100K_SHA256
    return path.parent


@pytest.fixture
def ml_latest_small(tmp_path: Path) -> Path:
    """A data folder that holds real ratings, of 610 users, as ml-20m's download leaves its own."""
    shared = os.environ.get("MLPERF_TEST_DATA") or REPOSITORY.parent / "shared" / "data"
    source = Path(shared) / "movielens" / "ml-latest-small"
    if not source.is_dir():
        pytest.skip(f"{source} is not there; MLPERF_TEST_DATA names the folder of test data")
    data_dir = tmp_path / "data set"  # a space, as any path may have one
    (data_dir / "ml-20m").mkdir(parents=True)
    for name in ("ratings.csv", "movies.csv"):
        (data_dir / "ml-20m" / name).write_bytes((source / name).read_bytes())
    return data_dir


@pytest.fixture
def torch_state() -> Iterator[None]:
    """Puts back what a training in this process changes for all of PyTorch."""
    num_threads = torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(num_threads)
