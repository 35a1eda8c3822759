"""What the harness asks of TensorFlow, in a process of its own: most of it can be set only once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.processes import join_tensorflow_job, num_gpus_asked_for
from harness.system import num_cores

PROGRAM = """
import json, sys
from harness import tensorflow_support
from harness.options import RunOptions
import keras, numpy
import tensorflow as tf
tf.config.experimental.enable_tensor_float_32_execution(True)
tensorflow_support.set_up(RunOptions(device="cpu", precision=sys.argv[1], num_workers=1000))
print(json.dumps({
    "tf32": tf.config.experimental.tensor_float_32_execution_enabled(),
    "policy": keras.config.dtype_policy().name,
    "axes": keras.config.image_data_format(),
    "threads": tf.config.threading.get_intra_op_parallelism_threads(),
    "random": [float(tf.random.uniform([])), float(numpy.random.random())],
}))
"""


def set_up(precision: str, **environment: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, precision],
        cwd=Path(__file__).parent.parent,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    record: dict[str, object] = json.loads(done.stdout)
    return record


def test_what_is_set_up() -> None:
    """TensorFlow lets a GPU round the inputs of float32 products to ten bits by itself."""
    full, mixed = set_up("fp32"), set_up("bf16")
    assert full["tf32"] is mixed["tf32"] is False
    assert (full["policy"], mixed["policy"]) == ("float32", "mixed_bfloat16")
    assert full["threads"] == num_cores()
    assert full["random"] == mixed["random"]  # by the seed


def test_a_persons_keras_json_is_not_read(tmp_path: Path) -> None:
    (tmp_path / ".keras").mkdir()
    settings = {"image_data_format": "channels_first", "floatx": "float16", "backend": "torch"}
    (tmp_path / ".keras" / "keras.json").write_text(json.dumps(settings))
    found = set_up("fp32", HOME=str(tmp_path), KERAS_BACKEND="torch")
    assert (found["axes"], found["policy"]) == ("channels_last", "float32")


WORKERS = {"worker": ["localhost:1", "localhost:2"]}


@pytest.mark.parametrize(
    "job",
    [
        {},
        {"cluster": WORKERS},
        {"cluster": WORKERS, "task": {"type": "worker", "index": 2}},
        {"cluster": WORKERS, "task": {"type": "worker", "index": -1}},
        {"cluster": WORKERS, "task": {"type": "evaluator", "index": 0}},
        {"cluster": WORKERS | {"chief": ["a:1"]}, "task": {"type": "chief", "index": 0}},
        {"cluster": WORKERS | {"ps": ["a:1"]}, "task": {"type": "worker", "index": 0}},
        {"cluster": {"chief": ["a:1"]}, "task": {"type": "worker", "index": 0}},
    ],
)
def test_other_jobs_than_one_of_workers_are_refused(
    job: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "7")
    monkeypatch.setenv("TF_CONFIG", json.dumps(job))
    with pytest.raises(UsageError, match="names no cluster of workers alone and one of them"):
        join_tensorflow_job()
    assert (os.environ["RANK"], os.environ["WORLD_SIZE"]) == ("7", "7")


def test_a_worker_takes_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "7")
    job = {"cluster": WORKERS, "task": {"type": "worker", "index": 1}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(job))
    join_tensorflow_job()
    assert (os.environ["RANK"], os.environ["WORLD_SIZE"]) == ("1", "2")


def test_gpus_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, expected in (("", 1), ("0", 0), ("4", 4)):
        monkeypatch.setenv("NUM_GPUS", text)
        assert num_gpus_asked_for() == expected
    for text in ("abc", "-1", "1.5"):
        monkeypatch.setenv("NUM_GPUS", text)
        with pytest.raises(UsageError, match=f"NUM_GPUS='{text}' is not a whole number"):
            num_gpus_asked_for()
