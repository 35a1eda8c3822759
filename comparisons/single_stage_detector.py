"""Our SSD300 beside torchvision's SSD class around the same layers, and our COCO evaluation.

    .venv/bin/python -m comparisons.single_stage_detector

Training steps and evaluation of 8 images of 300x300 in float32, target encoding alone,
post-processing alone; COCO's metric beside pycocotools. All on made-up data; nothing is trained to
a target. comparisons/README.md says what is not equal. torchvision is in requirements-dev.txt.
"""

from __future__ import annotations

import sys

from comparisons.comparison import Comparison, Peer, main
from comparisons.pairs import Measure

COMPARISON = Comparison(
    benchmark="single_stage_detector",
    our_command=("comparisons.single_stage_detector_ours",),
    peers=(
        Peer(
            key="torchvision",
            name="torchvision, pycocotools",
            script="single_stage_detector_torchvision_peer.py",
            arguments=(),
            packages=("torch", "torchvision", "pycocotools", "faster-coco-eval"),
        ),
    ),
    measures=(
        Measure("train_images_per_s", "training steps, images/s", True, 1.2),
        Measure("evaluation_images_per_s", "forward and post-processing, images/s", True, 1.2),
        Measure("encoding_ms", "target encoding of 8 images alone, ms", False, 5),
        Measure("post_processing_ms", "post-processing of 8 images alone, ms", False, 5),
        Measure("coco_evaluation_s", "COCO's metric of 500 images, s", False, 3),
    ),
)

if __name__ == "__main__":
    sys.exit(main(COMPARISON))
