"""Training written a second time, of torchvision's parts and plain loops.

Boxes have right and bottom inside; wherever a function of torchvision is called they get a pixel
more. What is drawn at random is drawn with the benchmark's own seeds, since chance has no oracle.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy
import torch
from pycocotools import mask as coco_mask
from torch import Tensor, nn
from torch.nn import functional
from torchvision import ops
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.resnet import Bottleneck
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from object_detection.config import Config
from object_detection.data import Batch
from object_detection.tests.oracles import their_name

ONE = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64)
"""From boxes with right and bottom inside to torchvision's."""


class Body(nn.Module):
    """torchvision's bottleneck blocks, one to a stage, with MSRA's strides and group norm."""

    def __init__(self, config: Config) -> None:
        super().__init__()

        def norm(count: int) -> nn.Module:
            return nn.GroupNorm(min(8, count // 4), count)

        filters = config.stem_channels
        self.conv1 = nn.Conv2d(3, filters, 7, 2, 3, bias=False)
        self.bn1 = norm(filters)
        inputs = filters
        for stage in range(4):
            outputs = 4 * filters * 2**stage
            stride = 1 if stage == 0 else 2
            shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs)
            )
            block = Bottleneck(inputs, outputs // 4, stride, shortcut, norm_layer=norm)
            block.conv1.stride, block.conv2.stride = (stride, stride), (1, 1)
            self.add_module(f"layer{stage + 1}", nn.Sequential(block))
            inputs = outputs

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """[B, 3, H, W] -> four maps."""
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(images))), 3, 2, 1)
        maps = OrderedDict()
        for stage in range(4):
            x = getattr(self, f"layer{stage + 1}")(x)
            maps[str(stage)] = x
        return maps


class PlainMaskRCNN(nn.Module):
    """The network out of torchvision's parts, under the names that its Mask R-CNN has."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        channels = config.fpn_channels
        counts = [4 * config.stem_channels * 2**stage for stage in range(4)]
        self.backbone = nn.Module()
        self.backbone.body = Body(config)
        self.backbone.fpn = ops.FeaturePyramidNetwork(counts, channels, LastLevelMaxPool())
        self.rpn = nn.Module()
        self.rpn.head = RPNHead(channels, len(config.aspect_ratios))
        heads = nn.Module()
        heads.box_head = TwoMLPHead(channels * 49, config.box_head_channels)
        heads.box_predictor = FastRCNNPredictor(config.box_head_channels, config.num_classes)
        width = config.mask_head_channels
        heads.mask_head = MaskRCNNHeads(channels, [width] * config.num_mask_convs, 1)
        heads.mask_predictor = MaskRCNNPredictor(width, width, config.num_classes)
        self.roi_heads = heads

    def load(self, ours: dict[str, Tensor]) -> None:
        """Take over the weights of our state dict; every one of them must fit."""
        self.load_state_dict({their_name(name): value for name, value in ours.items()})


def normalized(batch: Batch) -> Tensor:
    """Blue first, less the mean, zeros around each image [B, 3, H, W]."""
    means = torch.tensor([102.9801, 115.9465, 122.7717], dtype=torch.float64)
    images = torch.zeros(batch.images.shape, dtype=torch.float64)
    for image, pixels, (width, height) in zip(
        images, batch.images, batch.sizes.tolist(), strict=True
    ):
        inside = pixels[[2, 1, 0], :height, :width].double()
        image[:, :height, :width] = inside - means[:, None, None]
    return images


def all_anchors(config: Config, maps: list[Tensor]) -> list[Tensor]:
    """The specification's section 2.3, cell by cell."""
    levels = []
    for x, stride, size in zip(maps, config.strides, config.anchor_sizes, strict=True):
        rows = []
        for row, column in itertools.product(range(x.shape[2]), range(x.shape[3])):
            for ratio in config.aspect_ratios:
                width = numpy.round(math.sqrt(stride * stride / ratio))
                height = numpy.round(width * ratio)
                width, height = width * size / stride, height * size / stride
                x_centre = column * stride + 0.5 * (stride - 1)
                y_centre = row * stride + 0.5 * (stride - 1)
                left, top = x_centre - 0.5 * (width - 1), y_centre - 0.5 * (height - 1)
                rows.append([left, top, left + width - 1, top + height - 1])
        levels.append(torch.tensor(rows, dtype=torch.float64))
    return levels


