"""The same science a second time: plain and slow, from the texts, sharing no code with ours.

NumPy and Python integers; for the network, torchvision's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy
import torch
from numpy.typing import NDArray
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

FloatArray = NDArray[numpy.float32]

# --- images ---------------------------------------------------------------------------------------


def plain_resize(pixels: NDArray[numpy.generic], height: int, width: int) -> FloatArray:
    """TensorFlow 1's bilinear resize of [H, W, C]: the grid's first point is the first pixel's."""

    def points(size: int, new_size: int) -> tuple[NDArray[numpy.int64], ...]:
        step = numpy.float32(size) / numpy.float32(new_size)
        at = numpy.arange(new_size, dtype=numpy.float32) * step
        below = numpy.floor(at).astype(numpy.int64)
        return below, numpy.minimum(below + 1, size - 1), at - below.astype(numpy.float32)

    pixels = pixels.astype(numpy.float32)
    upper, lower, down = points(pixels.shape[0], height)
    left, right, across = points(pixels.shape[1], width)
    down, across = down[:, None, None], across[None, :, None]
    rows = [row[:, left] + (row[:, right] - row[:, left]) * across
            for row in (pixels[upper], pixels[lower])]  # fmt: skip
    return rows[0] + (rows[1] - rows[0]) * down


def plain_eval_image(pixels: NDArray[numpy.uint8], shorter_side: int, size: int) -> FloatArray:
    """Sides by the shorter one, truncated in float32; centre; means: [size, size, 3]."""
    ratio = numpy.float32(shorter_side) / numpy.float32(min(pixels.shape[:2]))
    height, width = (int(numpy.float32(side) * ratio) for side in pixels.shape[:2])
    resized = plain_resize(pixels, height, width)
    top, left = math.floor((height - size) / 2), math.floor((width - size) / 2)
    means = numpy.array([123.68, 116.78, 103.94], dtype=numpy.float32)
    return resized[top : top + size, left : left + size] - means


# --- order ----------------------------------------------------------------------------------------


def plain_interleave(shards: Sequence[Sequence[int]], at_a_time: int) -> list[int]:
    """A record of each open shard in turn; where one ends, the next is opened a round later."""
    waiting = [iter(shard) for shard in shards]
    slots: list[Iterator[int] | None] = [None] * at_a_time
    order: list[int] = []
    while waiting or any(slots):
        for place in range(at_a_time):
            if slots[place] is None and waiting:
                slots[place] = waiting.pop(0)
            record = next(slots[place] or iter(()), None)
            if record is None:
                slots[place] = None
            else:
                order.append(record)
    return order


# --- network --------------------------------------------------------------------------------------


def plain_parameters(
    num_filters: int, num_blocks: Sequence[int], stem_kernel: int, num_classes: int
) -> dict[str, int]:
    """Numbers of each kind, layer by layer from the table of section 2.1."""
    counts = {
        "convolutions": stem_kernel**2 * 3 * num_filters,
        "scales and offsets": 2 * num_filters,
    }
    channels = num_filters
    for stage, blocks in enumerate(num_blocks):
        width = num_filters * 2**stage
        for block in range(blocks):
            sizes = [(1, channels, width), (3, width, width), (1, width, 4 * width)]
            if block == 0:
                sizes.append((1, channels, 4 * width))
            counts["convolutions"] += sum(k * k * before * after for k, before, after in sizes)
            counts["scales and offsets"] += sum(2 * after for _, _, after in sizes)
            channels = 4 * width
    return counts | {"dense": (channels + 1) * num_classes}


def make_torch_resnet(
    num_blocks: Sequence[int], num_classes: int, own_pool: bool = False
) -> ResNet:
    """The one of torchvision, with TensorFlow's max pool (it pads below and to the right)."""
    network = ResNet(Bottleneck, list(num_blocks), num_classes=num_classes)
    if not own_pool:
        network.maxpool = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(3, 2))
    return network


def torch_layers(network: ResNet) -> tuple[list[nn.Conv2d], list[nn.BatchNorm2d]]:
    """Convolutions and normalisations; a block's projection comes first."""
    convolutions, normalizations = [network.conv1], [network.bn1]
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        for block in stage:
            if block.downsample is not None:
                convolutions.append(block.downsample[0])
                normalizations.append(block.downsample[1])
            convolutions += [block.conv1, block.conv2, block.conv3]
            normalizations += [block.bn1, block.bn2, block.bn3]
    return convolutions, normalizations


# --- recipe ---------------------------------------------------------------------------------------


def plain_learning_rate(
    step: int, batch_size: int, num_images: int, base: float, warmup: float, decay: Sequence[int]
) -> float:
    """Section 3: linear from 0 over the warm-up, then a tenth from the step after each boundary."""
    peak = base * batch_size / 256
    batches_per_epoch = num_images / batch_size
    num_warmup_steps = int(warmup * batches_per_epoch)
    if step < num_warmup_steps:
        return peak * step / num_warmup_steps
    return peak * 0.1 ** sum(step > int(batches_per_epoch * epoch) for epoch in decay)


# --- quality --------------------------------------------------------------------------------------


def plain_hits(logits: NDArray[numpy.floating], labels: Sequence[int], k: int) -> int:
    """Images with the label among the k first of a stable sort, and all logits numbers."""
    hits = 0
    for row, label in zip(logits.tolist(), labels, strict=True):
        best = sorted(range(len(row)), key=lambda number: -row[number])[:k]
        hits += label in best and not any(map(math.isnan, row))
    return hits


def as_torch_images(images: FloatArray) -> torch.Tensor:
    """NHWC to NCHW."""
    return torch.from_numpy(numpy.ascontiguousarray(images.transpose(0, 3, 1, 2)))
