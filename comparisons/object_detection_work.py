"""What both programs of comparisons.object_detection work on, and their clock.

A batch of made-up images with about as many objects as COCO's have and their outlines, a network
whose random weights find about as much as a trained one, masks of one image that are to be pasted,
and a COCO result set of boxes and masks.

Shapes: B images, R regions of all images together, C channels, D detections of an image.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from pycocotools import mask as coco_mask
from torch import Tensor, nn
from torch.nn import functional

from comparisons.single_stage_detector_work import FloatArray, draw_boxes, median_s
from object_detection import box_head, shapes
from object_detection.anchors import make_anchors
from object_detection.backbone import FrozenBatchNorm
from object_detection.boxes import Boxes
from object_detection.config import REFERENCE, Config
from object_detection.data import Batch, collate_for_training
from object_detection.mask_head import MASK_SIZE
from object_detection.masks import outlines_of
from object_detection.model import MaskRCNN, normalize_pixels
from object_detection.region_proposals import propose
from object_detection.regions import read_regions
from object_detection.schedule import learning_rate
from object_detection.train import make_optimizer
from object_detection.training_losses import LOSSES
from object_detection.transforms import to_objects

MIN_OBJECTS, MAX_OBJECTS = 3, 12
"""Of an image. COCO's training set has 7.3 in the mean (860,001 in 117,266)."""
MIN_RADIUS, MAX_RADIUS = 1 / 40, 3 / 10
"""Of objects, as parts of the image's height."""
CANDIDATES_PER_IMAGE = 600
"""Boxes with a score that counts, of the network with random weights, about."""
ORIGINAL_WIDTH, ORIGINAL_HEIGHT = 640, 480
"""Of the image that masks are pasted into and of those of the COCO evaluation, in pixels."""
MEAN_OBJECTS = 7.3
"""Of an image of the COCO evaluation."""
DETECTIONS_PER_OBJECT = 3
"""Of the COCO evaluation."""
OTHER_DETECTIONS = 20
"""Detections of an image that are at no object, in the COCO evaluation."""
CROWD_ONE_IN = 80
"""One of so many objects of the COCO evaluation is a crowd."""
NUM_CORNERS = 16
"""Of an outline of the COCO evaluation."""
MASKS_TOLERANCE = 0.03
"""Part by which the number of regions whose masks are trained may differ from the expected one."""

Runs = dict[str, Any]
"""A bitmap in COCO's compressed form."""


@dataclass(frozen=True)
class Work:
    """How much of it; the defaults are what is compared."""

    seed: int
    batch_size: int = 2
    """Images of a step and of an inference."""
    width: int = 1_333
    """Of these images, in pixels."""
    height: int = 800
    """The same."""
    num_blocks: tuple[int, int, int, int] = REFERENCE.num_blocks
    """Bottleneck blocks of the backbone's stages."""
    roi_batch_size: int = REFERENCE.roi_batch_size
    """Proposals of an image that count in a step."""
    max_detections: int = REFERENCE.max_detections
    """Detections of an image, and masks of the one that they are pasted into."""
    num_steps: int = 1
    """Training steps on the clock, and inferences of a batch."""
    num_pastings: int = 15
    """Of an image's masks, on the clock."""
    num_coco_images: int = 500
    """Images of the COCO evaluation."""
    num_coco_calls: int = 2
    """COCO evaluations on the clock, each of boxes and of masks."""

    @property
    def config(self) -> Config:
        """The reference preset with this batch, backbone and number of regions."""
        return dataclasses.replace(
            REFERENCE,
            batch_size=self.batch_size,
            num_blocks=self.num_blocks,
            roi_batch_size=self.roi_batch_size,
            max_detections=self.max_detections,
        )


# --- batch and network ----------------------------------------------------------------------------


def make_batch(work: Work) -> Batch:
    """Shapes before noise, as our loader would hand them to a training step."""
    stream = numpy.random.default_rng(work.seed)
    min_radius, max_radius = (round(part * work.height) for part in (MIN_RADIUS, MAX_RADIUS))
    recipe = shapes.Recipe(
        work.width, work.height, MIN_OBJECTS, MAX_OBJECTS, min_radius, max_radius, empty_one_in=0
    )
    examples = []
    for number in range(work.batch_size):
        picture = shapes.draw_picture(recipe, work.seed, number)
        boxes = numpy.array([annotation["bbox"] for annotation in picture.annotations])
        labels = stream.integers(1, work.config.num_classes, len(boxes))
        outlines = outlines_of(annotation["segmentation"] for annotation in picture.annotations)
        size = (work.width, work.height)
        objects = to_objects(boxes, labels, outlines, size, work.config.legacy_coords)
        pixels = numpy.ascontiguousarray(picture.pixels.transpose(2, 0, 1))
        examples.append((pixels, objects, int(stream.integers(2**63))))
    return collate_for_training(examples, work.config.size_divisor)


