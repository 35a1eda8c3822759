"""Fixtures that several files share: threads, environment, MNIST's digits, photos of ImageNet."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import keras
import pytest

from harness.options import REPOSITORY
from image_classification.config import MINI
from image_classification.prepare import prepare

# Their asserts explain themselves as those of the test files do.
pytest.register_assert_rewrite("image_classification.tests.checks")

MNIST_SHA256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"
ENVIRONMENT = (
    *("RANK", "WORLD_SIZE", "TF_CONFIG", "NUM_GPUS"),
    *("DATA_DIR", "RESULTS_DIR", "PRESET", "RESUME", "STATUS_FILE"),
    *("CI", "BUILD_NUMBER"),  # with them pytest works out long differences in full
)


@pytest.fixture(autouse=True, scope="session")
def threads(tensorflow_threads: int) -> int:
    """Set before any other fixture computes something."""
    return tensorflow_threads


@pytest.fixture(autouse=True)
def two_cores(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training in this process may set the threads once more, to the same number only."""
    for module in ("harness.tensorflow_support", "image_classification.data"):
        monkeypatch.setattr(f"{module}.num_cores", lambda: threads)


@pytest.fixture(autouse=True)
def one_process() -> Iterator[None]:
    """No test inherits a job's environment or a person's settings, or leaves some behind."""
    with mock.patch.dict(os.environ):
        for name in ENVIRONMENT:
            os.environ.pop(name, None)
        yield


@pytest.fixture(autouse=True)
def float32() -> Iterator[None]:
    """Puts back the precision that a training in this process chose."""
    yield
    keras.config.set_dtype_policy("float32")


def sha256(path: Path) -> str:
    """Digest of a file; empty where it is not there."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


@pytest.fixture(scope="session")
def mnist(pytestconfig: pytest.Config) -> Path:
    """A data folder with mini's archive: the downloaded one, else one in pytest's cache."""
    name = "mnist_5k.csv.gz"
    downloaded = REPOSITORY / "data" / "image_classification" / "mini"
    if sha256(downloaded / name) == MNIST_SHA256:
        return downloaded
    folder = Path(pytestconfig.cache.mkdir("mnist_5k"))
    if sha256(folder / name) != MNIST_SHA256:
        script = REPOSITORY / "image_classification" / "download_dataset.sh"
        environment = os.environ | {"DATA_DIR": str(folder)}
        done = subprocess.run([script, "mini"], env=environment, capture_output=True, text=True)
        if done.returncode == 1:
            pytest.skip(f"mini could not be downloaded: {done.stderr.strip().splitlines()[-1]}")
        assert done.returncode == 0, done.stderr
    assert sha256(folder / name) == MNIST_SHA256
    return folder


@pytest.fixture(scope="session")
def mini_data(mnist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of the mini preset, prepared by the code as it is; not to be written to."""
    folder = tmp_path_factory.mktemp("mini")
    shutil.copy(mnist / "mnist_5k.csv.gz", folder)
    prepare(MINI, folder)
    return folder


@pytest.fixture(scope="session")
def photos() -> list[Path]:
    """A hundred photos of ImageNet's classes, one of each, named <synset>_<name>.JPEG."""
    shared = os.environ.get("MLPERF_TEST_DATA") or REPOSITORY.parent / "shared" / "data"
    folder = Path(shared) / "imagenet" / "one_per_class"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there; MLPERF_TEST_DATA names the folder of test data")
    found = sorted(folder.glob("n*/*.JPEG"))
    assert len(found) == 100
    return found
