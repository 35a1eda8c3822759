"""What must hold of the network, its loss and its loop, as plain functions.

The tests of each subject call them on the code as it is; test_mutations.py calls the same ones on
code that was made wrong on purpose, and expects an AssertionError.

They reach the code through its modules (`loss.match`, not `match`), so that they see what a
mutation put there. data_checks.py has those of the data.
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

import numpy
import torch
import torchvision
from torch import Tensor
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from harness.options import RunOptions
from harness.stop_rule import QualityTarget
from single_stage_detector import data, default_boxes, detection, loss, model, schedule, train
from single_stage_detector.config import MINI, REFERENCE, TINY, Config, ExtraLayer
from single_stage_detector.tests import oracles

SMALL = dataclasses.replace(
    TINY,
    quality_targets=(QualityTarget("ap", 2.0),),
    checkpoint_interval_s=1e9,
    num_train_images=26,
    num_eval_images=4,
    input_size=48,
    num_filters=(64, 128, 256),
    extra_layers=(ExtraLayer(16, 24), ExtraLayer(8, 16)),
    extra_batch_norm=False,
    map_strides=(8, 16, 32),
    box_scales=(12, 20, 32, 44),
    aspect_ratios=((2,), (2, 3), (2,)),
    batch_size=4,
    base_batch_size=2,
    base_learning_rate=4e-4,
    warmup_steps=5,
    warmup_factor=2,
    decay_iterations=(60, 140),
    optimizer="sgd",
    weight_decay=5e-4,
    max_gradient_norm=0.0,
    evaluation_iterations=(),
    evaluation_epochs=(20,),
    max_epochs=20,
)
"""A recipe whose widths torchvision's ResNet has: 7 steps an epoch, the last with two images."""
ADAMW = dataclasses.replace(
    SMALL,
    extra_batch_norm=True,
    optimizer="adamw",
    base_learning_rate=5e-4,
    max_gradient_norm=8.0,
    decay_iterations=(),
    decay_epochs=(4.5, 9.0),
)
"""The same with AdamW, clipped gradients, epochs in place of iterations."""


def random_boxes(generator: torch.Generator, count: int) -> Tensor:
    """Corners [count, 4] of boxes within the image, of many sizes and shapes."""
    sizes = torch.rand(count, 2, generator=generator) ** 2 * 0.9 + 0.02
    corners = torch.rand(count, 2, generator=generator) * (1 - sizes)
    return torch.cat([corners, corners + sizes], dim=1)


def random_batch(config: Config, counts: list[int], seed: int) -> tuple[Tensor, Tensor]:
    """Padded boxes [B, M, 4] and labels [B, M] with this number of objects in each image."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.zeros(len(counts), max(counts), 4)
    labels = torch.zeros(len(counts), max(counts), dtype=torch.int64)
    for image, count in enumerate(counts):
        boxes[image, :count] = random_boxes(generator, count)
        labels[image, :count] = torch.randint(1, config.num_classes, (count,), generator=generator)
    return boxes, labels


# --- default boxes --------------------------------------------------------------------------------


def check_table() -> None:
    """Spec 2.4: counts, sums, torchvision's table but for the boxes that v0.5 clamps as centres."""
    ours = default_boxes.make_default_boxes(REFERENCE)
    assert ours.shape == (8732, 4)
    sums = ours.double().sum(dim=0).tolist()
    expected = (4443.1467, 4443.1467, 1171.9677, 1171.9677)
    assert all(abs(one - other) < 1e-3 for one, other in zip(sums, expected, strict=True)), sums
    sizes = default_boxes.map_sizes(REFERENCE.input_size, REFERENCE.extra_layers)
    assert sizes == [38, 19, 10, 5, 3, 1]
    theirs = oracles.table(REFERENCE, sizes)
    differences = (default_boxes.to_corners(ours) - theirs).abs().amax(dim=1)
    clamped = differences > 2e-6
    assert int(clamped.sum()) == 114
    assert bool((differences[clamped] < 0.0134).all())
    assert bool((ours[clamped][:, :2] == 1).any(dim=1).all())
    assert bool((ours >= 0).all() and (ours <= 1).all())
    assert len(default_boxes.make_default_boxes(MINI)) == 1364


