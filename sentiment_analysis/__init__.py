"""Seq-CNN on IMDB, trained to its accuracy: see README.md."""

import harness  # noqa: F401  before torch is loaded: it sets how OpenMP threads wait
