"""Mask R-CNN on COCO 2017, trained to box and mask AP: see README.md."""

import harness  # noqa: F401  before torch is loaded: it sets how OpenMP threads wait
