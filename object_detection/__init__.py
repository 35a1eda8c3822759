"""SSD300 on COCO 2017, trained to box AP: see README.md."""

import harness  # noqa: F401  before torch is loaded: it sets how OpenMP threads wait
