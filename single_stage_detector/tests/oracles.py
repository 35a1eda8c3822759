"""Independent implementations that ours are held against: torchvision's parts, and plain loops."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection import _utils as detection_utils
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD, SSDHead

from single_stage_detector.config import Config

CODER = detection_utils.BoxCoder((10.0, 10.0, 5.0, 5.0))


def table(config: Config, sizes: Sequence[int]) -> Tensor:
    """Torchvision's default boxes: corners [A, 4] relative to the image, ordered as ours are.

    torchvision has the shapes of a cell together; ours come shape by shape.
    """
    generator = DefaultBoxGenerator(
        [list(ratios) for ratios in config.aspect_ratios],
        scales=[scale / config.input_size for scale in config.box_scales],
        steps=list(config.map_strides),
    )
    side = config.input_size
    images = ImageList(torch.zeros(1, 3, side, side), [(side, side)])
    maps = [torch.zeros(1, 1, size, size) for size in sizes]
    (boxes,) = generator(images, maps)
    pieces = []
    start = 0
    for size, ratios in zip(sizes, config.aspect_ratios, strict=True):
        num_shapes = 2 + 2 * len(ratios)
        piece = boxes[start : start + size * size * num_shapes]
        pieces.append(piece.view(size * size, num_shapes, 4).transpose(0, 1).reshape(-1, 4))
        start += size * size * num_shapes
    return torch.cat(pieces) / side


def plain_match(boxes: Tensor, corners: Tensor) -> Tensor:
    """Object of each default box [A], -1 for background, by torchvision; boxes [M, 4]."""
    if len(boxes) == 0:
        return torch.full((len(corners),), -1)
    matcher = detection_utils.SSDMatcher(0.5)
    objects: Tensor = matcher(torchvision.ops.box_iou(boxes, corners))
    return objects.clamp(min=-1)


def plain_targets(boxes: Tensor, labels: Tensor, corners: Tensor) -> tuple[Tensor, Tensor]:
    """Deltas [A, 4], zero for background, and labels [A] of one image, by torchvision."""
    objects = plain_match(boxes, corners)
    target_labels = torch.zeros(len(corners), dtype=torch.int64)
    deltas = torch.zeros(len(corners), 4, dtype=corners.dtype)
    found = objects >= 0
    target_labels[found] = labels[objects[found]]
    deltas[found] = CODER.encode_single(boxes[objects[found]], corners[found])
    return deltas, target_labels


def plain_image_loss(deltas: Tensor, logits: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
    """Loss of one image, as the specification words it: [A, 4], [A, C], [A, 4], [A]."""
    matches = labels > 0
    num_matches = int(matches.sum())
    if num_matches == 0:
        return logits.sum() * 0
    errors = (deltas - targets)[matches].abs()
    box_loss = torch.where(errors < 1, errors**2 / 2, errors - 0.5).sum()
    entropies = torch.logsumexp(logits, dim=1) - logits.gather(1, labels[:, None])[:, 0]
    hardest, _ = torch.sort(entropies[~matches], descending=True)
    class_loss = entropies[matches].sum() + hardest[: 3 * num_matches].sum()
    return (box_loss + class_loss) / num_matches


def plain_detections(
    boxes: Tensor, scores: Tensor, min_score: float, nms_iou: float, most: int
) -> list[tuple[int, float, list[float]]]:
    """Label, score and box of what one image shows, by torchvision: boxes [A, 4], scores [A, C]."""
    found_boxes, found_scores, found_labels = [], [], []
    for label in range(1, scores.shape[1]):
        above = scores[:, label] > min_score
        best, places = scores[above, label].topk(min(most, int(above.sum())))
        found_boxes.append(boxes[above][places])
        found_scores.append(best)
        found_labels.append(torch.full_like(places, label))
    box, score, kind = (torch.cat(x) for x in (found_boxes, found_scores, found_labels))
    kept = torchvision.ops.batched_nms(box, score, kind, nms_iou)[:most]
    rows = zip(kind[kept].tolist(), score[kept].tolist(), box[kept].tolist(), strict=True)
    return list(rows)


class TorchvisionBackbone(nn.Module):
    """torchvision's ResNet with the strides of SSD's, its first three stages alone."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        block = torchvision.models.resnet.BasicBlock
        resnet = torchvision.models.ResNet(block, [*config.num_blocks, 1])
        first = resnet.layer3[0]
        first.conv1.stride = first.downsample[0].stride = (1, 1)
        names = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3")
        for name in names:
            self.add_module(name, getattr(resnet, name))

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, 256, S / 8, S / 8]."""
        for part in self.children():
            images = part(images)
        return images


class TorchvisionFeatures(nn.Module):
    """Backbone and extra layers in the form that torchvision's SSD takes."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.backbone = TorchvisionBackbone(config)
        self.extra = nn.ModuleList()
        count = 256
        for layer in config.extra_layers:
            parts = OrderedDict[str, nn.Module]()
            parts["0"] = nn.Conv2d(count, layer.num_bottleneck, 1)
            middle = nn.Conv2d(
                layer.num_bottleneck,
                layer.num_channels,
                3,
                stride=layer.stride,
                padding=layer.padding,
            )
            if config.extra_batch_norm:
                parts["1"], parts["2"] = nn.BatchNorm2d(layer.num_bottleneck), nn.ReLU()
                parts["3"] = middle
                parts["4"], parts["5"] = nn.BatchNorm2d(layer.num_channels), nn.ReLU()
            else:
                parts["1"], parts["2"], parts["3"] = nn.ReLU(), middle, nn.ReLU()
            self.extra.append(nn.Sequential(parts))
            count = layer.num_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """[B, 3, S, S] -> feature maps by number."""
        maps = [self.backbone(images)]
        for layer in self.extra:
            maps.append(layer(maps[-1]))
        return OrderedDict((str(number), x) for number, x in enumerate(maps))


