"""Our ResNet-50 beside Keras's and torchvision's: training step, and input pipeline.

    .venv/bin/python -m comparisons.image_classification

Training steps of 8 images at 224x224 in float32, and batches of 64 out of the same 100 photos of
ImageNet's classes, cropped and mirrored at random. Nothing is trained to a target.
comparisons/README.md says what is not equal. Keras and torchvision are in requirements-dev.txt.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from comparisons.comparison import Comparison, Peer, main
from comparisons.pairs import Measure
from harness.options import REPOSITORY

TEST_DATA = Path(os.environ.get("MLPERF_TEST_DATA") or REPOSITORY.parent / "shared" / "data")
PHOTOS = TEST_DATA / "imagenet" / "one_per_class"
ARGUMENTS = ("--photos", str(PHOTOS))

COMPARISON = Comparison(
    benchmark="image_classification",
    our_command=("comparisons.image_classification_ours", *ARGUMENTS),
    peers=(
        Peer(
            key="keras",
            name="Keras",
            script="image_classification_keras_peer.py",
            arguments=ARGUMENTS,
            packages=("keras", "tensorflow"),
        ),
        Peer(
            key="torchvision",
            name="torchvision",
            script="image_classification_torchvision_peer.py",
            arguments=ARGUMENTS,
            packages=("torch", "torchvision"),
        ),
    ),
    measures=(
        Measure("train_images_per_s", "training steps, images/s", True, 1.0),
        Measure("input_images_per_s", "input pipeline alone, images/s", True, 1.5),
        Measure(
            "input_wait_percent", "waiting for input, % of our step", False, None, hoped_value=5
        ),
    ),
    needs=((PHOTOS, "MLPERF_TEST_DATA names the folder that has imagenet/one_per_class/*/*.JPEG"),),
)

if __name__ == "__main__":
    sys.exit(main(COMPARISON))
