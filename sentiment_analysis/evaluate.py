"""Accuracy on the test reviews, as v0.5 counts it, and exactly.

v0.5 takes the mean over batches, each batch with the same weight: its last one has 40 reviews, so
that each of them weighs three times as much as another. Batches are cut out of the test half in
its order, all positive reviews and then all negative ones.
"""

from __future__ import annotations

import numpy
import torch
from torch import Tensor

from harness import torch_support
from sentiment_analysis.config import Config
from sentiment_analysis.data import make_windows, on, texts_of
from sentiment_analysis.model import SequenceCNN
from sentiment_analysis.prepare import Reviews

REVIEWS_AT_A_TIME = 1024
"""Reviews whose windows are made together: enough for groups of like length."""


def accuracies(is_right: Tensor, batch_size: int) -> dict[str, float]:
    """Percent of right answers out of [N] bool: mean of the batches' (v0.5), and of all reviews."""
    batches = [batch.double().mean() for batch in is_right.split(batch_size)]
    return {
        "accuracy": 100 * float(torch.stack(batches).mean()),
        "exact_accuracy": 100 * float(is_right.double().mean()),
    }


@torch.no_grad()
def evaluate(
    model: SequenceCNN,
    reviews: Reviews,
    config: Config,
    device: torch.device,
) -> dict[str, float]:
    """Accuracies in percent over all reviews of all processes, each review once.

    What each word gives at each place of each filter is computed once for the whole vocabulary, in
    float32.
    """
    was_training = model.training
    model.eval()
    num_words = len(model.embedding)
    responses = model.responses(torch.arange(num_words, device=device))
    # Reviews of like length are near one another, and each process has as many long ones.
    order = numpy.argsort(reviews.lengths, kind="stable")
    mine = order[torch_support.rank() :: torch_support.num_processes()]
    is_right = torch.zeros(len(reviews), dtype=torch.int64, device=device)
    for start in range(0, len(mine), REVIEWS_AT_A_TIME):
        chosen = mine[start : start + REVIEWS_AT_A_TIME]
        texts = texts_of(reviews, chosen)
        places = numpy.concatenate(texts)
        lengths = list(map(len, texts))
        groups = make_windows(places, lengths, num_words, config.filter_widths, device)
        answers = model.classify(responses, groups).argmax(dim=1)
        is_right[on(device, chosen)] = (answers == on(device, reviews.labels[chosen])).long()
    model.train(was_training)
    torch_support.sum_over_processes(is_right)
    return accuracies(is_right.bool().cpu(), config.eval_batch_size)