def check_coding() -> None:
    """Spec 2.4, coding: torchvision's BoxCoder both ways, and one is the other's inverse."""
    coder = default_boxes.DefaultBoxes(REFERENCE)
    generator = torch.Generator().manual_seed(3)
    boxes = random_boxes(generator, len(coder.corners))
    deltas = coder.encode(boxes)
    assert deltas.shape == (4, len(coder.corners))
    theirs = oracles.CODER.encode_single(boxes, coder.corners)
    assert float((deltas.T - theirs).abs().max()) < 5e-4  # of up to 150
    assert bool(torch.isclose(deltas.T, theirs, rtol=1e-4, atol=3e-5).all())
    back = coder.decode(deltas)
    assert float((back - boxes).abs().max()) < 1e-5
    said = torch.randn(2, 4, len(coder.corners), generator=generator)
    decoded = coder.decode(said)
    for image in range(2):
        theirs = oracles.CODER.decode_single(said[image].T, coder.corners)
        assert float((decoded[image] - theirs).abs().max()) < 3e-6
    # No limit on the exponent: torchvision's lies at a factor of 62.5.
    huge = torch.zeros(4, len(coder.corners))
    huge[2:] = 25.0
    widths = coder.decode(huge)[:, 2] - coder.decode(huge)[:, 0]
    assert torch.allclose(widths, coder.centred[:, 2] * math.exp(5), rtol=1e-4)


def check_overlap() -> None:
    """Torchvision's box_iou to 1e-6; boxes without area overlap nothing."""
    generator = torch.Generator().manual_seed(4)
    first, second = random_boxes(generator, 60), random_boxes(generator, 50)
    second[:5] = first[:5]
    ours = default_boxes.intersection_over_union(first, second)
    assert float((ours - torchvision.ops.box_iou(first, second)).abs().max()) < 1e-6
    assert torch.allclose(ours.diagonal()[:5], torch.ones(5))
    flat = torch.tensor([[0.5, 0.2, 0.5, 0.8]])
    assert default_boxes.intersection_over_union(flat, flat).tolist() == [[0.0]]


# --- targets and loss -----------------------------------------------------------------------------


def check_matching() -> None:
    """Spec 2.5: torchvision's SSDMatcher, image by image; padding changes nothing."""
    coder = default_boxes.DefaultBoxes(REFERENCE)
    counts = [3, 0, 1, 17, 60, 2]
    boxes, labels = random_batch(REFERENCE, counts, seed=1)
    objects, target_labels = loss.match(coder, boxes, labels)
    deltas, _ = loss.encode_targets(coder, boxes, labels)
    for image, count in enumerate(counts):
        expected = oracles.plain_match(boxes[image, :count], coder.corners)
        found = target_labels[image] > 0
        assert torch.equal(found, expected >= 0), f"image {image}"
        assert torch.equal(objects[image][found], expected[found]), f"image {image}"
        theirs, their_labels = oracles.plain_targets(
            boxes[image, :count], labels[image, :count], coder.corners
        )
        assert torch.equal(target_labels[image], their_labels)
        assert torch.allclose(deltas[image].T[found], theirs[found], rtol=1e-4, atol=3e-5)
        assert int(found.sum()) >= min(count, 1)