def draw(labels: Tensor, count: int, most: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Places of positives and negatives that count."""
    places = []
    for wanted in (1, 0):
        found = torch.where(labels == wanted)[0]
        number = min(most if wanted else count - len(places[0]), len(found))
        places.append(found[torch.randperm(len(found), generator=generator)[:number]])
    return tuple(places)


def proposals_of(
    logits: list[Tensor],
    deltas: list[Tensor],
    anchors: list[Tensor],
    size: list[int],
    config: Config,
) -> Tensor:
    """The best boxes of one image [P, 4], before the objects' own come to them."""
    coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
    boxes, scores = [], []
    for some_logits, some_deltas, some_anchors in zip(logits, deltas, anchors, strict=True):
        best = torch.argsort(some_logits, descending=True)[: config.train_pre_nms]
        found = coder.decode_single(some_deltas[best], some_anchors[best] + ONE)
        found = ops.clip_boxes_to_image(found, (size[1], size[0]))
        found[:, 2:] = torch.maximum(found[:, 2:], torch.ones(2))  # right and bottom from 0 on
        found[:, 0].clamp_(max=size[0] - 1)
        found[:, 1].clamp_(max=size[1] - 1)
        kept = ops.nms(found, some_logits[best].sigmoid(), config.rpn_nms_iou)
        boxes.append(found[kept] - ONE)
        scores.append(some_logits[best][kept].sigmoid())
    order = torch.argsort(torch.cat(scores), descending=True)[: config.train_post_nms]
    return torch.cat(boxes)[order]


def pooled(maps: list[Tensor], boxes: Tensor, side: int, config: Config) -> Tensor:
    """RoIAlign of each region of an image by itself [R, C, side, side]."""
    rows = []
    for box in boxes:
        width, height = (box[2:] - box[:2] + 1).tolist()
        level = math.floor(4 + math.log2(math.sqrt(width * height) / config.canonical_size + 1e-6))
        level = min(max(level, 2), 5)
        row = torch.cat([box.new_tensor([0.0]), box])[None]
        scale = 0.5**level
        rows.append(
            ops.roi_align(maps[level - 2], row, side, scale, sampling_ratio=2, aligned=False)
        )
    return torch.cat(rows) if rows else maps[0].new_zeros(0, maps[0].shape[1], side, side)


def mask_target(polygons: list[Tensor], box: Tensor) -> Tensor:
    """What of a region the object covers [28, 28], by COCO's own code."""
    span = (box[2:] - box[:2]).clamp(min=1)
    moved = [((polygon - box[:2]) * (28 / span)).flatten().tolist() for polygon in polygons]
    runs = coco_mask.merge(coco_mask.frPyObjects(moved, 28, 28))
    return torch.from_numpy(coco_mask.decode(runs)).double()


def smooth_l1(difference: Tensor, beta: float) -> Tensor:
    """Summed."""
    size = difference.abs()
    return torch.where(size < beta, 0.5 * size**2 / beta, size - 0.5 * beta).sum()


@dataclass
class Sums:
    """Losses of a batch so far, each with what it will be divided by."""

    losses: list[Tensor] = field(default_factory=lambda: [torch.zeros(()).double()] * 5)
    counts: list[int] = field(default_factory=lambda: [0] * 5)

    def add(self, number: int, loss: Tensor | float, count: int = 0) -> None:
        """To one of the five."""
        self.losses[number] = self.losses[number] + loss
        self.counts[number] += count

    def means(self) -> Tensor:
        """[5]."""
        pairs = zip(self.losses, self.counts, strict=True)
        return torch.stack([loss / max(1, count) for loss, count in pairs])


def five_losses(network: PlainMaskRCNN, batch: Batch, config: Config) -> Tensor:
    """Objectness, proposals' boxes, classes, boxes, masks [5]."""
    features = network.backbone.fpn(network.backbone.body(normalized(batch)))
    maps = list(features.values())
    head_logits, head_deltas = network.rpn.head(maps)
    # [B, A, H, W] and [B, 4A, H, W] by row, column, anchor.
    logits = [x.permute(0, 2, 3, 1).flatten(1) for x in head_logits]
    deltas = [x.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3) for x in head_deltas]
    anchors = all_anchors(config, maps)
    sums = Sums()
    limits = batch.first_object.tolist()
    for image, size in enumerate(batch.sizes.tolist()):
        generator = torch.Generator().manual_seed(int(batch.sampling_seeds[image]))
        numbers = range(limits[image], limits[image + 1])
        boxes = batch.boxes[numbers.start : numbers.stop].double()
        some_logits, some_deltas = [x[image] for x in logits], [x[image] for x in deltas]
        add_proposal_losses(sums, some_logits, some_deltas, anchors, boxes, size, generator, config)
        detached = [[x.detach() for x in some] for some in (some_logits, some_deltas)]
        regions = torch.cat([proposals_of(*detached, anchors, size, config), boxes])
        roles = torch.zeros(len(regions))
        shown = torch.zeros(len(regions), dtype=torch.int64)
        if len(boxes):
            matched = Matcher(0.5, 0.5, False)(ops.box_iou(boxes + ONE, regions + ONE))
            roles, shown = (matched >= 0).double(), matched.clamp(min=0)
        positive, negative = draw(
            roles, config.roi_batch_size, config.roi_batch_size // 4, generator
        )
        chosen = torch.cat([positive, negative])
        labels = batch.labels[numbers.start : numbers.stop][shown[positive]]
        targets = boxes[shown[positive]]
        of_image = [x[image : image + 1] for x in maps]
        add_box_losses(sums, network, of_image, regions[chosen], labels, targets, config)
        objects = [numbers[number] for number in shown[positive].tolist()]
        add_mask_loss(sums, network, of_image, regions[positive], labels, objects, batch, config)
    return sums.means()


