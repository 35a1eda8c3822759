"""One run of torchvision in comparisons.object_detection: its Mask R-CNN with our weights.

The network is the same: strides in the first convolution of a stage, batch normalisation frozen
and without epsilon, our anchors. Proposals, sampling, reading of regions, losses and detection are
torchvision's; so is the pasting of masks, and pycocotools encodes them. COCO's metric is
pycocotools'.
"""

from __future__ import annotations

import contextlib
import io
from functools import partial
from typing import Any

import numpy
import torch
import tyro
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d

from comparisons.object_detection_work import (
    ORIGINAL_HEIGHT,
    ORIGINAL_WIDTH,
    Runs,
    Work,
    make_batch,
    make_masks,
    make_network,
    make_results,
    measure,
    optimizer_of,
)
from object_detection import model as our_model
from object_detection.anchors import cell_anchors
from object_detection.config import Config
from object_detection.data import Batch
from object_detection.evaluate import KINDS
from object_detection.model import MSRA_STATISTICS
from object_detection.tests.oracles import their_name

JUDGED = {"box": "bbox", "mask": "segmentation"}
"""Field of a result: pycocotools would take a mask's area from a box beside it."""
LOSSES = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask")
"""In our order."""


class Anchors(AnchorGenerator):
    """Our anchors out of torchvision's generator, which would have others and guess the strides."""

    def __init__(self, config: Config) -> None:
        sizes = tuple((size,) for size in config.anchor_sizes)
        super().__init__(sizes, (config.aspect_ratios,) * len(sizes))
        half_open = torch.tensor([0.0, 0, 1, 1])
        self.cell_anchors = [
            torch.tensor(cell_anchors(stride, size, config.aspect_ratios)) + half_open
            for stride, size in zip(config.strides, config.anchor_sizes, strict=True)
        ]
        self.strides = [[torch.tensor(stride)] * 2 for stride in config.strides]

    def grid_anchors(self, grid_sizes: list[list[int]], _: Any) -> list[Tensor]:
        """Anchors of each map."""
        anchors: list[Tensor] = super().grid_anchors(grid_sizes, self.strides)
        return anchors