def check_claims() -> None:
    """Each object has its best box, however little they overlap; of two claims the last wins."""
    coder = default_boxes.DefaultBoxes(REFERENCE)
    speck = [0.5001, 0.5001, 0.5012, 0.5012]  # overlaps every default box by less than half
    # Padding lies where it would claim the same box, if it could.
    boxes = torch.tensor([[speck, [0.1, 0.1, 0.9, 0.9], speck, speck]])
    objects, labels = loss.match(coder, boxes, torch.tensor([[5, 6, 7, 0]]))
    assert int((labels == 5).sum()) == 0
    overlap = torchvision.ops.box_iou(boxes[0, :1], coder.corners)[0]
    place = int(overlap.argmax())
    assert (labels[0] == 7).nonzero().tolist() == [[place]]
    assert int(objects[0, place]) == 2
    # Exactly half is no match: only the claim is.
    half = coder.corners[8000].clone()
    half[2] = half[0] + 2 * (half[2] - half[0])
    overlap = torchvision.ops.box_iou(half[None], coder.corners)[0]
    _, labels = loss.match(coder, half[None, None], torch.tensor([[1]]))
    expected = overlap > 0.5
    expected[overlap.argmax()] = True
    assert torch.equal(labels[0] > 0, expected)


def check_threshold_is_strict() -> None:
    """A default box that overlaps an object by exactly 0.5 is background."""
    coder = default_boxes.DefaultBoxes(TINY)
    quarter = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.25, 0.5], [0.5, 0.5, 1.0, 1.0]])
    coder.corners = quarter
    boxes = torch.tensor([[[0.0, 0.0, 0.5, 0.5]]])
    assert default_boxes.intersection_over_union(boxes, quarter)[0, 0, 1] == 0.5
    _, labels = loss.match(coder, boxes, torch.tensor([[1]]))
    assert labels.tolist() == [[1, 0, 0]]


def check_loss() -> None:
    """Spec 2.6: torchvision's compute_loss image by image and their mean; the plain rule too."""
    generator = torch.Generator().manual_seed(8)
    config = dataclasses.replace(SMALL, num_classes=7)
    coder = default_boxes.DefaultBoxes(config)
    num_boxes = len(coder.corners)
    counts = [2, 0, 4, 1]  # few matches: torchvision counts some twice where negatives run out
    boxes, labels = random_batch(config, counts, seed=2)
    deltas = 3 * torch.randn(4, 4, num_boxes, generator=generator, dtype=torch.float64)
    logits = 3 * torch.randn(4, 7, num_boxes, generator=generator, dtype=torch.float64)
    target_deltas, target_labels = loss.encode_targets(coder, boxes.double(), labels)
    ours = loss.image_losses(deltas, logits, target_deltas, target_labels)
    assert ours.shape == (4,)
    torchvisions = oracles.TorchvisionDetector(config).whole
    for image, count in enumerate(counts):
        target, label = oracles.plain_targets(
            boxes[image, :count].double(), labels[image, :count], coder.corners.double()
        )
        plain = oracles.plain_image_loss(deltas[image].T, logits[image].T, target, label)
        assert math.isclose(float(ours[image]), float(plain), rel_tol=2e-6), f"image {image}"
        if not count:
            assert float(ours[image]) == 0
            continue
        theirs = torchvisions.compute_loss(
            [{"boxes": boxes[image, :count].double(), "labels": labels[image, :count]}],
            {
                "bbox_regression": deltas[image].T[None],
                "cls_logits": logits[image].T[None].contiguous(),
            },
            [coder.corners.double()],
            [oracles.plain_match(boxes[image, :count], coder.corners)],
        )
        together = float(theirs["bbox_regression"] + theirs["classification"])
        assert math.isclose(float(ours[image]), together, rel_tol=2e-6), f"image {image}"


def check_few_negatives() -> None:
    """Where three negatives to a match are more than there are, each box still counts once."""
    generator = torch.Generator().manual_seed(9)
    deltas = torch.randn(1, 4, 10, generator=generator)
    logits = torch.randn(1, 3, 10, generator=generator)
    labels = torch.tensor([[1, 2, 1, 1, 0, 0, 2, 0, 0, 0]])
    ours = loss.image_losses(deltas, logits, torch.zeros(1, 4, 10), labels)
    plain = oracles.plain_image_loss(deltas[0].T, logits[0].T, torch.zeros(10, 4), labels[0])
    assert math.isclose(float(ours), float(plain), rel_tol=1e-6)