def add_proposal_losses(
    sums: Sums,
    logits: list[Tensor],
    deltas: list[Tensor],
    anchors: list[Tensor],
    boxes: Tensor,
    size: list[int],
    generator: torch.Generator,
    config: Config,
) -> None:
    """Of one image. Anchors that reach out of it do not count."""
    together = torch.cat(anchors)
    roles = torch.zeros(len(together))
    shown = torch.zeros(len(together), dtype=torch.int64)
    if len(boxes):
        quality = ops.box_iou(boxes + ONE, together + ONE)
        matched = Matcher(0.7, 0.3, allow_low_quality_matches=True)(quality)
        roles = torch.where(matched == -1, 0.0, torch.where(matched == -2, -1.0, 1.0))
        shown = matched.clamp(min=0)
    outside = (together[:, :2] < 0).any(1) | (together[:, 2] >= size[0])
    roles[outside | (together[:, 3] >= size[1])] = -1
    positive, negative = draw(roles, config.rpn_batch_size, config.rpn_batch_size // 2, generator)
    found = torch.cat(logits)
    for places, truth in ((positive, 1.0), (negative, 0.0)):
        loss = functional.binary_cross_entropy_with_logits(
            found[places], torch.full_like(found[places], truth), reduction="sum"
        )
        sums.add(0, loss, len(places))
    sums.add(1, 0.0, len(positive) + len(negative))
    if len(positive):
        coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
        expected = coder.encode_single(boxes[shown[positive]] + ONE, together[positive] + ONE)
        sums.add(1, smooth_l1(torch.cat(deltas)[positive] - expected, 1 / 9))


def add_box_losses(
    sums: Sums,
    network: PlainMaskRCNN,
    maps: list[Tensor],
    regions: Tensor,
    labels: Tensor,
    targets: Tensor,
    config: Config,
) -> None:
    """Of one image's regions, those with an object, as many as there are labels, first."""
    classes = torch.cat([labels, labels.new_zeros(len(regions) - len(labels))])
    hidden = network.roi_heads.box_head(pooled(maps, regions, 7, config))
    scores, box_deltas = network.roi_heads.box_predictor(hidden)
    loss = functional.cross_entropy(scores, classes, reduction="sum")
    sums.add(2, loss, len(regions))
    sums.add(3, 0.0, len(regions))
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
    for row, kind in enumerate(labels.tolist()):
        expected = coder.encode_single(targets[row, None] + ONE, regions[row, None] + ONE)[0]
        sums.add(3, smooth_l1(box_deltas[row, 4 * kind : 4 * kind + 4] - expected, 1.0))


def add_mask_loss(
    sums: Sums,
    network: PlainMaskRCNN,
    maps: list[Tensor],
    regions: Tensor,
    labels: Tensor,
    objects: list[int],
    batch: Batch,
    config: Config,
) -> None:
    """Of one image's regions with an object; objects: their numbers in the batch."""
    masks = network.roi_heads.mask_predictor(
        network.roi_heads.mask_head(pooled(maps, regions, 14, config))
    )
    for row, number in enumerate(objects):
        polygons = [
            batch.corners[batch.first_corner[p] : batch.first_corner[p + 1]]
            for p in range(batch.first_polygon[number], batch.first_polygon[number + 1])
        ]
        truth = mask_target(polygons, regions[row])
        loss = functional.binary_cross_entropy_with_logits(
            masks[row, int(labels[row])], truth, reduction="sum"
        )
        sums.add(4, loss, truth.numel())


class PlainSGD:
    """Velocity = momentum * velocity + gradient; biases twice as fast and without decay."""

    def __init__(self, config: Config, network: nn.Module) -> None:
        self.config = config
        self.named = [(name, w) for name, w in network.named_parameters() if w.requires_grad]
        self.velocities = [torch.zeros_like(weight) for _, weight in self.named]

    @torch.no_grad()
    def step(self, gradients: list[Tensor], rate: float) -> None:
        """One step downhill."""
        for place, (name, weight) in enumerate(self.named):
            is_bias = name.endswith("bias")
            gradient = gradients[place]
            if not is_bias:
                gradient = gradient + self.config.weight_decay * weight
            velocity = self.config.momentum * self.velocities[place] + gradient
            self.velocities[place] = velocity
            weight -= rate * (self.config.bias_rate_factor if is_bias else 1.0) * velocity


def plain_rate(config: Config, step: int) -> float:
    """The specification's section 3: iteration i counts from 1."""
    i = step + 1
    rate = config.base_learning_rate * config.batch_size / config.base_batch_size
    for boundary in config.decay_iterations:
        if i >= round(boundary * config.base_batch_size / config.batch_size):
            rate = rate / 10
    if i < config.warmup_steps:
        alpha = i / config.warmup_steps
        rate = rate * (config.warmup_factor * (1 - alpha) + alpha)
    return rate


def clipped(gradients: list[Tensor], longest: float) -> list[Tensor]:
    """Gradients scaled to at most this length together (PyTorch divides by the norm plus 1e-6)."""
    length = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients))
    factor = min(1.0, longest / (length + 1e-6))
    return [gradient * factor for gradient in gradients]
