"""Fixtures that several files share: threads, processes, the real reviews of IMDB."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from harness.options import REPOSITORY

# Their asserts explain themselves as those of the test files do.
for name in ("checks", "paddle_checks", "preparation_checks", "training_checks"):
    pytest.register_assert_rewrite(f"sentiment_analysis.tests.{name}")


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


@pytest.fixture
def shared_imdb() -> Path:
    """A copy of IMDB's 50,000 labelled reviews, packed with xz, in the layout of the archive."""
    shared = os.environ.get("MLPERF_TEST_DATA") or REPOSITORY.parent / "shared" / "data"
    source = Path(shared) / "imdb"
    if not source.is_dir():
        pytest.skip(f"{source} is not there; MLPERF_TEST_DATA names the folder of test data")
    return source


@pytest.fixture
def torch_state() -> Iterator[None]:
    """Puts back what a training in this process changes for all of PyTorch."""
    num_threads = torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(num_threads)