def check_flat_objects() -> None:
    """An object without width gives a finite loss, and v0.5's gradient: smooth L1's tail."""
    coder = default_boxes.DefaultBoxes(REFERENCE)
    boxes = torch.tensor([[[0.4, 0.3, 0.4, 0.6]]])
    deltas, labels = loss.encode_targets(coder, boxes, torch.tensor([[3]]))
    said = torch.zeros(1, 4, 8732, requires_grad=True)
    logits = torch.zeros(1, 81, 8732)
    value = loss.image_losses(said, logits, deltas, labels).sum()
    assert math.isfinite(float(value))
    value.backward()
    assert said.grad is not None
    (place,) = (labels[0] > 0).nonzero().ravel().tolist()
    assert float(said.grad[0, 2, place]) == 1.0


# --- network --------------------------------------------------------------------------------------


def check_parameter_counts() -> None:
    """Spec 2.1 to 2.3 exactly; the mini is smaller than in spec 9."""
    network = model.SSD(REFERENCE)

    def count(module: torch.nn.Module) -> int:
        return sum(weights.numel() for weights in module.parameters())

    assert count(network) == 19_972_534
    assert count(network.backbone) == 8_170_304
    extra = [count(layer) for layer in network.extra_layers]
    assert extra == [1_245_952, 1_311_488, 360_832, 328_064, 328_064]
    assert count(network.box_heads) == 387_192
    assert count(network.class_heads) == 7_840_638
    assert count(model.SSD(MINI)) == 349_060
    assert sum(buffer.numel() for buffer in network.backbone.buffers()) == 9_885


def check_forward() -> None:
    """Torchvision's SSD with our weights: deltas and logits of every box, in our order."""
    for config in (SMALL, dataclasses.replace(ADAMW, num_classes=9)):
        torch.manual_seed(5)
        ours = model.SSD(config).double()
        theirs = oracles.TorchvisionDetector(config).double()
        theirs.load(ours.state_dict())
        pixels = torch.randint(0, 256, (3, 3, config.input_size, config.input_size))
        images = oracles.plain_normalized(pixels)
        assert torch.allclose(model.normalize_pixels(pixels).double(), images, atol=1e-6)
        for is_training in (True, False):
            ours.train(is_training)
            theirs.train(is_training)
            deltas, logits = ours(images)
            their_deltas, their_logits = theirs.outputs(images)
            assert float((deltas.transpose(1, 2) - their_deltas).abs().max()) < 1e-9
            assert float((logits.transpose(1, 2) - their_logits).abs().max()) < 1e-9


def check_backbone() -> None:
    """Torchvision's resnet34 with conv4_1's strides of 1: bit-equal features in float32."""
    torch.manual_seed(6)
    ours = model.Backbone(REFERENCE.num_blocks, REFERENCE.num_filters).eval()
    theirs = oracles.TorchvisionBackbone(REFERENCE).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    images = torch.randn(1, 3, 300, 300)
    with torch.no_grad():
        features = ours(images)
        assert features.shape == (1, 256, 38, 38)
        assert torch.equal(features, theirs(images))


def check_initial_values() -> None:
    """Xavier-uniform weights and uniform biases outside the backbone; He-normal in it."""
    torch.manual_seed(7)
    network = model.SSD(REFERENCE)
    for part in (network.extra_layers, network.box_heads, network.class_heads):
        for layer in part.modules():
            if not isinstance(layer, torch.nn.Conv2d):
                continue
            area = layer.kernel_size[0] * layer.kernel_size[1]
            fans = area * (layer.in_channels + layer.out_channels)
            bound = math.sqrt(6 / fans)
            weights = layer.weight.detach()
            assert bound * 0.99 < float(weights.abs().max()) <= bound
            assert math.isclose(float(weights.std()), bound / math.sqrt(3), rel_tol=0.05)
            assert layer.bias is not None
            bias_bound = 1 / math.sqrt(area * layer.in_channels)
            biases = layer.bias.detach().abs()
            assert 0.6 * bias_bound < float(biases.max()) <= bias_bound
    for layer in network.backbone.modules():
        if isinstance(layer, torch.nn.Conv2d):
            area = layer.kernel_size[0] * layer.kernel_size[1]
            deviation = math.sqrt(2 / (area * layer.out_channels))
            assert math.isclose(float(layer.weight.std()), deviation, rel_tol=0.1)


