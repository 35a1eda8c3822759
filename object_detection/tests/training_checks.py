"""What must hold of the whole loop, as plain functions: tests and mutations both call them.

They reach the code through its modules (`train.train`), so that they see what a mutation put there.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torchvision import ops
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from harness.options import RunOptions
from harness.stop_rule import QualityTarget
from object_detection import data, feature_pyramid, model, train
from object_detection.config import TINY, Config
from object_detection.tests import plain_training
from object_detection.tests.oracles import their_name

SMALL = dataclasses.replace(
    TINY,
    quality_targets=(QualityTarget("box_ap", 2.0),),
    checkpoint_interval_s=1e9,
    num_train_images=10,
    num_eval_images=4,
    fpn_channels=16,
    box_head_channels=24,
    num_mask_convs=2,
    mask_head_channels=16,
    base_batch_size=2,
    base_learning_rate=0.005,
    bias_rate_factor=2.0,
    warmup_steps=9,
    decay_iterations=(50, 120),
    max_iterations=10_000,
    max_gradient_norm=4.0,
    first_evaluation=1_000,
    max_epochs=1_000,
)
"""Three steps an epoch, the last with two images; gradients that are cut and some that are not."""


@contextlib.contextmanager
def as_process(rank: int, num_processes: int) -> Iterator[None]:
    """This process plays one of several, whose collectives do nothing."""
    environment = {"RANK": str(rank), "WORLD_SIZE": str(num_processes)}
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, environment))
        for name in ("all_reduce", "broadcast_object_list", "init_process_group"):
            stack.enter_context(mock.patch.object(torch.distributed, name))
        # Where the loop itself looks for it: a mutated loop lives in a module of its own.
        loop = sys.modules[train.train.__module__]
        stack.enter_context(mock.patch.object(loop, "DistributedDataParallel", lambda m: m))
        yield


@dataclass
class Recording:
    """What a training did, step by step."""

    losses: list[float] = field(default_factory=list)
    batches: list[data.Batch] = field(default_factory=list)
    first_state: dict[str, Tensor] = field(default_factory=dict)
    gradients: list[list[Tensor]] = field(default_factory=list)
    weights: list[list[Tensor]] = field(default_factory=list)
    """After each step."""


def with_oddities(batch: data.Batch, number: int) -> data.Batch:
    """The batch as float64 has it; the first image smaller than the others, and in every third
    batch the last image without an object.
    """
    sizes, images = batch.sizes.clone(), batch.images.clone()
    sizes[0] = torch.tensor([54, 60])
    images[0, :, 60:] = 0
    images[0, :, :, 54:] = 0
    end = int(batch.first_object[-2 if number % 3 == 2 else -1])
    limits = batch.first_object.clamp(max=end)
    return dataclasses.replace(
        batch,
        images=images,
        sizes=sizes,
        boxes=batch.boxes[:end].double(),
        labels=batch.labels[:end],
        first_polygon=batch.first_polygon[: end + 1],
        first_object=limits,
    )


def record_training(config: Config, num_steps: int, seed: int = 1) -> Recording:
    """Run the real loop of train.py in float64 on made-up data, and look on.

    float64: it is made the default type, and `.float()` in our code is turned into `.double()`.
    """
    recording = Recording()
    networks: list[model.MaskRCNN] = []
    real_optimizer, real_batches = train.make_optimizer, data.train_batches

    def make_optimizer(network: model.MaskRCNN, config: Config) -> torch.optim.Optimizer:
        networks.append(network)
        state = network.state_dict()
        recording.first_state = {name: value.clone() for name, value in state.items()}
        return real_optimizer(network, config)

    def train_batches(*arguments: Any) -> Iterator[data.Batch]:
        for number, batch in enumerate(real_batches(*arguments)):
            recording.batches.append(with_oddities(batch, number))
            yield recording.batches[-1]

    def before(*_: object) -> None:
        gradients = [weights.grad for weights in networks[0].parameters()]
        recording.gradients.append([g.clone() for g in gradients if g is not None])

    def after(*_: object) -> None:
        recording.weights.append([w.detach().clone() for w in networks[0].parameters()])

    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float64)
        stack.enter_context(mock.patch.object(Tensor, "float", Tensor.double))
        loop = sys.modules[train.train.__module__]
        stack.enter_context(mock.patch.object(loop, "make_optimizer", make_optimizer))
        stack.enter_context(mock.patch.object(loop, "report_speed"))
        stack.enter_context(mock.patch.object(data, "train_batches", train_batches))
        stack.callback(register_optimizer_step_pre_hook(before).remove)
        stack.callback(register_optimizer_step_post_hook(after).remove)
        options = RunOptions(
            seed=seed, data_dir=folder, results_dir=folder, device="cpu", num_steps=num_steps
        )
        if train.train(config, options):
            raise RuntimeError("the training crashed")  # which is no wrong science caught
        for path in folder.rglob("losses.csv"):  # none from any process but the first
            with path.open() as file:
                recording.losses = [float(value) for _, value in csv.reader(file)]
    return recording


def plain_twin(
    config: Config, state: dict[str, Tensor]
) -> tuple[plain_training.PlainMaskRCNN, list[str]]:
    """The twin out of torchvision's parts, and its names of the weights in the order of ours."""
    plain = plain_training.PlainMaskRCNN(config).double()
    plain.load(state)
    names = [their_name(name) for name, _ in model.MaskRCNN(config).named_parameters()]
    return plain, names


