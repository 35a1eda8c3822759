"""What the harness asks of TensorFlow, in a process of its own: most of it can be set only once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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
    "threads": tf.config.threading.get_intra_op_parallelism_threads(),
    "random": [float(tf.random.uniform([])), float(numpy.random.random())],
}))
"""


def set_up(precision: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, precision],
        cwd=Path(__file__).parent.parent,
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
    assert full["threads"] == 1  # never none, however many workers
    assert full["random"] == mixed["random"]  # by the seed