# --- detections -----------------------------------------------------------------------------------


def lively_outputs(config: Config, num_images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Deltas and logits with many overlapping candidates of each class."""
    generator = torch.Generator().manual_seed(seed)
    num_boxes = len(default_boxes.make_default_boxes(config))
    deltas = torch.randn(num_images, 4, num_boxes, generator=generator)
    logits = 2.5 * torch.randn(num_images, config.num_classes, num_boxes, generator=generator)
    return deltas, logits


def check_detections() -> None:
    """Spec 4: torchvision's batched_nms after each class's best 200; boxes not clipped."""
    for config, seed in ((MINI, 1), (dataclasses.replace(REFERENCE, num_classes=6), 2)):
        coder = default_boxes.DefaultBoxes(config)
        deltas, logits = lively_outputs(config, 3, seed)
        deltas[1] *= 0.01  # many doubles
        logits[2, 0] += 12  # hardly anything
        found = detection.detect(deltas, logits, coder, config)
        boxes = coder.decode(deltas)
        for image in range(3):
            scores = oracles.softmax(logits[image].T)
            expected = oracles.plain_detections(
                boxes[image], scores, config.min_score, config.nms_iou, config.max_detections
            )
            mine = detection.select(found, found.images == image)
            assert mine.labels.tolist() == [label for label, _, _ in expected]
            assert torch.allclose(mine.scores, torch.tensor([score for _, score, _ in expected]))
            assert torch.equal(
                mine.boxes, torch.tensor([box for _, _, box in expected]).view(-1, 4)
            )
        assert bool((found.images.diff() >= 0).all())
        assert int((found.images == 0).sum()) == config.max_detections
        assert float(found.boxes.min()) < 0


def check_limit_of_a_class() -> None:
    """Only a class's best boxes enter the suppression: what lies below them never comes back."""
    config = dataclasses.replace(REFERENCE, num_classes=3, max_detections=50)
    coder = default_boxes.DefaultBoxes(config)
    deltas, logits = lively_outputs(config, 1, 4)
    deltas[:, :2] *= 0.01
    deltas[:, 2:, :300] = 5  # neighbours that overlap, all of one class
    logits[0, 1, :300] += torch.arange(300) / 300 + 8
    found = detection.detect(deltas, logits, coder, config)
    scores = oracles.softmax(logits[0].T)
    expected = oracles.plain_detections(
        coder.decode(deltas)[0], scores, config.min_score, config.nms_iou, config.max_detections
    )
    assert found.labels.tolist() == [label for label, _, _ in expected]
    assert int((found.labels == 1).sum()) < config.max_detections
    best = scores[:, 1].topk(config.max_detections).values.min()
    assert float(found.scores[found.labels == 1].min()) >= float(best) - 1e-6


def check_nothing_detected() -> None:
    """Logits that see background everywhere, or are no numbers, give no detection and no error."""
    coder = default_boxes.DefaultBoxes(TINY)
    deltas, logits = lively_outputs(TINY, 2, 3)
    logits[:, 0] = 50
    assert len(detection.detect(deltas, logits, coder, TINY).scores) == 0
    logits[:] = math.nan
    assert len(detection.detect(deltas, logits, coder, TINY).scores) == 0


def check_suppression_chain() -> None:
    """A box that a suppressed one overlaps stays; overlap of exactly the limit suppresses."""
    config = dataclasses.replace(TINY, nms_iou=0.5)
    coder = default_boxes.DefaultBoxes(config)
    num_boxes = len(coder.corners)
    # Binary fractions, so that nothing is rounded: left and right ends of equally high boxes.
    chain = [(0.0, 0.5), (0.125, 0.625), (0.25, 0.75), (0.75, 1.0), (0.75, 0.875)]
    deltas = torch.zeros(1, 4, num_boxes)
    logits = torch.zeros(1, 5, num_boxes)
    logits[0, 0] = 20
    for place, (left, right) in enumerate(chain):
        coder.centred[place] = torch.tensor([(left + right) / 2, 0.25, right - left, 0.5])
        logits[0, 0, place], logits[0, 2, place] = 0, 5 - 0.5 * place
    found = detection.detect(deltas, logits, coder, config)
    # The first suppresses the second (0.6); the third overlaps the first by a third and stays,
    # though the second would have suppressed it; the fifth is exactly half of the fourth.
    assert found.boxes[:, 0].tolist() == [0.0, 0.25, 0.75]
    assert found.boxes[2].tolist() == [0.75, 0.0, 1.0, 0.5]
    assert set(found.labels.tolist()) == {2}


# --- schedule -------------------------------------------------------------------------------------


def check_schedule() -> None:
    """Spec 3, 4 and 8, by number."""
    per_epoch = 3665
    assert data.num_steps(REFERENCE) == per_epoch

    def rate(config: Config, step: int) -> float:
        return schedule.learning_rate(config, step, per_epoch)

    for step, expected in (
        (0, 1e-3),
        (159_999, 1e-3),
        (160_000, 1e-4),
        (199_999, 1e-4),
        (200_000, 1e-5),
        (240_000, 1e-5),
    ):
        assert math.isclose(rate(REFERENCE, step), expected), step
    expected_steps = [120_001, 160_001, 180_001, 200_001, 220_001, 240_001]
    assert schedule.evaluation_steps(REFERENCE, per_epoch) == expected_steps
    assert 65 * per_epoch < 240_001 <= REFERENCE.max_epochs * per_epoch
    large = dataclasses.replace(
        REFERENCE, batch_size=1024, base_learning_rate=2.5e-3, warmup_steps=300
    )
    assert schedule.decay_steps(large, 115) == [5000, 6250]
    assert math.isclose(schedule.learning_rate(large, 300, 115), 0.08)
    assert schedule.learning_rate(large, 0, 115) == 0
    assert math.isclose(schedule.learning_rate(large, 150, 115), 0.04)
    assert schedule.evaluation_steps(large, 115)[0] == 3751
    half = dataclasses.replace(large, warmup_factor=1)
    assert math.isclose(schedule.learning_rate(half, 0, 115), 0.04)
    v07 = dataclasses.replace(
        REFERENCE, decay_epochs=(40, 50), evaluation_epochs=(40, 50, 55, 60, 65, 70), max_epochs=65
    )
    assert schedule.decay_steps(v07, per_epoch) == [146_600, 183_250]
    evaluations = [epoch * per_epoch for epoch in (40, 50, 55, 60, 65)]
    assert schedule.evaluation_steps(v07, per_epoch) == evaluations
    for config in (REFERENCE, MINI, TINY, SMALL, ADAMW, large, half, v07):
        for step in (0, 1, 4, 5, 30, 69, 150, 299, 300, 5000, 146_600, 200_000):
            expected = oracles.plain_rate(config, step, per_epoch)
            assert math.isclose(rate(config, step), expected, abs_tol=1e-12), (config.preset, step)


# --- the loop -------------------------------------------------------------------------------------


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
    statistics: list[list[Tensor]] = field(default_factory=list)
    """Running means and variances before each step of the optimiser."""


def record_training(config: Config, num_steps: int, seed: int = 1) -> Recording:
    """Run the real loop of train.py in float64 on made-up data, and look on.

    float64: it is made the default type, and `.float()` in our code is turned into `.double()`.
    """
    recording = Recording()
    networks: list[model.SSD] = []
    real_optimizer, real_batches = train.make_optimizer, data.train_batches

    def make_optimizer(network: model.SSD, config: Config) -> torch.optim.Optimizer:
        networks.append(network)
        return real_optimizer(network, config)

    def train_batches(*arguments: Any) -> Iterator[data.Batch]:
        for batch in real_batches(*arguments):
            batch = dataclasses.replace(batch, boxes=batch.boxes.double())
            recording.batches.append(batch)
            yield batch

    def before(*_: object) -> None:
        if not recording.first_state:
            state = networks[0].state_dict()
            recording.first_state = {name: value.clone() for name, value in state.items()}
        gradients = [weights.grad for weights in networks[0].parameters()]
        recording.gradients.append([g.clone() for g in gradients if g is not None])
        recording.statistics.append(statistics_of(networks[0]))

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


def statistics_of(network: torch.nn.Module) -> list[Tensor]:
    """Running means and variances, in the order of the network's buffers."""
    return [
        buffer.clone()
        for name, buffer in network.named_buffers()
        if name.endswith(("running_mean", "running_var"))
    ]


def relative_difference(ours: list[Tensor], plain: list[Tensor]) -> float:
    """The largest over the tensors of |ours - plain| / |plain|, in the Euclidean norm."""
    return max(
        float((one - other).norm() / other.norm().clamp(min=1e-12))
        for one, other in zip(ours, plain, strict=True)
    )


def check_trajectory(
    config: Config = SMALL, num_steps: int = 30, bound: float = 1e-8
) -> tuple[float, ...]:
    """Our loop and one made of torchvision's parts go the same way, step by step in float64.

    From the same first weights and batches: loss, gradient norm, weights and running statistics.
    Returns the largest relative differences.
    """
    config = dataclasses.replace(config)
    recording = record_training(config, num_steps)
    assert len(recording.losses) == len(recording.weights) == num_steps
    corners = exact_corners(config)
    plain = oracles.TorchvisionDetector(config).double()
    plain.load(recording.first_state)
    # The first state was looked at after the first forward pass: its statistics are put back.
    for module in plain.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
    plain.train()
    ours = model.SSD(config).double()  # to bring weights into our layout and order
    own_names = [name for name, _ in ours.named_parameters()]
    weights = plain_weights(plain, own_names)
    optimizer: oracles.PlainSGD | oracles.PlainAdamW
    if config.optimizer == "sgd":
        optimizer = oracles.PlainSGD(weights, config.momentum, config.weight_decay)
    else:
        optimizer = oracles.PlainAdamW(weights, config.weight_decay)
    worst = (0.0,) * 4
    steps_per_epoch = math.ceil(config.num_train_images / config.batch_size)
    for step in range(num_steps):
        batch = recording.batches[step]
        deltas, logits = plain.outputs(oracles.plain_normalized(batch.images))
        total = torch.zeros((), dtype=torch.float64)
        for image, labels in enumerate(batch.labels):
            count = int((labels > 0).sum())
            boxes = batch.boxes[image, :count].double()
            targets = oracles.plain_targets(boxes, labels[:count], corners)
            total = total + oracles.plain_image_loss(deltas[image], logits[image], *targets)
        total = total / len(batch.labels)
        gradients = list(torch.autograd.grad(total, weights))
        if config.max_gradient_norm:
            gradients = oracles.plain_clip(gradients, config.max_gradient_norm)
        statistics = statistics_of(plain.features)
        optimizer.step(gradients, oracles.plain_rate(config, step, steps_per_epoch))
        found = (
            abs(recording.losses[step] / float(total) - 1),
            abs(norm(recording.gradients[step]) / norm(gradients) - 1),
            relative_difference(
                in_their_layout(recording.weights[step], config, own_names),
                [weight.detach() for weight in weights],
            ),
            relative_difference(recording.statistics[step], statistics),
        )
        assert max(found) <= bound, f"step {step + 1}: loss, gradient, weights, statistics {found}"
        worst = tuple(max(pair) for pair in zip(worst, found, strict=True))
    return worst


def exact_corners(config: Config) -> Tensor:
    """Corners of the default boxes as `record_training` has them: never rounded to float32."""
    with mock.patch.object(Tensor, "float", Tensor.double):
        return default_boxes.DefaultBoxes(config).corners


def plain_weights(plain: oracles.TorchvisionDetector, own_names: list[str]) -> list[Tensor]:
    """The plain network's weights in the order of ours."""
    named = dict(plain.named_parameters())
    order = []
    for name in own_names:
        if name.startswith("backbone."):
            order.append(named[f"features.{name}"])
        elif name.startswith("extra_layers."):
            order.append(named[name.replace("extra_layers", "features.extra")])
        else:
            kind, number, rest = name.split(".")
            part = "classification_head" if kind == "class_heads" else "regression_head"
            order.append(named[f"head.{part}.module_list.{number}.{rest}"])
    return order


def in_their_layout(weights: list[Tensor], config: Config, own_names: list[str]) -> list[Tensor]:
    """Our weights with the channels of the heads as torchvision has them."""
    turned = []
    for name, value in zip(own_names, weights, strict=True):
        if name.startswith(("class_heads", "box_heads")):
            num_columns = config.num_classes if name.startswith("class") else 4
            value = value.reshape(num_columns, -1, *value.shape[1:]).transpose(0, 1)
            value = value.reshape(-1, *value.shape[2:])
        turned.append(value)
    return turned


def norm(tensors: list[Tensor]) -> float:
    """Euclidean norm over all tensors together."""
    return math.sqrt(sum(float((tensor**2).sum()) for tensor in tensors))


def check_adamw_trajectory() -> None:
    """The same with AdamW, clipped gradients and batch normalisation in the extra layers."""
    check_trajectory(ADAMW)


def check_gradient_is_mean_over_processes() -> None:
    """Processes with shares of a batch: their mean gradient is that of the halves accumulated."""
    config = dataclasses.replace(SMALL, batch_size=6, num_train_images=26)
    shares = []
    for rank in range(2):
        with as_process(rank, 2):
            shares.append(record_training(config, num_steps=1))
    state = shares[0].first_state
    assert all(
        torch.equal(state[name], shares[1].first_state[name])
        for name, _ in model.SSD(config).named_parameters()
    )
    corners = exact_corners(config)
    plain = oracles.TorchvisionDetector(config).double()
    plain.load(state)
    plain.train()
    names = [name for name, _ in model.SSD(config).named_parameters()]
    weights = plain_weights(plain, names)
    total = torch.zeros((), dtype=torch.float64)
    for share in shares:  # batch normalisation sees one half at a time
        batch = share.batches[0]
        assert len(batch.labels) == 3
        deltas, logits = plain.outputs(oracles.plain_normalized(batch.images))
        for image, labels in enumerate(batch.labels):
            count = int((labels > 0).sum())
            targets = oracles.plain_targets(
                batch.boxes[image, :count].double(), labels[:count], corners
            )
            total = total + oracles.plain_image_loss(deltas[image], logits[image], *targets) / 6
    gradients = torch.autograd.grad(total, weights)
    means = [sum(pair) / 2 for pair in zip(*(s.gradients[0] for s in shares), strict=True)]
    difference = relative_difference(in_their_layout(means, config, names), list(gradients))
    assert difference < 1e-8, difference


def equal_batches(ours: data.Batch, other: data.Batch) -> bool:
    """Whether two batches hold the same images, boxes and labels."""
    return all(
        numpy.array_equal(getattr(ours, name), getattr(other, name))
        for name in ("images", "boxes", "labels")
    )