class TorchvisionDetector(nn.Module):
    """torchvision's SSD around the same network, with its own layout of the outputs.

    `load` copies our weights into it.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        channels = [256, *(layer.num_channels for layer in config.extra_layers)]
        num_shapes = [2 + 2 * len(ratios) for ratios in config.aspect_ratios]
        self.features = TorchvisionFeatures(config)
        self.head = SSDHead(channels, num_shapes, config.num_classes)
        generator = DefaultBoxGenerator(
            [list(ratios) for ratios in config.aspect_ratios],
            scales=[scale / config.input_size for scale in config.box_scales],
            steps=list(config.map_strides),
        )
        side = config.input_size
        self.whole = SSD(
            self.features,
            generator,
            (side, side),
            config.num_classes,
            head=self.head,
            image_mean=[0.485, 0.456, 0.406],
            image_std=[0.229, 0.224, 0.225],
            score_thresh=config.min_score,
            nms_thresh=config.nms_iou,
            detections_per_img=config.max_detections,
            topk_candidates=config.max_detections,
        )

    def load(self, ours: dict[str, Tensor]) -> None:
        """Take over the weights of our SSD's state dict; every one of them must fit."""
        theirs = {}
        for name, value in ours.items():
            if name.startswith("backbone."):
                theirs[f"features.{name}"] = value
            elif name.startswith("extra_layers."):
                theirs[name.replace("extra_layers", "features.extra")] = value
            else:
                heads = name.startswith("class_heads")
                part = "classification_head" if heads else "regression_head"
                _, number, rest = name.split(".")
                num_columns = self.config.num_classes if heads else 4
                # Channels: ours (column, shape), theirs (shape, column).
                value = value.reshape(num_columns, -1, *value.shape[1:]).transpose(0, 1)
                value = value.reshape(-1, *value.shape[2:])
                theirs[f"head.{part}.module_list.{number}.{rest}"] = value
        own = {name: value for name, value in self.state_dict().items() if name[:6] != "whole."}
        assert own.keys() == theirs.keys()
        self.load_state_dict(theirs, strict=False)

    def outputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Deltas [B, A, 4] and logits [B, A, C] of normalised images, boxes ordered as ours are."""
        maps = list(self.features(images).values())
        found = self.head(maps)
        pieces: list[list[Tensor]] = []
        for x in (found["bbox_regression"], found["cls_logits"]):
            start = 0
            parts = []
            for features, ratios in zip(maps, self.config.aspect_ratios, strict=True):
                num_shapes = 2 + 2 * len(ratios)
                num_cells = features.shape[-1] * features.shape[-2]
                part = x[:, start : start + num_cells * num_shapes]
                part = part.view(len(x), num_cells, num_shapes, -1).transpose(1, 2)
                parts.append(part.flatten(1, 2))
                start += num_cells * num_shapes
            pieces.append(parts)
        deltas, logits = (torch.cat(parts, dim=1) for parts in pieces)
        return deltas, logits


class PlainSGD:
    """SGD with momentum as v0.5 wrote it: velocity = momentum * velocity + gradient."""

    def __init__(self, weights: list[Tensor], momentum: float, weight_decay: float) -> None:
        self.weights, self.momentum, self.weight_decay = weights, momentum, weight_decay
        self.velocities: list[Tensor] | None = None

    @torch.no_grad()
    def step(self, gradients: list[Tensor], rate: float) -> None:
        """One step downhill."""
        decayed = [
            gradient + self.weight_decay * weight
            for gradient, weight in zip(gradients, self.weights, strict=True)
        ]
        before = self.velocities or [torch.zeros_like(weight) for weight in self.weights]
        self.velocities = [
            self.momentum * velocity + gradient
            for velocity, gradient in zip(before, decayed, strict=True)
        ]
        for weight, velocity in zip(self.weights, self.velocities, strict=True):
            weight -= rate * velocity


class PlainAdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2)."""

    def __init__(self, weights: list[Tensor], weight_decay: float) -> None:
        self.weights, self.weight_decay = weights, weight_decay
        self.means = [torch.zeros_like(weight) for weight in weights]
        self.squares = [torch.zeros_like(weight) for weight in weights]
        self.num_steps = 0

    @torch.no_grad()
    def step(self, gradients: list[Tensor], rate: float) -> None:
        """One step downhill."""
        self.num_steps += 1
        for place, gradient in enumerate(gradients):
            weight = self.weights[place]
            weight *= 1 - rate * self.weight_decay
            self.means[place] = 0.9 * self.means[place] + 0.1 * gradient
            self.squares[place] = 0.999 * self.squares[place] + 0.001 * gradient**2
            mean = self.means[place] / (1 - 0.9**self.num_steps)
            square = self.squares[place] / (1 - 0.999**self.num_steps)
            weight -= rate * mean / (square.sqrt() + 1e-8)