@torch.no_grad()
def make_network(work: Work, batch: Batch) -> tuple[MaskRCNN, int]:
    """Our network, and the number of regions of the batch that it is to learn masks of, about.

    The weights are random but for those that would find nothing as they are initialised: the
    objectness sees the objects, more or less, and so many classes are likely as of a trained one.
    """
    config = work.config
    torch.manual_seed(work.seed)
    network = MaskRCNN(config).eval()
    norms = [module for module in network.modules() if isinstance(module, FrozenBatchNorm)]
    hooks = [norm.register_forward_pre_hook(normalise) for norm in norms]
    maps = network.pyramid(network.backbone(normalize_pixels(batch.images, batch.sizes, config)))
    for hook in hooks:
        hook.remove()

    head, anchors = network.proposal_head, make_anchors(config, maps)
    hidden = [torch.relu(head.conv(x)) for x in maps]
    overlaps = best_overlaps(batch, torch.cat(anchors), config)
    fit(head.objectness, hidden, overlaps.unflatten(1, (-1, len(config.aspect_ratios))))
    spread(head.deltas, hidden, 0.05)
    objectness, deltas = head(maps)
    proposals = propose(objectness, deltas, anchors, batch.sizes, config, is_training=True)
    num_masks = count_foreground(batch, proposals, config)

    proposals = propose(objectness, deltas, anchors, batch.sizes, config, is_training=False)
    regions = read_regions(maps, proposals, box_head.REGION_SIZE, config).flatten(1)
    layers = network.box_head
    vectors = torch.relu(layers.fc7(torch.relu(layers.fc6(regions))))
    spread(layers.deltas, [vectors], 0.5)
    spread(layers.classes, [vectors], 2.0)
    surest = layers.classes(vectors)[:, 1:].flatten().topk(CANDIDATES_PER_IMAGE * work.batch_size)
    layers.classes.weight[0] = 0  # background: everywhere so much that no more than these count
    layers.classes.bias[0] = surest.values[-1] - math.log(config.min_score)
    return network, num_masks


def normalise(norm: FrozenBatchNorm, inputs: tuple[Tensor]) -> None:
    """A hook that makes the constants those of what comes in, as a pretrained network's are."""
    some = inputs[0][..., ::2, ::2]
    norm.running_mean.copy_(some.mean(dim=(0, 2, 3)))
    norm.running_var.copy_(some.var(dim=(0, 2, 3)).clamp(min=1e-6))


def spread(layer: nn.Conv2d | nn.Linear, inputs: Sequence[Tensor], deviation: float) -> None:
    """Make each channel's outputs for these inputs [R, C, ...] have mean 0 and this deviation."""
    outputs = torch.cat([layer(x).transpose(0, 1).flatten(1) for x in inputs], dim=1)
    scale = deviation / outputs.std(dim=1).clamp(min=1e-6)
    layer.weight.mul_(scale.view(-1, *[1] * (layer.weight.dim() - 1)))
    layer.bias.copy_((layer.bias - outputs.mean(dim=1)) * scale)  # type: ignore[union-attr]


def best_overlaps(batch: Batch, anchors: Tensor, config: Config) -> Tensor:
    """Of each anchor with the object of each image that it overlaps most [B, anchors]."""
    overlap = Boxes(config.legacy_coords).intersection_over_union
    return torch.stack([overlap(some.boxes, anchors).amax(dim=0) for some in batch.objects()])


def fit(layer: nn.Conv2d, inputs: Sequence[Tensor], values: Tensor) -> None:
    """Make a 1x1 convolution's outputs for these maps the values [B, cells, outputs], by least
    squares.
    """
    cells = torch.cat([x.flatten(2).transpose(1, 2) for x in inputs], dim=1)  # [B, cells, C]
    columns = functional.pad(cells, (0, 1), value=1).flatten(0, 1)
    products = (columns.T @ columns).double()
    products.diagonal().add_(1e-3 * products.diagonal().mean())
    weights = torch.linalg.solve(products, (columns.T @ values.flatten(0, 1)).double())
    layer.weight.copy_(weights[:-1].T[..., None, None])
    layer.bias.copy_(weights[-1])  # type: ignore[union-attr]


