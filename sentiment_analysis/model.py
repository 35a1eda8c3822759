"""Seq-CNN: two convolutions over the words of a review, the largest of each filter, one layer.

v0.5's network, after Kim, Convolutional Neural Networks for Sentence Classification, EMNLP 2014.

A filter of width k is a vector for each of its k places, and what it gives at a window is the sum
of its products with the embeddings of the k words there. A word's product with a place is the same
wherever it stands, so it is computed once for each distinct word of the batch (the `responses`),
and a window is the sum of k rows of that table: the same convolution with a tenth of the
multiplications, as a batch of 128 reviews has 30,000 windows of 3,000 distinct words.

ELU grows with its argument, so the largest ELU is the ELU of the largest.

Shapes: W words, E embedding_size, H num_filters, N reviews, k width of a convolution, K the width
of the windows (large enough for all convolutions), L windows of a review, padded within a group of
reviews of like length; n reviews of a group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sentiment_analysis.config import NUM_CLASSES


def window_reach(filter_widths: Sequence[int]) -> tuple[int, int]:
    """Words that windows reach to the left and to the right of their own word.

    A filter of width k begins floor(k / 2) words before it: width 3 sees t-1 to t+1, width 4 sees
    t-2 to t+1 (v0.5's alignment; others put the odd word to the right).
    """
    left = max(width // 2 for width in filter_widths)
    right = max(width - 1 - width // 2 for width in filter_widths)
    return left, right


class SequenceCNN(nn.Module):
    """Tells positive (0) from negative (1) reviews of any length."""

    def __init__(
        self,
        num_words: int,
        embedding_size: int,
        num_filters: int,
        filter_widths: Sequence[int],
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.filter_widths = tuple(filter_widths)
        self.left, self.right = window_reach(filter_widths)
        self.dropout = dropout
        self.embedding = nn.Parameter(torch.empty(num_words, embedding_size))
        self.filters = nn.ParameterList(
            nn.Parameter(torch.empty(width, num_filters, embedding_size)) for width in filter_widths
        )
        self.filter_biases = nn.ParameterList(
            nn.Parameter(torch.empty(num_filters)) for _ in filter_widths
        )
        self.output = nn.Linear(num_filters * len(filter_widths), NUM_CLASSES)
        self.reset_parameters()

    def reset_parameters(self, shared_stream_seed: int | None = None) -> None:
        """Xavier's uniform values for matrices (Glorot and Bengio, 2010), zero for biases.

        Fans are the sides of v0.5's matrices: [words, E], [k E, H] and one [H, 2] for each
        convolution. With `shared_stream_seed` each matrix is drawn from the beginning of the same
        stream, in v0.5's order of its values, so that all are scaled copies of one another's head.
        """

        def draw(rows: int, columns: int) -> Tensor:
            generator = None
            if shared_stream_seed is not None:
                generator = torch.Generator().manual_seed(shared_stream_seed)
            limit = math.sqrt(6 / (rows + columns))
            return torch.rand(rows, columns, generator=generator).mul_(2 * limit).sub_(limit)

        with torch.no_grad():
            num_filters = self.filters[0].shape[1]
            self.embedding.copy_(draw(*self.embedding.shape))
            for weight, bias in zip(self.filters, self.filter_biases, strict=True):
                width, _, size = weight.shape
                matrix = draw(width * size, num_filters)  # [k E, H], the places one after another
                weight.copy_(matrix.view(width, size, num_filters).transpose(1, 2))
                bias.zero_()
            parts = [draw(num_filters, NUM_CLASSES) for _ in self.filters]  # [H, 2] each
            self.output.weight.copy_(torch.cat(parts).T)
            self.output.bias.zero_()

    def forward(self, words: Tensor, groups: Sequence[Tensor]) -> Tensor:
        """Logits [N, 2] of reviews: `words` [W] are the distinct words of them all.

        groups: windows [n, L, K] of groups of reviews, as places in `words`; place W is outside
        of the review. The logits are in the order of the groups.
        """
        return self.classify(self.responses(words), groups)

    def responses(self, words: Tensor) -> list[Tensor]:
        """What each filter gives for each word at each of its places: [W + 1, k, H] for each k.

        The last row is zero: what lies outside of a review adds nothing.
        """
        embedded = nn.functional.embedding(words, self.embedding)  # [W, E]
        embedded = nn.functional.pad(embedded, (0, 0, 0, 1))  # [W + 1, E]
        tables = []
        for weight in self.filters:
            table = nn.functional.linear(embedded, weight.flatten(0, 1))  # [W + 1, k H]
            tables.append(table.unflatten(1, weight.shape[:2]))
        return tables

    def classify(self, responses: Sequence[Tensor], groups: Sequence[Tensor]) -> Tensor:
        """Logits [N, 2] out of what `responses` returned and the windows of the reviews."""
        pooled = [values for values, _ in self.pool(responses, groups)]
        hidden = torch.cat(pooled, dim=1)  # [N, H] for each convolution
        hidden = nn.functional.dropout(hidden, self.dropout, self.training)
        return self.output(hidden)

    def pool(
        self, responses: Sequence[Tensor], groups: Sequence[Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        """For each convolution the largest value of each filter in each review, bias and ELU done.

        Returns the values [N, H] with the rows of the winning windows in the flat table [N, k, H].
        """
        pooled = []
        for table, bias, width in zip(
            responses, self.filter_biases, self.filter_widths, strict=True
        ):
            first = self.left - width // 2
            places = [windows[:, :, first : first + width] for windows in groups]
            sums, winners = LargestWindow.apply(table, *places)
            pooled.append((nn.functional.elu(sums + bias), winners))
        return pooled


class LargestWindow(torch.autograd.Function):
    """The largest sum of a window's rows, for each filter of each review.

    Only the winning window has a gradient, so none is computed for the 99 of 100 others.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, *groups: Tensor) -> tuple[Tensor, Tensor]:
        """Table [W + 1, k, H], groups of windows [n, L, k] -> sums [N, H], winners [N, k, H]."""
        _, width, num_filters = table.shape
        offsets = torch.arange(width, device=table.device)
        sums, winners = [], []
        for places in groups:
            rows = places * width + offsets  # [n, L, k] in the flat table
            values = nn.functional.embedding_bag(
                rows.flatten(0, 1), table.view(-1, num_filters), mode="sum"
            )  # [n L, H]
            values, window = values.view(*rows.shape[:2], num_filters).max(dim=1)  # [n, H]
            sums.append(values)
            by_place = rows.transpose(1, 2)  # [n, k, L]
            winners.append(by_place.gather(2, window.unsqueeze(1).expand(-1, width, -1)))
        ctx.table_shape = table.shape
        all_winners = torch.cat(winners)
        ctx.save_for_backward(all_winners)
        ctx.mark_non_differentiable(all_winners)
        return torch.cat(sums), all_winners

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of each sum goes to the rows of its winning window."""
        (winners,) = ctx.saved_tensors  # [N, k, H]
        gradient = gradients[0].unsqueeze(1).expand_as(winners)  # [N, k, H]
        table = gradient.new_zeros(ctx.table_shape)  # [W + 1, k, H]
        num_filters = winners.shape[2]
        # In one dimension PyTorch has a deterministic kernel on a GPU too.
        cells = winners * num_filters + torch.arange(num_filters, device=winners.device)
        table.view(-1).scatter_add_(0, cells.flatten(), gradient.flatten())
        return table, *([None] * (len(ctx.needs_input_grad) - 1))
