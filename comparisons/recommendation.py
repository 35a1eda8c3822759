"""Our NeuMF beside RecBole's, on MovieLens 100K: speed and time to HR@10 0.20.

    .venv/bin/python -m comparisons.recommendation

Same network (64 factors, perceptron 256-256-128-64), Adam with rate 0.0005, 4 fresh negatives for
each positive, no dropout, last rating held out, 999 evaluation negatives. RecBole's batch counts
examples, but holds whole groups of a positive and its negatives: of a batch of 2048 it makes 409
groups, 2,045 examples. Ours takes 2,045 as well, so that both make the same 243 steps an epoch.
comparisons/README.md says what is not equal.
"""

from __future__ import annotations

import sys

from comparisons.comparison import Comparison, Peer, main, three_measures
from harness.options import default_options
from recommendation.prepare import RATINGS_FILES

DATA_DIR = default_options("recommendation", "mini").data_dir
OUR_ARGUMENTS = ("mini", "--batch-size", "2045")

COMPARISON = Comparison(
    benchmark="recommendation",
    our_command=("comparisons.our_run", "recommendation", *OUR_ARGUMENTS),
    peers=(
        Peer(
            key="recbole",
            name="RecBole 1.2.1",
            script="recommendation_peer.py",
            arguments=("--ratings", str(DATA_DIR / RATINGS_FILES["ml-100k"])),
            packages=("torch",),
            environment="recommendation-peer",
            newest_python=(3, 12),  # of NumPy 1.26, the last that RecBole works with
        ),
    ),
    measures=three_measures(train=1.5, evaluation=10, target=3),
    preparation=(
        ("recommendation/download_dataset.sh", "mini"),
        (sys.executable, "-m", "recommendation.prepare", "mini"),
    ),
)

if __name__ == "__main__":
    sys.exit(main(COMPARISON))
