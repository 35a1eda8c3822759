"""NeuMF on MovieLens, trained to HR@10: see README.md."""

import harness  # noqa: F401  before torch is loaded: it sets how OpenMP threads wait