def count_foreground(batch: Batch, proposals: Sequence[Tensor], config: Config) -> int:
    """Regions of a step that show an object, of all images."""
    most = int(config.roi_batch_size * box_head.FOREGROUND_SHARE)
    overlap = Boxes(config.legacy_coords).intersection_over_union
    count = 0
    for some, objects in zip(proposals, batch.objects(), strict=True):
        best = overlap(objects.boxes, torch.cat([some, objects.boxes])).amax(dim=0)
        count += min(most, int((best >= box_head.MIN_FOREGROUND).sum()))
    return count


def optimizer_of(network: nn.Module, config: Config) -> torch.optim.Optimizer:
    """Our optimiser, at the rate of the first step, for our network or another's with its names."""
    optimizer = make_optimizer(network, config)  # type: ignore[arg-type]
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, 0) * group["rate_factor"]
    return optimizer


# --- masks and results ----------------------------------------------------------------------------


def make_masks(work: Work) -> tuple[Tensor, Tensor]:
    """Probabilities [D, 28, 28] and boxes [D, 4] of as many detections as an image may have.

    Each mask is a blob with an uneven edge.
    """
    stream = numpy.random.default_rng(work.seed)
    size = numpy.array([ORIGINAL_WIDTH, ORIGINAL_HEIGHT] * 2)
    boxes = draw_boxes(stream, work.max_detections) * size
    coarse = torch.from_numpy(stream.uniform(-1.5, 1.5, (len(boxes), 1, 7, 7)))
    unevenness = functional.interpolate(coarse, (MASK_SIZE, MASK_SIZE), mode="bicubic")[:, 0]
    places = torch.linspace(-1, 1, MASK_SIZE, dtype=torch.float64)
    radii = torch.hypot(places[:, None], places)
    masks = (8 * (0.8 - radii) + unevenness).sigmoid()
    return masks.float(), torch.from_numpy(boxes).float()


def make_results(work: Work) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """An instances file with outlines and crowds, and results as our evaluation has them."""
    stream = numpy.random.default_rng(work.seed)
    num_kinds = work.config.num_classes - 1
    pixels = numpy.array([ORIGINAL_WIDTH, ORIGINAL_HEIGHT] * 2)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image_id in range(1, work.num_coco_images + 1):
        size = {"width": ORIGINAL_WIDTH, "height": ORIGINAL_HEIGHT}
        images.append({"id": image_id, "file_name": "", **size})
        count = int(stream.geometric(1 / MEAN_OBJECTS))
        boxes = draw_boxes(stream, count) * pixels
        radii = stream.uniform(0.6, 1, (count, NUM_CORNERS))
        kinds = stream.integers(1, num_kinds + 1, count)
        for box, some, kind in zip(boxes, radii, kinds.tolist(), strict=True):
            annotation = {"id": len(annotations) + 1, "image_id": image_id, "category_id": kind}
            annotations.append(annotation | describe(box, some, stream.integers(CROWD_ONE_IN) == 0))

        shifts = 0.1 * stream.standard_normal((DETECTIONS_PER_OBJECT, count, 4))
        near = boxes + shifts * numpy.tile(boxes[:, 2:] - boxes[:, :2], 2)
        corners = numpy.vstack([*near, draw_boxes(stream, OTHER_DETECTIONS) * pixels])
        corners[:, 2:] = numpy.maximum(corners[:, 2:], corners[:, :2] + 1)
        other_kinds = stream.integers(1, num_kinds + 1, OTHER_DETECTIONS)
        found_kinds = numpy.hstack([numpy.tile(kinds, DETECTIONS_PER_OBJECT), other_kinds])
        other_radii = stream.uniform(0.6, 1, (OTHER_DETECTIONS, NUM_CORNERS))
        found_radii = numpy.vstack([numpy.tile(radii, (DETECTIONS_PER_OBJECT, 1)), other_radii])
        found_radii += 0.05 * stream.standard_normal(found_radii.shape)
        scores = stream.uniform(0.05, 1, len(corners)).tolist()
        for box, some, kind, score in zip(
            corners, found_radii, found_kinds.tolist(), scores, strict=True
        ):
            result = {"image_id": image_id, "category_id": kind, "score": score}
            runs = rasterise(outline(box, some))
            results.append({**result, "bbox": side_lengths(box), "segmentation": runs})
    categories = [{"id": kind, "name": f"kind {kind}"} for kind in range(1, num_kinds + 1)]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def describe(box: FloatArray, radii: FloatArray, is_crowd: bool) -> dict[str, Any]:
    """Box, area and outline of an annotation; a crowd's is given in runs of pixels."""
    polygon = outline(box, radii)
    runs = rasterise(polygon)
    segmentation: Any = [polygon]
    if is_crowd:
        counts = shapes.count_runs(coco_mask.decode(runs))
        segmentation = {"size": [ORIGINAL_HEIGHT, ORIGINAL_WIDTH], "counts": counts}
    return {
        "bbox": side_lengths(box),
        "area": float(coco_mask.area(runs)),
        "segmentation": segmentation,
        "iscrowd": int(is_crowd),
    }


