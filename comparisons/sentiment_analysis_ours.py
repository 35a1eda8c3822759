"""One run of our side of comparisons.sentiment_analysis.

    .venv/bin/python -m comparisons.sentiment_analysis_ours --seed 1 --folder FOLDER

It calls what sentiment_analysis.train calls, in the reference configuration.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy
import torch
from torch import nn

from comparisons.sentiment_analysis_work import (
    NUM_CLASSES,
    Batch,
    FloatArray,
    Work,
    draw_weights,
    measure,
    parse_arguments,
)
from harness import torch_support
from sentiment_analysis.config import REFERENCE
from sentiment_analysis.data import make_batch
from sentiment_analysis.evaluate import evaluate
from sentiment_analysis.model import SequenceCNN
from sentiment_analysis.optimizer import LazyAdam
from sentiment_analysis.prepare import Reviews

CPU = torch.device("cpu")


def main() -> None:
    """Measure and print the result."""
    work = parse_arguments()
    torch_support.set_up(CPU, work.seed)
    config = dataclasses.replace(
        REFERENCE,
        embedding_size=work.embedding_size,
        num_filters=work.num_filters,
        batch_size=work.batch_size,
        eval_batch_size=work.batch_size,
    )
    model = make_model(work)
    optimizer = LazyAdam(model, config)
    scaler = torch.GradScaler("cpu", enabled=False)
    num_done = 0

    def step(batch: Batch) -> float:
        nonlocal num_done
        reviews = as_reviews([batch])
        made = make_batch(reviews, numpy.arange(len(reviews)), config.filter_widths, CPU)
        logits = model(made.words, made.groups)
        loss = nn.functional.cross_entropy(logits, made.labels, reduction="sum") / len(reviews)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        num_done += 1
        optimizer.step(scaler, made.step_words, num_done)
        scaler.update()
        return loss.item()

    @torch.no_grad()
    def answer(batches: Sequence[Batch]) -> FloatArray:
        reviews = as_reviews(batches)
        made = make_batch(reviews, numpy.arange(len(reviews)), config.filter_widths, CPU)
        logits = model(made.words, made.groups)
        differences = torch.empty(len(reviews))
        differences[made.reviews] = logits[:, 0] - logits[:, 1]
        return differences.numpy()

    measure(
        work,
        step=step,
        answer=answer,
        evaluate=lambda batches: evaluate(model, as_reviews(batches), config, CPU),
        facts={
            "num_words": len(model.embedding),
            "embedding_size": model.embedding.shape[1],
            "num_filters": [len(bias) for bias in model.filter_biases],
            "filter_widths": [len(weight) for weight in model.filters],
            "num_parameters": sum(weights.numel() for weights in model.parameters()),
            "learning_rate": config.learning_rate,
            "adam_betas": [config.adam_beta1, config.adam_beta2],
            "adam_epsilon": config.adam_epsilon,
            "num_threads": torch.get_num_threads(),
        },
    )


@torch.no_grad()
def make_model(work: Work) -> SequenceCNN:
    """Our network with the weights that all programs start from."""
    drawn = draw_weights(work)
    model = SequenceCNN(
        work.num_words, work.embedding_size, work.num_filters, REFERENCE.filter_widths
    )
    model.embedding.copy_(torch.from_numpy(drawn.embedding))
    for weight, bias, matrix, values in zip(
        model.filters, model.filter_biases, drawn.filters, drawn.filter_biases, strict=True
    ):
        places = torch.from_numpy(matrix).view(len(weight), work.embedding_size, work.num_filters)
        weight.copy_(places.transpose(1, 2))
        bias.copy_(torch.from_numpy(values))
    output = torch.from_numpy(numpy.concatenate(drawn.output))
    assert output.shape == (2 * work.num_filters, NUM_CLASSES)
    model.output.weight.copy_(output.T)
    model.output.bias.copy_(torch.from_numpy(drawn.output_bias))
    return model


def as_reviews(batches: Sequence[Batch]) -> Reviews:
    """These reviews as our benchmark has them, one after another."""
    texts = [text for batch in batches for text in batch.texts]
    offsets = numpy.cumsum([0, *map(len, texts)])
    labels = numpy.concatenate([batch.labels for batch in batches])
    return Reviews(numpy.concatenate(texts).astype(numpy.uint16), offsets, labels)


if __name__ == "__main__":
    main()