def relative_difference(ours: list[Tensor], plain: list[Tensor]) -> float:
    """The largest over the tensors of |ours - plain| / |plain|, in the Euclidean norm."""
    return max(
        float((one - other).norm() / other.norm().clamp(min=1e-9))
        for one, other in zip(ours, plain, strict=True)
    )


def norm(tensors: list[Tensor]) -> float:
    """Euclidean norm over all tensors together."""
    return math.sqrt(sum(float((tensor**2).sum()) for tensor in tensors))


def check_pyramid() -> None:
    """Torchvision's pyramid with the same weights, the coarsest map of an odd number of cells."""
    ours = feature_pyramid.FeaturePyramid([8, 12, 16], 4)
    theirs = ops.FeaturePyramidNetwork([8, 12, 16], 4, LastLevelMaxPool())
    names = {"lateral": "inner_blocks", "output": "layer_blocks"}
    state = {}
    for name, value in ours.state_dict().items():
        part, number, rest = name.split(".")
        state[f"{names[part]}.{number}.0.{rest}"] = value
    theirs.load_state_dict(state)
    maps = [torch.randn(2, 8, 20, 12), torch.randn(2, 12, 10, 6), torch.randn(2, 16, 5, 3)]
    expected = theirs({str(level): x for level, x in enumerate(maps)})
    for one, other in zip(ours(maps), expected.values(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def check_trajectory(num_steps: int = 12, bound: float = 1e-8) -> tuple[float, ...]:
    """Our loop and one made of torchvision's parts go the same way, step by step in float64.

    From the same first weights and batches: loss, gradient norm and weights. Returns the largest
    relative differences.
    """
    config = SMALL
    recording = record_training(config, num_steps)
    assert len(recording.losses) == len(recording.weights) == num_steps
    plain, names = plain_twin(config, recording.first_state)
    optimizer = plain_training.PlainSGD(config, plain)
    weights = [weight for _, weight in optimizer.named]
    own_places = {name: place for place, name in enumerate(names)}
    order = [own_places[name] for name, _ in optimizer.named]
    worst = (0.0,) * 3
    for step in range(num_steps):
        total = plain_training.five_losses(plain, recording.batches[step], config).sum()
        gradients = plain_training.clipped(
            list(torch.autograd.grad(total, weights, materialize_grads=True)),
            config.max_gradient_norm,
        )
        optimizer.step(gradients, plain_training.plain_rate(config, step))
        found = (
            abs(recording.losses[step] / total.item() - 1),
            abs(norm(recording.gradients[step]) / norm(gradients) - 1),
            relative_difference(
                [recording.weights[step][place] for place in order],
                [weight.detach() for weight in weights],
            ),
        )
        assert max(found) <= bound, f"step {step + 1}: loss, gradient, weights {found}"
        worst = tuple(max(pair) for pair in zip(worst, found, strict=True))
    return worst


def check_gradient_of_processes_and_passes() -> None:
    """Two processes with a pass for each image: the mean of their gradients is that of the batch's
    images, each by itself.
    """
    config = dataclasses.replace(SMALL, max_gradient_norm=0.0, images_per_pass=1)
    shares = []
    for rank in range(2):
        with as_process(rank, 2):
            shares.append(record_training(config, num_steps=1))
    state = shares[0].first_state
    assert all(torch.equal(value, shares[1].first_state[name]) for name, value in state.items())
    plain, names = plain_twin(config, state)
    weights = [plain.get_parameter(name) for name in names]
    total = torch.zeros((), dtype=torch.float64)
    for share in shares:
        batch = share.batches[0]
        assert len(batch.images) == 2
        for image in batch.split(1):
            total = total + plain_training.five_losses(plain, image, config).sum() / 4
    gradients = torch.autograd.grad(total, weights, materialize_grads=True)
    means = [
        (one + other) / 2 for one, other in zip(*(s.gradients[0] for s in shares), strict=True)
    ]
    difference = relative_difference(means, list(gradients))
    assert difference < 1e-8, difference
