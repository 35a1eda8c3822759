"""TensorFlow's share of the harness: device, threads, seeds, strategy, precision, checkpoints.

Several GPUs of one machine are one process (MirroredStrategy, $NUM_GPUS); several machines are a
process each (MultiWorkerMirroredStrategy, $TF_CONFIG as TensorFlow defines it).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import keras
import numpy
import tensorflow as tf

from harness.errors import UsageError
from harness.options import RunOptions
from harness.run import Run
from harness.seeds import derive_seed
from harness.system import num_cores

MIN_CAPABILITY = {"bf16": (8, 0)}
"""Compute capability below which this arithmetic does not work."""
POLICIES = {"fp32": "float32", "bf16": "mixed_bfloat16", "fp16": "mixed_float16"}


def set_up(options: RunOptions) -> tf.distribute.Strategy:
    """Fix threads, seed every generator, choose precision and devices; returns how to distribute.

    Must come before anything else of TensorFlow. Raises UsageError where a device, or what is
    asked of it, is not there.
    """
    num_gpus = _choose_gpus(options)
    tf.config.threading.set_intra_op_parallelism_threads(max(1, num_cores() - options.num_workers))
    tf.config.threading.set_inter_op_parallelism_threads(num_cores())
    keras.utils.set_random_seed(derive_seed(options.seed, "tensorflow", bits=32))
    tf.config.experimental.enable_op_determinism()
    keras.config.set_dtype_policy(POLICIES[options.precision])
    if "TF_CONFIG" in os.environ:
        return tf.distribute.MultiWorkerMirroredStrategy()
    if num_gpus > 1:
        return tf.distribute.MirroredStrategy([f"/gpu:{number}" for number in range(num_gpus)])
    return tf.distribute.OneDeviceStrategy("/gpu:0" if num_gpus else "/cpu:0")


def _choose_gpus(options: RunOptions) -> int:
    """How many GPUs this process uses; the others are hidden from TensorFlow."""
    found = tf.config.list_physical_devices("GPU")
    if options.device == "cpu" or (options.device == "auto" and not found):
        if options.precision == "fp16":
            raise UsageError("fp16 needs a GPU; take --precision bf16 or fp32 on the CPU")
        tf.config.set_visible_devices([], "GPU")
        return 0
    num_gpus = int(os.environ.get("NUM_GPUS") or 1)
    if len(found) < max(1, num_gpus):
        here = f"TensorFlow can use {len(found)} GPUs, and {max(1, num_gpus)} are asked for"
        raise UsageError(f"{here}; take --device cpu or NUM_GPUS=0")
    needed = MIN_CAPABILITY.get(options.precision, (0, 0))
    for gpu in found[:num_gpus]:
        capability = tf.config.experimental.get_device_details(gpu).get("compute_capability")
        if capability and capability < needed:
            wanted, is_there = (f"{v[0]}.{v[1]}" for v in (needed, capability))
            cause = f"{options.precision} needs compute capability {wanted}, this GPU has {is_there}"
            raise UsageError(f"{cause}; leave it out")
        tf.config.experimental.set_memory_growth(gpu, enable=True)
    tf.config.set_visible_devices(found[:num_gpus], "GPU")
    return num_gpus


def join_job() -> None:
    """Tell the harness which process of the job this is: the first alone writes anything."""
    if config := os.environ.get("TF_CONFIG"):
        job = json.loads(config)
        os.environ["RANK"] = str(job["task"]["index"])
        os.environ["WORLD_SIZE"] = str(len(job["cluster"]["worker"]))


def num_processes() -> int:
    """Processes of this job; 1 without $TF_CONFIG."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Number of this process in the job, from 0."""
    return int(os.environ.get("RANK", "0"))


def device_type(strategy: tf.distribute.Strategy) -> str:
    """`gpu` or `cpu`."""
    return "gpu" if "GPU" in strategy.extended.worker_devices[0].upper() else "cpu"


def share_size(size: int) -> int:
    """How many of a batch's `size` examples are this process's."""
    first, last = (size * number // num_processes() for number in (rank(), rank() + 1))
    return last - first


def split(strategy: tf.distribute.Strategy, *batch: tf.Tensor) -> tuple[Any, ...]:
    """This process's part of a batch, cut into one piece for each of its replicas."""
    num_local = strategy.num_replicas_in_sync // num_processes()
    if num_local == 1:
        return batch
    size = len(batch[0])
    bounds = [size * number // num_local for number in range(num_local + 1)]

    def piece(tensor: tf.Tensor, context: tf.distribute.ReplicaContext) -> tf.Tensor:
        number = context.replica_id_in_sync_group % num_local
        return tensor[bounds[number] : bounds[number + 1]]

    return tuple(
        strategy.experimental_distribute_values_from_function(
            lambda context, tensor=tensor: piece(tensor, context)
        )
        for tensor in batch
    )


def total(strategy: tf.distribute.Strategy, value: Any) -> numpy.ndarray[Any, Any]:
    """What the replicas of all processes returned, added up."""
    summed = strategy.reduce(tf.distribute.ReduceOp.SUM, value, axis=None)
    return numpy.asarray(summed)


def save(variables: Sequence[keras.Variable], file: BinaryIO) -> None:
    """Write variables as NumPy arrays, by their place in the list."""
    arrays = {f"{place:05d}": variable.numpy() for place, variable in enumerate(variables)}
    numpy.savez(file, **arrays)


def load(
    strategy: tf.distribute.Strategy,
    variables: Sequence[keras.Variable],
    path: os.PathLike[str] | None,
) -> None:
    """Put back what `save` wrote, in every process; only the first needs the file.

    Raises ValueError where its variables are others.
    """
    values = [variable.numpy() for variable in variables]
    if path is not None:
        with numpy.load(path) as arrays:
            values = [arrays[name] for name in sorted(arrays.files)]
    if [value.shape for value in values] != [tuple(variable.shape) for variable in variables]:
        raise ValueError(f"{path} holds other variables than this model's")
    for variable, value in zip(variables, from_first_process(strategy, values), strict=True):
        variable.assign(value)


def resume(
    run: Run, strategy: tf.distribute.Strategy, variables: Sequence[keras.Variable]
) -> tuple[int, int]:
    """Load the run's checkpoint, if it has one; returns the epoch to go on with and its steps done."""
    checkpoint = run.resume_from
    position = checkpoint.position if checkpoint else {"epoch": 1, "step_in_epoch": 0}
    mine = numpy.array([checkpoint is not None, position["epoch"], position["step_in_epoch"]])
    ((is_resumed, epoch, num_done),) = from_first_process(strategy, [mine])
    if is_resumed:
        load(strategy, variables, checkpoint.path if checkpoint else None)
    return int(epoch), int(num_done)


def from_first_process(
    strategy: tf.distribute.Strategy, values: Sequence[numpy.ndarray[Any, Any]]
) -> list[numpy.ndarray[Any, Any]]:
    """The first process's arrays, in every process; all give arrays of the same shapes."""
    if num_processes() == 1:
        return list(values)
    mine = [value if rank() == 0 else numpy.zeros_like(value) for value in values]

    def step() -> list[tf.Tensor]:
        context = tf.distribute.get_replica_context()
        # Every replica gives a share that adds up exactly: the first one all of it.
        first = context.replica_id_in_sync_group == 0
        given = [value if first else numpy.zeros_like(value) for value in mine]
        return context.all_reduce(tf.distribute.ReduceOp.SUM, [tf.constant(v) for v in given])

    summed = strategy.run(tf.function(step))
    return [strategy.experimental_local_results(value)[0].numpy() for value in summed]
