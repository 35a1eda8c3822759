"""PyTorch's share of the harness: device, threads, seeds, RNG states, processes, precision."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, BinaryIO, TypeVar, cast

import numpy
import torch
import torch.distributed as distributed

from harness.errors import UsageError
from harness.options import RunOptions
from harness.seeds import derive_seed
from harness.system import num_cores, require_compiler

Shared = TypeVar("Shared")
MIN_CAPABILITY = {"compile": (7, 0), "bf16": (8, 0)}
"""Compute capability below which torch.compile (Triton) and bf16 arithmetic do not work."""


def choose_device(options: RunOptions) -> torch.device:
    """The device to train on. Raises UsageError where it, or what is asked of it, is not there."""
    if options.compile:
        require_compiler()
    has_gpu = torch.cuda.is_available()
    name = ("cuda" if has_gpu else "cpu") if options.device == "auto" else options.device
    if name == "cpu":
        if options.precision == "fp16":
            raise UsageError("fp16 needs a GPU; take --precision bf16 or fp32 on the CPU")
        return torch.device("cpu")
    if not has_gpu:
        raise UsageError("no GPU that PyTorch can use; take --device cpu or NUM_GPUS=0")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    capability = torch.cuda.get_device_capability(device)
    for feature in ("compile" if options.compile else "", options.precision):
        if capability < MIN_CAPABILITY.get(feature, (0, 0)):
            needed, found = (f"{v[0]}.{v[1]}" for v in (MIN_CAPABILITY[feature], capability))
            raise UsageError(
                f"{feature} needs compute capability {needed}, this GPU has {found}; leave it out"
            )
    torch.cuda.set_device(device)
    return device


def set_up(device: torch.device, seed: int, num_workers: int = 0) -> None:
    """Fix threads, seed all generators, ask for deterministic kernels in float32, join the job.

    Threads and loader workers of all processes on this machine together use each core once.
    """
    num_local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(max(1, num_cores() // num_local - num_workers))
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010  costs a fifth
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    random.seed(derive_seed(seed, "python"))
    torch.manual_seed(derive_seed(seed, "torch"))
    numpy.random.seed(derive_seed(seed, "numpy", bits=32))  # noqa: NPY002  libraries draw there
    if num_processes() > 1:
        backend = "nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=timedelta(minutes=10))


def num_processes() -> int:
    """Processes of this job (torchrun's WORLD_SIZE); 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Number of this process in the job, from 0."""
    return int(os.environ.get("RANK", "0"))


def share(start: int, size: int) -> tuple[int, int]:
    """This process's part of the `size` items from `start` on: first and one past the last."""
    first, last = (start + size * number // num_processes() for number in (rank(), rank() + 1))
    return first, last


def from_first_process(value: Shared) -> Shared:
    """The first process's `value`, in every process."""
    box = [value]
    if num_processes() > 1:
        distributed.broadcast_object_list(box)
    return box[0]


def sum_over_processes(value: torch.Tensor) -> torch.Tensor:
    """`value` added up over all processes, in place."""
    if num_processes() > 1:
        distributed.all_reduce(value)
    return value


def mean_losses(losses: Sequence[torch.Tensor], stop: bool) -> tuple[list[float], bool]:
    """Bring the losses of the last steps to the host, in one transfer and one collective.

    losses: one scalar a step, each process's own. Returns their means over the processes, and
    whether `stop` is true in any of them, so that all stop at the same step.
    """
    values = torch.stack([*losses, torch.full_like(losses[0], float(stop))])
    *means, stops = (sum_over_processes(values.double()) / num_processes()).tolist()
    return means, stops > 0


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Mixed precision for forward pass and loss; float32 does nothing."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, {"bf16": torch.bfloat16, "fp16": torch.float16}[precision])


def rng_states() -> dict[str, Any]:
    """State of python's, numpy's and PyTorch's generators, of types that weights_only loads."""
    name, keys, *rest = cast(tuple[Any, ...], numpy.random.get_state(legacy=True))  # noqa: NPY002
    states = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype("int64")), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_rng_states(states: dict[str, Any]) -> None:
    """Put back what `rng_states` returned."""
    random.setstate(states["python"])
    name, keys, *rest = states["numpy"]
    numpy.random.set_state((name, keys.numpy().astype("uint32"), *rest))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def save(state: dict[str, Any], file: BinaryIO) -> None:
    """Write a training state with the generators' states beside it."""
    torch.save({**state, "rng_states": rng_states()}, file)


def load(path: os.PathLike[str]) -> dict[str, Any]:
    """Read what `save` wrote, onto the CPU, and put the generators back; no code in it is run."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    set_rng_states(state.pop("rng_states"))
    return cast(dict[str, Any], state)