def side_lengths(box: FloatArray) -> list[float]:
    """Corners as left, top, width and height."""
    return [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()]


def outline(box: FloatArray, radii: FloatArray) -> list[float]:
    """A polygon around the middle of a box, radii in halves of its sides: x, y, x, y, ..."""
    angles = numpy.linspace(0, 2 * math.pi, len(radii), endpoint=False)
    directions = numpy.column_stack([numpy.cos(angles), numpy.sin(angles)])
    corners = (box[:2] + box[2:]) / 2 + directions * radii[:, None] * (box[2:] - box[:2]) / 2
    flat: list[float] = corners.ravel().tolist()
    return flat


def rasterise(polygon: list[float]) -> Runs:
    """Which pixels of an image of the COCO evaluation it covers."""
    runs: Runs = coco_mask.frPyObjects([polygon], ORIGINAL_HEIGHT, ORIGINAL_WIDTH)[0]
    return runs


# --- clock and result -----------------------------------------------------------------------------


def count_calls(head: nn.Module) -> list[int]:
    """A list that gets the number of regions of each later call of a head."""
    counts: list[int] = []
    head.register_forward_pre_hook(lambda _, inputs: counts.append(len(inputs[0])))
    return counts


def measure(
    work: Work,
    step: Callable[[], Tensor],
    find: Callable[[], int],
    paste: Callable[[], Sequence[Runs]],
    judge: Callable[[], Mapping[str, Sequence[float]]],
    heads: tuple[nn.Module, nn.Module],
    num_expected_masks: int,
    facts: Mapping[str, Any],
) -> None:
    """Time each part, inference before steps change the weights, and print the frame's line.

    They return the losses in our order, the number of detections, the masks of an image, and COCO's
    twelve numbers of boxes and of masks. heads: of boxes and of masks, whose calls are counted.
    """
    paste_s, runs, _ = median_s(paste, work.num_pastings)
    judge_s, statistics, _ = median_s(judge, work.num_coco_calls)
    num_regions, num_masks = (count_calls(head) for head in heads)
    find_s, num_detections, inferences_s = median_s(find, work.num_steps)
    num_finds = len(num_regions)
    losses: list[Tensor] = []
    step_s, _, steps_s = median_s(lambda: losses.append(step()), work.num_steps)
    # Which box suppresses another may hang on its last bit, and with it a mask of the first step.
    num_trained_masks = num_masks[num_finds]
    if abs(num_trained_masks - num_expected_masks) <= MASKS_TOLERANCE * num_expected_masks:
        num_trained_masks = num_expected_masks
    shared = {
        "num_threads": torch.get_num_threads(),
        "num_detections": num_detections,
        "num_regions_of_inference": num_regions[0],
        "num_masks_of_inference": num_masks[0],
        "num_regions_of_step": num_regions[num_finds],
        "num_masks_of_step": num_trained_masks,
        "masks_sha256": hashlib.sha256(b" ".join(one["counts"] for one in runs)).hexdigest(),
        "num_coco_images": work.num_coco_images,
        "statistics": {
            kind: [round(value, 9) for value in values] for kind, values in statistics.items()
        },
    }
    measures = {
        "train_images_per_s": work.batch_size / step_s,
        "inference_images_per_s": work.batch_size / find_s,
        "pasting_ms": 1000 * paste_s,
        "coco_evaluation_s": judge_s,
    }
    details = {
        "losses": [dict(zip(LOSSES, some.tolist(), strict=True)) for some in losses],
        "num_masks_of_steps": num_masks[num_finds:],
        "steps_s": steps_s,
        "inferences_s": inferences_s,
        "peak_memory_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }
    print(json.dumps({"measures": measures, "facts": {**facts, **shared}, "details": details}))