def plain_rate(config: Config, step: int, steps_per_epoch: int) -> float:
    """Learning rate of a step, counted from 0."""
    rate = config.base_learning_rate * config.batch_size / config.base_batch_size
    scale = config.base_batch_size / config.batch_size
    falls = [round(iteration * scale) for iteration in config.decay_iterations]
    if config.decay_epochs:
        falls = [round(epoch * steps_per_epoch) for epoch in config.decay_epochs]
    for fall in falls:
        if step >= fall:
            rate = rate / 10
    left = config.warmup_steps - step
    if left > 0:
        rate = rate - left * rate / (config.warmup_steps * math.pow(2, config.warmup_factor))
    return rate


def plain_clip(gradients: list[Tensor], longest: float) -> list[Tensor]:
    """Gradients scaled to at most this length together (PyTorch divides by the norm plus 1e-6)."""
    length = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients))
    factor = min(1.0, longest / (length + 1e-6))
    return [gradient * factor for gradient in gradients]


def plain_normalized(images: Tensor) -> Tensor:
    """Pixels [B, 3, S, S] by torchvision's transform."""
    return torchvision.transforms.functional.normalize(
        images.double() / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    )


def softmax(logits: Tensor) -> Tensor:
    """Over the last axis."""
    return functional.softmax(logits, dim=-1)
