"""The region proposal network: where on an image there may be an object of whatever class.

Shapes: B images, N anchors of all feature maps (N_l of one), P proposals of an image.

Sources: Ren et al., "Faster R-CNN" (2015), section 3.1; Lin et al., "Feature Pyramid Networks"
(2017), section 4.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from object_detection.boxes import Boxes
from object_detection.config import Config
from object_detection.matching import IGNORED, match, sample

WEIGHTS = (1.0, 1.0, 1.0, 1.0)
"""Of the coding of proposals against anchors."""
MIN_FOREGROUND, MAX_BACKGROUND = 0.7, 0.3
"""Overlaps with an object that make an anchor show it, or background."""
FOREGROUND_SHARE = 0.5
"""Of the anchors that count, at most."""
BETA = 1 / 9
"""Where the loss of a delta turns from a square into a line."""


class RegionProposalHead(nn.Module):
    """One 3x3 convolution, and 1x1 ones for objectness and box deltas, on every map the same."""

    def __init__(self, num_channels: int, num_ratios: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(num_channels, num_channels, 3, padding=1)
        self.objectness = nn.Conv2d(num_channels, num_ratios, 1)
        self.deltas = nn.Conv2d(num_channels, 4 * num_ratios, 1)
        for name, values in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(values)
            else:
                nn.init.normal_(values, std=0.01)

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Objectness logits [B, N_l] and box deltas [B, N_l, 4] of each map, in anchors' order."""
        objectness, deltas = [], []
        for x in maps:
            hidden = torch.relu(self.conv(x))
            objectness.append(self.objectness(hidden).permute(0, 2, 3, 1).flatten(1))
            deltas.append(self.deltas(hidden).permute(0, 2, 3, 1).reshape(len(x), -1, 4))
        return objectness, deltas


@torch.no_grad()
def propose(
    objectness: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors: Sequence[Tensor],
    sizes: Tensor,
    config: Config,
    is_training: bool,
) -> list[Tensor]:
    """Proposals [P, 4] of each image, the surest first.

    objectness [B, N_l], deltas [B, N_l, 4], anchors [N_l, 4] of each map; sizes [B, 2]: width and
    height of the images without padding. The best of each map are decoded, clipped to the image
    and suppressed map by map; the best of all maps stay, of each image or of the whole batch.
    """
    coordinates = Boxes(config.legacy_coords)
    before = config.train_pre_nms if is_training else config.test_pre_nms
    after = config.train_post_nms if is_training else config.test_post_nms
    scores, boxes, levels = [], [], []
    for level, (some_logits, some_deltas, some_anchors) in enumerate(
        zip(objectness, deltas, anchors, strict=True)
    ):
        count = min(before, some_logits.shape[1])
        best, places = some_logits.float().sigmoid().topk(count, dim=1)
        chosen = some_deltas.float().gather(1, places[..., None].expand(-1, -1, 4))
        decoded = coordinates.decode(chosen, some_anchors[places], WEIGHTS)
        scores.append(best)
        boxes.append(coordinates.clip(decoded, sizes))
        levels.append(torch.full_like(places, level))
    all_scores, all_boxes = torch.cat(scores, dim=1), torch.cat(boxes, dim=1)
    all_levels = torch.cat(levels, dim=1)
    kept_boxes, kept_scores = [], []
    for some_boxes, some_scores, some_levels in zip(all_boxes, all_scores, all_levels, strict=True):
        kept = coordinates.suppress(some_boxes, some_scores, some_levels, config.rpn_nms_iou)
        kept = kept[:after]
        kept_boxes.append(some_boxes[kept])
        kept_scores.append(some_scores[kept])
    if is_training and config.proposals_per == "batch":
        return best_of_batch(kept_boxes, kept_scores, after)
    return kept_boxes


def best_of_batch(boxes: Sequence[Tensor], scores: Sequence[Tensor], count: int) -> list[Tensor]:
    """Of all images' proposals together only so many stay: v0.5's rule."""
    together = torch.cat(list(scores))
    is_kept = torch.zeros_like(together, dtype=torch.bool)
    is_kept[together.topk(min(count, len(together))).indices] = True
    parts = is_kept.split([len(some) for some in scores])
    return [some[kept] for some, kept in zip(boxes, parts, strict=True)]


def proposal_losses(
    objectness: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors: Sequence[Tensor],
    sizes: Tensor,
    objects: Sequence[Tensor],
    generators: Sequence[torch.Generator],
    config: Config,
) -> tuple[Tensor, Tensor]:
    """Losses of objectness and of boxes, of some anchors of each image, drawn at random.

    Arguments as for `propose`; objects: boxes [M, 4] of each image. Each is a sum over the batch,
    divided by the number of anchors drawn. Anchors that reach out of the image do not count.
    """
    coordinates = Boxes(config.legacy_coords)
    all_anchors = torch.cat(list(anchors))
    all_logits, all_deltas = torch.cat(list(objectness), dim=1), torch.cat(list(deltas), dim=1)
    logits, targets, errors = [], [], []
    for image, boxes in enumerate(objects):
        overlap = coordinates.intersection_over_union(boxes, all_anchors)
        best_object, roles = match(overlap, MIN_FOREGROUND, MAX_BACKGROUND, keep_best=True)
        is_inside = coordinates.are_inside(all_anchors, sizes[image])
        roles = roles.where(is_inside, IGNORED)
        foreground, background = sample(
            roles, config.rpn_batch_size, FOREGROUND_SHARE, generators[image]
        )
        logits.append(all_logits[image, torch.cat([foreground, background])].float())
        targets.append(torch.ones_like(logits[-1]))
        targets[-1][len(foreground) :] = 0
        expected = coordinates.encode(
            boxes[best_object[foreground]], all_anchors[foreground], WEIGHTS
        )
        found = all_deltas[image, foreground].float()
        errors.append(functional.smooth_l1_loss(found, expected, beta=BETA, reduction="sum"))
    num_drawn = sum(map(len, logits))
    objectness_loss = functional.binary_cross_entropy_with_logits(
        torch.cat(logits), torch.cat(targets), reduction="sum"
    )
    return objectness_loss / max(1, num_drawn), torch.stack(errors).sum() / max(1, num_drawn)