class Transform(GeneralizedRCNNTransform):
    """Normalises and pads; images come resized, and masks are pasted on a clock of their own."""

    def resize(self, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
        """As they come."""
        return image, target

    def postprocess(self, result: Any, *_: Any) -> Any:
        """As the heads found them."""
        return result


def build(network: our_model.MaskRCNN, config: Config) -> MaskRCNN:
    """The Mask R-CNN of torchvision with the weights and constants of ours."""
    norm = partial(FrozenBatchNorm2d, eps=0.0)
    body = ResNet(Bottleneck, list(config.num_blocks), norm_layer=norm)
    for layer in (body.layer2, body.layer3, body.layer4):
        layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
    detector = MaskRCNN(
        _resnet_fpn_extractor(body, 5 - config.num_frozen_stages),
        config.num_classes,
        rpn_anchor_generator=Anchors(config),
        rpn_pre_nms_top_n_train=config.train_pre_nms,
        rpn_pre_nms_top_n_test=config.test_pre_nms,
        rpn_post_nms_top_n_train=config.train_post_nms,
        rpn_post_nms_top_n_test=config.test_post_nms,
        rpn_nms_thresh=config.rpn_nms_iou,
        rpn_batch_size_per_image=config.rpn_batch_size,
        box_batch_size_per_image=config.roi_batch_size,
        box_score_thresh=config.min_score,
        box_nms_thresh=config.nms_iou,
        box_detections_per_img=config.max_detections,
    )
    mean, deviation = map(list, MSRA_STATISTICS)
    detector.transform = Transform(config.min_size, config.max_size, mean, deviation)
    state = {their_name(name): values for name, values in network.state_dict().items()}
    detector.load_state_dict(state)
    return detector


def images_of(batch: Batch) -> list[Tensor]:
    """Pixels of 0 to 255 without padding, blue first, as torchvision takes them: float32."""
    sizes = batch.sizes.tolist()
    return [
        image[:, :height, :width].flip(0).float()
        for image, (width, height) in zip(batch.images, sizes, strict=True)
    ]


def targets_of(batch: Batch) -> list[dict[str, Tensor]]:
    """Objects of each image in torchvision's form: half-open corners, labels and bitmaps."""
    targets = []
    for objects, (width, height) in zip(batch.objects(), batch.sizes.tolist(), strict=True):
        outlines = objects.outlines
        bitmaps = []
        for number in range(len(objects.labels)):
            some, _ = outlines.select(torch.tensor([number]))
            polygons = some.corners.tensor_split(some.first_corner[1:-1])
            runs = coco_mask.frPyObjects(
                [one.flatten().tolist() for one in polygons], height, width
            )
            bitmaps.append(torch.from_numpy(coco_mask.decode(coco_mask.merge(runs))))
        half_open = objects.boxes + torch.tensor([0, 0, 1, 1])
        masks = torch.stack(bitmaps)
        targets.append({"boxes": half_open, "labels": objects.labels, "masks": masks})
    return targets


def paste(masks: Tensor, boxes: Tensor) -> list[Runs]:
    """Masks [D, 28, 28] of boxes [D, 4] in an image, as torchvision's reference code has them."""
    size = (ORIGINAL_HEIGHT, ORIGINAL_WIDTH)
    bitmaps = paste_masks_in_image(masks[:, None], boxes, size)[:, 0] > 0.5
    return [
        coco_mask.encode(numpy.asfortranarray(bitmap, dtype=numpy.uint8))
        for bitmap in bitmaps.numpy()
    ]


def judge(ground_truth: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, list[float]]:
    """COCO's numbers by pycocotools, which reports its progress on stdout.

    It writes to what it is given, so that it gets a copy of each annotation and result.
    """
    statistics = {}
    for kind, judged in JUDGED.items():
        fields = ("image_id", "category_id", "score", judged)
        kept = [{field: result[field] for field in fields} for result in results]
        annotations = [dict(annotation) for annotation in ground_truth["annotations"]]
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO()
            truth.dataset = {**ground_truth, "annotations": annotations}
            truth.createIndex()
            evaluation = COCOeval(truth, truth.loadRes(kept), KINDS[kind])
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        statistics[kind] = [float(value) for value in evaluation.stats]
    return statistics


def main() -> None:
    """Measure and print the result."""
    work = tyro.cli(Work)
    config, batch = work.config, make_batch(work)
    network, num_masks = make_network(work, batch)
    detector = build(network, config)
    optimizer = optimizer_of(detector, config)
    images, targets = images_of(batch), targets_of(batch)
    masks, boxes = make_masks(work)
    ground_truth, results = make_results(work)
    rpn, heads = detector.rpn, detector.roi_heads
    padded, _ = detector.transform(images)

    def step() -> Tensor:
        detector.train()
        optimizer.zero_grad()
        by_name = detector(images, targets)
        losses = torch.stack([by_name[name] for name in LOSSES])
        losses.sum().backward()
        optimizer.step()
        return losses.detach()

    @torch.no_grad()
    def find() -> int:
        detector.eval()
        return sum(len(found["scores"]) for found in detector(images))

    measure(
        work,
        step=step,
        find=find,
        paste=lambda: paste(masks, boxes),
        judge=lambda: judge(ground_truth, results),
        heads=(heads.box_head, heads.mask_head),
        num_expected_masks=num_masks,
        facts={
            "batch_shape": list(padded.tensors.shape),
            "image_sizes": [[width, height] for height, width in padded.image_sizes],
            "num_objects": sum(len(target["labels"]) for target in targets),
            "num_parameters": sum(weights.numel() for weights in detector.parameters()),
            "num_trained": sum(
                weights.numel() for group in optimizer.param_groups for weights in group["params"]
            ),
            "num_constants": sum(values.numel() for values in detector.buffers()),
            "num_classes": heads.box_predictor.cls_score.out_features,
            "rpn_batch_size": rpn.fg_bg_sampler.batch_size_per_image,
            "roi_batch_size": heads.fg_bg_sampler.batch_size_per_image,
            "rpn_nms_iou": rpn.nms_thresh,
            "num_candidates": [rpn._pre_nms_top_n[name] for name in ("training", "testing")],
            "num_proposals": [rpn._post_nms_top_n[name] for name in ("training", "testing")],
            "foreground_share": heads.fg_bg_sampler.positive_fraction,
            "min_score": heads.score_thresh,
            "nms_iou": heads.nms_thresh,
            "max_detections": heads.detections_per_img,
            "num_pasted": len(masks),
            "num_results": len(results),
        },
    )


if __name__ == "__main__":
    main()
