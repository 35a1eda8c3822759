"""Our Mask R-CNN beside torchvision's with the same weights, and our COCO evaluation.

    .venv/bin/python -m comparisons.object_detection

Training steps and inference of 2 images of 1333x800 in float32, pasting of masks alone; COCO's
metric of boxes and masks beside pycocotools. All on made-up data; nothing is trained to a target.
comparisons/README.md says what is not equal. torchvision is in requirements-dev.txt.
"""

from __future__ import annotations

import sys

from comparisons.comparison import Comparison, Peer, main
from comparisons.pairs import Measure

COMPARISON = Comparison(
    benchmark="object_detection",
    our_command=("comparisons.object_detection_ours",),
    peers=(
        Peer(
            key="torchvision",
            name="torchvision, pycocotools",
            script="object_detection_torchvision_peer.py",
            arguments=(),
            packages=("torch", "torchvision", "pycocotools", "faster-coco-eval"),
        ),
    ),
    measures=(
        Measure("train_images_per_s", "training steps, images/s", True, 1),
        Measure("inference_images_per_s", "inference up to masks of 28x28, images/s", True, 1),
        Measure("pasting_ms", "pasting of 100 masks alone, ms", False, 2),
        Measure("coco_evaluation_s", "COCO's metric of 500 images, boxes and masks, s", False, 3),
    ),
)

if __name__ == "__main__":
    sys.exit(main(COMPARISON))
