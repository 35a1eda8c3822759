"""Our Seq-CNN beside the same network in Keras and in PaddlePaddle's own ragged operators.

    .venv/bin/python -m comparisons.sentiment_analysis

Training steps and evaluation in the reference configuration and float32, on made-up reviews about
as long as IMDB's; nothing is trained to a target. comparisons/README.md says what is not equal.
Keras is in requirements-dev.txt; where PaddlePaddle's environment cannot be made it is left out.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Sequence

import tyro

from comparisons import comparison, environments
from comparisons.comparison import Comparison, Peer
from comparisons.pairs import Measure, PairOptions
from harness.errors import UsageError
from harness.options import exit_with, one_line_errors

PADDLE = Peer(
    key="paddle",
    name="PaddlePaddle",
    script="sentiment_analysis_paddle_peer.py",
    arguments=(),
    packages=(),  # nothing of it is ours
    environment="sentiment_analysis-paddle",
    newest_python=(3, 12),
)
COMPARISON = Comparison(
    benchmark="sentiment_analysis",
    our_command=("comparisons.sentiment_analysis_ours",),
    peers=(
        Peer(
            key="keras",
            name="Keras",
            script="sentiment_analysis_keras_peer.py",
            arguments=(),
            packages=("keras", "tensorflow"),
        ),
        PADDLE,
    ),
    measures=(
        Measure("train_reviews_per_s", "training steps, reviews/s", True, 2),
        Measure("evaluation_reviews_per_s", "evaluation, reviews/s", True, 2),
    ),
)


def with_work(given: Comparison, folder: str, sizes: Sequence[str] = ()) -> Comparison:
    """The comparison of work that lies in a folder, which must be empty."""
    arguments = ("--folder", folder, *sizes)
    return dataclasses.replace(
        given,
        our_command=(*given.our_command, *arguments),
        peers=tuple(dataclasses.replace(peer, arguments=arguments) for peer in given.peers),
        preparation=((sys.executable, "-m", "comparisons.sentiment_analysis_work", *arguments),),
    )


def without_missing(given: Comparison) -> Comparison:
    """The comparison with those peers whose environment is there or can be made."""
    peers = []
    for peer in given.peers:
        try:
            if peer.environment:
                environments.make(peer.environment, peer.newest_python)
            peers.append(peer)
        except UsageError as error:
            print(f"without {peer.name}: {error}", file=sys.stderr)
    return dataclasses.replace(given, peers=tuple(peers))


def main(arguments: Sequence[str] | None = None) -> int:
    """As the frame's; returns the exit status."""
    try:
        with one_line_errors():
            tyro.cli(PairOptions, prog="python -m comparisons.sentiment_analysis", args=arguments)
    except UsageError as error:
        return exit_with(error)
    with tempfile.TemporaryDirectory() as folder:
        return comparison.main(with_work(without_missing(COMPARISON), folder), arguments)


if __name__ == "__main__":
    sys.exit(main())
