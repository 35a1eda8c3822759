"""torchvision's Mask R-CNN built as the specification's section 7 says, with our weights."""

from __future__ import annotations

from functools import partial

import torch
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.resnet import resnet50
from torchvision.ops import FrozenBatchNorm2d

from object_detection import model

PARTS = {
    "backbone.": "backbone.body.",
    "pyramid.lateral.": "backbone.fpn.inner_blocks.",
    "pyramid.output.": "backbone.fpn.layer_blocks.",
    "proposal_head.conv.": "rpn.head.conv.0.0.",
    "proposal_head.objectness.": "rpn.head.cls_logits.",
    "proposal_head.deltas.": "rpn.head.bbox_pred.",
    "box_head.fc": "roi_heads.box_head.fc",
    "box_head.classes.": "roi_heads.box_predictor.cls_score.",
    "box_head.deltas.": "roi_heads.box_predictor.bbox_pred.",
    "mask_head.convs.": "roi_heads.mask_head.",
    "mask_head.upsample.": "roi_heads.mask_predictor.conv5_mask.",
    "mask_head.masks.": "roi_heads.mask_predictor.mask_fcn_logits.",
}
"""Beginnings of our names and of torchvision's."""
NUMBERED = ("pyramid.lateral.", "pyramid.output.", "mask_head.convs.")
"""Where torchvision has a module more between number and parameter."""


def their_name(name: str) -> str:
    """What torchvision calls one of our parameters or buffers."""
    (ours,) = (part for part in PARTS if name.startswith(part))
    rest = name.removeprefix(ours)
    if ours in NUMBERED:
        number, _, rest = rest.partition(".")
        rest = f"{number}.0.{rest}"
    return PARTS[ours] + rest


def torchvision_mask_rcnn() -> MaskRCNN:
    """The same network: MSRA strides, batch normalisation frozen and without epsilon."""
    body = resnet50(norm_layer=partial(FrozenBatchNorm2d, eps=0.0))
    for layer in (body.layer2, body.layer3, body.layer4):
        layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
    return MaskRCNN(_resnet_fpn_extractor(body, 3), 81)


def with_our_weights(ours: model.MaskRCNN) -> MaskRCNN:
    """The network of torchvision with the weights and constants of ours."""
    theirs = torchvision_mask_rcnn()
    state = {their_name(name): value for name, value in ours.state_dict().items()}
    theirs.load_state_dict(state)
    return theirs.eval()


def randomise(network: torch.nn.Module, seed: int) -> None:
    """Constants that are not those of an untrained network, and weights that keep values apart."""
    generator = torch.Generator().manual_seed(seed)
    for name, buffer in network.named_buffers():
        values = torch.rand(buffer.shape, generator=generator)
        if name.endswith(("bias", "mean")):
            buffer.copy_(0.2 * values - 0.1)
        else:
            buffer.copy_(0.5 + values)
    with torch.no_grad():
        for name, weights in network.named_parameters():
            if name.endswith("bias"):
                weights.copy_(0.2 * torch.rand(weights.shape, generator=generator) - 0.1)
