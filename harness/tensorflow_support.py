"""TensorFlow's share of the harness: device, threads, seeds, strategy, precision, checkpoints.

Several GPUs of one machine are one process (MirroredStrategy, $NUM_GPUS); several machines are a
process each (MultiWorkerMirroredStrategy, $TF_CONFIG as TensorFlow defines it).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy

from harness.checkpoint import Checkpoint
from harness.errors import UsageError
from harness.options import RunOptions
from harness.processes import join_tensorflow_job, num_gpus_asked_for, num_processes
from harness.run import Run
from harness.seeds import derive_seed
from harness.start_notes import without_start_notes
from harness.system import num_cores

# A person's own keras.json may turn axes round or name another framework: it is not read.
os.environ |= {"KERAS_BACKEND": "tensorflow", "KERAS_HOME": os.devnull}
with without_start_notes():
    import keras
    import tensorflow as tf

POLICIES = {"fp32": "float32", "bf16": "mixed_bfloat16", "fp16": "mixed_float16"}
Array = numpy.ndarray[Any, Any]


def set_up(options: RunOptions) -> tf.distribute.Strategy:
    """Fix threads, seed every generator, choose precision and devices; returns how to distribute.

    Must come before anything else of TensorFlow. Raises UsageError where a device, or what is
    asked of it, is not there.
    """
    num_gpus = _choose_gpus(options)
    tf.config.threading.set_intra_op_parallelism_threads(num_cores())
    tf.config.threading.set_inter_op_parallelism_threads(num_cores())
    keras.utils.set_random_seed(derive_seed(options.seed, "tensorflow", bits=32))
    tf.config.experimental.enable_tensor_float_32_execution(False)  # fp32 means float32
    if not options.compile:  # XLA refuses max-pooling's gradient then: it may differ in last bits
        tf.config.experimental.enable_op_determinism()
    keras.config.set_dtype_policy(POLICIES[options.precision])
    if "TF_CONFIG" in os.environ:
        join_tensorflow_job()
        return tf.distribute.MultiWorkerMirroredStrategy()
    if num_gpus > 1:
        return tf.distribute.MirroredStrategy([f"/gpu:{number}" for number in range(num_gpus)])
    return tf.distribute.OneDeviceStrategy("/gpu:0" if num_gpus else "/cpu:0")


def _choose_gpus(options: RunOptions) -> int:
    """How many GPUs this process uses; the others are hidden from TensorFlow."""
    with without_start_notes():
        found = tf.config.list_physical_devices("GPU")
    num_gpus = num_gpus_asked_for()
    if options.device == "cpu" or (options.device == "auto" and not (found and num_gpus)):
        if options.precision == "fp16":
            raise UsageError("fp16 needs a GPU; take --precision bf16 or fp32 on the CPU")
        num_gpus = 0
    elif len(found) < (num_gpus := max(1, num_gpus)):
        here = f"TensorFlow can use {len(found)} GPUs, and {num_gpus} are asked for"
        raise UsageError(f"{here}; take --device cpu or NUM_GPUS=0")
    for gpu in found[:num_gpus]:
        details = tf.config.experimental.get_device_details(gpu)
        major, minor = details.get("compute_capability", (8, 0))
        if options.precision == "bf16" and major < 8:
            raise UsageError(f"bf16 needs compute capability 8.0, not {major}.{minor}; take fp32")
        tf.config.experimental.set_memory_growth(gpu, enable=True)
    tf.config.set_visible_devices(found[:num_gpus], "GPU")
    return num_gpus


def hide_gpus() -> None:
    """For commands that do not train: what they compute is little, and a GPU may be in use."""
    _choose_gpus(RunOptions(device="cpu"))


def split(strategy: tf.distribute.Strategy, *batch: tf.Tensor) -> tuple[Any, ...]:
    """This process's part of a batch, cut into one piece for each of its replicas."""
    num_local = strategy.num_replicas_in_sync // num_processes()
    if num_local == 1:
        return batch
    bounds = [len(batch[0]) * number // num_local for number in range(num_local + 1)]
    pieces = [tf.split(tensor, numpy.diff(bounds)) for tensor in batch]
    give = strategy.experimental_distribute_values_from_function
    return tuple(give(lambda c, p=p: p[c.replica_id_in_sync_group % num_local]) for p in pieces)


def save(variables: Sequence[keras.Variable], file: BinaryIO) -> None:
    """Write variables as NumPy arrays, by their place in the list."""
    numpy.savez(file, **{f"{place:05d}": v.numpy() for place, v in enumerate(variables)})


def resume(
    run: Run, strategy: tf.distribute.Strategy, variables: Sequence[keras.Variable]
) -> tuple[int, int]:
    """Load the first process's checkpoint, if it has one, and tell the others where the run stood.

    Returns the epoch to go on with, and how many of its steps are done.
    """
    checkpoint = run.resume_from
    text = json.dumps(checkpoint and checkpoint.position).encode()
    (size,) = from_first_process(strategy, [numpy.array([len(text)])])[0]
    padded = numpy.frombuffer(text.ljust(size)[:size], numpy.uint8)
    position = json.loads(from_first_process(strategy, [padded])[0].tobytes())
    if position is None:
        return 1, 0
    if checkpoint:
        with numpy.load(checkpoint.path) as arrays:
            for variable, name in zip(variables, sorted(arrays.files), strict=True):
                variable.assign(arrays[name])
    run.resume_from = checkpoint or Checkpoint(Path(), position)
    copy_from_first(strategy, variables)
    return position["epoch"], position["step_in_epoch"]


def copy_from_first(strategy: tf.distribute.Strategy, variables: Sequence[keras.Variable]) -> None:
    """Give every replica of every process the values that the very first one has."""
    if strategy.num_replicas_in_sync > 1:
        values = from_first_process(strategy, [variable.numpy() for variable in variables])
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)


def from_first_process(strategy: tf.distribute.Strategy, values: Sequence[Array]) -> list[Array]:
    """The first process's arrays, in every process; all give arrays of the same shapes."""
    if num_processes() == 1:
        return [*values]

    def add_up(mine: tf.Tensor) -> Any:
        # Every replica gives a share that adds up exactly: the first one all of it.
        context = tf.distribute.get_replica_context()
        share = tf.where(context.replica_id_in_sync_group == 0, mine, tf.zeros_like(mine))
        return context.all_reduce(tf.distribute.ReduceOp.SUM, share)

    flat = numpy.concatenate([value.ravel().astype(numpy.float64) for value in values])
    summed = strategy.run(tf.function(add_up), args=(tf.constant(flat),))
    summed = strategy.experimental_local_results(summed)[0].numpy()
    parts = numpy.split(summed, numpy.cumsum([value.size for value in values])[:-1])
    return [p.reshape(v.shape).astype(v.dtype) for p, v in zip(parts, values, strict=True)]
